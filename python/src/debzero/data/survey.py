"""One pass over the rows of a data set: how many there are, their classes or values, and what is wrong with them.

`debzero check` and the training take the same pass, so what check says about the rows is what the training sees.
"""
from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import chain, compress
from typing import Any, Callable, Optional

import numpy as np

from debzero.data.faults import DataError, Fault
from debzero.data.reading import Rows
from debzero.job.schema import Data

MOST_CLASSES = 10_000  # more are no classes
WHOLE_ROWS = 5_000    # a set of no more is its own sample: the rows whose texts are kept
SAMPLED_ROWS = 500    # at most, of a larger one: every 16th, 32nd, ... row, so that every part of a file has its share
SAMPLED_CHARACTERS = 4_000_000


@dataclass(eq=False)
class Seen:
    """How many rows are of some kind, and the first of them, from 0."""

    count: int = 0
    first: int = 0

    def add(self, rows: np.ndarray) -> None:
        """`rows`: bool[n] or int[n], ascending."""
        if len(rows):
            self.first = self.first if self.count else int(rows[0])
            self.count += len(rows)


@dataclass(frozen=True)
class Wanted:
    """What a task wants of each row: texts, and a label that is a `class`, a `value`, a `text` or `nothing`."""

    texts: list[str]
    label: Optional[str]
    kind: str

    @classmethod
    def by(cls, data: Data, kind: str) -> Wanted:
        """`kind`: the task's kind of label."""
        return cls(data.text, None if kind == "nothing" else data.label, kind)

    @property
    def columns(self) -> dict[str, str]:
        """Each column, with the job's key that names it."""
        return {**dict.fromkeys(self.texts, "text"), **({self.label: "label"} if self.label is not None else {})}

    def missing_in(self, rows: Rows) -> list[tuple[str, str]]:
        """The keys and columns that are not there."""
        return [(key, name) for name, key in self.columns.items() if name not in rows.columns]


@dataclass(eq=False)
class Survey:
    """What is known of the rows of one split. `codes`: int32[n], each row's class by its place in `classes`, -1 where
    it has none; `values`: float32[n] of a regression. `blank`: bool[n], rows without any text."""

    rows: Rows
    wanted: Wanted
    count: int = 0
    cut_short: bool = False  # there are more rows than a check reads
    classes: dict[str, int] = field(default_factory=dict)
    firsts: list[int] = field(default_factory=list)         # the first row of each class
    empty: dict[str, Seen] = field(default_factory=dict)    # by column of texts
    unlabelled: Seen = field(default_factory=Seen)
    no_number: Seen = field(default_factory=Seen)
    example: str = ""                                       # of what is no number
    stride: int = 1                                         # of the sample
    _sample: list[tuple[range, list[list[str]]]] = field(default_factory=list)  # rows and each column's texts
    _rows_sampled: int = 0
    _size: int = 0                                          # of the sample, in characters
    _codes: list[np.ndarray] = field(default_factory=list)
    _values: list[np.ndarray] = field(default_factory=list)
    _blank: list[np.ndarray] = field(default_factory=list)

    @cached_property  # asked for when the pass has ended
    def codes(self) -> np.ndarray:
        return np.concatenate([np.empty(0, np.int32), *self._codes])

    @cached_property
    def sizes(self) -> np.ndarray:
        """int64[classes]: the rows of each."""
        return np.bincount(self.codes + 1, minlength=len(self.classes) + 1)[1:]

    @cached_property
    def values(self) -> np.ndarray:
        return np.concatenate([np.empty(0, np.float32), *self._values])

    @cached_property
    def blank(self) -> np.ndarray:
        return np.concatenate([np.empty(0, bool), *self._blank])

    def pieces(self) -> Iterator[Any]:
        """The rows, each piece after it has been looked at. Raises a DataError as the rows do."""
        names = self.rows.names if self.wanted.kind == "class" else None
        for name in names or ():
            self._number(name, lambda: -1)
        for piece in self.rows.pieces(self.wanted.columns):
            if not len(piece):
                continue
            self._texts(piece)
            if self.wanted.label is not None:
                self._labels(piece.column(piece.schema.names.index(self.wanted.label)))
            self.count += len(piece)
            yield piece

    def _texts(self, piece: Any) -> None:
        blank = np.ones(len(piece), bool)
        texts = [piece.column(piece.schema.names.index(name)) for name in self.wanted.texts]
        for name, values in zip(self.wanted.texts, texts):
            without = _blank(values)
            blank &= without
            self.empty.setdefault(name, Seen()).add(self.count + np.flatnonzero(without))
        self._blank.append(blank)
        while (rows := self._sampled(len(piece))) and self._rows_sampled + len(rows) > (
                WHOLE_ROWS if self.stride == 1 else SAMPLED_ROWS):
            self._thin()
        if rows:
            inside = range(rows.start - self.count, len(piece), self.stride)
            self._keep(rows, [_cells(values, inside) for values in texts])
        while self._size > SAMPLED_CHARACTERS and self._rows_sampled > 1:
            self._thin()

    def _sampled(self, length: int) -> range:
        """Which of the next rows belong to the sample."""
        return range(self.count + -self.count % self.stride, self.count + length, self.stride)

    def _keep(self, rows: range, columns: list[list[str]]) -> None:
        self._sample.append((rows, columns))
        self._rows_sampled += len(rows)
        self._size += sum(sum(map(len, column)) for column in columns)

    def _thin(self) -> None:
        self.stride *= 2
        before, self._sample, self._rows_sampled, self._size = self._sample, [], 0, 0
        for rows, columns in before:
            first = int(rows[0] % self.stride > 0)
            if first < len(rows):
                self._keep(rows[first::2], [column[first::2] for column in columns])

    def sample(self, of: Optional[np.ndarray] = None) -> list[list[str]]:
        """Each column's texts, of every row whose number is a multiple of `stride`; `of` (bool[count]): of which
        rows."""
        some = [of is None or of[row] for rows, _ in self._sample for row in rows]
        return [list(compress(chain.from_iterable(columns[number] for _, columns in self._sample), some))
                for number in range(len(self.wanted.texts))]

    def _labels(self, labels: Any) -> None:
        if self.wanted.kind == "class":
            self._classes_of(labels)
        elif self.wanted.kind == "value":
            self._values_of(labels)
        else:
            self.unlabelled.add(self.count + np.flatnonzero(_blank(labels)))

    def _classes_of(self, labels: Any) -> None:
        import pyarrow

        if not pyarrow.types.is_dictionary(labels.type):
            labels = labels.dictionary_encode()  # whose classes come in the order of their first rows
        indices = labels.indices.fill_null(-1) if labels.null_count else labels.indices
        places = np.frombuffer(indices.buffers()[1], np.int32, len(indices), 4 * indices.offset)
        numbers = [self._number(name, partial(_first, places, place, self.count))
                   for place, name in enumerate(labels.dictionary.to_pylist())]
        codes = np.asarray([*numbers, -1], np.int32)[places]
        if labels.null_count or min(numbers, default=0) < 0:
            self.unlabelled.add(self.count + np.flatnonzero(codes < 0))
        self._codes.append(codes)

    def _number(self, name: Optional[str], row: Callable[[], int]) -> int:
        """The class's number, whose first row is `row` if it is new; -1 for a label of nothing but blanks."""
        if name is None or not name.strip():
            return -1
        if name not in self.classes:
            if len(self.classes) == MOST_CLASSES:
                raise DataError(Fault("label", f"the column {self.wanted.label} of {self.rows.name} holds more than "
                                      f"{MOST_CLASSES} different values, so they are no classes",
                                      "name a column of classes in data.label; to learn to write such texts, set task: "
                                      "text-to-text, and answers: text under data"))
            self.classes[name] = len(self.classes)
            self.firsts.append(row())
        number = self.classes[name]
        if self.firsts[number] < 0:  # of a class that the data set names
            self.firsts[number] = row()
        return number

    def _values_of(self, labels: Any) -> None:
        values = _as_numbers(labels)
        missing = _blank(labels)
        wrong = np.flatnonzero(~np.isfinite(values) & ~missing)
        self.unlabelled.add(self.count + np.flatnonzero(missing))
        if len(wrong) and not self.no_number.count:
            self.example = str(labels[int(wrong[0])].as_py())
        self.no_number.add(self.count + wrong)
        self._values.append(values)


