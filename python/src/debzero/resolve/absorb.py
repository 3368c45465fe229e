"""Takes what DeepSpeed's own JSON sets into the job, and knows where each value was written."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Optional

from pydantic import ValidationError

from debzero.base.errors import InputError, Problem
from debzero.deepspeed_json.lint import json_place
from debzero.deepspeed_json.view import ZERO, dotted
from debzero.job.schema import Job

ACCUMULATION = "gradient_accumulation_steps"  # a key of the JSON alone
HALVES = ("fp16", "bf16")
# The keys of a job that the JSON overrules, and the JSON's own.
OVERRULED: dict[str, tuple[str, ...]] = {
    "train.global_batch": ("train_batch_size",),
    "train.micro_batch": ("train_micro_batch_size_per_gpu",),
    "train.gradient_clipping": ("gradient_clipping",),
    "train.learning_rate": ("optimizer", "params", "lr"),
    "train.weight_decay": ("optimizer", "params", "weight_decay"),
    "zero.stage": (ZERO, "stage"),
    "zero.offload_optimizer": (ZERO, "offload_optimizer", "device"),
    "zero.offload_param": (ZERO, "offload_param", "device"),
}


@dataclass(frozen=True)
class Origins:
    """Where a job's values were written. `file`: the job's; `json_file`: the DeepSpeed JSON's, which is the job's where
    it is inline, below the key `prefix`; `keys`: the JSON's key for each key of the job that it overrules."""

    file: str
    json_file: str = ""
    prefix: str = ""
    keys: dict[str, str] = field(default_factory=dict)

    def key(self, key: str) -> str:
        """What the user wrote for the job's `key`: that, or the JSON's."""
        return self.prefix + self.keys[key] if key in self.keys else key

    def text(self, key: str) -> str:
        """As key(), with the JSON's file where that is another one."""
        elsewhere = key in self.keys and self.json_file != self.file
        return f"{self.key(key)} in {self.json_file}" if elsewhere else self.key(key)

    def placed(self, problems: Sequence[Problem]) -> list[Problem]:
        """The problems at the keys that the user wrote, in the files that hold them."""
        return [replace(p, file=self.json_file, key=self.key(p.key)) if p.key in self.keys else p for p in problems]


def given(values: Any, *path: str) -> Any:
    """The value at `path`, or None when it is absent or "auto"."""
    for part in path:
        values = values.get(part) if isinstance(values, dict) else None
    return None if values == "auto" else values


def switched_off(config: Optional[dict[str, Any]]) -> set[str]:
    """The half precisions that the JSON forbids."""
    return {half for half in HALVES if given(config, half, "enabled") is False}


def absorb(job: Job, config: dict[str, Any], ranks: int, file: str,
           written: Mapping[str, str]) -> tuple[Job, Optional[int], Origins]:
    """The job with the values of DeepSpeed's own JSON, which overrule it; the JSON's accumulation steps; and which
    values came from there. `file`: the job's; `written`: the keys that have other names in the file.

    After this the job alone counts: the arithmetic, the report and the learning-rate schedule agree with the JSON.
    Raises an InputError with every value that cannot be the job's.
    """
    values: dict[str, Any] = {key: value for key, path in OVERRULED.items()
                              if (value := given(config, *path)) is not None}
    keys = {key: dotted(OVERRULED[key]) for key in values}
    accumulation, micro = given(config, ACCUMULATION), values.get("train.micro_batch")
    if accumulation is not None:
        keys[ACCUMULATION] = ACCUMULATION
    if "train.global_batch" not in values and micro and accumulation:
        values["train.global_batch"] = micro * accumulation * ranks
        keys["train.global_batch"] = keys["train.micro_batch"]
    elif "train.global_batch" in values and micro is None:
        values["train.micro_batch"] = "auto"    # the job's own need not divide the JSON's batch
    if "zero.stage" in values:
        values["zero.stage"] = values["zero.stage"] or "none"
    for half in HALVES:
        enabled = given(config, half, "enabled")
        if enabled is True or (enabled is False and job.train.precision == half):
            values["train.precision"] = half if enabled else "auto"
            keys["train.precision"] = f"{half}.enabled"
    for part in ("offload_optimizer", "offload_param"):
        if path := given(config, ZERO, part, "nvme_path"):
            values["zero.nvme_path"], keys["zero.nvme_path"] = path, f"{ZERO}.{part}.nvme_path"
    keys = {key: written.get(path, path) for key, path in keys.items()}
    origins = Origins(file, *json_place(job, file), keys)
    try:
        return _with(job, values), accumulation, origins
    except ValidationError as error:
        raise InputError([_unusable(".".join(map(str, wrong["loc"][:2])), wrong["msg"], origins)
                          for wrong in error.errors()]) from None
    except (ValueError, TypeError) as error:
        raise InputError([Problem(origins.json_file, "deepspeed", f"holds a value that no job can have: {error}",
                                  "correct it there")]) from None


def _with(job: Job, values: dict[str, Any]) -> Job:
    """The job with `values`, by dotted key."""
    changed = job.model_dump()
    for key, value in values.items():
        section, name = key.split(".")
        changed[section][name] = value
    return Job.model_validate(changed)


def _unusable(key: str, reason: str, origins: Origins) -> Problem:
    """A value of the JSON that the job cannot have."""
    other = f', or set it to "auto" and use {key} in the job' if key in origins.keys else ""
    return Problem(origins.json_file, origins.key(key), reason.replace("Input should", "must"), f"correct it{other}")
