"""``python -m flowkern``."""

import sys

from flowkern.cli import main

sys.exit(main())
