"""`debzero check FILE`: a job file or DeepSpeed's own JSON, with the changes that --fix makes in the latter."""
from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Optional

from debzero.base import privileges
from debzero.base.errors import InputError, Problem, as_text
from debzero.base.files import rewrite_text
from debzero.base.reading import CONFIG, parse_json, read_text, why
from debzero.base.text import printable
from debzero.check import checks
from debzero.deepspeed_json import lint
from debzero.deepspeed_json.reader import parse_config, read_deepspeed
from debzero.job.reader import parse
from debzero.job.schema import Job


class InvalidFileError(InputError):
    """An InputError whose text ends with the verdict on the checked file."""

    def __init__(self, path: Path, problems: list[Problem]) -> None:
        super().__init__(problems)
        self.path = path

    def text(self) -> str:
        return f"{super().text()}\n{printable(str(self.path))}: invalid"


def check(path: Path, ranks: Optional[int], fix: bool, strict: bool, as_json: bool) -> int:
    """The exit code, after printing what was found. Errors are raised as an InputError, with --strict warnings too."""
    is_deepspeed = _is_deepspeed(path)
    changes = (_fix([path], None, as_json) if is_deepspeed else _fix_of_job(path, as_json)) if fix else []
    try:
        facts, warnings = _deepspeed(path, ranks) if is_deepspeed else _job(path, ranks)
        if strict and warnings:
            raise InputError(warnings)
    except InputError as error:
        invalid = InvalidFileError(path, error.problems)
        invalid.changes = changes
        raise invalid from None
    if as_json:
        print(json.dumps({"ok": True, "problems": [p.as_dict() for p in warnings], "changes": changes, **facts},
                         indent=2))
        return 0
    name = facts.pop("job")
    if warnings:
        print(as_text(warnings))
    print("\n".join(map(printable, [f"{name}: OK", *(f"  {key:<12}{value}" for key, value in facts.items())])))
    return 0


def _is_deepspeed(path: Path) -> bool:
    """Whether the file is DeepSpeed's JSON rather than a job, which may be written as JSON too."""
    if path.suffix in (".yml", ".yaml"):
        return False
    try:
        values = parse_json(read_text(path, CONFIG))
    except ValueError:  # also a binary file
        return path.suffix == ".json"
    except OSError:
        return False
    return isinstance(values, dict) and not {"model", "data"} & set(values)


def _read(path: Path) -> tuple[dict[str, Any], list[Problem]]:
    """DeepSpeed's configuration, and what is wrong with its text alone."""
    try:
        config, wrong = parse_config(read_text(path, CONFIG), str(path))
    except (OSError, ValueError) as error:
        raise InputError([Problem(str(path), "file", why(error),
                                  "make it a text file that this user may read")]) from None
    if config is None:
        raise InputError(wrong)
    return config, wrong


def _deepspeed(path: Path, ranks: Optional[int]) -> tuple[dict[str, Any], list[Problem]]:
    config, found = _read(path)
    found += lint.problems(config, str(path), ranks, None)
    if any(p.severity == "error" for p in found):
        raise InputError(found)
    return {"job": str(path), "kind": "DeepSpeed's configuration"}, found


def _job(path: Path, ranks: Optional[int]) -> tuple[dict[str, Any], list[Problem]]:
    resolved, warnings = checks.examine(path, ranks)
    return checks.summary(resolved, path), warnings


def _fix_of_job(path: Path, quiet: bool) -> list[str]:
    """Fix the JSON that a job names. What is inline in the job is left to its owner: YAML would lose its comments."""
    job, wrong = parse(path)
    if job is None or job.deepspeed is None or any(problem.key == "deepspeed" for problem in wrong):
        return []
    if isinstance(job.deepspeed, str):
        return _fix([path, Path(job.deepspeed)], job, quiet) if read_deepspeed(job, str(path))[0] is not None else []
    for change in lint.apply_fixes(job.deepspeed, job)[1] if not quiet else []:
        print(printable(f"{path}: change by hand: deepspeed.{change}"))
    return []


def _fix(paths: list[Path], job: Optional[Job], quiet: bool) -> list[str]:
    """Write the corrected configuration in place of the old one, with its order of keys and its indent; the changes.
    It is the last of `paths`; the first may be the job that names it, and whose owner's word counts no more than his
    rights."""
    with privileges.acting_as_owner(*paths):
        return _fix_file(paths[-1], job, quiet)


def _fix_file(path: Path, job: Optional[Job], quiet: bool) -> list[str]:
    path = path.resolve()  # the file that changes is named, not a link to it
    config, wrong = _read(path)
    if wrong:  # either of two equal keys may be meant
        return []
    text = read_text(path, CONFIG)
    config, changes = lint.apply_fixes(config, job)
    if changes:
        try:
            rewrite_text(path, _like(text, config))
        except OSError as error:
            raise InputError([Problem(str(path), "file", f"cannot be written: {error.strerror}",
                                      "give this user permission to write it")]) from None
    for change in changes if not quiet else []:
        print(printable(f"{path}: {change}"))
    return changes


def _like(text: str, config: dict[str, Any]) -> str:
    """`config` as JSON in the layout of `text`: its indent, its lists on one line or several, its last line break."""
    indent = re.search(r'\n([ \t]+)"', text)
    written = json.dumps(config, indent=indent[1] if indent else None, ensure_ascii=False)
    if indent and not re.search(r"\[[ \t]*\n", text):
        written = re.sub(r'\[\s+([^\[\]{}"]*?)\s+\]', lambda found: "[" + " ".join(found[1].split()) + "]", written)
    return written + ("\n" if text.endswith("\n") else "")
