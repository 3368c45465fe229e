"""What a job comes to on this host: ranks, batch, precision and stage, with the user's DeepSpeed JSON taken in."""
from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from debzero.base.errors import InputError, Problem
from debzero.deepspeed_json import lint
from debzero.deepspeed_json.view import as_meant
from debzero.job.batch import Batch, BatchError, split
from debzero.job.local_files import stamps
from debzero.job.reader import ValidationError
from debzero.job.schema import Job
from debzero.resolve.host import Host
from debzero.resolve.sharding import Sharding


@dataclass(frozen=True)
class ResolvedJob:
    """A job, resolved. `stage` is 0 for plain DDP, unless `deepspeed` holds the user's own lines; `why` is the reason for the
    precision, where debzero chose it."""

    job: Job
    batch: Batch
    precision: str
    why: str
    stage: int
    deepspeed: Optional[dict[str, Any]]
    host: Host

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
        """The same for runs that go on from each other's checkpoints. Where the output lies, how many ranks share a global batch
        and how often progress is told or saved do not matter."""
        facts = self.job.model_dump(exclude={"output": True, "deepspeed": True, "ranks": True, "checkpoint": True,
                                             "train": {"micro_batch", "log_every", "compile", "precision"}})
        facts.update(precision=self.precision, json=self.deepspeed)
        if files := stamps(self.job):
            facts["files"] = files
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _given(values: Any, *path: str) -> Any:
    """The value at `path`, or None when it is absent or "auto"."""
    for part in path:
        values = values.get(part) if isinstance(values, dict) else None
    return None if values == "auto" else values


def absorb(job: Job, config: dict[str, Any], ranks: int) -> tuple[Job, Optional[int]]:
    """The job with the lines that DeepSpeed's own JSON overrules taken from there, and its accumulation steps.

    After this the job is the one truth: the arithmetic, the report and the learning-rate schedule agree with the JSON.
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
    for precision in ("fp16", "bf16"):
        if _given(config, precision, "enabled") is True:
            train["precision"] = precision
    stage = _given(config, "zero_optimization", "stage")
    zero: dict[str, Any] = {"stage": "none" if stage == 0 else stage}
    for part in ("offload_optimizer", "offload_param"):
        zero[part] = _given(config, "zero_optimization", part, "device")
        zero["nvme_path"] = _given(config, "zero_optimization", part, "nvme_path") or zero.get("nvme_path")
    values = job.model_dump()
    values["train"].update({k: v for k, v in train.items() if v is not None})
    values["zero"].update({k: v for k, v in zero.items() if v is not None})
    return Job.model_validate(values), accumulation


def _precision(job: Job, host: Host) -> tuple[str, str]:
    """The precision, and why it was chosen where the job leaves it open."""
    wanted = job.train.precision
    if wanted != "auto":
        return wanted, ""
    if not host.gpus:
        return "fp32", "there is no GPU"
    if host.bf16:
        return "bf16", "this GPU has it, and it cannot overflow"
    if overflows_in_fp16(job):
        return "fp32", "T5's activations overflow in fp16, and this GPU has no bf16"
    return "fp16", "this GPU has no bf16"


def overflows_in_fp16(job: Job) -> bool:
    """T5's activations pass fp16's largest number (66246 > 65504 in t5-base)."""
    return "t5" in (str(job.model["type"]) if isinstance(job.model, dict) else Path(job.model).name).lower()


def resolve(job: Job, host: Host, ranks: Optional[int], file: str, config: Optional[dict[str, Any]]) -> ResolvedJob:
    """The plan for `job` with `ranks` (None: as the job says). Raises InputError where the numbers cannot hold."""
    count = ranks or (max(1, host.gpus) if job.ranks == "auto" else int(job.ranks))
    accumulation, problems = None, []
    if config is not None:
        config = as_meant(config)
        problems = [p for p in lint.problems(config, file, count, host.gpus, job) if p.severity == "error"]
    codes = {p.code for p in problems}
    if config is not None and not codes & {"DZ102", "DZ106"}:  # else there is nothing to take in yet
        try:
            job, accumulation = absorb(job, config, count)
        except (ValueError, TypeError) as error:
            first = error.errors()[0] if isinstance(error, ValidationError) else None
            key = ".".join(map(str, first["loc"])) if first else "deepspeed"
            raise InputError([*problems,
                              Problem(file, "deepspeed", f"the DeepSpeed JSON overrules {key} with something debzero "
                                      f"cannot use: {first['msg'] if first else error}",
                                      f"correct it there, or set it to \"auto\" and use {key} in the job")]) from None
    zero = job.zero
    if zero.offload_param != "none" and zero.stage != 3 and "DZ110" not in codes:
        problems.append(Problem(file, "zero.offload_param",
                                f"needs ZeRO stage 3 (the stage here is {zero.stage}); DeepSpeed "
                                "would silently ignore it", "set zero.stage: 3, or remove offload_param"))
    if zero.offload_optimizer != "none" and zero.stage == "none" and "DZ113" not in codes:
        problems.append(Problem(file, "zero.offload_optimizer", "needs ZeRO stage 1, 2 or 3 (the stage here is none)",
                                "set zero.stage: 2, or remove offload_optimizer"))
    elif zero.offload_optimizer == "nvme" and zero.stage != 3 and "DZ111" not in codes:
        problems.append(Problem(file, "zero.offload_optimizer",
                                f"nvme needs ZeRO stage 3 (the stage here is {zero.stage})",
                                "set zero.stage: 3, or offload_optimizer: cpu"))
    theirs = (_given(config, "zero_optimization", part, "device") for part in ("offload_optimizer", "offload_param"))
    if "nvme" in (zero.offload_optimizer, zero.offload_param) and not zero.nvme_path and "nvme" not in theirs:
        problems.append(Problem(file, "zero.nvme_path", "is missing, and parts are offloaded to nvme",
                                "set it to a folder on a local NVMe disk, for example `nvme_path: /nvme/swap`"))
    if job.train.precision == "fp16" and overflows_in_fp16(job):
        problems.append(Problem(file, "train.precision", "T5's activations overflow in fp16",
                                "set precision: bf16 where the GPU has it, else fp32; auto chooses"))
    elif job.train.precision in ("fp16", "bf16") and not host.gpus:
        problems.append(Problem(file, "train.precision",
                                f"{job.train.precision} needs a GPU and this host has none that torch "
                                "can use", "set precision: auto (fp32 on a CPU); on a GPU host see `nvidia-smi`"))
    elif job.train.precision == "bf16" and not host.bf16:
        problems.append(Problem(file, "train.precision",
                                "this GPU has no bf16 (it came with Ampere, compute capability 8.0)",
                                "set precision: auto"))
    batch = None
    try:
        batch = split(job.train.global_batch, job.train.micro_batch, count, accumulation)
    except BatchError as error:
        if not codes & {"DZ106", "DZ120"}:  # told with the JSON's own numbers
            problems.append(Problem(file, error.key, error.reason, error.fix))
    if problems or batch is None:
        raise InputError(problems)
    return ResolvedJob(job, batch, *_precision(job, host), 0 if zero.stage == "none" else int(zero.stage), config, host)
