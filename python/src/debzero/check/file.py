"""`debzero check FILE`: a job file or DeepSpeed's own JSON."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Optional

from debzero.base import privileges
from debzero.base.errors import InputError, Problem, as_text
from debzero.base.reading import CONFIG, read_text
from debzero.base.text import count_text, printable
from debzero.check import checks
from debzero.check.fix import fix_job, fix_json
from debzero.check.hub_names import Unverified
from debzero.deepspeed_json import lint
from debzero.deepspeed_json.reader import parse_config, read_config
from debzero.job.others import program_of
from debzero.plan.largest_micro import at_first_start
from debzero.resolve.resolve import ResolvedJob
from debzero.run.decision import decide
from debzero.run.folder import RunFolder


class InvalidFileError(InputError):
    """An InputError whose text ends with the verdict on the checked file."""

    def __init__(self, path: Path, problems: list[Problem]) -> None:
        super().__init__(problems)
        self.path = path

    def text(self) -> str:
        return f"{super().text()}\n{printable(str(self.path))}: invalid"


def check(path: Path, ranks: Optional[int], fix: bool, strict: bool, as_json: bool, fast: bool = False) -> int:
    """The exit code, after printing what was found. Errors are raised as an InputError, with --strict warnings too."""
    is_deepspeed = _is_deepspeed(path)
    changes = (fix_json([path], None, as_json) if is_deepspeed else fix_job(path, as_json)) if fix else []
    if is_deepspeed:
        privileges.become_owner(path)
    try:
        facts, warnings = _deepspeed(path, ranks) if is_deepspeed else _job(path, ranks, fast)
        if strict and warnings:
            raise InputError(warnings)
    except InputError as error:
        invalid = InvalidFileError(path, error.problems)
        invalid.changes = changes
        raise invalid from None
    unverified = [p for p in warnings if isinstance(p, Unverified)]
    verdict = f"not verified ({', '.join(p.key for p in unverified)})" if unverified else "OK"
    if as_json:
        print(json.dumps({"ok": True, "verified": not unverified, "problems": [p.as_dict() for p in warnings],
                          "changes": changes, **facts}, indent=2, default=lambda decision: decision.as_json()))
        return 0
    name = facts.pop("job")
    if warnings:
        print(as_text(warnings))
    print("\n".join(map(printable, [f"{name}: {verdict}", *(f"  {key:<12}{value}" for key, value in facts.items())])))
    return 0


def _is_deepspeed(path: Path) -> bool:
    """Whether the file is DeepSpeed's JSON rather than a job, which may be written as JSON too."""
    if path.suffix in (".yml", ".yaml"):
        return False
    try:
        with privileges.acting_as_owner(path):
            text = read_text(path, CONFIG)
    except ValueError:  # a binary file
        return path.suffix in (".json", ".hjson")
    except OSError:
        return False
    if path.suffix not in (".json", ".hjson") and not text.lstrip().startswith("{"):
        return False
    values, _ = parse_config(text, str(path))
    if values is None:
        return path.suffix in (".json", ".hjson")
    return not {"model", "data"} & set(values) and program_of(values) is None


def _deepspeed(path: Path, ranks: Optional[int]) -> tuple[dict[str, Any], list[Problem]]:
    config, found = read_config(path)
    found += lint.problems(config, str(path), ranks, None)
    if any(p.severity == "error" for p in found):
        raise InputError(found)
    return {"job": str(path), "kind": "DeepSpeed's configuration"}, found


def _job(path: Path, ranks: Optional[int], fast: bool) -> tuple[dict[str, Any], list[Problem]]:
    examined = checks.examine(path, ranks, reads="columns" if fast else "lengths")
    decision = decide(examined.resolved, RunFolder(examined.resolved.job.output))
    _, buffers = at_first_start(examined.resolved, path)
    facts = {**checks.summary(examined, path), **({"buffers": buffers} if buffers else {}), "run": decision}
    return facts, [*_shared_gpus(examined.resolved, "--ranks" if ranks else "ranks", str(path)), *examined.warnings]


def _shared_gpus(resolved: ResolvedJob, key: str, file: str) -> list[Problem]:
    if not resolved.shares_gpus:
        return []
    gpus = resolved.host.gpus
    reason = (f"{resolved.local_ranks} ranks share {count_text(gpus, 'GPU')}: they wait for each other, so this only "
              "rehearses a larger host")
    return [Problem(file, key, reason, f"use {gpus}, or leave {key} out", severity="warning")]
