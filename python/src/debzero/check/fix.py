"""`debzero check --fix`: writes the corrections of DeepSpeed's JSON that have only one possible form."""
from __future__ import annotations

import itertools
import os
from contextlib import suppress
from pathlib import Path
from typing import Optional

from debzero.base import privileges
from debzero.base.errors import InputError, Problem
from debzero.base.files import created, give_like, rewrite_text
from debzero.base.text import printable
from debzero.deepspeed_json import lint
from debzero.deepspeed_json.reader import parse_config, read_config, read_deepspeed
from debzero.deepspeed_json.rewrite import rewritten
from debzero.job.reader import parse
from debzero.job.schema import Job


def fix_job(path: Path, quiet: bool) -> list[str]:
    """Fix the JSON that a job names; the changes. What is inline in the job is left to its owner: YAML would lose its
    comments."""
    job, wrong = parse(path)
    if job is None or job.deepspeed is None or any(problem.key == "deepspeed" for problem in wrong):
        return []
    if isinstance(job.deepspeed, str):
        with privileges.acting_as_owner(path, Path(job.deepspeed)):
            readable = read_deepspeed(job, str(path))[0] is not None
        return fix_json([path, Path(job.deepspeed)], job, quiet) if readable else []
    if not quiet:
        _by_hand(path, [f"deepspeed.{change}" for change in lint.apply_fixes(job.deepspeed, job)[1]])
    return []


def fix_json(paths: list[Path], job: Optional[Job], quiet: bool) -> list[str]:
    """Correct the last of `paths`, and keep it as it was beside it; the changes. The text changes only where values do.
    The first may be the job that names it, and whose owner's word counts no more than his rights."""
    with privileges.acting_as_owner(*paths):
        return _fix(paths[-1], job, quiet)


def _fix(path: Path, job: Optional[Job], quiet: bool) -> list[str]:
    path = path.resolve()  # the file that changes is named, not a link to it
    config, wrong = read_config(path)
    if wrong:  # either of two equal keys may be meant
        return []
    text = path.read_bytes().decode("utf-8")  # with its line ends as they are
    config, changes = lint.apply_fixes(config, job)
    if not changes:
        return []
    written = rewritten(text, config)
    if written is None or parse_config(written, str(path))[0] != config:
        if not quiet:
            _by_hand(path, changes)
        return []
    try:
        kept = back_up(path)
        rewrite_text(path, written)
    except OSError as error:
        raise InputError([Problem(str(path), "file", f"cannot be written: {error.strerror}",
                                  "give this user permission to write it, and its folder")]) from None
    if not quiet:
        lines = [*(f"{path}: {change}" for change in changes), f"{path}: as it was: {kept.name}"]
        print("\n".join(map(printable, lines)))
    return changes


def _by_hand(path: Path, changes: list[str]) -> None:
    for change in changes:
        print(printable(f"{path}: change by hand: {change}"))


def back_up(path: Path) -> Path:
    """A copy beside `path`, with its owner and mode: FILE.bak, or FILE.bak.1 and so on, never one that is there."""
    content, like = path.read_bytes(), path.stat()
    for number in itertools.count():
        copy = path.with_name(f"{path.name}.bak" + (f".{number}" if number else ""))
        with suppress(FileExistsError), created(copy, 0o600) as file:
            give_like(file, like)
            os.fchmod(file.fileno(), like.st_mode & 0o777)
            file.write(content)
            return copy
    raise AssertionError("count() does not end")
