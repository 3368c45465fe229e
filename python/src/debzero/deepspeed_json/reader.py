"""Reads DeepSpeed's own JSON, from its file or from within a job."""
from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any, Optional

import hjson

from debzero.base.errors import InputError, Problem
from debzero.base.reading import (
    CONFIG,
    PAIRS,
    ContentError,
    check_depth,
    check_texts,
    parse_json,
    read_text,
    whole,
    why,
)
from debzero.base.text import type_text
from debzero.job.schema import Job

COMMENT = re.compile(r"#|//|/\*")

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
        values = _values(text, unique)
        check_depth(values)
        check_texts(values)
        _check_numbers(values)
    except ContentError as error:
        return None, [Problem(file, error.place, str(error), "check the commas, quotes and braces there")]
    if not isinstance(values, dict):
        return wrong(f"must hold a JSON object, not {type_text(values)}", "see DeepSpeed's configuration reference")
    return values, [Problem(file, key, "is repeated, and DeepSpeed refuses that", "keep one", "DZ105")
                    for key in repeated]


def _values(text: str, pairs: PAIRS) -> Any:
    """JSON's own reader goes first: Hjson's makes 1 of 1.0, and --fix would write it so. Raises a ContentError."""
    try:
        json.loads(text)
    except (ValueError, RecursionError) as of_json:
        try:
            return hjson.loads(text, object_pairs_hook=pairs, parse_int=whole)
        except RecursionError:
            raise ContentError("is nested too deeply") from None
        except OverflowError:
            raise ContentError("holds a number that is too large") from None
        except ValueError as of_hjson:
            # Where there are no comments JSON's reader knows the place better: to Hjson's, what follows a missing
            # comma belongs to an unquoted text.
            error = of_hjson if COMMENT.search(text) or not isinstance(of_json, json.JSONDecodeError) else of_json
            if not isinstance(error, (json.JSONDecodeError, hjson.HjsonDecodeError)):
                raise ContentError(f"is not JSON, nor Hjson: {error}") from None
            raise ContentError(f"is not JSON, nor Hjson: line {error.lineno}, column {error.colno}: {error.msg}",
                               f"line {error.lineno}") from None
    return parse_json(text, pairs)


def _check_numbers(values: Any) -> None:
    """Raises a ContentError for infinity and NaN, which Python's JSON reader takes and DeepSpeed's does not."""
    if isinstance(values, float) and not math.isfinite(values):
        raise ContentError("holds a number that is too large, or none")
    for inner in values.values() if isinstance(values, dict) else values if isinstance(values, list) else ():
        _check_numbers(inner)


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


def read_config(path: Path) -> tuple[dict[str, Any], list[Problem]]:
    """The configuration in a file, and what is wrong with its text alone. Raises an InputError where it has none."""
    try:
        config, wrong = parse_config(read_text(path, CONFIG), str(path))
    except (OSError, ValueError) as error:
        raise InputError([Problem(str(path), "file", why(error),
                                  "make it a text file that this user may read")]) from None
    if config is None:
        raise InputError(wrong)
    return config, wrong
