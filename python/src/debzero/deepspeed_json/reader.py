"""Reads DeepSpeed's own JSON, from its file or from within a job."""
from __future__ import annotations

from pathlib import Path
from typing import Any, Optional

from debzero.base.errors import Problem
from debzero.base.reading import CONFIG, ContentError, check_texts, parse_json, read_text, why
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
        values = parse_json(text, unique)
        check_texts(values)
    except ContentError as error:
        return None, [Problem(file, error.place, str(error), "check the commas and quotes there; it takes no comments")]
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
        text = read_text(Path(job.deepspeed), CONFIG)
    except (OSError, ValueError) as error:
        return None, [Problem(file, "deepspeed", f"{job.deepspeed} {why(error)}",
                              "the path is relative to the job file")]
    return parse_config(text, job.deepspeed)
