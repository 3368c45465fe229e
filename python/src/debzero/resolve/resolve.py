"""What a job comes to on this host: ranks, batch, precision and stage, with the user's DeepSpeed JSON taken in."""
from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Optional

from pydantic import ValidationError

from debzero.base.errors import InputError, Problem
from debzero.deepspeed_json import lint
from debzero.deepspeed_json.view import normalized
from debzero.job.batch import Batch, BatchError, split
from debzero.job.contents import digests
from debzero.job.schema import Job
from debzero.resolve import precision
from debzero.resolve.host import HostGpus
from debzero.resolve.sharding import Sharding

WRONG_VALUES = {"DZ102", "DZ106"}  # findings after which the JSON's values cannot be taken in


@dataclass(frozen=True)
class ResolvedJob:
    """A job as it will run here. `stage` is 0 for plain DDP, unless `deepspeed` holds the user's own JSON; `why` is the
    reason for the precision, where debzero chose it."""

    job: Job
    batch: Batch
    precision: str
    why: str
    stage: int
    deepspeed: Optional[dict[str, Any]]
    host: HostGpus

    @property
    def sharding(self) -> Sharding:
        return Sharding(self.stage, self.job.zero.offload_optimizer, self.job.zero.offload_param)

    @property
    def uses_deepspeed(self) -> bool:
        return self.stage > 0 or self.deepspeed is not None

    @property
    def shares_gpus(self) -> bool:
        """More ranks than GPUs: a rehearsal, in which every rank needs its own NCCL identity."""
        return 0 < self.host.gpus < self.batch.ranks

    @property
    def fingerprint(self) -> str:
        """The same for runs that may resume from each other's checkpoints. Where the output lies, how many ranks share
        a global batch, and how often progress is reported or saved do not count."""
        facts = self.job.model_dump(exclude={"output": True, "deepspeed": True, "ranks": True, "checkpoint": True,
                                             "train": {"micro_batch", "log_every", "compile", "precision"}})
        facts.update(precision=self.precision, json=self.deepspeed)
        if files := digests(self.job):
            facts["files"] = files
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _given(values: Any, *path: str) -> Any:
    """The value at `path`, or None when it is absent or "auto"."""
    for part in path:
        values = values.get(part) if isinstance(values, dict) else None
    return None if values == "auto" else values


def absorb(job: Job, config: dict[str, Any], ranks: int) -> tuple[Job, Optional[int]]:
    """The job with the values of DeepSpeed's own JSON, which overrule it, and the JSON's accumulation steps.

    After this the job alone counts: the arithmetic, the report and the learning-rate schedule agree with the JSON.
    Raises ValueError or TypeError where a value cannot be the job's.
    """
    accumulation = _given(config, "gradient_accumulation_steps")
    total, micro = _given(config, "train_batch_size"), _given(config, "train_micro_batch_size_per_gpu")
    if total is None and micro and accumulation:
        total = micro * accumulation * ranks
    optimizer = _given(config, "optimizer", "params")
    train = {
        "global_batch": total, "micro_batch": micro, "gradient_clipping": _given(config, "gradient_clipping"),
        "learning_rate": _given(optimizer, "lr"), "weight_decay": _given(optimizer, "weight_decay"),
    }
    if total is not None and micro is None:
        train["micro_batch"] = "auto"    # the job's own need not divide the JSON's batch
    for half in ("fp16", "bf16"):
        if _given(config, half, "enabled") is True:
            train["precision"] = half
    stage = _given(config, "zero_optimization", "stage")
    zero: dict[str, Any] = {"stage": "none" if stage == 0 else stage}
    for part in ("offload_optimizer", "offload_param"):
        zero[part] = _given(config, "zero_optimization", part, "device")
        zero["nvme_path"] = _given(config, "zero_optimization", part, "nvme_path") or zero.get("nvme_path")
    values = job.model_dump()
    values["train"].update({k: v for k, v in train.items() if v is not None})
    values["zero"].update({k: v for k, v in zero.items() if v is not None})
    return Job.model_validate(values), accumulation


def _overruled(error: Exception, file: str) -> Problem:
    """A value of the JSON that absorb could not use."""
    first = error.errors()[0] if isinstance(error, ValidationError) else None
    key = ".".join(map(str, first["loc"])) if first else "deepspeed"
    return Problem(file, "deepspeed", f"the DeepSpeed JSON overrules {key} with something debzero cannot use: "
                   f"{first['msg'] if first else error}",
                   f"correct it there, or set it to \"auto\" and use {key} in the job")


def resolve(job: Job, host: HostGpus, ranks: Optional[int], file: str, config: Optional[dict[str, Any]]) -> ResolvedJob:
    """`job` on `host` with `ranks` (None: as the job says). `file`: the job's, for messages; `config`: the user's
    DeepSpeed JSON. Raises InputError with everything that cannot run."""
    count = ranks or (max(1, host.gpus) if job.ranks == "auto" else int(job.ranks))
    config = None if config is None else normalized(config)
    problems = [p for p in lint.problems(config, file, count, host.gpus, job) if p.severity == "error"]
    codes, accumulation = {p.code for p in problems}, None
    if config is not None and not codes & WRONG_VALUES:
        try:
            job, accumulation = absorb(job, config, count)
        except (ValueError, TypeError) as error:
            raise InputError([*problems, _overruled(error, file)]) from None
    problems += precision.problems(job, host, file)
    batch = None
    try:
        batch = split(job.train.global_batch, job.train.micro_batch, count, accumulation)
    except BatchError as error:
        if not codes & {"DZ106", "DZ120"}:  # already reported, with the JSON's own keys
            problems.append(Problem(file, error.key, error.reason, error.fix))
    if problems or batch is None:
        raise InputError(problems)
    stage = 0 if job.zero.stage == "none" else int(job.zero.stage)
    return ResolvedJob(job, batch, *precision.choose(job, host), stage, config, host)
