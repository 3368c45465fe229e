"""Lint rules about the shape of a DeepSpeed configuration: its keys, their types and old names."""
from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterator
from typing import Any

from debzero.base.text import did_you_mean
from debzero.deepspeed_json import arguments, keys
from debzero.deepspeed_json.keys import Kind
from debzero.deepspeed_json.view import ZERO, ConfigView, Path, Violation, dotted, is_number, removal, replacement


def _fits(value: Any, kind: Kind) -> bool:
    if value is None:
        return kind.nullable or kind.name == "any"
    if kind.name == "choice":
        return isinstance(value, str) and kind.allows(value)
    return {"bool": isinstance(value, bool), "number": is_number(value), "text": isinstance(value, str),
            "whole": is_number(value) and value == math.floor(value), "list": isinstance(value, list),
            "mapping": isinstance(value, dict), "section": isinstance(value, dict), "any": True}[kind.name]


def _misfit(path: Path, value: Any, kind: Kind) -> Violation:
    if kind.name == "choice":
        return Violation("DZ102", path, f"cannot be {_show(value)}", did_you_mean(value, list(kind.choices)))
    wanted = {"bool": "true or false", "whole": "a whole number", "number": "a number", "text": "text",
              "list": "a list"}.get(kind.name, "a mapping of keys")
    meant = _meant(value, kind)
    if meant is None:
        return Violation("DZ102", path, f"must be {wanted}, not {_show(value)}",
                         f"write {wanted} there, or remove the key")
    shown = json.dumps(meant) if isinstance(meant, (bool, int)) else f"{meant:.6e}" if abs(meant) < 1e-3 else str(meant)
    return Violation("DZ102", path, f"must be {wanted}, not the text {_show(value)}",
                     f"write {shown}, without quotes (YAML reads 1e-5 as text "
                     "and 1.0e-5 as a number)", replacement(path, path[-1], meant))


def _meant(value: Any, kind: Kind) -> Any:
    """The value of a text without its quotes, where that fits `kind`; else None."""
    if not isinstance(value, str) or kind.name not in ("bool", "whole", "number") or len(value) > 40:
        return None
    try:
        meant = {"true": True, "false": False}[value.lower()] if kind.name == "bool" else float(value)
    except (KeyError, ValueError):
        return None
    whole = kind.name != "bool" and is_number(meant) and meant == math.floor(meant)
    if whole and (kind.name == "whole" or "." not in value and "e" not in value.lower()):
        meant = int(meant)
    return meant if _fits(meant, kind) else None


def _show(value: Any) -> str:
    text = json.dumps(value, default=str) if isinstance(value, (dict, list, bool, str,
                                                                type(None))) and _plain(value) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _plain(value: Any) -> bool:
    return not isinstance(value, dict) or all(isinstance(key, str) for key in value)


def unknown_key(view: ConfigView) -> Iterator[Violation]:
    for path, _, key in keys.walk(view.config):
        section = keys.table()[path[:-1]]
        refuses = section.refuses_unknown(view.releases.deepspeed)
        if key is not None or keys.is_note(path[-1]) and not (refuses and view.job is None):
            continue
        if keys.is_note(path[-1]):
            yield Violation("DZ101", path, f"is a note, and DeepSpeed refuses it in {dotted(path[:-1])}: debzero "
                            "leaves it out, other programs do not", "move it to the top level", removal(*path),
                            "warning")
            continue
        fix = _meant_key(path, section)
        if refuses:
            yield Violation("DZ101", path, f"is not a known key, and DeepSpeed refuses it in {dotted(path[:-1])}",
                            fix or UNKNOWN)
        elif fix or not section.open:
            yield Violation("DZ101", path, "is not a known key: DeepSpeed silently ignores it", fix or UNKNOWN,
                            severity="error" if fix else "warning")


UNKNOWN = "remove it, or check its spelling and its section against DeepSpeed's reference"


def _meant_key(path: Path, section: keys.Section) -> str:
    """The fix for a misspelled or misplaced key; empty where no known key is near: a far guess helps nobody."""
    word = str(path[-1])
    close = difflib.get_close_matches(word, sorted(section.keys), 1, 0.8)
    if close:
        return f"did you mean {close[0]}?"
    places = [path for path in ((), (ZERO,)) if word in keys.table()[path].keys and path != section.path]
    if not places or section.open:
        return ""
    return f"it belongs in {dotted(places[0])}: move it there" if places[0] else "it belongs at the top level: move it"


