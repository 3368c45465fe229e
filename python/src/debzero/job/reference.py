"""What the schema says of each key, for other readers: a JSON Schema for editors, a page, and rows for the man page.

The schema itself needs pydantic. What is derived from it as a dictionary needs the standard library alone, because the
man page is made on Debian 11, from the tracked debian/job.schema.json.
"""
from __future__ import annotations

import json
import re
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from debzero.job.effects import EFFECTS, Effect

DRAFT = "https://json-schema.org/draft/2020-12/schema"
# YAML 1.1 reads 3e-5, without a point, as text; debzero takes it, and any number in quotes, as the number. A schema
# cannot compare what a text says with a limit: these patterns accept the usual forms of what lies within it.
NUMBER = r"([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]{1,2})?"
SHARE = r"(0*\.[0-9]+([eE]-[0-9]{1,2})?|[0-9](\.[0-9]*)?[eE]-(0?[1-9]|[1-9][0-9])|0)"  # below 1
NOT_ZERO = r"(?=[0-9.]*[1-9])"
LONGEST = 15  # characters: longer ones may round up to 1
SWITCHES = ("true", "false", "yes", "no", "on", "off", "t", "f", "y", "n", "1", "0")  # in any case
ORDER = ("description", "type", "enum", "anyOf", "default", "examples")  # of what describes a key, for people
LARGE = 2**30  # limits beyond this catch slips and are not worth showing
WIDTH = 118

Schema = dict[str, Any]


def job_schema() -> Schema:
    """The job file's JSON Schema (draft 2020-12). It accepts what debzero accepts, but not every form of a number as
    text, and it accepts .nan, which no schema can refuse."""
    from debzero.job.schema import Job

    raw = Job.model_json_schema()
    return {"$schema": DRAFT, "title": "debzero job", **_tidied(raw, raw.pop("$defs"))}


