"""``python -m flowkern.cli``."""

import sys

from flowkern.cli import main

sys.exit(main())
