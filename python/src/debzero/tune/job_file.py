"""What was found, written into the job file with its comments kept."""
from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

from debzero.base.errors import InputError, Problem


def check_writable(job: Path) -> None:
    """Before the first trial: nobody shall wait for a result that cannot be written."""
    from ruamel.yaml.error import YAMLError

    folder, reason = job.resolve().parent, ""
    if not os.access(folder, os.W_OK | os.X_OK):
        reason, fix = f"{folder} may not be written by this user", "run it as the file's owner, or with --dry-run"
    try:
        rewritten(job.read_text(encoding="utf-8"), {})
    except YAMLError as error:
        reason, fix = f"cannot be written again: {' '.join(str(error).split())}", "mend the line"
    if reason:
        raise InputError([Problem(str(job), "file", reason, fix)])


def rewritten(text: str, lines: dict[str, Any]) -> str:
    """A job file's text with `lines` (dotted keys) in it; comments, order and quotes stay."""
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.preserve_quotes, yaml.width = True, 2**16
    job = yaml.load(text)
    for path, value in lines.items():
        *sections, key = path.split(".")
        inner = job
        for name in sections:
            if inner.get(name) is None:
                inner[name] = {}
            inner = inner[name]
        inner[key] = value
    made = io.StringIO()
    yaml.dump(job, made)
    return made.getvalue()
