"""A job's keys against the packaged JSON Schema, where the Python environment that all else needs is missing: with
Debian's own jsonschema, which knows draft 7; the schema needs no more."""
from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from debzero.base import runtime
from debzero.base.errors import InputError, Problem
from debzero.base.text import did_you_mean, printable, short
from debzero.job import others
from debzero.job.document import read_document

PACKAGE = Path(__file__).resolve().parents[2]


def _schema() -> str:
    """As it is installed, or in a checkout."""
    installed = PACKAGE / "job.schema.json"
    return (installed if installed.is_file() else PACKAGE.parents[1] / "debian/job.schema.json").read_text()


def _of(error: Any, file: str) -> Iterator[Problem]:
    """One of jsonschema's errors as problems."""
    at = [str(part) for part in error.absolute_path]
    if error.validator == "additionalProperties":
        known = error.schema["properties"]
        for name in sorted(set(error.instance) - set(known)):
            yield Problem(file, ".".join([*at, name]), "is not a known key",
                          others.instead_of(name) or did_you_mean(name, sorted(known)))
    elif error.validator == "required":
        for name in sorted(set(error.validator_value) - set(error.instance)):
            yield Problem(file, ".".join([*at, name]), "is missing", _example(name, error.schema["properties"][name]))
    else:
        yield Problem(file, ".".join(at), f"cannot be {short(error.instance)}",
                      _example(at[-1] if at else "", error.schema))


def _example(name: str, schema: dict[str, Any]) -> str:
    examples = schema.get("examples")
    return f"write for example `{name}: {json.dumps(examples[0])}`" if examples else "see `man debzero`"


def run(options: argparse.Namespace) -> int:
    """`debzero check` without the environment."""
    if options.schema:
        print(_schema(), end="")
        return 0
    reason, fix = runtime.missing()
    if options.convert or options.fix or options.job.suffix in (".json", ".hjson"):
        raise InputError([Problem("debzero check", "environment", f"{reason}: only the keys of a job file can be "
                                  "checked without it", fix)])
    from jsonschema import Draft7Validator  # type: ignore[import-untyped]

    file = str(options.job)
    values, problems = read_document(options.job)
    for error in Draft7Validator(json.loads(_schema())).iter_errors(values):
        problems += _of(error, file)
    if problems:
        raise InputError(problems)
    rest = f"the rest is not: {reason}"
    if options.json:
        print(json.dumps({"ok": True, "verified": False, "problems": [], "changes": [], "job": file, "note": rest},
                         indent=2))
    else:
        print(printable(f"{file}: keys and types are right; {rest}\n-> {fix}"))
    return 0
