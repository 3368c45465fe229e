"""One pass over the rows of a data set: how many there are, their classes or values, and what is wrong with them.

`debzero check` and the training take the same pass, so what check says about the rows is what the training sees.
"""
from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Optional

import numpy as np

from debzero.data.faults import DataError, Fault
from debzero.data.reading import Rows
from debzero.job.schema import Data

MOST_CLASSES = 10_000  # more are no classes
SAMPLED_ROWS = 10_000  # whose texts are kept: all of a smaller set, every second, fourth, ... row of a larger one
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
    sample: list[tuple[int, list[str]]] = field(default_factory=list)
    stride: int = 1                                         # of the sample
    _codes: list[np.ndarray] = field(default_factory=list)
    _values: list[np.ndarray] = field(default_factory=list)
    _blank: list[np.ndarray] = field(default_factory=list)

    @property
    def codes(self) -> np.ndarray:
        return np.concatenate([np.empty(0, np.int32), *self._codes])

    @property
    def values(self) -> np.ndarray:
        return np.concatenate([np.empty(0, np.float32), *self._values])

    @property
    def blank(self) -> np.ndarray:
        return np.concatenate([np.empty(0, bool), *self._blank])

    def pieces(self) -> Iterator[Any]:
        """The rows, each piece after it has been looked at. Raises a DataError as the rows do."""
        names = self.rows.names if self.wanted.kind == "class" else None
        for name in names or ():
            self._number(name, -1)
        for piece in self.rows.pieces(self.wanted.columns):
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
        rows = np.arange(-self.count % self.stride, len(piece), self.stride)
        if len(rows):
            cells = [values.take(rows).to_pylist() for values in texts]
            self.sample += [(self.count + row, [cell or "" for cell in row_cells])
                            for row, row_cells in zip(rows.tolist(), zip(*cells))]
            self._thin()

    def _thin(self) -> None:
        size = sum(len(cell) for _, cells in self.sample for cell in cells)
        while len(self.sample) > SAMPLED_ROWS or (size > SAMPLED_CHARACTERS and len(self.sample) > 1):
            self.stride *= 2
            self.sample = [(row, cells) for row, cells in self.sample if row % self.stride == 0]
            size = sum(len(cell) for _, cells in self.sample for cell in cells)

    def _labels(self, labels: Any) -> None:
        if self.wanted.kind == "class":
            self._classes_of(labels)
        elif self.wanted.kind == "value":
            self._values_of(labels)
        else:
            self.unlabelled.add(self.count + np.flatnonzero(_blank(labels)))

    def _classes_of(self, labels: Any) -> None:
        labels = labels.dictionary_encode()
        places = np.asarray(labels.indices.fill_null(-1), np.int32)
        found = labels.dictionary.to_pylist()
        firsts = np.full(len(found) + 1, -1, np.int64)
        backwards = np.arange(len(places) - 1, -1, -1)
        firsts[places[backwards]] = backwards  # the last assignment holds: each class's first row
        numbers = np.asarray([self._number(name, self.count + int(first))
                              for name, first in zip(found, firsts)] + [-1], np.int32)
        codes = numbers[places]
        self.unlabelled.add(self.count + np.flatnonzero(codes < 0))
        self._codes.append(codes)

    def _number(self, name: Optional[str], row: int) -> int:
        """The class's number; -1 for a label of nothing but blanks."""
        if name is None or not name.strip():
            return -1
        if name not in self.classes:
            if len(self.classes) == MOST_CLASSES:
                raise DataError(Fault("label", f"the column {self.wanted.label} of {self.rows.name} holds more than "
                                      f"{MOST_CLASSES} different values, so they are no classes",
                                      "name a column of classes in data.label"))
            self.classes[name] = len(self.classes)
            self.firsts.append(row)
        number = self.classes[name]
        if self.firsts[number] < 0:  # of a class that the data set names
            self.firsts[number] = row
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
    import pyarrow
    from pyarrow import compute

    lengths = np.asarray(compute.binary_length(values).fill_null(0))
    blank: np.ndarray = lengths == 0
    content = values.buffers()[2]
    if content is None or not content.size:
        return np.ones(len(values), bool)
    # Few texts begin with a byte that a blank may begin with; only those are looked at whole.
    offsets = np.frombuffer(values.buffers()[1], np.int32, len(values), values.offset * 4)
    first = np.frombuffer(content, np.uint8)[np.minimum(offsets, content.size - 1)]
    some = np.flatnonzero((BLANKS[first]) & ~blank)
    if len(some):
        blank[some] = [not text.strip() for text in values.take(pyarrow.array(some)).to_pylist()]
    return blank


BLANKS = np.zeros(256, bool)
BLANKS[[ord(c) for c in " \t\n\r\v\f\x1c\x1d\x1e\x1f"]] = True
BLANKS[[0xC2, 0xE1, 0xE2, 0xE3]] = True  # how all other blanks begin in UTF-8
