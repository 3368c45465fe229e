"""The settings that were found, written into the job file with its comments kept."""
from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Union

from debzero.base.errors import InputError, Problem

Value = Union[str, int, bool]


def check_writable(job: Path) -> None:
    """Before the first trial: nobody should wait for a result that then cannot be written."""
    from ruamel.yaml.error import YAMLError

    folder, reason = job.resolve().parent, ""
    if not os.access(folder, os.W_OK | os.X_OK):
        reason, fix = f"{folder} may not be written by this user", "run it as the file's owner, or with --dry-run"
    try:
        with_values(job.read_text(encoding="utf-8"), {})
    except YAMLError as error:
        reason, fix = f"cannot be rewritten: {' '.join(str(error).split())}", "fix the line"
    if reason:
        raise InputError([Problem(str(job), "file", reason, fix)])


def with_values(text: str, values: Mapping[str, Value]) -> str:
    """A job file's text with `values` (by dotted key, such as train.micro_batch) in it; comments, order and quotes
    stay. Raises a YAMLError where it cannot be read."""
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.preserve_quotes, yaml.width = True, 2**16
    job = yaml.load(text)
    for path, value in values.items():
        *sections, key = path.split(".")
        section = job
        for name in sections:
            if section.get(name) is None:
                section[name] = {}
            section = section[name]
        section[key] = value
    written = io.StringIO()
    yaml.dump(job, written)
    return written.getvalue()
