"""A job file as the YAML mapping that it holds. What the keys mean needs pydantic; this needs PyYAML alone."""
from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from debzero.base.errors import InputError, Problem
from debzero.base.privileges import acting_as_owner
from debzero.base.reading import JOB, ContentError, read_text, why
from debzero.base.stack import examples_folder, jobs_folder
from debzero.base.text import type_text
from debzero.base.yaml_reading import load


def _instead_of_none(path: Path) -> str:
    """What to do where there is no `path`."""
    packaged = examples_folder() / path.name
    if path.parent == jobs_folder() and packaged.is_file():
        return f"copy the packaged one: `cp {packaged} {path.parent}/`"
    base = "" if path.is_absolute() else ", relative to the current folder"
    return f"check the path{base}; `{shlex.join(['ls', str(path.parent)])}` shows what is there"


def read_mapping(path: Path) -> dict[str, Any]:
    """The YAML mapping in `path`. Raises an InputError if the file cannot be read or is no YAML mapping."""
    return read_document(path)[0]


def read_document(path: Path) -> tuple[dict[str, Any], list[Problem]]:
    """As read_mapping, with a problem for each repeated key."""
    def wrong(key: str, reason: str, fix: str) -> InputError:
        return InputError([Problem(str(path), key, reason, fix)])

    try:
        with acting_as_owner(path):  # a link of another user's leads root nowhere
            text = read_text(path, JOB)
    except FileNotFoundError:
        raise wrong("file", "does not exist", _instead_of_none(path)) from None
    except IsADirectoryError:
        raise wrong("file", "is a folder, not a job file", "give the .yml file inside it") from None
    except (OSError, ValueError) as error:
        raise wrong("file", why(error), "make it a text file that this user may read") from None
    try:
        values, repeated = load(text)
    except ContentError as error:
        raise wrong(error.place, str(error), "check the indentation, quotes and brackets there") from None
    if not isinstance(values, dict):
        raise wrong("file", "is empty, but must hold a mapping such as `model: ...`" if values is None else
                    f"must hold a mapping such as `model: ...`, not {type_text(values)}",
                    f"start from a job file in {examples_folder()}")
    return values, [Problem(str(path), key, f"is repeated on line {line}; YAML silently keeps the last", "keep one")
                    for key, line in repeated]
