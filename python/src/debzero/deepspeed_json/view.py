"""A DeepSpeed configuration as the lint rules see it, and what a rule says."""
from __future__ import annotations

import math
from typing import Any, Callable, Literal, NamedTuple, Optional

from debzero.job.schema import Job

Path = tuple[Any, ...]
Edit = Callable[[dict[str, Any]], None]
ZERO = "zero_optimization"
BATCH = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")


class Raw(NamedTuple):
    """What a rule says; `lint` adds the file and the severity."""

    code: str
    path: Path
    reason: str
    fix: str
    edit: Optional[Edit] = None
    severity: Optional[Literal["error", "warning"]] = None


def is_number(value: Any) -> bool:
    """A number that can be reckoned with: no bool, infinity or integer beyond what DeepSpeed's own arithmetic holds."""
    if isinstance(value, int):
        return not isinstance(value, bool) and abs(value) < 2**63
    return isinstance(value, float) and math.isfinite(value)


def as_meant(config: dict[str, Any]) -> dict[str, Any]:
    """What DeepSpeed also takes, in the form that it documents: `zero_optimization: true` is stage 1, and 2.0 samples
    are 2."""
    whole = {key: int(config[key]) for key in BATCH if is_number(config.get(key)) and config[key] == int(config[key])}
    bare = {ZERO: {"stage": int(config[ZERO])}} if isinstance(config.get(ZERO), bool) else {}
    return {**config, **whole, **bare}


class Look:
    """The configuration as the rules see it; `given`: as it is written."""

    def __init__(self, config: dict[str, Any], ranks: Optional[int], gpus: Optional[int], job: Optional[Job]) -> None:
        self.given, self.config, self.ranks, self.gpus, self.job = config, as_meant(config), ranks, gpus, job

    def get(self, *path: str) -> Any:
        """The value at `path`; None when it is absent, open or under something that is no mapping."""
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
        """The stage that will hold; None while it is open. The job's, where the JSON does not say."""
        given = self.section(ZERO).get("stage")
        if given in (None, "auto") and self.job is not None:
            return 0 if self.job.zero.stage == "none" else int(self.job.zero.stage)
        if given is None:
            return 0
        number = self.number(ZERO, "stage")
        return int(number) if number in (0, 1, 2, 3) else None

    def below(self, least: int) -> bool:
        return self.stage is not None and self.stage < least

    def device(self, part: str) -> str:
        """Where `part` is offloaded to, in today's or yesterday's words; empty for nowhere."""
        old = {"offload_param": ("cpu_offload_param", "cpu_offload_params"),
               "offload_optimizer": ("cpu_offload",)}[part]
        found = self.text(ZERO, part, "device")
        return "" if found == "none" else found or ("cpu" if any(self.get(ZERO, key) is True for key in old) else "")

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
