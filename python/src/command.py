#!/usr/bin/env python3
"""The command `debzero`, by path: `python3 -I command.py COMMAND ...`. `python -m debzero` does the same in a checkout,
but takes the current folder for the first place to import from; whoever may write there, such as anybody in /tmp, would
run as the user of the command.

-I leaves out that folder and what PYTHON* variables add, which the children that libraries start do not get either.
"""
# PYTHON_ARGCOMPLETE_OK
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))
if sys.flags.isolated:
    for name in [name for name in os.environ if name.startswith("PYTHON")]:
        del os.environ[name]

from debzero.cli import main  # noqa: E402 - found by the path above

if __name__ == "__main__":
    sys.exit(main())
