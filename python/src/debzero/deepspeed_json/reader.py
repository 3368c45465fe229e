"""Reads DeepSpeed's own JSON, from its file or from within a job."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Optional

from debzero.base.errors import InputError, Problem
from debzero.base.text import type_text
from debzero.job.schema import Job


def parse_config(text: str, file: str) -> tuple[Optional[dict[str, Any]], list[Problem]]:
    """The configuration in `text`. DeepSpeed refuses a repeated key, so this does too."""
    repeated: list[str] = []

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        kept: dict[str, Any] = {}
        for key, value in pairs:
            if key in kept:
                repeated.append(key)
            kept[key] = value
        return kept

    try:
        values = json.loads(text, object_pairs_hook=unique)
    except RecursionError:
        return None, [Problem(file, "file", "is nested too deeply", "see DeepSpeed's configuration reference")]
    except ValueError as error:
        return None, [Problem(file, "file", f"is not JSON: {error}",
                              "check the commas and quotes there; it takes no comments")]
    if not isinstance(values, dict):
        return None, [Problem(file, "file", f"must hold a JSON object, not {type_text(values)}",
                              "see DeepSpeed's configuration reference")]
    return values, [Problem(file, key, "is repeated, and DeepSpeed refuses that", "keep one", "DZ105")
                    for key in repeated]


def read_deepspeed(job: Job, file: str) -> tuple[Optional[dict[str, Any]], list[Problem]]:
    """The user's own DeepSpeed JSON, inline or from its file."""
    if job.deepspeed is None or isinstance(job.deepspeed, dict):
        return job.deepspeed, []
    try:
        return parse_config(Path(job.deepspeed).read_text(encoding="utf-8"), job.deepspeed)
    except (OSError, UnicodeDecodeError) as error:
        reason = f"{job.deepspeed} cannot be read: {getattr(error, 'strerror', None) or error}"
    return None, [Problem(file, "deepspeed", reason, "the path is relative to the job file")]


def read_config(path: Path) -> tuple[dict[str, Any], list[Problem]]:
    """The configuration in a file, and what is wrong with its text alone. Raises an InputError where it has none."""
    try:
        config, wrong = parse_config(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError([Problem(str(path), "file", f"cannot be read: {error}",
                                  "make it a text file that this user may read")]) from None
    if config is None:
        raise InputError(wrong)
    return config, wrong