def _tidied(node: Any, definitions: Schema) -> Any:
    """pydantic's schema with its references replaced by what they mean, and with what its validators accept as well."""
    if isinstance(node, list):
        return [_tidied(item, definitions) for item in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        named = definitions[node["$ref"].rpartition("/")[2]]
        return _tidied({**named, **{key: value for key, value in node.items() if key != "$ref"}}, definitions)
    tidied = {key: _tidied(value, definitions) for key, value in node.items()
            if key not in ("title", "properties", "examples")}
    if "properties" in node:
        tidied["properties"] = {key: _tidied(value, definitions) for key, value in node["properties"].items()}
    if "examples" in node:
        tidied["examples"] = [_parsed(example) for example in node["examples"]]
    if tidied.get("type") == "number" and "exclusiveMaximum" not in tidied:
        tidied["maximum"] = sys.float_info.max  # YAML has .inf
    if texts := _as_text(tidied):
        tidied = _or(tidied, *texts)
    first = [key for key in ORDER if key in tidied]
    return {key: tidied[key] for key in [*first, *(key for key in tidied if key not in ORDER)]}


def _as_text(node: Schema) -> list[Schema]:
    """What else debzero accepts where the schema has `node`."""
    from debzero.job.schema import ALSO

    kind = node.get("type")
    if kind == "array":
        return [{"type": "string"}]
    if kind == "boolean":
        words = "|".join("".join(f"[{c}{c.upper()}]" if c.isalpha() else c for c in word) for word in SWITCHES)
        return [{"enum": [0, 1], "$comment": ALSO}, {"type": "string", "pattern": f"^({words})$", "$comment": ALSO}]
    if kind == "integer":
        digits = len(str(node["exclusiveMaximum"])) - 1
        pattern = f"([{node['minimum']}-9]|[1-9][0-9]{{1,{digits - 1}}})"
    elif kind == "number":
        pattern = (NOT_ZERO if "exclusiveMinimum" in node else "") + (SHARE if "exclusiveMaximum" in node else NUMBER)
    else:
        return []
    return [{"type": "string", "pattern": f"^{pattern}$", "maxLength": LONGEST, "$comment": ALSO}]


def _or(node: Schema, *others: Schema) -> Schema:
    """A schema that also accepts `others`; what explains it stays outside."""
    outside = {key: node[key] for key in ("default", "description", "examples") if key in node}
    return {**outside, "anyOf": [{key: value for key, value in node.items() if key not in outside}, *others]}


def _parsed(example: str) -> Any:
    import yaml

    value = yaml.safe_load(example)
    return float(value) if isinstance(value, str) and re.fullmatch(NUMBER, value) else value


def as_json(schema: Schema) -> str:
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


@dataclass(frozen=True)
class Key:
    """One key: its path with dots, what it may be, its default (empty: none), its meaning, and an example."""

    path: str
    values: str
    default: str
    required: bool
    meaning: str
    example: str


def keys(schema: Schema, prefix: str = "") -> Iterator[Key]:
    """The keys of a schema of job_schema(), each section's after the section itself."""
    for name, node in schema["properties"].items():
        default, required = node.get("default"), name in schema.get("required", ())
        yield Key(prefix + name, _values(node), "" if default in (None, []) else value_text(default), required,
                  node["description"], value_text(node["examples"][0]))
        if "properties" in node:
            yield from keys(node, f"{prefix}{name}.")


def is_section(schema: Schema, path: str) -> bool:
    node = schema
    for part in path.split("."):
        node = node["properties"][part]
    return "properties" in node


def value_text(value: Any) -> str:
    """A value as a job file has it."""
    if isinstance(value, float):
        return re.sub(r"e([-+])0", r"e\1", repr(value))
    if isinstance(value, list):
        return f"[{', '.join(json.dumps(item) if item != item.strip() else item for item in map(value_text, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {value_text(item)}' for key, item in value.items())}}}"
    return value if isinstance(value, str) else json.dumps(value)


def _values(node: Schema) -> str:
    """What a key may be, as text."""
    if "anyOf" in node:
        parts = dict.fromkeys(_values(part) for part in node["anyOf"]
                              if part.get("type") != "null" and "$comment" not in part)
        return " or ".join(parts)
    if "enum" in node:
        choices = [f"`{value_text(choice)}`" for choice in node["enum"]]
        return f"{', '.join(choices[:-1])} or {choices[-1]}"
    if "const" in node:
        return f"`{node['const']}`"
    kind = node["type"]
    if kind in ("integer", "number"):
        return ("whole number" if kind == "integer" else "number") + _limits(node)
    if kind == "array":
        most = node.get("maxItems")
        return "list of strings" + (f" (at most {most})" if most else "")
    return {"string": "string", "boolean": "`true` or `false`", "object": "mapping"}[kind]


def _limits(node: Schema) -> str:
    texts = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to", "exclusiveMaximum": "below"}
    limits = [f"{text} {node[key]:g}" for key, text in texts.items() if key in node and abs(node[key]) < LARGE]
    return f" {' and '.join(limits)}" if limits else ""


INTRODUCTION = """
A job is a YAML file with the keys below. Paths in it are relative to the file's own folder. `debzero check FILE`
reports every mistake it can find without training, all at once, each with its fix.

`debzero check --schema` prints these keys as a JSON Schema, with which editors complete and check a job file. The
package installs it as `/usr/share/debzero/job.schema.json`; the first line of the packaged jobs names it for editors
that use yaml-language-server.
"""


CHANGES = """
A run in the output folder resumes as long as the job is the same. When a key changes, it depends on what the key
decides. `debzero check` says beforehand what the next start does with the runs in the folder, and which settings or
contents differ.

Where the run starts anew, the one that is there moves to `archive/`. It is taken back when the job fits it again. A
run continues from its newest checkpoint, also when it has finished: with more `epochs` it trains on, with another
`metric` its report is written again; its result so far stays in `archive/`, and is found when the key is changed
back. The learning rate of the steps to come is then that of a run of the new length: it warms up and falls to 0 as if
the run had always been as long, so it rises again where it was near its end. The steps that are done keep the rate
that they had; `debzero train --again` trains the whole length in one go instead. A job that ends before the step that
the run has reached starts anew. After a change of `metric` or `select`, the best weights are those of the evaluations
from then on, unless earlier ones were kept for the same metric.

Of DeepSpeed's JSON, the keys count by what they do, whether they stand in the job or in a file.
"""


def page(schema: Schema, example: str) -> str:
    """docs/reference/job.md. `example`: a whole job file."""
    lines = ["# The job file", "", "<!-- Generated by `make docs` from python/src/debzero/job/schema.py. -->",
             INTRODUCTION.rstrip(), "", "```yaml", example.rstrip(), "```", "", "## All sections", ""]
    rows = list(keys(schema))
    sections = [key for key in rows if is_section(schema, key.path)]
    lines += _table([key for key in rows if "." not in key.path])
    for section in sections:
        inner = [key for key in rows if key.path.rpartition(".")[0] == section.path]
        lines += ["", f"## {section.path}", "", *textwrap.wrap(section.meaning, WIDTH), "", *_table(inner)]
    lines += ["", "## What a change does to a run", CHANGES.rstrip(), "", "| what the key decides | keys | the run |",
              "|---|---|---|"]
    for effect in Effect:
        named = ", ".join(f"`{key}`" for key, own in EFFECTS.items() if own is effect)
        run = "starts anew" if effect.starts_anew else "stays where it is" if effect is Effect.PLACE else "continues"
        lines.append(f"| {effect.value} | {named} | {run} |")
    return "\n".join(lines) + "\n"


def _table(rows: list[Key]) -> list[str]:
    lines = ["| key | value | default | example | meaning |", "|---|---|---|---|---|"]
    for key in rows:
        default = "required" if key.required else f"`{key.default}`" if key.default else "-"
        lines.append(f"| `{key.path}` | {key.values} | {default} | `{key.example}` | {key.meaning} |")
    return lines
