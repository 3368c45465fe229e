"""`python -m debzero`: the command line, in a checkout. What is installed runs command.py beside this package."""
# PYTHON_ARGCOMPLETE_OK
import os
import sys

from debzero.base.interpreter import SOURCE

if sys.path[0] == os.getcwd() != str(SOURCE):  # which -m has put there
    del sys.path[0]

from debzero.cli import main  # noqa: E402 - found by the path above

sys.exit(main())
