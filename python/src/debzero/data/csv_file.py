"""CSV: read by pyarrow, which is fast and says little; where it stops, by Python's csv, which knows the line.

The two agree on what a file holds (tests compare them). Only an empty field is missing: NA, None and null are words.
"""
from __future__ import annotations

import csv
import io
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Optional

from debzero.base.reading import open_regular
from debzero.base.text import count_text, short
from debzero.data.csv_source import BYTE_ORDER_MARK, Source, ahead
from debzero.data.faults import DataError, broken
from debzero.data.reading import LONGEST_ROW, ROWS, beginning, check_utf8, no_character

SEPARATORS = (",", ";", "\t", "|")
BLOCK = 2**22  # bytes that pyarrow parses at a time; with fewer, it takes longer to begin than to parse
EXCELS = re.compile(rb'"?sep=([,;\t|])"?(\r\n|\r|\n)')  # the line before the header with which Excel says it

csv.field_size_limit(LONGEST_ROW)


class Record(NamedTuple):
    line: int            # where it begins, from 1
    fields: list[str]


class CsvFile:
    """The separator is the first with which the header has all `wanted` columns, else the one with which it has
    most. `classes`: the column that has few different values."""

    names: Optional[list[str]] = None

    def __init__(self, path: Path, wanted: Collection[str], classes: Optional[str] = None) -> None:
        self.path, self.name, self.classes = path, path.name, classes
        self._source: Optional[Source] = None
        self._first = 1  # the header's line
        start = beginning(path)
        mark = len(BYTE_ORDER_MARK) if start.startswith(BYTE_ORDER_MARK) else 0
        said = EXCELS.match(start, mark)
        separators = (said[1].decode(),) if said else SEPARATORS
        if said:
            mark, self._first = said.end(), 2
        found = [self._header(start[mark:], separator) for separator in separators]
        best = next((i for i, (names, _, _) in enumerate(found) if {*wanted} <= {*names}),
                    max(range(len(found)), key=lambda i: len(found[i][0])))
        self.separator = separators[best]
        self.columns, length, lines = found[best]
        self._start, self._lines = mark + length, self._first - 1 + lines
        double = next((name for name in wanted if self.columns.count(name) > 1), None)
        if double is not None:
            raise broken(f"{self.name} line {self._first} names the column {double!r} twice",
                         "give each column its own name")

    def _header(self, start: bytes, separator: str) -> tuple[list[str], int, int]:
        """The columns' names, and the bytes and lines that they take."""
        taken: list[str] = []

        def lines() -> Iterator[str]:
            for line in io.TextIOWrapper(io.BytesIO(start), "utf-8", newline=""):
                taken.append(line)
                yield line

        try:
            names = next(csv.reader(lines(), delimiter=separator), [])
        except UnicodeDecodeError:
            check_utf8(self.path)
            names = []  # a character is cut off at the end of a line that is too long
        except csv.Error as error:
            raise broken(f"{self.name} line {self._first} cannot be read: {error}",
                         "the first line of a CSV file names its columns") from None
        text = "".join(taken)
        if "\0" in text:
            raise no_character(self.path, self._first)
        size = len(text.encode())
        if not "".join(names).strip() or len(start) > LONGEST_ROW >= size and not text.endswith(("\n", "\r")):
            raise broken(f"{self.name} line {self._first} names no columns",
                         "the first line of a CSV file names its columns")
        return names, size, len(taken)

    def pieces(self, wanted: Mapping[str, str]) -> Iterator[Any]:
        done = 0
        with open_regular(self.path) as file:
            for piece in self._by_pyarrow(file, [*wanted]):
                if piece is None:
                    yield from self._by_python([*wanted], done)
                    return
                done += len(piece)
                yield piece

    def share(self) -> float:
        return self._source.share() if self._source else 0.0

    def _by_pyarrow(self, file: BinaryIO, wanted: list[str]) -> Iterator[Any]:
        """None where it cannot read on."""
        import pyarrow
        from pyarrow import csv as arrow

        self._source = source = Source(file, self._start)
        convert = arrow.ConvertOptions(include_columns=wanted, column_types={
            name: pyarrow.dictionary(pyarrow.int32(), pyarrow.string()) if name == self.classes else pyarrow.string()
            for name in wanted})
        parse = arrow.ParseOptions(delimiter=self.separator, newlines_in_values=True)

        def options(size: int) -> Any:  # its own threads once waited for each other for ever (pyarrow 17)
            return arrow.ReadOptions(column_names=self.columns, block_size=size, use_threads=False)

        def parsed(rows: memoryview) -> list[Any]:
            return arrow.read_csv(pyarrow.py_buffer(rows), options(len(rows)), parse, convert).to_batches()

        try:
            for batches in ahead(parsed, source.rows(self.separator, BLOCK)):
                yield from batches
            if source.at < source.size:
                for piece in arrow.open_csv(pyarrow.PythonFile(source, "r"), options(BLOCK), parse, convert):
                    if source.nul:
                        yield None
                        return
                    yield piece
                if source.quotes % 2:  # one that is never closed may have swallowed the rest of the file
                    yield None
        except pyarrow.ArrowInvalid:
            yield None

    def _by_python(self, wanted: list[str], skip: int) -> Iterator[Any]:
        """What follows the first `skip` rows. Raises a DataError for what pyarrow could not read."""
        import pyarrow

        places = [self.columns.index(name) for name in wanted]
        ragged, first = 0, None
        rows: list[list[str]] = []

        def piece() -> Any:
            columns = [[fields[place] or None for fields in rows] for place in places]
            return pyarrow.RecordBatch.from_arrays([pyarrow.array(c, pyarrow.string()) for c in columns], names=wanted)

        size = 0
        for number, record in enumerate(self._records()):
            if len(record.fields) != len(self.columns):
                ragged, first = ragged + 1, first or record
            elif not ragged and number >= skip:
                rows.append(record.fields)
                size += sum(map(len, record.fields))
            if len(rows) == ROWS or size > 2**24:
                yield piece()
                rows, size = [], 0
        if first is not None:
            raise self._ragged(first, ragged)
        if rows:
            yield piece()

    def _ragged(self, first: Record, count: int) -> DataError:
        fields, columns = len(first.fields), len(self.columns)
        extra = f", from {short(first.fields[columns])} on" if fields > columns else (
            f": no {self.columns[fields]}" if fields else "")
        others = f"; so have {count - 1} other lines" if count > 2 else "; so has 1 other line" if count == 2 else ""
        if fields > columns and '\\"' in "".join(first.fields):
            fix = 'write "" for a quotation mark within quotation marks, not \\"'
        elif fields > columns and not any(first.fields[columns:]):
            fix = f"remove the {self.separator!r} at the end of these lines, or add one to the header"
        elif fields > columns:
            fix = f"put a text that holds {self.separator!r}, a quotation mark or a line break between quotation marks"
        else:
            fix = "give the row a value for each column, or put a text that holds a line break between quotation marks"
        return broken(
            f"{self.name} line {first.line} has {count_text(fields, 'field')}, and the header names "
            f"{count_text(columns, 'column')} ({', '.join(self.columns[:8])}){extra}{others}", fix)

    def _records(self, errors: str = "strict") -> Iterator[Record]:
        """All rows, blank lines left out. Raises a DataError with the line."""
        raw: list[str] = []
        last: list[str] = []
        at, begins = self._lines, 0

        def lines(text: io.TextIOWrapper) -> Iterator[str]:
            for number, line in enumerate(text, self._lines + 1):
                if "\0" in line and errors == "strict":
                    raise no_character(self.path, number)
                raw.append(line)
                yield line

        with open_regular(self.path) as file:
            file.seek(self._start)
            reader = csv.reader(lines(io.TextIOWrapper(file, "utf-8", errors, newline="")), delimiter=self.separator)
            try:
                for fields in reader:
                    last, begins = raw.copy(), at + 1
                    if fields:
                        yield Record(begins, fields)
                    at = self._lines + reader.line_num
                    raw.clear()
            except UnicodeDecodeError:
                check_utf8(self.path)
                raise
            except csv.Error as error:
                reason = (f"has a value of more than {LONGEST_ROW // 2**20} MiB" if "field limit" in str(error)
                          else f"cannot be read: {error}")
                raise broken(f"{self.name} line {at + 1} {reason}",
                             "look there for a quotation mark that is not closed, or shorten the value") from None
        if _open_ended(last, self.separator):
            raise broken(f"{self.name} line {begins}: a quotation mark opens a value that never ends",
                         'close it, or write "" for a quotation mark within quotation marks')

    def places(self, rows: Collection[int]) -> dict[int, str]:
        left, found = {*rows}, {}
        for number, record in enumerate(self._records("replace") if left else ()):
            if number in left:
                found[number] = f"line {record.line}"
                left.remove(number)
                if not left:
                    break
        return found


def _open_ended(lines: list[str], separator: str) -> bool:
    """Whether the lines of a file's last record leave a quotation mark open: then a line more belongs to it, too."""
    if not any('"' in line for line in lines):
        return False
    end = "" if lines[-1].endswith(("\n", "\r")) else "\n"
    return len(list(csv.reader([*lines[:-1], lines[-1] + end, "x"], delimiter=separator))) == 1
