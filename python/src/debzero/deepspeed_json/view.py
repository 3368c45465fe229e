"""A DeepSpeed configuration as the lint rules see it, and what a rule finds in it."""
from __future__ import annotations

import math
from typing import Any, Callable, Literal, NamedTuple, Optional

from debzero.deepspeed_json.releases import Releases, here
from debzero.job.schema import Job

Path = tuple[Any, ...]
Edit = Callable[[dict[str, Any]], None]
ZERO = "zero_optimization"
BATCH = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
# The keys of older releases that moved a part to the CPU with `true`.
GATHER, OLD_GATHER = "stage3_gather_16bit_weights_on_model_save", "stage3_gather_fp16_weights_on_model_save"
OLD_OFFLOAD = {"offload_param": ("cpu_offload_param", "cpu_offload_params"), "offload_optimizer": ("cpu_offload",)}


class Violation(NamedTuple):
    """What a rule finds; `lint` adds the file and the severity. `in_job`: `path` is a key of the job, not the JSON."""

    code: str
    path: Path
    reason: str
    fix: str
    edit: Optional[Edit] = None
    severity: Optional[Literal["error", "warning"]] = None
    in_job: bool = False


class Offload(NamedTuple):
    """Where a part is offloaded to (empty: nowhere), and the key that says so."""

    device: str
    path: Path
    in_job: bool


def is_number(value: Any) -> bool:
    """Whether one can calculate with it: no bool, infinity or integer beyond what DeepSpeed's own arithmetic holds."""
    if isinstance(value, int):
        return not isinstance(value, bool) and abs(value) < 2**63
    return isinstance(value, float) and math.isfinite(value)


def normalized(config: dict[str, Any]) -> dict[str, Any]:
    """What DeepSpeed also takes, in the form that it documents: `zero_optimization: true` is stage 1, and 2.0 samples
    are 2."""
    whole = {key: int(config[key]) for key in BATCH if is_number(config.get(key)) and config[key] == int(config[key])}
    bare = {ZERO: {"stage": int(config[ZERO])}} if isinstance(config.get(ZERO), bool) else {}
    return {**config, **whole, **bare}


def renamed(config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The configuration with the names of today for those of yesterday on which DeepSpeed still acts (DZ104); and for
    the path of each new name the one that was written."""
    made, written = dict(config), {}
    if "bfloat16" in made:
        old = made.pop("bfloat16")
        if "bf16" not in made:  # else DeepSpeed does not look at it
            made["bf16"], written["bf16.enabled"] = old, "bfloat16.enabled"
    zero = made.get(ZERO)
    if isinstance(zero, dict):
        made[ZERO] = zero = dict(zero)
        for old, part in (("cpu_offload", "offload_optimizer"), ("cpu_offload_param", "offload_param")):
            if isinstance(zero.get(old), bool) and zero.pop(old) and part not in zero:
                zero[part], written[f"{ZERO}.{part}.device"] = {"device": "cpu"}, f"{ZERO}.{old}"
        if OLD_GATHER in zero:  # DeepSpeed refuses it beside today's, which debzero sets
            zero.setdefault(GATHER, zero.pop(OLD_GATHER))
    return made, written


class ConfigView:
    """The configuration, and the settings that hold: the job's `zero:` section, overruled by the JSON.

    `given` is the configuration as it is written; `ranks`, `gpus` and `job` are None where they are not known.
    `releases`: by default those that are installed here.
    """

    def __init__(self, config: dict[str, Any], ranks: Optional[int], gpus: Optional[int], job: Optional[Job],
                 releases: Optional[Releases] = None) -> None:
        self.given, self.config, self.ranks, self.gpus, self.job = config, normalized(config), ranks, gpus, job
        self.releases = releases or here()

    def get(self, *path: str) -> Any:
        """The value at `path`; None when it is absent, "auto" or below something that is not a mapping."""
        value: Any = self.config
        for part in path:
            value = value.get(part) if isinstance(value, dict) else None
        return None if value == "auto" else value

    def number(self, *path: str) -> Optional[float]:
        value = self.get(*path)
        return value if is_number(value) else None

    def text(self, *path: str) -> str:
        value = self.get(*path)
        return value if isinstance(value, str) else ""

    def section(self, *path: str) -> dict[Any, Any]:
        value = self.get(*path)
        return value if isinstance(value, dict) else {}

    @property
    def stage(self) -> Optional[int]:
        """The stage that holds: the JSON's, else the job's, else 0. None where the JSON has something else there."""
        if self._stage_is_the_jobs:
            assert self.job is not None
            return 0 if self.job.zero.stage == "none" else int(self.job.zero.stage)
        if self.section(ZERO).get("stage") is None:
            return 0
        number = self.number(ZERO, "stage")
        return int(number) if number in (0, 1, 2, 3) else None

    @property
    def _stage_is_the_jobs(self) -> bool:
        return self.job is not None and self.section(ZERO).get("stage") in (None, "auto")

    @property
    def stage_key(self) -> str:
        """The key that sets the stage."""
        return "zero.stage" if self._stage_is_the_jobs else f"{ZERO}.stage"

    def below(self, least: int) -> bool:
        return self.stage is not None and self.stage < least

    def offload(self, part: str) -> Offload:
        """Where `part` (offload_param or offload_optimizer) is offloaded to, in today's keys or older ones."""
        device = self.text(ZERO, part, "device")
        if device:
            return Offload("" if device == "none" else device, (ZERO, part), False)
        old = next((key for key in OLD_OFFLOAD[part] if self.get(ZERO, key) is True), None)
        if old is not None:
            return Offload("cpu", (ZERO, old), False)
        device = getattr(self.job.zero, part) if self.job is not None else "none"
        return Offload("" if device == "none" else device, ("zero", part), True)

    @property
    def optimizer(self) -> str:
        """The optimizer's type in small letters."""
        return self.text("optimizer", "type").lower()


def removal(*path: Any) -> Edit:
    def edit(config: dict[str, Any]) -> None:
        inner: Any = config
        for part in path[:-1]:
            inner = inner.get(part) if isinstance(inner, dict) else None
        if isinstance(inner, dict):
            inner.pop(path[-1], None)
    return edit


def replacement(path: Path, key: Any, value: Any) -> Edit:
    """Put `key: value` in the place of the key at `path`, unless the new one is there already."""
    def edit(config: dict[str, Any]) -> None:
        inner: Any = config
        for part in path[:-1]:
            inner = inner.get(part)
        old = list(inner.items())
        inner.clear()
        for name, kept in old:
            if name != path[-1]:
                inner[name] = kept
            elif key == name or all(other != key for other, _ in old):
                inner[key] = value
    return edit


def dotted(path: Path) -> str:
    return ".".join(map(str, path))
