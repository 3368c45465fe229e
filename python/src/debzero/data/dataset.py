"""A data set after the pass over its rows: its classes, which rows are held out, and what is wrong with it."""
from __future__ import annotations

import re
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any, Callable, NamedTuple, Optional

import numpy as np

from debzero.base.text import count_text, did_you_mean, short
from debzero.data import split
from debzero.data.faults import DataError, Fault
from debzero.data.reading import Rows
from debzero.data.sources import Parts
from debzero.data.survey import Seen, Survey, Wanted
from debzero.job.schema import Data

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d+")
WHOLE = re.compile(r"-?\d{1,18}")
WORDS = re.compile(r"\W+")
QUIET_SECONDS = 2.0  # that reading may take before it says how far it is
SHOWN = 12           # classes that are listed

Say = Callable[[str], None]
Keep = Callable[[Any], None]


@dataclass(frozen=True, eq=False)
class Side:
    """Training or held-out rows: of which survey they are, and how many, which is all that most checks need of them.
    `numbers`: int32[classes + 1], the place of the survey's classes in the classes' names, -1 for none. `find`: the
    rows' places."""

    survey: Survey
    count: int
    numbers: np.ndarray
    find: Callable[[], np.ndarray]

    @cached_property
    def rows(self) -> np.ndarray:
        """int64[n]: their places in the data set, ascending."""
        return self.find()

    @cached_property
    def labels(self) -> np.ndarray:
        """int32[n] by place in the classes' names, float32[n], or none."""
        if self.survey.wanted.kind == "class":
            return np.asarray(self.numbers[self.survey.codes[self.rows]])
        return self.survey.values[self.rows] if self.survey.wanted.kind == "value" else np.empty(0, np.int32)