def _first(places: np.ndarray, place: int, before: int) -> int:
    return before + int(np.argmax(places == place))


def _cells(values: Any, rows: range) -> list[str]:
    """The strings of some rows; empty where they are missing. (pyarrow's own functions take long to load.)"""
    _, places, content = values.buffers()
    offsets = np.frombuffer(places, np.int32, len(values) + 1, values.offset * 4)
    text, some = memoryview(content or b""), np.asarray(rows, np.int64)
    return [str(text[begin:end], "utf-8") for begin, end in zip(offsets[some].tolist(), offsets[some + 1].tolist())]


def _as_numbers(labels: Any) -> np.ndarray:
    """float32[n]; NaN where there is no number that such a float holds."""
    import pyarrow

    try:
        values = np.asarray(labels.cast(pyarrow.float64()).fill_null(math.nan), np.float64)
    except pyarrow.ArrowInvalid:
        values = np.asarray([_as_number(label) for label in labels.to_pylist()], np.float64)
    with np.errstate(over="ignore"):
        return values.astype(np.float32)


def _as_number(label: Optional[str]) -> float:
    try:
        return float(label or "nan") if "_" not in (label or "") else math.nan
    except ValueError:
        return math.nan


def _blank(values: Any) -> np.ndarray:
    """bool[n]: strings that are missing, empty, or nothing but blanks."""
    _, places, content = values.buffers()
    offsets = np.frombuffer(places, np.int32, len(values) + 1, values.offset * 4)
    blank: np.ndarray = offsets[1:] == offsets[:-1]
    if values.null_count:
        blank |= np.asarray(values.is_null())
    if content is None or not content.size:
        return np.ones(len(values), bool)
    # Few texts begin with a byte that a blank may begin with; only those are looked at whole.
    first = np.frombuffer(content, np.uint8)[np.minimum(offsets[:-1], content.size - 1)]
    some = np.flatnonzero(BLANKS[first] & ~blank)
    for row in some.tolist():
        blank[row] = not values[row].as_py().strip()
    return blank


BLANKS = np.zeros(256, bool)
BLANKS[[ord(c) for c in " \t\n\r\v\f\x1c\x1d\x1e\x1f"]] = True
BLANKS[[0xC2, 0xE1, 0xE2, 0xE3]] = True  # how all other blanks begin in UTF-8
