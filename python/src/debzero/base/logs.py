"""What libraries log, made printable: they name files and quote what is in them."""
from __future__ import annotations

import logging
import warnings
from typing import Any

from debzero.base.text import printable_lines


def make_printable() -> None:
    """Filter every record of every logger from now on, and every warning. Once for each process is enough."""
    if getattr(logging.getLogRecordFactory(), "printable", False):
        return
    create, write = logging.getLogRecordFactory(), warnings.formatwarning
    plain = logging.Formatter()

    def record(*arguments: Any, **options: Any) -> logging.LogRecord:
        made = create(*arguments, **options)
        try:
            made.msg, made.args = printable_lines(made.getMessage()), None
        except (TypeError, ValueError):  # its arguments do not fit: logging reports that
            return made
        if made.exc_info:
            made.exc_text = printable_lines(plain.formatException(made.exc_info))
        return made

    def warning(message: Any, *others: Any, **options: Any) -> str:
        return write(printable_lines(str(message)), *others, **options)

    record.printable = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(record)
    warnings.formatwarning = warning
