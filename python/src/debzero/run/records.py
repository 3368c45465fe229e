"""The JSON files of an output folder as typed records, all read by read_record.

Keys that a record does not name are kept as they are, so that a file of another release survives a rewrite.
"""
from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Optional, TypeVar, Union

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from debzero.base.files import read_json, read_lines


class Record(BaseModel):
    """What one JSON file holds."""

    model_config = ConfigDict(frozen=True, extra="allow")

    def as_json(self) -> dict[str, Any]:
        """The keys that were given, as they are written to the file."""
        return self.model_dump(exclude_unset=True)


# A checkpoint's records are never guessed at, nor of another release.
EXACT = ConfigDict(frozen=True, extra="forbid", strict=True)
Count = Annotated[int, Field(ge=0)]
R = TypeVar("R", bound=Record)


def read_record(path: Path, kind: type[R]) -> Optional[R]:
    """The record in `path`; None where the file is missing, damaged, a link, or holds something else."""
    values = read_json(path, own=True)
    try:
        return kind.model_validate(values) if values else None
    except ValidationError:
        return None


class Metrics(Record):
    """One progress line of metrics.jsonl: what was measured since the line before. None: unknown, or not finite."""

    step: int = 0                                # optimizer steps done
    total_steps: Optional[int] = None
    epoch: Optional[float] = None                # epochs done
    loss: Optional[float] = None                 # mean over the ranks and the steps
    learning_rate: Optional[float] = None        # of the last step
    samples_per_second: Optional[float] = None   # on all ranks
    tokens_per_second: Optional[float] = None    # on all ranks, without padding
    padding_share: Optional[float] = None        # 0 to 1
    tflops: Optional[float] = None               # 10^12 operations per second, of one rank
    peak_share: Optional[float] = None           # of the device's peak, 0 to 1
    memory_bytes: Optional[list[int]] = None     # each rank's peak
    skipped_steps: Optional[int] = None          # for an overflow, since the run began
    loss_scale: Optional[float] = None
    eta_seconds: Optional[float] = None          # until the last step
    interval_steps: Optional[int] = None         # since the line before, as are the next two
    interval_samples: Optional[float] = None
    interval_seconds: Optional[float] = None


def read_metrics(path: Path) -> list[Metrics]:
    """The lines of metrics.jsonl, without any that a crash left incomplete."""
    lines = []
    for values in read_lines(path):
        with suppress(ValidationError):
            lines.append(Metrics.model_validate(values))
    return lines


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl that have a step, evaluations included: their finite numbers, each rank's memory, and
    their time."""
    def fits(name: str, value: Any) -> bool:
        if name == "memory_bytes":
            return isinstance(value, list) and all(type(peak) is int for peak in value)
        return isinstance(value, str) if name == "time" else type(value) in (int, float) and math.isfinite(value)

    return [{name: value for name, value in values.items() if fits(name, value)} for values in read_lines(path)
            if type(values.get("step")) is int]


class Status(Metrics):
    """status.json: how far a run is. The last progress line is part of it. Times are ISO 8601."""

    state: str                        # waiting (for other hosts), preparing, training, evaluating, saving, stopping;
                                      # finished, failed, stopped
    job: str = ""                     # the job file
    fingerprint: str = ""             # of the resolved job
    pid: Optional[int] = None
    started: Optional[str] = None
    updated: Optional[str] = None
    micro_batch: Optional[int] = None  # samples; what running out of memory taught
    error: Optional[str] = None
    warning: Optional[str] = None
    given_up: Optional[str] = None    # why no further start is tried
    # Of the running start, from hosts.json, where several hosts train.
    hosts: Optional[dict[str, Any]] = None          # what each last said of itself; None: it is not there
    waiting_for: Optional[dict[str, str]] = None    # the missing hosts, with what is known about why


class HostsRecord(Record):
    """hosts.json, where several hosts train: `host` is this one; what each last said of itself (None: it is not there),
    and of those that are missing, what is known about why."""

    host: str
    hosts: dict[str, Optional[dict[str, Any]]]
    missing: dict[str, str] = {}


class RunRecord(Record):
    """run.json: what the run in a folder trains (resolve.identity.Identity), and how many optimizer steps an epoch
    takes, once that is known."""

    fingerprint: str
    weights: dict[str, Any]
    others: dict[str, Any]
    contents: dict[str, dict[str, str]]
    steps_per_epoch: Optional[Annotated[int, Field(gt=0)]] = None


class ErrorNote(Record):
    """.error.json: the first error of any rank. `memory`: a smaller micro-batch may avoid it. `passing`: it is not the
    job's own, and may be over at the next start."""

    rank: int
    error: str
    memory: bool = False
    passing: bool = False


