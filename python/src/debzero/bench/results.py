"""results.json: what was measured, run by run, and the figures that follow from it. Read and written here alone."""
from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Optional

from debzero.base.errors import InputError, Problem
from debzero.job.batch import Batch
from debzero.measure.records import HostFacts, MeasuredRun, read_object, read_record
from debzero.resolve.sharding import Sharding

FORMAT = 1
NAME = "results.json"
FIX = "give a results.json that `debzero bench` wrote, or its folder"
FAILURES = {"memory": "out of memory", "refused": "refused", "time": "timed out", "failed": "failed"}


@dataclass(frozen=True)
class Spread:
    """One figure over the repeats. `spread`: highest minus lowest, as a share of the median."""

    median: float
    lowest: float
    highest: float
    spread: float


@dataclass(frozen=True)
class Summary:
    """The figures of one configuration over its measured runs: speeds with their spread, and the highest memory in
    bytes."""

    repeats: int
    samples_per_second: Spread
    steps_per_second: Spread
    memory_bytes: int                        # the highest rank's peak
    memory_bytes_per_rank: tuple[int, ...]
    device_bytes: Optional[int]              # the highest GPU's; None without one
    device_bytes_per_gpu: tuple[int, ...]
    host_bytes: int


@dataclass(frozen=True)
class Prediction:
    """What `debzero plan` expects of one rank: the allocator's peak, and the bytes of each part of it."""

    total_bytes: int
    parts: dict[str, int]


@dataclass(frozen=True)
class Configuration:
    """What a row measures: the sharding, and over how many ranks each copy of the model is divided (the job's
    `parallel:`)."""

    sharding: Sharding
    tensor: int = 1
    pipeline: int = 1

    @property
    def divides(self) -> bool:
        return self.tensor * self.pipeline > 1

    @property
    def _parts(self) -> list[tuple[str, int]]:
        return [(name, size) for name, size in (("tensor", self.tensor), ("pipeline", self.pipeline)) if size > 1]

    @property
    def name(self) -> str:
        """For files and scripts: baseline, zero2, tensor2, tensor2-pipeline4-zero1."""
        parts = [f"{name}{size}" for name, size in self._parts]
        return "-".join([*parts, *([self.sharding.name] if self.sharding.stage or not parts else [])])

    @property
    def label(self) -> str:
        """For people: plain DDP, ZeRO-2, tensor 2, tensor 2 x pipeline 4, ZeRO-1."""
        parts = " x ".join(f"{name} {size}" for name, size in self._parts)
        return ", ".join(filter(None, [parts, self.sharding.label if self.sharding.stage or not parts else ""]))

    @property
    def about(self) -> str:
        """In a sentence without its end."""
        if not self.divides:
            return self.sharding.about
        how = {"tensor": f"each layer over {self.tensor} ranks", "pipeline": f"the layers over {self.pipeline} stages"}
        text = f"divides {' and '.join(how[name] for name, _ in self._parts)}"
        return f"{text}; {self.sharding.about}" if self.sharding.stage else text

    def as_dict(self) -> dict[str, Any]:
        """As a Row has it."""
        return {**self.sharding.as_dict(), "tensor": self.tensor, "pipeline": self.pipeline}


@dataclass(frozen=True)
class Row:
    """One configuration: its sharding in the words of a job's `zero:` section, its division in those of `parallel:`,
    its runs in order, and its prediction."""

    stage: Literal["none", 1, 2, 3]
    offload_optimizer: Literal["none", "cpu", "nvme"]
    offload_param: Literal["none", "cpu", "nvme"]
    runs: tuple[MeasuredRun, ...] = ()
    predicted: Optional[Prediction] = None
    tensor: int = 1
    pipeline: int = 1

    @cached_property
    def sharding(self) -> Sharding:
        return Sharding(0 if self.stage == "none" else self.stage, self.offload_optimizer, self.offload_param)

    @cached_property
    def configuration(self) -> Configuration:
        return Configuration(self.sharding, self.tensor, self.pipeline)

    @property
    def name(self) -> str:
        return self.configuration.name

    @property
    def label(self) -> str:
        return self.configuration.label

    @property
    def offloads(self) -> bool:
        return (self.offload_optimizer, self.offload_param) != ("none", "none")

    @cached_property
    def summary(self) -> Optional[Summary]:
        """None before the first measured run."""
        return summarize(self.runs)

    @property
    def failed(self) -> bool:
        return any(not run.measured for run in self.runs)

    @property
    def reason(self) -> str:
        """Why there are no figures, in one line."""
        failure = next((run for run in self.runs if not run.measured), None)
        return f"{FAILURES[failure.kind]}: {failure.reason}" if failure else "not measured yet"

    def as_json(self) -> dict[str, Any]:
        """Name, label, description and summary are for the file's readers; they follow from the rest."""
        own = self.configuration
        return {"runs": [asdict(run) for run in self.runs], "summary": asdict(self.summary) if self.summary else None,
                "predicted": asdict(self.predicted) if self.predicted else None, "name": own.name, "label": own.label,
                "about": own.about, **own.as_dict()}


