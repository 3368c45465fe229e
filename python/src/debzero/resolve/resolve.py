"""What a job comes to on this host: ranks, batch, precision and stage, with the user's DeepSpeed JSON taken in."""
from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Optional

from debzero.base.errors import InputError, Problem
from debzero.deepspeed_json import lint
from debzero.deepspeed_json.view import normalized, renamed
from debzero.job.batch import Batch, BatchError, Names, split
from debzero.job.schema import Favour, Job
from debzero.resolve import buffers, layout, native, precision
from debzero.resolve.absorb import ACCUMULATION, Origins, absorb, switched_off
from debzero.resolve.host import HostGpus
from debzero.resolve.identity import Identity, identity
from debzero.resolve.layout import Layout
from debzero.resolve.sharding import Sharding

WRONG_VALUES = {"DZ102", "DZ106"}  # findings after which the JSON's values cannot be taken in


@dataclass(frozen=True)
class ResolvedJob:
    """A job as it will run here. `stage` is 0 for plain DDP, unless `deepspeed` holds the user's own JSON; `why` is the
    reason for the precision, where debzero chose it; `origins` say which of the job's values the JSON set."""

    job: Job
    batch: Batch
    precision: str
    why: str
    stage: int
    deepspeed: Optional[dict[str, Any]]
    host: HostGpus
    hosts: int = 1   # that train it together, each with an equal share of the ranks
    origins: Origins = field(default_factory=lambda: Origins(""))

    @property
    def sharding(self) -> Sharding:
        return Sharding(self.stage, self.job.zero.offload_optimizer, self.job.zero.offload_param)

    @property
    def uses_deepspeed(self) -> bool:
        return self.deepspeed is not None or self.stage > 0 and not self.is_native

    @property
    def is_native(self) -> bool:
        """Whether debzero's own engine carries out the stage."""
        if self.job.zero.engine != "auto":
            return self.job.zero.engine == "native"
        on_own_gpus = self.host.gpus > 0 and not self.shares_gpus
        return (self.sharding.may_be_native and self.deepspeed is None and not buffers.sizes(self.job.zero)
                and (self.layout.each > 1 or on_own_gpus and native.pays()))

    @property
    def favours_speed(self) -> bool:
        """Whether DeepSpeed trains, and its buffers are for speed: as the job asks for it, or, from the start of a
        training on, as `debzero plan` has found room for it."""
        return self.uses_deepspeed and self.job.zero.favour == "speed"

    def favouring(self, favour: Favour) -> ResolvedJob:
        """The same with DeepSpeed's buffers for this."""
        zero = self.job.zero.model_copy(update={"favour": favour})
        return replace(self, job=self.job.model_copy(update={"zero": zero}))

    @property
    def layout(self) -> Layout:
        return Layout(self.batch.ranks, self.job.parallel.tensor, self.job.parallel.pipeline)

    @property
    def batch_text(self) -> str:
        """The batch arithmetic, for people."""
        return f"{self.batch}{self.layout}"

    @property
    def shares_gpus(self) -> bool:
        """More ranks than GPUs: a rehearsal, in which every rank needs its own NCCL identity."""
        return 0 < self.host.gpus < self.local_ranks

    @property
    def local_ranks(self) -> int:
        """Those on each host."""
        return self.layout.ranks // self.hosts

    @property
    def identity(self) -> Identity:
        """What makes a run of this job another one, and with what it continues."""
        return identity(self.job, self.precision, self.deepspeed)

    @property
    def fingerprint(self) -> str:
        """The same for runs that may resume from each other's checkpoints."""
        return self.identity.fingerprint


def resolve(job: Job, host: HostGpus, ranks: Optional[int], file: str, config: Optional[dict[str, Any]],
            hosts: int = 1) -> ResolvedJob:
    """`job` on `host` with `ranks` (None: as the job says), on each of `hosts`. `file`: the job's, for messages;
    `config`: the user's DeepSpeed JSON. Raises InputError with everything that cannot run."""
    count = hosts * layout.count(job, host.gpus, ranks)
    config = None if config is None else normalized(config)
    problems = [p for p in lint.problems(config, file, count, host.gpus * hosts, job) if p.severity == "error"]
    codes, accumulation, origins = {p.code for p in problems}, None, Origins(file)
    if config is not None and not codes & WRONG_VALUES:
        try:
            config, written = renamed(config)
            job, accumulation, origins = absorb(job, config, count, file, written)
        except InputError as error:
            raise InputError([*problems, *error.problems]) from None
    off = switched_off(config)
    problems += precision.problems(job, host, origins) + native.problems(job, config, file)
    problems += buffers.problems(job, config, host.gpus, file)
    problems += layout.problems(job, config, count, hosts, file)
    batch = None
    try:
        copies = max(1, count // job.parallel.each)
        batch = split(job.train.global_batch, layout.micro_batch(job, copies), copies, accumulation, _names(origins))
    except BatchError as error:
        if not codes & {"DZ106", "DZ120"}:  # already reported, with the JSON's own keys
            problems += origins.placed([Problem(file, error.key, error.reason, error.fix)])
    if problems or batch is None:
        raise InputError(problems)
    stage = 0 if job.zero.stage == "none" else int(job.zero.stage)
    resolved = ResolvedJob(job, batch, *precision.choose(job, host, off), stage, config, host, hosts, origins)
    return resolved if host.gpus else resolved.favouring("memory")  # the rest is about a GPU's memory and streams


def _names(origins: Origins) -> Names:
    """What the user calls the parts of the batch."""
    mixed = {"train.global_batch", "train.micro_batch", ACCUMULATION} & set(origins.keys)
    return Names(origins.text("train.global_batch"), origins.text("train.micro_batch"),
                 origins.text(ACCUMULATION)) if mixed else Names()
