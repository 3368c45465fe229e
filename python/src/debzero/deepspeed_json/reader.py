"""Reads DeepSpeed's own JSON, from its file or from within a job."""
from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any, Optional

import hjson

from debzero.base.errors import Problem
from debzero.base.text import type_text
from debzero.job.schema import Job

COMMENT = re.compile(r"#|//|/\*")


def is_plain_json(text: str) -> bool:
    """Whether the text is JSON without Hjson's additions, such as comments."""
    try:
        _json(text, dict)
    except (ValueError, RecursionError):
        return False
    return True


def parse_config(text: str, file: str) -> tuple[Optional[dict[str, Any]], list[Problem]]:
    """The configuration in `text`: Hjson, as DeepSpeed reads it, which is JSON with comments, trailing commas and
    unquoted texts. DeepSpeed refuses a repeated key, so this does too."""
    repeated: list[str] = []

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        kept: dict[str, Any] = {}
        for key, value in pairs:
            if key in kept:
                repeated.append(key)
            kept[key] = value
        return kept

    def wrong(reason: str, fix: str) -> tuple[None, list[Problem]]:
        return None, [Problem(file, "file", reason, fix)]

    if not text.strip():
        return wrong("is empty", "write DeepSpeed's configuration there, at least {}")
    try:
        # Hjson's own parser makes 1 of 1.0, and --fix would write it so.
        values = _json(text, unique) if is_plain_json(text) else hjson.loads(text, object_pairs_hook=unique)
    except RecursionError:
        return wrong("is nested too deeply", "see DeepSpeed's configuration reference")
    except OverflowError:
        return wrong("holds a number that is too large", "correct it")
    except ValueError as error:
        return wrong(f"is neither JSON nor Hjson: {_place(text, error)}", "check the commas, quotes and braces there")
    if not isinstance(values, dict):
        return wrong(f"must hold a JSON object, not {type_text(values)}", "see DeepSpeed's configuration reference")
    return values, [Problem(file, key, "is repeated, and DeepSpeed refuses that", "keep one", "DZ105")
                    for key in repeated]


def _json(text: str, pairs: Any) -> Any:
    """As json.loads, but without the numbers that are not finite: DeepSpeed's reader has none."""
    def number(written: str) -> float:
        if not math.isfinite(float(written)):
            raise ValueError(f"{written} is no number of JSON")
        return float(written)

    return json.loads(text.lstrip("\ufeff"), object_pairs_hook=pairs, parse_float=number, parse_constant=number)


def _place(text: str, error: Exception) -> str:
    """What is wrong, and where. Without comments JSON's parser knows the place better: to Hjson's, what follows a
    missing comma is part of an unquoted text."""
    try:
        if not COMMENT.search(text):
            _json(text, dict)
    except ValueError as of_json:
        error = of_json if isinstance(of_json, json.JSONDecodeError) else error
    if isinstance(error, (json.JSONDecodeError, hjson.HjsonDecodeError)):
        return f"line {error.lineno}, column {error.colno}: {error.msg}"
    return str(error)


def read_deepspeed(job: Job, file: str) -> tuple[Optional[dict[str, Any]], list[Problem]]:
    """The user's own DeepSpeed JSON, inline or from its file."""
    if job.deepspeed is None or isinstance(job.deepspeed, dict):
        return job.deepspeed, []
    try:
        return parse_config(Path(job.deepspeed).read_text(encoding="utf-8"), job.deepspeed)
    except (OSError, UnicodeDecodeError) as error:
        reason = f"{job.deepspeed} cannot be read: {getattr(error, 'strerror', None) or error}"
    return None, [Problem(file, "deepspeed", reason, "the path is relative to the job file")]