@dataclass(frozen=True)
class Settings:
    """What was asked for. `cap_gib`: the GPU memory that each rank may take, in GiB."""

    ranks: int
    share_gpu: bool
    steps: int
    warmup: int
    cap_gib: Optional[int]


@dataclass(frozen=True)
class Timing:
    """How long one engine took for batches of `batch` rows: half, 95 and 99 in a hundred of the `batches` took no
    longer."""

    engine: Literal["torch", "compiled", "onnx", "tensorrt"]
    precision: str
    batch: int
    batches: int
    p50_seconds: float
    p95_seconds: float
    p99_seconds: float
    rows_per_second: float


@dataclass(frozen=True)
class Inference:
    """How fast the trained model answers, in one series. `tokens`: of a row, padded, on average; `writes`: tokens that
    each row's answer has, where the model writes; `left_out`: {engine and precision: why it was not measured}."""

    made: str
    command: str
    device: str
    tokens: float
    writes: Optional[int]
    versions: dict[str, str]
    timings: tuple[Timing, ...] = ()
    left_out: dict[str, str] = field(default_factory=dict)

    def speed_share(self, timing: Timing) -> Optional[float]:
        """Of torch's rows/s in fp32 at the same batch size."""
        of = next((each for each in self.timings
                   if (each.engine, each.precision, each.batch) == ("torch", "fp32", timing.batch)), None)
        return timing.rows_per_second / of.rows_per_second if of and of.rows_per_second else None


@dataclass(frozen=True)
class BenchResults:
    """A whole results.json. `made`: when it was written, in ISO 8601. `job`: a job file's mapping, with every key.
    `left_out`: what of the job was not measured, for readers."""

    identity: str
    made: str
    command: str                   # one a line, where several starts measured the rows
    job_file: str
    job: dict[str, Any]
    model: str
    precision: str
    batch: Batch
    settings: Settings
    speed_comparable: bool         # false where ranks shared a GPU
    left_out: Optional[str]
    host: HostFacts
    versions: dict[str, str]
    definitions: dict[str, str]
    configurations: tuple[Row, ...] = ()
    inference: Optional[Inference] = None
    alone_runs: tuple[MeasuredRun, ...] = ()  # of one rank with plain DDP and the same micro-batch, in the same series
    records_steps: bool = False    # the installed torch can record steps as CUDA graphs

    @cached_property
    def alone(self) -> Optional[Summary]:
        """The figures of one rank, where several were measured on as many GPUs."""
        return summarize(self.alone_runs)

    @property
    def measured(self) -> list[Row]:
        return [row for row in self.configurations if row.summary]

    @cached_property
    def baseline(self) -> Optional[Summary]:
        """The figures of plain DDP, where they were measured."""
        return next((row.summary for row in self.configurations if row.name == "baseline"), None)

    def memory_share(self, row: Row) -> Optional[float]:
        """Of the baseline's memory per rank (1: the same)."""
        return row.summary.memory_bytes / self.baseline.memory_bytes if self.baseline and row.summary else None

    def speed_share(self, row: Row) -> Optional[float]:
        """Of the baseline's samples/s."""
        if self.baseline is None or row.summary is None:
            return None
        return row.summary.samples_per_second.median / self.baseline.samples_per_second.median

    def with_row(self, row: Row) -> BenchResults:
        """With `row` in the place of that of the same configuration."""
        return replace(self, configurations=tuple(row if old.name == row.name else old for old in self.configurations))

    def as_json(self) -> dict[str, Any]:
        values = {**asdict(self), "configurations": [row.as_json() for row in self.configurations]}
        values["batch"]["text"] = str(self.batch)
        return {"format": FORMAT, **values}


def file_of(path: Path) -> Path:
    """The JSON that a file, or a bench's output folder, stands for."""
    return path / NAME if path.is_dir() else path


def load(path: Path, fix: str = FIX) -> BenchResults:
    """The results in a file or in a bench's output folder. Raises an InputError with the file, the key and the reason
    where they cannot be read, and with `fix`."""
    file = file_of(path)
    values = read_object(file, fix)
    if values.get("format") != FORMAT:
        raise InputError([Problem(str(file), "format", f"must be {FORMAT}, not {values.get('format')}", fix)])
    return read_record(BenchResults, values, file, fix)


def spread_of(values: Sequence[float]) -> Spread:
    middle = statistics.median(values)
    return Spread(middle, min(values), max(values), (max(values) - min(values)) / middle if middle else 0.0)


def summarize(runs: Sequence[MeasuredRun]) -> Optional[Summary]:
    """The figures of one configuration from its measured runs; None before the first."""
    measured = [run for run in runs if run.measured]
    if not measured:
        return None
    ranks = tuple(max(peaks) for peaks in zip(*(run.memory_bytes for run in measured)))
    devices = tuple(max(peaks) for peaks in zip(*(run.device_bytes for run in measured)))
    return Summary(
        repeats=len(measured), samples_per_second=spread_of([run.samples_per_second for run in measured]),
        steps_per_second=spread_of([run.steps_per_second for run in measured]), memory_bytes=max(ranks),
        memory_bytes_per_rank=ranks, device_bytes=max(devices, default=None), device_bytes_per_gpu=devices,
        host_bytes=max(run.host_bytes for run in measured))
