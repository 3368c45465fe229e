"""What makes a run this run: the settings and the contents that its weights depend on."""
from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Optional

from debzero.deepspeed_json import keys
from debzero.job.contents import by_part
from debzero.job.effects import OF_THE_JSON, Effect, effect_of
from debzero.job.schema import Job

Contents = dict[str, dict[str, str]]  # of the data and the model: SHA-256 by file name


@dataclass(frozen=True)
class Identity:
    """Settings by their dotted keys, those of DeepSpeed's JSON below `deepspeed`. `weights`: what makes another run;
    `others`: what a run continues with. Local files count by their contents, wherever they lie."""

    weights: dict[str, Any]
    others: dict[str, Any]
    contents: Contents

    @property
    def fingerprint(self) -> str:
        """The same for runs that may resume from each other's checkpoints."""
        facts = json.dumps([self.weights, self.contents], sort_keys=True)
        return hashlib.sha256(facts.encode()).hexdigest()[:16]


def identity(job: Job, precision: str, config: Optional[dict[str, Any]]) -> Identity:
    """Of a resolved job: `job` with the JSON's values taken in, `config` the user's JSON itself."""
    settings = dict(_flat(job.model_dump(mode="json", exclude={"output", OF_THE_JSON})))
    for key in job.data.unused:
        settings.pop(f"data.{key}")
    if isinstance(job.model, dict):
        settings["model"] = f"{settings.pop('model.type')} from scratch"
    settings["train.precision"] = precision
    if job.parallel.each > 1:
        settings["zero.stage"] = "none"  # checkpoints of divided models hold whole tensors at stage 1, too
    if config is not None and settings["zero.stage"] == "none":
        settings["zero.stage"] = 0  # DeepSpeed, which has checkpoints of its own, but shards nothing
    local = {key for key in ("data.dataset", "model") if os.path.isabs(str(settings.get(key, "")))}
    weights = {key: value for key, value in settings.items() if effect_of(key).starts_anew and key not in local}
    others = {key: value for key, value in settings.items()
              if key in local or not effect_of(key).starts_anew and effect_of(key) is not Effect.SPEED}
    weights.update(_of_json(config, "weights"))
    others.update(_of_json(config, "length"))
    weights, others = json.loads(json.dumps([weights, others], default=str))  # as a record of it is read
    return Identity(weights, others, by_part(job))


def _of_json(config: Optional[dict[str, Any]], effect: keys.Effect) -> dict[str, Any]:
    return {f"{OF_THE_JSON}.{path}": value for path, value in keys.settings(config or {}, effect).items()}


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """The values of nested mappings by their dotted keys."""
    return [item for key, value in values.items() for item in (
        _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(prefix + str(key), value)])]
