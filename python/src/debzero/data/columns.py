"""The columns of a local data file, from its beginning alone: the whole may be larger than the memory."""
from __future__ import annotations

import csv
import io
import json
from pathlib import Path

from debzero.base.reading import ROW, ContentError, decoded, open_regular, parse_json


def column_names(path: Path) -> list[str]:
    """Raises an OSError, or a ContentError with what is wrong with the file and where."""
    if path.suffix == ".parquet":
        return _of_parquet(path)
    with open_regular(path) as file:
        start = file.read(ROW + 1)
    whole = len(start) <= ROW
    if not whole:  # a character may be cut off at the end
        start = start[:start.rindex(b"\n") + 1] if b"\n" in start else b""
        if not start:
            raise ContentError(f"has a first row of more than {ROW // 2**20} MiB", "line 1")
    text = decoded(start)
    return _of_csv(text) if path.suffix == ".csv" else _of_json(text, whole)


def _of_parquet(path: Path) -> list[str]:
    import pyarrow.parquet

    with open_regular(path) as file:
        try:
            return list(pyarrow.parquet.read_schema(file).names)
        except Exception as error:  # pyarrow raises errors of its own, a ValueError, an OSError, ...
            raise ContentError(f"is no parquet file: {_first_line(error)}") from None


def _of_csv(text: str) -> list[str]:
    try:
        return next(csv.reader(io.StringIO(text.lstrip("\ufeff"), newline="")), [])
    except csv.Error as error:
        raise ContentError(f"is no CSV file: {error}", "line 1") from None


def _of_json(text: str, whole: bool) -> list[str]:
    """Of a list of objects, or of one object per line. Before a list, neither `datasets` nor json takes a byte order
    mark."""
    if text.startswith("\ufeff["):
        raise ContentError("begins with a byte order mark (BOM), which no JSON list may", "line 1")
    if text.startswith("["):
        rows = parse_json(text) if whole else [_first_of(text)]
        if not rows:
            raise ContentError("is an empty list")
        first = rows[0]
    else:
        first = parse_json(text.lstrip("\ufeff").split("\n", 1)[0])
    if not isinstance(first, dict):
        raise ContentError(f"its first row is not an object with columns, but {str(first)[:40]}")
    return list(first)


def _first_of(text: str) -> object:
    """The first value of a list whose end is not there."""
    try:
        return json.JSONDecoder().raw_decode(text, len(text) - len(text[1:].lstrip()))[0]
    except (ValueError, RecursionError) as error:
        raise ContentError(f"is not JSON: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
