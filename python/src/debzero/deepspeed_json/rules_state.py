"""Lint rules about what becomes of each key in a training: keys of other releases, ignored ones, and ones that debzero
cannot drive. The states and their reasons are in keys.yml."""
from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from typing import Any

from debzero.deepspeed_json import keys
from debzero.deepspeed_json.keys import ZERO, Key, Section
from debzero.deepspeed_json.releases import parsed
from debzero.deepspeed_json.view import ConfigView, Violation, dotted, removal

OLD_OFFLOAD = (ZERO, "cpu_offload_params")  # which is DZ104


def _asks(section: Section, values: Mapping[Any, Any]) -> bool:
    """Whether a section asks for anything: by its `enabled`, or else by any of its keys."""
    if "enabled" in section.keys and not section.keys["enabled"].until:
        return values.get("enabled") is True
    return any(asks_for(section.keys.get(name), value) for name, value in values.items() if not keys.is_note(name))


def asks_for(key: Any, value: Any) -> bool:
    """Whether the value of a key, or of none, asks for anything."""
    if key is not None and key.kind.name == "section" and isinstance(value, Mapping):
        return _asks(keys.table()[key.path], value)
    return key.asks(value) if key is not None else bool(value)


def _of_another_release(key: Key, strict: bool, view: ConfigView) -> Violation:
    release = view.releases.deepspeed
    does = f"which {'refuses' if strict else 'ignores'} it"
    if key.since and parsed(release) < parsed(key.since):
        reason = f"is a key of DeepSpeed since {key.since}, and here is {release}, {does}"
        fix = key.why if key.why and key.state in ("acts", "driven") else "remove it"
    else:
        reason = f"was a key of DeepSpeed up to {key.until}, and here is {release}, {does}"
        fix = f"remove it: {key.why}" if key.why else "remove it"
    return Violation("DZ107", key.path, reason, fix, removal(*key.path), "error" if strict else "warning")


def _judged(view: ConfigView, values: Mapping[Any, Any], section: Section, known: bool = False) -> Iterator[Violation]:
    """The findings within a section. `known`: it is reported as ignored already, so only errors are news."""
    for name, value in values.items():
        key = section.keys.get(name) if isinstance(name, str) else None
        if key is None or key.path == OLD_OFFLOAD:
            continue
        inner = keys.table().get(key.path) if isinstance(value, Mapping) else None
        strict, asks = section.refuses_unknown(view.releases.deepspeed), asks_for(key, value)
        own = inner is not None or key.state != section.state  # else the finding is the section's
        if not key.known_to(view.releases.deepspeed):
            if strict or asks and not known:
                yield _of_another_release(key, strict, view)
        elif asks and own and key.state == "refused":
            yield Violation("DZ109", key.path, f"cannot be driven by debzero: {key.why}", "remove it",
                            removal(*key.path))
        else:
            ignored = asks and own and key.state == "ignored"
            within = list(_judged(view, value, inner, known or ignored)) if inner is not None else []
            if ignored and not known and not within:
                yield Violation("DZ108", key.path, f"has no effect here: {key.why}", "remove it", removal(*key.path))
            yield from within


def states(view: ConfigView) -> Iterator[Violation]:
    for found in _judged(view, view.config, keys.table()[()]):
        if found.path != ("pipeline",) or view.stage is None or view.below(2):  # else it is DZ117
            yield found


def incomplete(view: ConfigView) -> Iterator[Violation]:
    for path, section in keys.table().items():
        values = view.section(*path) if path else {}
        for name in section.needs if values else ():
            if name not in values:
                yield Violation("DZ109", (*path, name), "is missing, and DeepSpeed stops without it",
                                f"remove {dotted(path)}: {section.keys[name].why}")


def monitors(view: ConfigView) -> Iterator[Violation]:
    for section, package in (("wandb", "wandb"), ("comet", "comet_ml")):
        if view.get(section, "enabled") is True and importlib.util.find_spec(package) is None:
            yield Violation("DZ109", (section,), f"needs the Python package {package}, which is not installed",
                            "remove it: `debzero status` and TensorBoard show the same curves", removal(section))


def without_effect(view: ConfigView) -> Iterator[Violation]:
    if view.get("sparse_gradients") is True and not view.below(1):
        yield Violation("DZ108", ("sparse_gradients",), "has no effect with ZeRO", "remove it",
                        removal("sparse_gradients"))


def scaled_gradients(view: ConfigView) -> Iterator[Violation]:
    factor = view.number("gradient_predivide_factor")
    scaled = {"prescale_gradients": view.get("prescale_gradients") is True,
              "gradient_predivide_factor": factor is not None and factor != 1}
    for key, asked in scaled.items():
        if asked and not view.below(2) and view.get(ZERO, "reduce_scatter") is not False:
            yield Violation("DZ119", (key,), f"does not work with ZeRO stage {view.stage} and reduce_scatter, which is "
                            "on by default", f"remove it, or set {ZERO}.reduce_scatter: false")


RULES = (states, incomplete, monitors, without_effect, scaled_gradients)
