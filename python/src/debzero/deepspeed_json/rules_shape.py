"""Lint rules about the shape of a DeepSpeed configuration: its keys, their types and old names."""
from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

from debzero.base.text import did_you_mean
from debzero.deepspeed_json import keys
from debzero.deepspeed_json.view import ZERO, ConfigView, Path, Violation, dotted, is_number, removal, replacement


def _fits(value: Any, kind: Any) -> bool:
    if isinstance(kind, tuple):
        return isinstance(value, str) and value in kind
    if isinstance(kind, dict) or kind == "mapping":
        return isinstance(value, dict)
    return {"bool": isinstance(value, bool), "number": is_number(value),
            "whole": is_number(value) and value == math.floor(value), "text": isinstance(value, str),
            "list": isinstance(value, list), "any": True}[kind]


def _misfit(path: Path, value: Any, kind: Any) -> Violation:
    if isinstance(kind, tuple):
        return Violation("DZ102", path, f"cannot be {_show(value)}", did_you_mean(value, list(kind)))
    wanted = "a mapping of keys" if isinstance(kind, dict) else {
        "bool": "true or false", "whole": "a whole number", "number": "a number", "text": "text", "list": "a list",
        "mapping": "a mapping of keys"}[kind]
    meant = _meant(value, kind)
    if meant is None:
        return Violation("DZ102", path, f"must be {wanted}, not {_show(value)}",
                         f"write {wanted} there, or remove the key")
    shown = json.dumps(meant) if isinstance(meant, (bool, int)) else f"{meant:.6e}" if abs(meant) < 1e-3 else str(meant)
    return Violation("DZ102", path, f"must be {wanted}, not the text {_show(value)}",
                     f"write {shown}, without quotes (YAML reads 1e-5 as text "
                     "and 1.0e-5 as a number)", replacement(path, path[-1], meant))


def _meant(value: Any, kind: Any) -> Any:
    """The value of a text without its quotes, where that fits `kind`; else None."""
    if not isinstance(value, str) or kind not in ("bool", "whole", "number") or len(value) > 40:
        return None
    try:
        meant = {"true": True, "false": False}[value.lower()] if kind == "bool" else float(value)
    except (KeyError, ValueError):
        return None
    if kind != "bool" and _fits(meant, "whole") and "e" not in value.lower() and (kind == "whole" or "." not in value):
        meant = int(meant)
    return meant if _fits(meant, kind) else None


def _show(value: Any) -> str:
    text = json.dumps(value, default=str) if isinstance(value, (dict, list, bool, str,
                                                                type(None))) and _plain(value) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _plain(value: Any) -> bool:
    return not isinstance(value, dict) or all(isinstance(key, str) for key in value)


def _walk(values: dict[Any, Any], known: dict[str, Any], path: Path = ()) -> Iterator[tuple[Path, Any, Any]]:
    """(path, value, kind) of each key; the kind is None for one that is not known."""
    for key, value in values.items():
        here = (*path, key)
        kind = known.get(key) if isinstance(key, str) else None
        if kind is None and path == (ZERO,) and key in keys.UNPREFIXED:
            kind = keys.ZERO[f"stage3_{key}"]
        yield here, value, kind
        if isinstance(kind, dict) and isinstance(value, dict):
            yield from _walk(value, kind, here)


def unknown_key(view: ConfigView) -> Iterator[Violation]:
    for path, _, kind in _walk(view.config, keys.CONFIG):
        if kind is not None or path == (ZERO, "cpu_offload_params"):
            continue
        known: Any = keys.CONFIG
        for part in path[:-1]:
            known = known[part]
        section, hint = dotted(path[:-1]), did_you_mean(path[-1], sorted(known))
        near = hint.startswith("did you mean")
        fix = hint if near else "remove it, or check its spelling and its section against DeepSpeed's reference"
        if section in keys.STRICT:
            yield Violation("DZ101", path, f"is not a known key, and DeepSpeed refuses it in {section}", fix)
        else:
            yield Violation("DZ101", path, "is not a known key: DeepSpeed silently ignores it", fix,
                            severity="error" if near else "warning")


def wrong_type(view: ConfigView) -> Iterator[Violation]:
    every = [*_walk(view.config, keys.CONFIG),
             *_walk(view.section("optimizer", "params"), keys.OPTIMIZER_PARAMS, ("optimizer", "params")),
             *_walk(view.section("scheduler", "params"), keys.SCHEDULERS.get(view.text("scheduler", "type"), ({},))[0],
                    ("scheduler", "params"))]
    for path, value, kind in every:
        if kind is None or value == "auto" or (value is None and dotted(path) in keys.NULLABLE) or _fits(value, kind):
            continue
        yield _misfit(path, value, kind)


def idle_auto(view: ConfigView) -> Iterator[Violation]:
    def every(values: dict[Any, Any], path: Path) -> Iterator[Path]:
        for key, value in values.items():
            if isinstance(value, dict):
                yield from every(value, (*path, key))
            elif value == "auto":
                yield (*path, key)

    for path in every(view.config, ()):
        opened = path[0] in ("elasticity", "autotuning", "pipeline", "nebula")
        if not opened and path[-1] not in keys.AUTO and dotted(path[-2:]) not in keys.AUTO:
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


RULES = (unknown_key, wrong_type, idle_auto, renamed)