class DataSet:
    """What `read` found. `labels`: the classes' names, sorted; for a value the column's."""

    def __init__(self, data: Data, parts: Parts, surveys: list[Survey], seed: int) -> None:
        self.data, self.parts, self.surveys = data, parts, surveys
        self.wanted = surveys[0].wanted
        self.cut_short = any(survey.cut_short for survey in surveys)
        self.labels = self._labels()
        self.seed = seed
        train, last = surveys[0], surveys[-1]
        if parts.held_out is not None:
            self.train = self._side(train, train.count, lambda: np.arange(train.count))
            self.held_out = self._side(last, last.count, lambda: np.arange(last.count))
            return
        held = np.count_nonzero(parts.side) if parts.side is not None else split.held_out_count(
            train.count, data.held_out or 0, train.sizes if self.wanted.kind == "class" else np.array([train.count]))
        self.train = self._side(train, train.count - held, lambda: np.flatnonzero(~self._mask))
        self.held_out = self._side(train, held, lambda: np.flatnonzero(self._mask))

    @cached_property
    def _mask(self) -> np.ndarray:
        """bool[n]: which rows are held out, of those that the data set does not part itself."""
        if self.parts.side is not None:
            return self.parts.side
        survey = self.surveys[0]
        codes = survey.codes.clip(0) if self.wanted.kind == "class" else None
        return split.held_out(survey.count, self.data.held_out or 0, self.seed, codes)

    def _labels(self) -> list[str]:
        if self.wanted.kind == "value":
            return [str(self.wanted.label)]
        found = self.surveys[0].classes
        if self.surveys[0].rows.names:
            return list(found)
        return sorted(found, key=int) if all(map(WHOLE.fullmatch, found)) else sorted(found)

    def _side(self, survey: Survey, count: int, find: Callable[[], np.ndarray]) -> Side:
        place = {name: number for number, name in enumerate(self.labels)}
        numbers = np.asarray([*(place.get(name, -1) for name in survey.classes), -1], np.int32)
        return Side(survey, count, numbers, find)

    def counts(self) -> dict[str, int]:
        """The rows of each class, training and held-out ones together, in the order of the labels."""
        total = np.zeros(len(self.labels) + 1, np.int64)  # the last, -1: of no class
        for side in (self.train, self.held_out)[:len(self.surveys)]:
            total[side.numbers[:-1]] += side.survey.sizes
        return dict(zip(self.labels, total.tolist()))

    def facts(self) -> dict[str, str]:
        """Rows and classes, for people."""
        first = "the first " if self.cut_short else ""
        rows = self.train.count + self.held_out.count
        separators = {getattr(survey.rows, "separator", ",") for survey in self.surveys} - {","}
        found = {"rows": f"{first}{rows}: {self.train.count} training, {self.held_out.count} held out"
                         + "".join(f"; separated by {separator!r}" for separator in sorted(separators))}
        if self.wanted.kind == "class":
            counts = sorted(self.counts().items(), key=lambda item: -item[1])
            more = f" and {len(counts) - SHOWN} more" if len(counts) > SHOWN else ""
            found["classes"] = f"{len(counts)}: " + ", ".join(f"{n} {c}" for n, c in counts[:SHOWN]) + more
        elif self.wanted.kind == "value" and rows:
            values = np.concatenate([self.train.labels, self.held_out.labels])
            found["values"] = f"{values.min():g} to {values.max():g}, mean {values.mean():.3g}"
        return found

    def faults(self) -> list[Fault]:
        """All that is wrong with the rows, errors first."""
        found: list[Fault] = []
        for some in (chain.from_iterable(map(_of_rows, self.surveys)), self._classes(), self._sides()):
            if not any(fault.severity == "error" for fault in found):  # which the next may come from
                found += some
        return sorted(found, key=lambda fault: fault.severity)

    def _classes(self) -> Iterator[Fault]:
        if self.wanted.kind != "class":
            return
        column, file = self.wanted.label, self.surveys[0].rows.name
        present = [name for name, number in self.surveys[0].classes.items() if self.surveys[0].firsts[number] >= 0]
        if len(present) < 2:
            yield Fault("label", f"the column {column} of {file} has 1 class, {short(present[0])}, in all rows",
                        "use data with at least two classes, or name another column in data.label")
            return
        if all(map(NUMBER.fullmatch, present)) and not all(float(name).is_integer() for name in present):
            example = next(name for name in present if not float(name).is_integer())
            yield Fault("label", f"the column {column} of {file} holds numbers, not classes (for example {example})",
                        "name a column of class labels in data.label, or set task: regression")
            return
        yield from self._lookalikes(present)
        for survey in self.surveys[1:]:
            new = [name for name in survey.classes if name not in self.surveys[0].classes]
            if new:
                where = _place(survey.rows, survey.firsts[survey.classes[new[0]]])
                others = f" ({len(new)} such labels)" if len(new) > 1 else ""
                same = next((label for label in self.labels if _word(label) == _word(new[0])), None)
                yield Fault("label", f"{where} has the label {short(new[0])}, which no training row has{others}",
                            f"use only labels of the training data: {', '.join(self.labels[:20])}" if same is None else
                            f"write it as the training rows do: {short(same)}")

    def _lookalikes(self, present: list[str]) -> Iterator[Fault]:
        """Labels that are one word to people."""
        survey, counts, same = self.surveys[0], self.counts(), dict[str, list[str]]()
        for name in present:
            same.setdefault(_word(name), []).append(name)
        for names in same.values():
            if len(names) > 1:
                common, *rare = sorted(names, key=lambda name: -counts[name])
                where = _place(survey.rows, survey.firsts[survey.classes[rare[0]]])
                yield Fault("label", f"{where}: the labels {' and '.join(map(short, [rare[0], common]))} count as two "
                            f"classes, of {counts[rare[0]]} and {counts[common]} rows",
                            "write them alike if they mean the same class", "warning")

    def _sides(self) -> Iterator[Fault]:
        if self.cut_short:
            return
        for side, name in ((self.train, "training"), (self.held_out, "held-out")):
            if not side.count:
                count = self.surveys[0].count
                if self.wanted.kind == "class" and count == len(self.labels) > 2:
                    yield Fault("label", f"each row of {self.surveys[0].rows.name} has another {self.wanted.label} "
                                f"({', '.join(map(short, self.labels[:3]))}, ...), so these are no classes",
                                "name a column of class labels in data.label")
                    return
                yield Fault("held_out", f"{self.data.dataset} has {count_text(count, 'row')}: too few to keep "
                            f"{self.data.held_out or 0:g} of them for evaluation"
                            + (" and one of each class for training" if count > 1 else ""), "give it more rows")
                return
            if self.wanted.kind == "nothing" and side.survey.blank.any() and side.survey.blank[side.rows].all():
                yield Fault("text", f"the {name} rows of {self.data.dataset} have no text at all",
                            "name the column of texts in data.text, or give it more rows")


