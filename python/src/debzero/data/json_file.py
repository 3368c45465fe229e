"""JSON: objects one after the other, each on a line or over several, or in a list.

It is read by Python's json, a value at a time, and never by pyarrow: that one crashes where a block begins with null,
and takes texts that look like dates for dates.
"""
from __future__ import annotations

import io
import json
import math
import re
import shlex
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Optional

from debzero.base.reading import ContentError, check_depth, open_regular, whole
from debzero.base.text import short
from debzero.data.faults import DataError, Fault, broken, held
from debzero.data.reading import LONGEST_ROW, ROWS, beginning, check_utf8, no_character
from debzero.job.local_files import SPLITS

BLOCK = 2**20  # characters
TEXT = 2**23   # characters in a piece, about
ABSENT = object()
WRITTEN = "write a list of objects, or one object per line"  # as the fix for most of what is no JSON
BLANK = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder(parse_int=whole)


class Value(NamedTuple):
    line: int
    value: Any


class JsonFile:
    names: Optional[list[str]] = None

    def __init__(self, path: Path, wanted: Collection[str]) -> None:
        self.path, self.name, self._read = path, path.name, 0
        self._size = max(1, path.stat().st_size)
        beginning(path)
        values = self._values()
        first, second = next(values, None), next(values, None)
        if first is not None:
            self._check_row(first)
            if second is None:
                self._check_shape(first.value, wanted)
        self.columns = list(first.value) if first is not None else []

    def share(self) -> float:
        return min(1.0, self._read / self._size)

    def pieces(self, wanted: Mapping[str, str]) -> Iterator[Any]:
        columns: dict[str, list[Optional[str]]] = {name: [] for name in wanted}
        lines: list[int] = []
        size = 0
        for line, value in self._values():
            if not isinstance(value, dict):
                self._check_row(Value(line, value))
            for name, cells in columns.items():
                cell = value.get(name, ABSENT)
                if type(cell) is not str:
                    cell = self._as_text(cell, name, wanted[name], line)
                cells.append(cell)
                size += len(cell) if cell else 0
            lines.append(line)
            if len(lines) == ROWS or size > TEXT:
                yield self._piece(columns, lines)
                columns, lines, size = {name: [] for name in wanted}, [], 0
        if lines:
            yield self._piece(columns, lines)

    def _piece(self, columns: dict[str, list[Optional[str]]], lines: list[int]) -> Any:
        import pyarrow

        try:
            return pyarrow.RecordBatch.from_arrays(
                [pyarrow.array(cells, pyarrow.string()) for cells in columns.values()], names=list(columns))
        except UnicodeEncodeError:
            line, name, cell = next((line, name, cell) for name, cells in columns.items()
                                    for line, cell in zip(lines, cells) if cell and not _whole_characters(cell))
            raise DataError(Fault("dataset", f"{self.name} line {line}: the {name} {short(cell)} holds half a "
                                  "character, which is no text", "remove it, or write the whole character")) from None

    def _as_text(self, cell: Any, name: str, key: str, line: int) -> Optional[str]:
        if cell is ABSENT:
            raise broken(f"{self.name} line {line}: the row has no column {name!r}",
                         "give each row the same columns; a value may be null")
        if cell is None or (isinstance(cell, float) and math.isnan(cell)):
            return None
        if isinstance(cell, (dict, list)):
            raise held(key, self.name, f"line {line}", name, "lists" if isinstance(cell, list) else "mappings")
        return str(cell)

    def _check_row(self, row: Value) -> None:
        if not isinstance(row.value, dict):
            raise broken(f"{self.name} line {row.line}: a row is not an object with columns, but {short(row.value)}",
                         'write each row as an object, such as {"text": "...", "label": "..."}')

    def _check_shape(self, only: dict[str, Any], wanted: Collection[str]) -> None:
        """A file of one object may hold all rows in it."""
        tables = {key: value for key, value in only.items() if isinstance(value, list) and value
                  and all(isinstance(row, dict) for row in value)}
        splits = [split for split in SPLITS if split in tables]
        if "train" in splits and len(splits) > 1:
            raise broken(f"{self.name} holds {len(splits)} splits ({', '.join(splits)})", "give each a file in a "
                         f"folder, and name that: jq .train {shlex.quote(self.name)} > FOLDER/train.json, and so on")
        key = next((key for key, rows in tables.items() if {*wanted} <= {*rows[0]}), next(iter(tables), None))
        if key is not None and not {*wanted} <= {*only}:
            raise broken(f"the rows of {self.name} lie under {key!r}, {len(tables[key])} of them",
                         _alone(key, self.name))
        if not {*wanted} <= {*only}:
            self._refuse_pandas(only, wanted)
        if only and all(isinstance(value, (dict, list)) for value in only.values()) and {*wanted} <= {*only} \
                and len({len(value) for value in only.values()}) == 1:
            count = len(next(iter(only.values())))
            raise broken(f"{self.name} is written column by column, {count} rows each, not row by row",
                         _by_pandas(self.name))

    def _refuse_pandas(self, only: dict[str, Any], wanted: Collection[str]) -> None:
        """Raises a DataError for the other forms that a DataFrame's to_json writes."""
        if {*only} >= {"columns", "data"} and isinstance(only["data"], list):
            raise broken(f"{self.name} has its rows under 'data' and their columns under 'columns', as pandas' "
                         "orient='split' writes them", _by_pandas(self.name, ', orient="split"'))
        rows = list(only.values())
        if rows and all(isinstance(row, dict) and {*wanted} <= {*row} for row in rows):
            raise broken(f"{self.name} has each of its {len(rows)} rows under a key of its own ({short([*only][0])}, "
                         "...)", _by_pandas(self.name, ', orient="index"'))

    def places(self, rows: Collection[int]) -> dict[int, str]:
        last = max(rows, default=-1)
        return {number: f"line {value.line}" for number, value in zip(range(last + 1), self._values())
                if number in rows}

    def _values(self) -> Iterator[Value]:
        """The rows. Raises a DataError with line and column where the file is not JSON."""
        with open_regular(self.path) as file:
            text = _Text(self, io.TextIOWrapper(file, "utf-8-sig", newline=""))
            in_list = text.next_is("[")
            if in_list and text.next_is("]"):
                return text.end()
            while text.more():
                yield text.value()
                self._read = file.tell()
                if not in_list and text.next_is(","):
                    raise text.wrong("a comma follows a row", "remove the commas between the rows, or write [ before "
                                     "the first row and ] after the last")
                if in_list and not text.next_is(","):
                    if not text.next_is("]"):
                        raise text.wrong("a comma or ] must follow a row of a list")
                    return text.end()
            if in_list:
                raise text.wrong("the list is not closed with ]")
        return None


