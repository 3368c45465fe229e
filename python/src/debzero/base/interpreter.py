"""How debzero starts Python again: never with the current folder among the places to import from.

`-m` and `-c` put it first, where whoever may write there decides what is imported.
"""
from __future__ import annotations

import sys
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2]


# What -c runs: it drops the current folder before it imports anything but what is built in.
RUN_MODULE = (f"import sys; sys.path[:] = [{str(SOURCE)!r}, *filter(None, sys.path)]; import runpy; "
              "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)")


def isolation() -> list[str]:
    """The interpreter's options for a child that is as isolated from PYTHON* variables as this process."""
    return ["-I"] if sys.flags.isolated else []


def command(*arguments: str) -> list[str]:
    """The command `debzero ARGUMENTS`."""
    return [sys.executable, *isolation(), str(SOURCE / "command.py"), *arguments]


def module(name: str, *arguments: str) -> list[str]:
    """The command that runs a module of debzero's or of a library's as a program."""
    return [sys.executable, *isolation(), "-W", "ignore", "-c", RUN_MODULE, name, *arguments]
