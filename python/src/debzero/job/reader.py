"""Reads a job file, finds everything that is wrong with it at once, and makes its paths absolute."""
from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Optional

from pydantic import BaseModel, ValidationError

from debzero.base.errors import Problem
from debzero.base.text import did_you_mean, short
from debzero.job import others
from debzero.job.document import read_document
from debzero.job.local_files import is_path, within
from debzero.job.schema import Job


def _known(location: tuple[Any, ...]) -> dict[str, Any]:
    """The fields of the section that `location` (a key's path) lies in."""
    fields: dict[str, Any] = dict(Job.model_fields)
    for part in location[:-1]:
        inner = fields[part].annotation if part in fields else None
        fields = dict(inner.model_fields) if isinstance(inner, type) and issubclass(inner, BaseModel) else {}
    return fields


def _instead(name: str, fields: list[str]) -> str:
    """What to write for an unknown key of a section with these `fields`: another program's name is known by itself and
    misspelt, and a job's own also in a wrong section. A far-fetched guess would lead astray."""
    if known := others.instead_of(name):
        return known
    for section, field in Job.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel) and name in inner.model_fields:
            return f"it belongs to {section}: write {section}.{name}"
    if name in Job.model_fields:
        return "it belongs to the top level: move it there"
    own = did_you_mean(name, fields, 0.7)
    if own.startswith("use") and (meant := others.near(name)):
        return f"did you mean {meant}? If so, {others.instead_of(meant)}"
    return own


def _location(values: Any, error: Any) -> tuple[Any, ...]:
    """The path of the key that one of pydantic's errors is about, without the types that pydantic puts in between."""
    location = []
    for part in error["loc"]:
        inside = part in values if isinstance(values, dict) else isinstance(part, int) and isinstance(values, list)
        if inside:
            values = values[part]
        if inside or error["type"] == "missing":
            location.append(part)
    return tuple(location)


def _problem(file: str, values: dict[str, Any], error: Any) -> Problem:
    """One of pydantic's errors about `values` as a sentence."""
    location = _location(values, error)
    kind, value, context = error["type"], error.get("input"), error.get("ctx", {})
    given = short(value)
    fields, name = _known(location), str(location[-1])
    field = fields.get(name)
    shown = dict.fromkeys((field.examples[0], field.examples[-1])) if field is not None else {}
    example = f"for example {' or '.join(f'`{name}: {value}`' for value in shown)}" if shown else "see `man debzero`"
    key = ".".join(map(str, location))
    if kind == "extra_forbidden":
        return Problem(file, key, "is not a known key", _instead(name, sorted(fields)))
    if kind == "missing":
        return Problem(file, key, "is missing", f"add it, {example}")
    if kind == "literal_error":
        choices = context["expected"].replace("'", "").replace(" or ", ", ").split(", ")
        return Problem(file, key, f"cannot be {given}", did_you_mean(value, choices))
    if kind == "value_error":
        return Problem(file, key, str(context["error"]), example)
    if kind in ("string_too_short", "too_short"):
        return Problem(file, key, "must not be empty", example)
    if kind == "too_long":
        return Problem(file, key, f"must have at most {context['max_length']} items, not {context['actual_length']}",
                       example)
    if kind in ("string_type", "list_type"):
        listed = " or a list of texts" if kind == "list_type" else ""
        return Problem(file, key, f"must be text{listed}, not {given}", example)
    if kind.startswith("bool_"):
        return Problem(file, key, f"must be true or false, not {given}", example)
    if kind.startswith(("int_", "float_")):
        whole = "a whole number" if kind.startswith("int_") else "a number"
        return Problem(file, key, f"must be {whole}, not {given}", example)
    if kind in ("model_type", "dict_type", "model_attributes_type"):
        return Problem(file, key, f"must be a mapping of keys, not {given}", example)
    return Problem(file, key, f"{error['msg'].replace('Input should', 'must')}, not {given}", example)


def _locate(job: Job, folder: Path) -> Job:
    """Make the job's paths absolute. A name that neither looks like a path nor exists here is the hub's."""
    update: dict[str, Any] = {"output": within(folder, job.output)}
    if is_path(job.data.dataset, folder):
        update["data"] = job.data.model_copy(update={"dataset": within(folder, job.data.dataset)})
    if isinstance(job.model, str) and is_path(job.model, folder):
        update["model"] = within(folder, job.model)
    if isinstance(job.deepspeed, str):
        update["deepspeed"] = within(folder, job.deepspeed)
    if job.zero.nvme_path is not None:
        update["zero"] = job.zero.model_copy(update={"nvme_path": within(folder, job.zero.nvme_path)})
    return job.model_copy(update=update)


def _unknown_homes(job: Job, file: str) -> list[Problem]:
    """Paths in the home of a user that this host does not have: they would be folders named ~user beside the job."""
    paths = {"output": job.output, "zero.nvme_path": job.zero.nvme_path or ""}
    return [Problem(file, key, f"{path.split('/')[0]} is the home of no user of this host", "give the whole path")
            for key, path in paths.items() if path.startswith("~") and os.path.expanduser(path) == path]


def _without(values: dict[str, Any], locations: list[tuple[Any, ...]]) -> dict[str, Any]:
    """`values` without the keys that were refused, so that the rest of the job can still be checked."""
    rest: dict[str, Any] = json.loads(json.dumps(values))
    for location in locations:
        inner: Any = rest
        for part in location[:-1]:
            inner = inner.get(part) if isinstance(inner, dict) else None
        if isinstance(inner, dict):
            inner.pop(location[-1], None)
    return rest


def parse(path: Path) -> tuple[Optional[Job], list[Problem]]:
    """The job in `path` and its problems. Where a value is wrong the job has the default, so that it can be checked
    further; it is None where that is impossible."""
    values, problems = read_document(path)
    if program := others.program_of(values):
        return None, [Problem(str(path), "file", *others.refusal(program, str(path)))]
    job = None
    try:
        job = Job.model_validate(values)
    except ValidationError as error:
        details = error.errors()
        problems += {p.key: p for p in (_problem(str(path), values, detail) for detail in details)}.values()
        refused = [tuple(detail["loc"])[:2] for detail in details]
        try:
            job = Job.model_validate(_without(values, refused))
        except ValidationError:
            return None, problems
    return _locate(job, path.absolute().parent), [*problems, *_unknown_homes(job, str(path))]
