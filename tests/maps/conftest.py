"""The files of the second family are for the copy of the package that test_second_family.py makes."""

import os

if "FLOWKERN_SECOND_FAMILY" not in os.environ:
    collect_ignore = ["two_sided"]