class Failures(Record):
    """.failures.json: how many starts in a row failed at this step with this error."""

    step: int
    error: Optional[str] = None
    count: int


class RunIdentity(Record):
    """What must agree for a checkpoint to be used: the resolved job's fingerprint and the digest of its samples."""

    model_config = EXACT

    fingerprint: str = ""
    data: str = ""


@dataclass
class TrainingState:
    """Where the training loop is: what a checkpoint holds beside the engine's own state."""

    __pydantic_config__ = EXACT

    step: Count = 0                     # optimizer steps done
    samples: Count = 0                  # samples trained on, on all ranks
    seconds: float = 0.0                # spent on them, without evaluation and saving
    tokens: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])  # this rank's: padded, real; and their FLOPs
    evaluated: Count = 0                # the step of the last evaluation
    result: dict[str, float] = field(default_factory=dict)
    best: Optional[float] = None        # value of the score best_of
    best_of: str = ""
    best_step: Count = 0
    best_result: dict[str, float] = field(default_factory=dict)
    since_best: Count = 0               # evaluations
    shown: list[dict[str, str]] = field(default_factory=list)  # what the model wrote at the last evaluation
    best_shown: list[dict[str, str]] = field(default_factory=list)
    resumed: Count = 0                  # times
    # Since the last progress line: the ranks' loss sums (in order of rank), steps, samples, seconds, and tokens as
    # above.
    losses: list[float] = field(default_factory=list)
    since: Count = 0
    interval: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0, 0.0, 0.0])


class CheckpointRecord(Record):
    """debzero.json in a checkpoint. `files`: {relative name: (bytes, SHA-256)} of all other files in its folder,
    but for debzero.json's own checksum."""

    model_config = EXACT

    facts: RunIdentity
    ranks: Annotated[int, Field(gt=0)]  # that wrote it
    state: TrainingState
    files: dict[str, tuple[int, str]]

    @model_validator(mode="after")
    def _fits_together(self) -> CheckpointRecord:
        state = self.state
        if (len(state.losses) not in (0, self.ranks) or (len(state.tokens), len(state.interval)) != (3, 5)
                or max(state.evaluated, state.best_step, state.since) > state.step):
            raise ValueError("its numbers do not fit together")
        return self


class Report(Record):
    """report.json: a finished run. Each score of `evaluation` but the loss is also a key of its own, and so is
    `majority_accuracy`. Rates are those of the training, without evaluation and saving."""

    job: str                            # the job file
    task: str
    auto: str                           # transformers' class for the task
    metric: str                         # the score that counts
    evaluation: dict[str, float]        # of the weights that were kept
    baseline: dict[str, float]          # what answering without the text scores
    samples: list[dict[str, str]] = []  # some held-out `text`, with `target` and the model's `answer`
    eval_samples: int
    train_samples: int
    classes: int                        # 0 where the task has none
    steps: int
    total_steps: int
    best_step: int
    resumed: int                        # times
    skipped_steps: int                  # for an overflow
    training_seconds: float
    steps_per_second: Optional[float]
    samples_per_second: Optional[float]  # on all ranks
    tokens_per_second: Optional[float]   # on all ranks, without padding
    padding_share: float                # of the tokens, 0 to 1
    tflops: Optional[float]             # 10^12 operations per second, of one rank
    peak_share: Optional[float]         # of the device's peak, 0 to 1
    peak_memory_bytes: list[int]        # each rank's
    peak_memory_of: str
    world_size: int                     # ranks
    tensor: int = 1                     # ranks that computed each layer together
    pipeline: int = 1                   # stages
    zero_stage: Literal["none", 1, 2, 3]
    offload_optimizer: str              # none, cpu or nvme
    offload_param: str
    optimizer: str
    schedule: Optional[str]             # the user's own; None is debzero's
    precision: str
    global_batch: int                   # samples
    micro_batch: int                    # samples
    accumulation: int                   # micro-batches per step
    device: str
    versions: dict[str, str]
    revisions: dict[str, str] = {}      # the commits of the hub's model and data set
    example: list[str] = ["a text"]     # to ask the model with, one for each of its columns
    model: str                          # folders and files from here on
    checkpoint: str
    metrics: str
    curves: Optional[str] = None
    log: str                            # where to read it


class EarlierReport(Record):
    """A report of a release that wrote fewer facts; its score is shown all the same."""

    metric: str = "accuracy"
    evaluation: dict[str, float] = {}
    accuracy: Optional[float] = None


AnyReport = Union[Report, EarlierReport]


def read_report(path: Path) -> Optional[AnyReport]:
    return read_record(path, Report) or read_record(path, EarlierReport)
