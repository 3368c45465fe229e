"""A data file, whatever its format: its columns, its rows as pieces of texts, and where each row is.

Every format gives its columns as text, so that what follows has one case. A missing value is null.
"""
from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Optional, Protocol

from debzero.base.reading import open_regular
from debzero.data.faults import DataError, broken
from debzero.data.forms import refuse_others

LONGEST_ROW = 2**24  # bytes; a longer one is no sample, but the sign of a quotation mark or a bracket that is missing
ROWS = 2**14         # in a piece, at most


class Rows(Protocol):
    """Some rows of a data set, in their order. `names`: the classes of the label, where the data set numbers them
    itself."""

    name: str
    columns: list[str]
    names: Optional[list[str]]

    def pieces(self, wanted: Mapping[str, str]) -> Iterator[Any]:
        """pyarrow.RecordBatch: the wanted columns, of strings or of dictionaries of strings. `wanted` has each one's
        key of the job's `data:`, too. Raises a DataError, or an OSError."""

    def places(self, rows: Collection[int]) -> dict[int, str]:
        """Where some rows, counted from 0, are, for messages: `line 7`."""

    def share(self) -> float:
        """How much of it has been read."""


def beginning(path: Path) -> bytes:
    """The first bytes of a data file. Raises an OSError, or a DataError for another encoding than UTF-8."""
    with open_regular(path) as file:
        start = file.read(2**16)
        line = re.split(rb"[\r\n]", start, maxsplit=1)
        if len(line) == 1 or b'"' in line[0]:  # it may be longer
            start += file.read(LONGEST_ROW + 1 - len(start))
    marks = {b"\xff\xfe\0\0": "UTF-32", b"\0\0\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
    for mark, name in marks.items():
        if start.startswith(mark):
            raise broken(f"{path.name} is {name} text, not UTF-8", f"convert it: iconv -f {name} -t UTF-8")
    refuse_others(path, start)
    return start


def check_utf8(path: Path) -> None:
    """Raises a DataError with the first place that is no UTF-8."""
    import codecs

    decoder, line, column, after_return = codecs.getincrementaldecoder("utf-8")(), 1, 0, False
    with open_regular(path) as file:
        while True:
            block = file.read(2**20)
            try:
                text = decoder.decode(block, final=not block)
                bad = None
            except UnicodeDecodeError as error:
                text, bad = bytes(error.object[:error.start]).decode(), error.object[error.start]
            if after_return and text.startswith("\n"):
                text = text[1:]
            if text:
                after_return = text.endswith("\r")
                last = max(text.rfind("\n"), text.rfind("\r"))
                line += text.count("\n") + text.count("\r") - text.count("\r\n")
                column = len(text) - last - 1 if last >= 0 else column + len(text)
            if bad is not None:
                raise broken(f"{path.name} line {line}, column {column + 1}: byte 0x{bad:02x} is no UTF-8 text",
                             "convert the file, for example: iconv -f WINDOWS-1252 -t UTF-8")
            if not block:
                return


def no_character(path: Path, line: int) -> DataError:
    """A zero byte: in text it means nothing, and UTF-16 is full of them."""
    return broken(f"{path.name} line {line} holds a zero byte, which is no text",
                  "if the file is UTF-16, convert it: iconv -f UTF-16 -t UTF-8; else remove the byte")
