"""`python -m debzero`: the command line."""
# PYTHON_ARGCOMPLETE_OK
import sys

from debzero.cli import main

sys.exit(main())