class _Text:
    """A text read bit by bit: `buffer` from `at` on is still to come, and `line` and `column` are where that is."""

    def __init__(self, of: JsonFile, file: io.TextIOWrapper) -> None:
        self.of, self.file, self.buffer, self.at, self.line, self.column, self.done = of, file, "", 0, 1, 1, False

    def _fill(self, size: int) -> bool:
        """Read on; whether there was more."""
        try:
            more = self.file.read(size)
        except UnicodeDecodeError:
            check_utf8(self.of.path)
            raise
        self.done = not more
        self.buffer, self.at = self.buffer[self.at:] + more, 0
        return not self.done

    def _pass(self, end: int) -> None:
        """Go on to `end`, counting lines."""
        lines = self.buffer.count("\n", self.at, end)
        self.column = end - self.buffer.rindex("\n", self.at, end) if lines else self.column + end - self.at
        self.line += lines
        self.at = end

    def more(self) -> bool:
        """Whether anything but blanks is left."""
        while True:
            match = BLANK.match(self.buffer, self.at)
            self._pass(match.end() if match else self.at)
            if self.at < len(self.buffer):
                return True
            if not self._fill(BLOCK):
                return False

    def next_is(self, mark: str) -> bool:
        """Whether the next character is `mark`, which is then passed."""
        found = self.more() and self.buffer[self.at] == mark
        if found:
            self._pass(self.at + 1)
        return found

    def value(self) -> Value:
        while True:
            line = self.line
            try:
                value, end = _DECODER.raw_decode(self.buffer, self.at)
            except RecursionError:
                raise broken(f"{self.of.name} line {line} is nested too deeply", "write the row with fewer levels"
                             ) from None
            except json.JSONDecodeError as error:
                after = error.pos - self.at
                if len(self.buffer) - self.at <= LONGEST_ROW and self._fill(max(BLOCK, len(self.buffer) - self.at)):
                    continue
                if not self.done:
                    raise self._too_long() from None
                self._pass(min(self.at + after, len(self.buffer)))
                ends = error.msg.startswith("Unterminated") or not self.buffer[self.at:].strip()
                raise self.wrong(error.msg, "the file ends within this row: copy it again, or correct the row" if ends
                                 else WRITTEN) from None
            except ContentError as error:  # a number with too many digits, of which more may follow
                if len(self.buffer) - self.at <= LONGEST_ROW and self._fill(BLOCK):
                    continue
                raise broken(f"{self.of.name} line {line} {error}", "write it as text, or shorter") from None
            if end == len(self.buffer) and not self.done and not isinstance(value, (dict, list)):
                self._fill(BLOCK)  # a number may have more digits
                continue
            self._pass(end)
            if isinstance(value, dict) and len(value) and not all(type(cell) is str for cell in value.values()):
                self._check_depth(value, line)
            return Value(line, value)

    def _check_depth(self, value: Any, line: int) -> None:
        try:
            check_depth(value)
        except ContentError as error:
            raise broken(f"{self.of.name} line {line} {error}", "write the row with fewer levels") from None

    def _too_long(self) -> DataError:
        under = re.match(r'\{\s*(?:"[^"]*"\s*:\s*(?:"[^"]*"|[\d.]+|null|true|false)\s*,\s*)*"([^"]*)"\s*:\s*\[\s*\{',
                         self.buffer[self.at : self.at + 2**16])
        if under:
            return broken(f"the rows of {self.of.name} lie under {under[1]!r}", _alone(under[1], self.of.name))
        return broken(f"{self.of.name} line {self.line}: a row of more than {LONGEST_ROW // 2**20} MiB begins here",
                      "write each row as an object of its own; is a bracket missing, or is the file written column by "
                      "column?")

    def wrong(self, reason: str, fix: str = WRITTEN) -> DataError:
        if self.buffer[self.at : self.at + 1] == "\0":
            return no_character(self.of.path, self.line)
        return broken(f"{self.of.name} line {self.line}, column {self.column} is not JSON: {reason}", fix)

    def end(self) -> None:
        if self.more():
            raise self.wrong("something follows the end of the list")


def _alone(key: str, file: str) -> str:
    where = f".{key}" if key.isidentifier() and key.isascii() else shlex.quote(f".[{json.dumps(key)}]")
    return f"write that list alone to a file: jq {where} {shlex.quote(file)} > rows.json"


def _by_pandas(file: str, more: str = "") -> str:
    rows = f"pandas.read_json({json.dumps(file, ensure_ascii=False)}{more})"
    program = f'import pandas; {rows}.to_json("rows.jsonl", orient="records", lines=True)'
    return f"convert it: python3 -c {shlex.quote(program)}"


def _whole_characters(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