def wrong_type(view: ConfigView) -> Iterator[Violation]:
    every = [(path, value, key.kind) for path, value, key in keys.walk(view.config) if key is not None]
    params = (("optimizer", arguments.OPTIMIZER_PARAMS),
              ("scheduler", arguments.SCHEDULERS.get(view.text("scheduler", "type"), ({},))[0]))
    for section, known in params:
        every += [((section, "params", name), value, Kind("choice", choices=kind) if isinstance(kind, tuple) else
                   Kind(kind)) for name, value in view.section(section, "params").items()
                  if isinstance(name, str) and (kind := known.get(name))]
    for path, value, kind in every:
        if value != "auto" and not _fits(value, kind):
            yield _misfit(path, value, kind)


def out_of_bounds(view: ConfigView) -> Iterator[Violation]:
    """What DeepSpeed's own validation refuses, or what fails later in its code."""
    for path, value, key in keys.walk(view.config):
        if key is None or not is_number(value) or key.kind.least <= value <= key.kind.most:
            continue
        least, most = f"{key.kind.least:g}", f"{key.kind.most:g}"
        if key.kind.most < math.inf:
            yield Violation("DZ106", path, f"is a share from {least} to {most}, not {value}",
                            f"use {most} for all of it, or remove it for the default")
        else:
            yield Violation("DZ106", path, f"must be at least {least}, not {value}",
                            f"use {least} or more, or remove it for the default")


# Sections that have no effect here anyway, and a text of DeepSpeed's own.
INERT = ("elasticity", "autotuning", "pipeline", "nebula")


def idle_auto(view: ConfigView) -> Iterator[Violation]:
    def every(values: dict[Any, Any], path: Path) -> Iterator[Path]:
        for key, value in values.items():
            if isinstance(value, dict):
                yield from every(value, (*path, key))
            elif value == "auto":
                yield (*path, key)

    for path in every(view.config, ()):
        if path[0] not in INERT and path[-1] not in keys.AUTO and dotted(path[-2:]) not in keys.AUTO:
            yield Violation("DZ103", path,
                            '"auto" has no meaning here: debzero leaves the key out, DeepSpeed alone refuses it',
                            "remove it: DeepSpeed's default holds", removal(*path))


def renamed(view: ConfigView) -> Iterator[Violation]:
    zero = view.section(ZERO)
    if isinstance(view.given.get(ZERO), bool):
        yield Violation("DZ104", (ZERO,), f"is the old form of stage {zero['stage']}", f"write {json.dumps(zero)}",
                        replacement((ZERO,), ZERO, dict(zero)))
    pinned = zero.get("cpu_offload_use_pin_memory") is True
    olds = {"cpu_offload": "offload_optimizer", "cpu_offload_param": "offload_param",
            "cpu_offload_params": "offload_param"}
    for old, part in olds.items():
        if isinstance(zero.get(old), bool):
            now = {"device": "cpu", "pin_memory": True} if pinned else {"device": "cpu"}
            edit = replacement((ZERO, old), part, now) if zero[old] else removal(ZERO, old)
            fix = f'write "{part}": {json.dumps(now)}' if zero[old] else "remove it"
            yield Violation("DZ104", (ZERO, old), f"is the old form of {part}", fix, edit,
                            "error" if old == "cpu_offload_params" else None)
    if "cpu_offload_use_pin_memory" in zero and not set(olds) & set(zero):
        yield Violation("DZ104", (ZERO, "cpu_offload_use_pin_memory"), "is an old key without effect here",
                        'set "pin_memory" within offload_optimizer or offload_param',
                        removal(ZERO, "cpu_offload_use_pin_memory"))
    old, now_key = "stage3_gather_fp16_weights_on_model_save", "stage3_gather_16bit_weights_on_model_save"
    if isinstance(zero.get(old), bool):
        yield Violation("DZ104", (ZERO, old), f"is the old name of {now_key}", "rename it",
                        replacement((ZERO, old), now_key, zero[old]))
    if "bfloat16" in view.config and "bf16" not in view.config:
        yield Violation("DZ104", ("bfloat16",), "is the old name of bf16", "rename it",
                        replacement(("bfloat16",), "bf16", view.config["bfloat16"]))


RULES = (unknown_key, wrong_type, out_of_bounds, idle_auto, renamed)