def _word(label: str) -> str:
    """What a label is to people."""
    word = " ".join(label.casefold().split())
    return f"{float(word):g}" if NUMBER.fullmatch(word) else word


def _of_rows(survey: Survey) -> Iterator[Fault]:
    name, wanted = survey.rows.name, survey.wanted
    if not survey.count:
        yield Fault("dataset", f"{name} has 0 rows", "give it rows; columns alone are no data")
        return
    if survey.unlabelled.count:
        yield Fault("label", f"{_seen(survey, survey.unlabelled)} no {wanted.label}", "fill it in or remove the row")
    if survey.no_number.count:
        fix = "write the decimal point as a point" if DECIMAL_COMMA.fullmatch(survey.example.strip()) else (
            "correct the row, name a column of numbers in data.label, or set task: classification")
        yield Fault("label", f"{_seen(survey, survey.no_number)} {short(survey.example)} where task regression needs a "
                    "number", fix)
    for column, seen in survey.empty.items():
        if seen.count == survey.count:
            yield Fault("text", f"the column {column} of {name} is empty in all {count_text(seen.count, 'row')}",
                        "name the column of texts in data.text")
        elif seen.count:
            yield Fault("text", f"{_seen(survey, seen)} an empty {column}",
                        "fill it in or remove the row, unless it is meant to be empty", "warning")


def _seen(survey: Survey, seen: Seen) -> str:
    others = "" if seen.count == 1 else f" and {count_text(seen.count - 1, 'other row')}"
    return f"{_place(survey.rows, seen.first)}{others} {'has' if seen.count == 1 else 'have'}"


def _place(rows: Rows, row: int) -> str:
    return f"{rows.name} {rows.places([row])[row]}"


def missing_columns(data: Data, wanted: Wanted, all_rows: Collection[Rows]) -> list[Fault]:
    """The columns that the job names and the data set does not have."""
    found = []
    for rows in all_rows:
        for key, name in wanted.missing_in(rows):
            near = next((column for column in rows.columns if column.strip().casefold() == name.strip().casefold()),
                        None)
            fix = did_you_mean(name, rows.columns) if near is None else f"it is called {near!r} there: correct either"
            if near is None and len(rows.columns) == 1 and {*wanted.columns} <= {*WORDS.split(rows.columns[0])}:
                fix = "separate its columns by a comma, a semicolon, a tab or a bar"
            found.append(Fault(key, f"{rows.name} has no column {name!r}", fix))
    return found


class Pass(NamedTuple):
    """How the rows are read. `keeps`: gets each piece of a part, one for each part; `most_rows`: of a part, that are
    read; `say`: how far it is, where it takes long."""

    keeps: Collection[Keep] = ()
    most_rows: Optional[int] = None
    say: Say = lambda text: None


def read(data: Data, parts: Parts, wanted: Wanted, seed: int, how: Pass = Pass()) -> DataSet:  # noqa: B008
    """The pass over all rows. Raises a DataError for columns that are not there, and where the rows cannot be
    read."""
    all_rows = [rows for rows in (parts.train, parts.held_out) if rows is not None]
    empty = [rows for rows in all_rows if not rows.columns]
    if empty:
        raise DataError(*(Fault("dataset", f"{rows.name} has 0 rows", "give it rows") for rows in empty))
    absent = missing_columns(data, wanted, all_rows)
    if absent:
        raise DataError(*absent)
    surveys, said = [], time.monotonic()
    for rows, keep in zip(all_rows, [*how.keeps, *[None] * len(all_rows)]):
        survey = Survey(rows, wanted)
        for piece in survey.pieces():
            if keep is not None:
                keep(piece)
            if time.monotonic() - said > QUIET_SECONDS:
                said = time.monotonic()
                how.say(f"reading {rows.name}: {survey.count} rows, {rows.share():.0%}")
            if how.most_rows is not None and survey.count >= how.most_rows:
                survey.cut_short = True
                break
        surveys.append(survey)
    return DataSet(data, parts, surveys, seed)
