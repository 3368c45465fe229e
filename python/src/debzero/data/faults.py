"""What is wrong with a data set, as a sentence for the person who brought it."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from debzero.base.errors import Problem


@dataclass(frozen=True)
class Fault:
    """`key`: the key of the job's `data:` section that it belongs to."""

    key: str
    reason: str
    fix: str
    severity: Literal["error", "warning"] = "error"

    def problem(self, file: str) -> Problem:
        """The same about the job in `file`."""
        return Problem(file, f"data.{self.key}", self.reason, self.fix, severity=self.severity)


class DataError(Exception):
    """A data set that cannot be trained on."""

    def __init__(self, *faults: Fault) -> None:
        super().__init__("; ".join(fault.reason for fault in faults))
        self.faults = faults


def broken(reason: str, fix: str) -> DataError:
    """A file that cannot be read to its end."""
    return DataError(Fault("dataset", reason, fix))


def held(key: str, file: str, place: str, column: str, kind: str) -> DataError:
    """A column whose values are neither texts nor numbers nor classes."""
    where = f"{file} {place}" if place else file
    if kind not in ("lists", "mappings"):
        fix = "write it as texts or numbers"
    elif key == "label" and kind == "mappings":
        fix = "give each row the class itself, a word or a number"
    elif key == "label":
        fix = "give each row one answer: multi-label classification is not supported"
    else:
        fix = "give each row one text; of a chat, what the model's chat template makes of it"
    return DataError(Fault(key, f"{where}: the column {column} holds {kind}", fix))
