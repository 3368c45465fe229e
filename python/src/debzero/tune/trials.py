"""The trials of a search, and tune.json, which keeps them."""
from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Optional

from debzero.job.schema import Favour, Job
from debzero.measure.records import RETRYABLE, HostFacts, MeasuredRun, read_object, read_record
from debzero.resolve.sharding import BUFFERS
from debzero.tune.job_file import Value
from debzero.tune.search import Way

NAME = "tune.json"


@dataclass(frozen=True)
class Setting:
    """What a trial measured. `way`: the way's name; `micro_batch` in samples of one rank; `favour`: what the job asked
    for, which without room for it was `memory`."""

    way: str
    stage: Literal["none", 1, 2, 3]
    offload_optimizer: Literal["none", "cpu", "nvme"]
    offload_param: Literal["none", "cpu", "nvme"]
    gradient_checkpointing: bool
    micro_batch: int
    favour: Favour = "memory"   # of a release that had no other, as the rest
    engine: Literal["auto", "deepspeed", "native"] = "auto"
    compile: Literal["auto", "never"] = "auto"
    bucket: Optional[int] = None
    overlap: Optional[bool] = None
    live: Optional[int] = None
    prefetch: Optional[int] = None


@dataclass(frozen=True)
class TrialRun:
    """One trial: a setting and its run, side by side in the file."""

    setting: Setting
    run: MeasuredRun

    @classmethod
    def of(cls, way: Way, job: Job, micro: int, run: MeasuredRun) -> TrialRun:
        """`job`: the one that was measured."""
        zero = {key: getattr(job.zero, key) for key in ("favour", "engine", *BUFFERS)}
        return cls(Setting(way=str(way), **way.sharding.as_dict(), gradient_checkpointing=way.checkpointing,
                           micro_batch=micro, compile=job.train.compile, **zero), run)

    @property
    def key(self) -> tuple[str, int]:
        """What tells it from the other trials of a search: the way's name and the micro-batch."""
        return self.setting.way, self.setting.micro_batch

    @property
    def samples_per_second(self) -> Optional[float]:
        return self.run.samples_per_second if self.run.segments else None

    @property
    def retryable(self) -> bool:
        """Whether it failed for a reason that has nothing to do with its micro-batch, and may be gone at the next
        start."""
        return self.run.kind in RETRYABLE

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self.setting), "samples_per_second": self.samples_per_second, **asdict(self.run)}


@dataclass(frozen=True)
class Settings:
    """What decides a trial's figures. `limit`: minutes per trial."""

    ranks: int
    steps: int
    warmup: int
    limit: int


@dataclass(frozen=True)
class Chosen:
    """A job file's values by dotted key, and their speed."""

    values: dict[str, Value]
    samples_per_second: float

    def as_json(self) -> dict[str, Any]:
        return {**self.values, "samples_per_second": self.samples_per_second}


@dataclass(frozen=True)
class SearchResult:
    """What the search alone had found, after how many trials, where --exhaustive then measured the rest as well.
    `share_of_best`: its samples/s over those of the best of all."""

    chosen: Chosen
    trials: int
    share_of_best: float

    def as_json(self) -> dict[str, Any]:
        return {**self.chosen.as_json(), "trials": self.trials, "share_of_best": self.share_of_best}


@dataclass(frozen=True)
class TuneResults:
    """A whole tune.json. `sweep`: the number of trials that measuring everything would take."""

    identity: str
    command: str
    job: str
    settings: Settings
    host: HostFacts
    versions: dict[str, str]
    sweep: int
    trials: tuple[TrialRun, ...] = ()
    ok: bool = False               # something runs
    complete: bool = False         # the search has ended
    chosen: Optional[Chosen] = None
    written: bool = False          # into the job file
    search: Optional[SearchResult] = None

    def as_json(self, made: str) -> dict[str, Any]:
        """`made`: when it was written, in ISO 8601."""
        values: dict[str, Any] = {
            "ok": self.ok, "complete": self.complete, "identity": self.identity, "command": self.command,
            "job": self.job, "settings": asdict(self.settings), "host": asdict(self.host), "versions": self.versions,
            "sweep": self.sweep, "trials": [trial.as_json() for trial in self.trials],
            "chosen": self.chosen.as_json() if self.chosen else None, "written": self.written}
        if self.search:
            values["search"] = self.search.as_json()
        return {**values, "made": made}


@dataclass(frozen=True)
class _Header:
    """What decides whether the trials of an earlier start count."""

    identity: str
    complete: bool
    trials: tuple[dict[str, Any], ...]


def read_trials(file: Path, identity: Optional[str] = None) -> list[TrialRun]:
    """The trials in a tune.json; with an `identity`, only those of an unfinished search of the same job, host and
    settings. Raises an InputError with file, key and reason where it cannot be read."""
    fix = "move the file away and start again"
    header = read_record(_Header, read_object(file, fix), file, fix)
    if identity is not None and (header.complete or header.identity != identity):
        return []
    return [TrialRun(read_record(Setting, trial, file, fix), read_record(MeasuredRun, trial, file, fix))
            for trial in header.trials]
