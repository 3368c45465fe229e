"""The keys of DeepSpeed's JSON: what each may hold, and what becomes of it in a training. The table is in keys.yml.

They are listed there rather than imported, so that a host without DeepSpeed can check a file, and so that keys of other
releases are known. A test compares the table with the installed DeepSpeed.
"""
from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, Optional

import yaml

from debzero.deepspeed_json.releases import parsed

State = Literal["driven", "acts", "ignored", "refused"]
Effect = Literal["weights", "job", "length", "speed", "watch"]
INHERITED = ("state", "effect", "why", "source", "since", "until")  # facts of a section that hold for its keys


@dataclass(frozen=True)
class Kind:
    """What a key may hold. `name`: bool, whole, number, text, list, mapping, any, choice or section."""

    name: str
    least: float = -math.inf
    most: float = math.inf
    choices: tuple[str, ...] = ()
    any_case: bool = False
    nullable: bool = False

    def allows(self, text: str) -> bool:
        return (text.lower() if self.any_case else text) in self.choices


@dataclass(frozen=True)
class Key:
    """A key with its place in the table. `since`, `until`: the first and the last release that knows it, or empty;
    `effect`: what another value does to a run that has begun, known where the state is driven or acts; `inner`: the
    keys of a mapping with another effect."""

    path: tuple[str, ...]
    kind: Kind
    state: State
    why: str
    source: str
    since: str = ""
    until: str = ""
    idle: Any = None
    effect: Optional[Effect] = None
    inner: Mapping[str, Effect] = field(default_factory=dict)

    def known_to(self, release: str) -> bool:
        here = parsed(release)
        return not (self.since and here < parsed(self.since)) and not (self.until and here > parsed(self.until))

    def asks(self, value: Any) -> bool:
        """Whether `value` asks for anything."""
        return value != "auto" and value != self.idle and bool(value or self.idle is True and value is False)


@dataclass(frozen=True)
class Section:
    """A mapping of keys. `strict`: the release since which an unknown key stops the start, or empty."""

    path: tuple[str, ...]
    keys: Mapping[str, Key]
    state: State
    strict: str
    open: bool
    needs: tuple[str, ...]

    def refuses_unknown(self, release: str) -> bool:
        return bool(self.strict) and parsed(release) >= parsed(self.strict)


class Found(NamedTuple):
    """A value in a configuration, and its key in the table: None where it has none."""

    path: tuple[Any, ...]
    value: Any
    key: Optional[Key]


def _kind(written: Any, any_case: bool) -> Kind:
    if isinstance(written, list):
        choices = tuple(str(choice) for choice in written if choice is not None)
        return Kind("choice", choices=choices, any_case=any_case, nullable=None in written)
    found = re.fullmatch(r"(\w+)(?:>=([\d.]+)| ([\d.]+)\.\.([\d.]+))?(\??)", written)
    assert found, f"keys.yml: {written}"
    name, least, low, high, null = found.groups()
    return Kind(name, float(least or low or -math.inf), float(high or math.inf), nullable=bool(null))


@cache
def table() -> Mapping[tuple[str, ...], Section]:
    """Every section under its path; () is the top level."""
    sections = {}
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    written: dict[str, Any] = {}
    for file in ("keys.yml", "keys_features.yml"):
        written.update(yaml.load(Path(__file__).with_name(file).read_text(encoding="utf-8"), loader))  # noqa: S506
    for dotted, section in written.items():
        path = tuple(dotted.split(".")) if dotted else ()
        keys = {}
        for name, entry in section["keys"].items():
            entry = entry if isinstance(entry, dict) else {"is": entry}
            inner = written.get(".".join((*path, name)), {}) if entry["is"] in ("section", "section?") else {}
            facts = {"why": "", "source": "",
                     **{fact: part[fact] for part in (section, inner) for fact in INHERITED if fact in part}, **entry}
            keys[name] = Key((*path, name), _kind(facts.pop("is"), facts.pop("any_case", False)), **facts)
        sections[path] = Section(path, keys, section["state"], section.get("strict", ""), section.get("open", False),
                                 tuple(section.get("needs", ())))
    zero = sections[(ZERO,)]
    unprefixed = {name[len("stage3_"):]: replace(key, path=(ZERO, name[len("stage3_"):]))
                  for name, key in zero.keys.items() if name.startswith("stage3_") and name != GATHER_FP16}
    sections[(ZERO,)] = replace(zero, keys={**unprefixed, **zero.keys})  # DeepSpeed reads them without the prefix, too
    return sections


ZERO, GATHER_FP16 = "zero_optimization", "stage3_gather_fp16_weights_on_model_save"


def walk(values: Mapping[Any, Any], path: tuple[Any, ...] = ()) -> Iterator[Found]:
    """Everything in a configuration, outer sections first; what is in no section of the table is not looked into."""
    section = table()[path]
    for name, value in values.items():
        key = section.keys.get(name) if isinstance(name, str) else None
        yield Found((*path, name), value, key)
        if key is not None and key.kind.name == "section" and isinstance(value, Mapping):
            yield from walk(value, key.path)


def settings(values: Mapping[Any, Any], effect: Effect) -> dict[str, Any]:
    """Each setting of a configuration that has this effect, by its dotted path. What is unknown, as in the user's own
    sections, counts as weights; "auto" stands for the job's value and is left out."""
    found: dict[str, Any] = {}
    for path, value, key in walk(without_notes(dict(values))):
        dotted = ".".join(map(str, path))
        if key is None:
            found.update({dotted: value} if effect == "weights" else {})
        elif key.kind.name == "section" or key.state not in ("driven", "acts"):
            continue
        elif key.inner and isinstance(value, Mapping):
            found.update({f"{dotted}.{name}": inner for name, inner in value.items()
                          if inner != "auto" and key.inner.get(name, key.effect) == effect})
        elif key.effect == effect and value != "auto":
            found[dotted] = value
    return found


def is_note(name: Any) -> bool:
    """Whether a key is a comment in the clothes of a key, such as `_comment`."""
    return isinstance(name, str) and (name.startswith(("_", "//", "#")) or name.lower() in ("comment", "comments"))


def without_notes(values: dict[str, Any]) -> dict[str, Any]:
    """The configuration without its notes: DeepSpeed refuses them in some sections."""
    return {name: without_notes(value) if isinstance(value, dict) else value
            for name, value in values.items() if not is_note(name)}


# Where "auto" stands for a value of the job or the model: resolve/deepspeed_config fills these in.
AUTO = {"train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping", "lr",
        "betas", "eps", "weight_decay", "warmup_min_lr", "warmup_max_lr", "warmup_num_steps", "total_num_steps",
        "reduce_bucket_size", "stage3_prefetch_bucket_size", "stage3_param_persistence_threshold", "fp16.enabled",
        "bf16.enabled", "zero_optimization.stage", "stage3_max_live_parameters"}
