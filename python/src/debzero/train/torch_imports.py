"""Quicker imports of torch's launcher and of DeepSpeed, which imports it as well."""
from __future__ import annotations

import sys


def speed_up_imports() -> None:
    """To be called before the imports. Each of the launcher's modules creates a logger, for whose name torch reads the
    source of every module on the call stack and searches all others: seconds of each start, in each process. The frame
    knows the name."""
    from torch.distributed.elastic.utils import logging

    def caller(depth: int = 1) -> str:
        return str(sys._getframe(depth).f_globals["__name__"])

    logging._derive_module_name = caller
