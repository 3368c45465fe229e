"""A model's settings, in a job or in a folder's config.json, by the defaults of its type."""
from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any, Optional

# Settings that count the parts of a model: with more, transformers takes minutes and gigabytes even without weights.
PARTS = re.compile("layer|block|group|expert|head|label|depth")
MOST_PARTS = 10_000
# Numbers of which 0 means none or the first; of all others that are positive by default there is at least one.
MAY_BE_ZERO = re.compile("index$|offset$|_len$|^mask_|window|sparse|random|rotary|keep$|start|adapter")


def numbers(model: dict[str, Any]) -> dict[str, Any]:
    """A job's `model:` section with the numbers that YAML 1.1 takes for text, such as 1e-12: it wants a point there."""
    return {key: float(value) if isinstance(value, str) and re.fullmatch(r"[-+]?\d+[eE][-+]?\d+", value) else value
            for key, value in model.items()}


def from_scratch(model: dict[str, Any]) -> Any:
    """The configuration for a job's `model:` section, which gives the type and some of its settings. Raises whatever
    transformers does, and a ValueError for more parts than any model has."""
    from transformers import AutoConfig

    for key, value in model.items():
        if reason := too_many(key, value):
            raise ValueError(f"{key}: {reason}")
    return AutoConfig.for_model(model["type"], **{key: value for key, value in numbers(model).items() if key != "type"})


def wrong_settings(kind: str, values: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """The key, reason and fix of each setting that no model of this type can have. Settings that only count for
    generating text are left out."""
    from transformers import CONFIG_MAPPING, PretrainedConfig

    try:
        usual, common = CONFIG_MAPPING[kind](), PretrainedConfig().to_dict()
    except Exception:  # models that are made of others have no defaults
        return
    for key, value in values.items():
        if key in common or key == "vocab_size" or key.endswith("_id") or key.startswith("_"):
            continue
        if reason := too_many(key, value):
            yield key, reason, "use a smaller number"
        elif wanted := _wanted(key, value, getattr(usual, key, None)):
            yield key, f"must be {wanted}, not {str(value)[:40]!r}", f"write {wanted}, or remove it for the default"


def too_many(key: str, value: Any) -> str:
    """Why a model with so many parts is not built, not even without weights; empty where it may be."""
    most = max((part for part in (value if isinstance(value, list) else [value]) if type(part) is int), default=0)
    return f"{most} is more than {MOST_PARTS}, the most that is built" if (
        PARTS.search(key) and most > MOST_PARTS) else ""


def _wanted(key: str, value: Any, usual: Any) -> Optional[str]:
    """What a setting must be, where its value is something else. None and lists have meanings of their own."""
    number = type(value) in (int, float) and math.isfinite(value)
    if value is None or isinstance(value, list):
        return None
    if type(usual) is int and usual > 0:
        least = 0 if MAY_BE_ZERO.search(key) else 1
        return None if number and least <= value < 2**31 and value == int(value) else f"a whole number such as {usual}"
    if type(usual) is float:
        share = re.search("drop|_prob$", key) is not None
        return None if number and 0 <= value <= (1 if share else math.inf) else (
            f"a number from 0 to 1 such as {usual:g}" if share else f"a number such as {usual:g}")
    if type(usual) is bool:
        return None if isinstance(value, bool) else "true or false"
    return None
