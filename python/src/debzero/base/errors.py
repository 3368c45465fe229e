"""The errors that a user can fix: each has one sentence with the reason and one with the fix, and no traceback."""
from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal, Optional

from debzero.base.text import printable, printable_lines

WIDEST_KEY = 60  # columns for the keys of problems


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a job: where it is, why it cannot work, and what to do. `code` names the linter's rule, if
    one found it. With a warning the job runs, but probably not as its author meant."""

    file: str
    key: str
    reason: str
    fix: str
    code: str = ""
    severity: Literal["error", "warning"] = "error"

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


class PassingProblem(Problem):
    """One that may be over at the next start, as too little room on a disk."""


def as_text(problems: list[Problem]) -> str:
    """All problems as aligned text for people, file by file. Whatever they quote from files is made printable."""
    lines: list[str] = []
    for file in dict.fromkeys(p.file for p in problems):
        of_file = [p for p in problems if p.file == file]
        lines.append(f"{file}: {_counts(of_file)}")
        width = min(max(len(printable(p.key)) for p in of_file) + 2, WIDEST_KEY)
        indent = " " * (width + 2)
        for p in of_file:
            label = " ".join(filter(None, [p.code, "warning" if p.severity == "warning" else ""]))
            reason = f"{label}: {p.reason}" if label else p.reason
            for first, text, rest in ((f"  {printable(p.key):<{width - 1}} ", reason, indent),
                                      (f"{indent}-> ", p.fix, indent + "   ")):
                lines += textwrap.wrap(first + text, 116, subsequent_indent=rest, break_long_words=False)
    return "\n".join(map(printable, lines))


def _counts(problems: list[Problem]) -> str:
    """2 problems, 1 warning"""
    counts = {"problem": sum(p.severity == "error" for p in problems),
              "warning": sum(p.severity == "warning" for p in problems)}
    return ", ".join(f"{count} {noun}{'s' if count > 1 else ''}" for noun, count in counts.items() if count)


def without_known(found: list[Problem], known: list[Problem]) -> list[Problem]:
    """Those of `found` that are about other keys, and no part of a key, than the problems that are known already."""
    keys = {p.key for p in known}
    return [p for p in found if p.key not in keys and p.key.split(".")[0] not in keys]


class InputError(Exception):
    """A job that cannot run as written, with all its problems. Exit code 2: trying again does not help. `changes`:
    what `check --fix` fixed nevertheless."""

    changes: Sequence[str] = ()

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("; ".join(f"{p.key}: {p.reason}" for p in problems))
        self.problems = problems

    def __reduce__(self) -> tuple[type, tuple[list[Problem]]]:  # processes send it to each other
        return InputError, (self.problems,)

    def text(self) -> str:
        return as_text(self.problems)


class UserError(Exception):
    """Something outside the code stopped the run (disk, network, memory, data): a reason and a fix. Exit code 1."""

    def __init__(self, reason: str, fix: str) -> None:
        super().__init__(printable_lines(f"{reason}\n  -> {fix}"))
        self.reason, self.fix = reason, fix

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.reason, self.fix)


class PassingError(UserError):
    """What may be over at the next start, as a full disk: no failure of the job, however often it happens."""


class HiddenError(UserError):
    """What the hub shows to nobody, or only to some: it is not there, private or gated."""


def passing(error: InputError) -> Optional[PassingError]:
    """The same as an error that a later start may not meet, where that is all that is wrong."""
    errors = [problem for problem in error.problems if problem.severity == "error"]
    if not errors or not all(isinstance(problem, PassingProblem) for problem in errors):
        return None
    return PassingError("; ".join(problem.reason for problem in errors), "; ".join(problem.fix for problem in errors))


class HostError(UserError):
    """What this host, or a process that is needed on it, failed at: not the fault of what it was asked."""


class OutOfMemory(HostError):  # noqa: N818 - as torch names it
    """A rank was refused memory, on its GPU or its host."""
