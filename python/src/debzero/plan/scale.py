"""What `debzero plan --hosts` predicts: the step time, memory and checkpoints of each layout of a job over many
hosts."""
from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Optional

from debzero.base.errors import InputError
from debzero.job.batch import divisors
from debzero.job.schema import Parallel
from debzero.model import flops
from debzero.model.divisible import parallel_problems
from debzero.plan import rates
from debzero.plan.divided import DividedMemory
from debzero.plan.failures import DAY, best_interval, lost_share
from debzero.plan.layouts import label, layouts
from debzero.plan.memory import Memory
from debzero.plan.model_shapes import Shapes
from debzero.plan.planner import Planner, compiles_layers, setting_of
from debzero.plan.site import Site
from debzero.plan.step_time import FLOAT, Case, Engine, Work
from debzero.resolve.host import HostGpus
from debzero.resolve.layout import Layout, busy
from debzero.resolve.micro_batch import with_micro
from debzero.resolve.resolve import ResolvedJob, resolve
from debzero.resolve.sharding import Sharding

# Seconds from a failure to the reading of a checkpoint: 30 until the others notice, the rest for the ranks' start.
RESTARTING = 60


@dataclass(frozen=True)
class Checkpoint:
    """What checkpoints cost a layout. `host_bytes`: of the host that writes the most; times in seconds; shares of all
    time that failures and checkpoints take."""

    host_bytes: float
    seconds: float
    best_interval: float
    lost_share: float      # with the best interval
    own_lost_share: float  # with the job's own


@dataclass(frozen=True)
class Prediction:
    """A layout of the job. `memory`: of a rank; None on processors, whose memory is not predicted. `lacks`: what the
    hardware has too little of."""

    case: Case
    memory: Optional[Memory]
    lacks: list[str]
    checkpoint: Checkpoint

    @property
    def label(self) -> str:
        return label(self.case.engine.stage, self.case.layout)

    @property
    def samples_per_second(self) -> float:
        return self.case.batch.total / self.case.step().total

    @property
    def fits(self) -> bool:
        return not self.lacks

    @property
    def trains(self) -> bool:
        """Whether debzero trains it: a divided model is on one host so far (resolve/layout)."""
        return self.case.layout.each == 1 or self.case.cluster.hosts == 1

    def as_dict(self) -> dict[str, Any]:
        """As --json has it: seconds, bytes, and links in bits per second."""
        step, link, batch = self.case.step(), self.case.smallest_link(), self.case.batch
        layout = self.case.layout
        return {
            "stage": self.case.engine.stage, "tensor": layout.tensor, "pipeline": layout.stage, "label": self.label,
            "copies": layout.data, "micro_batch": batch.micro, "accumulation": batch.accumulation,
            "step_seconds": step.total, "compute_seconds": step.compute, "launching_seconds": step.launching,
            "bubble_seconds": step.bubble, "exposed_seconds": step.exposed,
            "samples_per_second": self.samples_per_second, "efficiency": step.efficiency,
            "transfers": [asdict(transfer) for transfer in step.transfers],
            "smallest_link_bits_per_second": link and 8 * link, "fits": self.fits,
            "device_bytes": self.memory and self.memory.device_bytes, "lacks": self.lacks, "trains": self.trains,
            "checkpoint": asdict(self.checkpoint)}


class Scale:
    """Predicts the layouts of one job on one site. `refused`: those that the job cannot be trained in, and why."""

    def __init__(self, shapes: Shapes, settings: Optional[dict[str, Any]], site: Site, file: str,
                 divided: Optional[dict[tuple[int, int], DividedMemory]] = None) -> None:
        """`settings`: the job's own DeepSpeed JSON; `file`: the job's, for errors; `divided`: what the Scale of another
        site has traced of this model. Raises an InputError where the speed of a rank is not known."""
        self.shapes, self.settings, self.site, self.file = shapes, settings, site, file
        self.divided = {} if divided is None else divided
        self.precision = self._planner(1).resolved(Sharding(0)).precision
        train, length = shapes.job.train, float(shapes.job.data.max_length)
        answer = shapes.answer if shapes.job.task == "text-to-text" else 0
        self.sample_flops = float(flops.per_sample(shapes.config, length, shapes.job.task, answer))
        self.sample_seconds = site.sample_seconds(self.sample_flops * (4 / 3 if train.gradient_checkpointing else 1),
                                                  self.precision, shapes.job.task)
        self.refused: list[tuple[str, str]] = []

    def predictions(self) -> list[Prediction]:
        """One for each layout that is possible. Raises the first one's InputError where none is."""
        config, found, first = self.shapes.config, [], None
        for stage, layout in layouts(self.site.cluster, flops.layers(config), flops.heads(config)):
            try:
                found.append(self._prediction(stage, layout))
            except InputError as error:
                first = first or error
                self.refused.append((label(stage, layout), error.problems[0].reason))
        if not found and first:
            raise first
        return found

    def _planner(self, ranks: int) -> Planner:
        """Of the job undivided, with so many ranks."""
        job = self.shapes.job.model_copy(update={"ranks": ranks, "parallel": Parallel()})
        return Planner(job, self.settings, self.site.hardware, self.file, self.shapes)

    def _prediction(self, stage: int, layout: Layout) -> Prediction:
        if layout.each > 1:
            return self._of_divided(layout)
        cluster, sharding, planner = self.site.cluster, Sharding(stage), self._planner(layout.data)
        resolved, memory, lacks = planner.resolved(sharding), None, list[str]()
        if not cluster.gloo:
            resolved, largest = planner.started(sharding)
            row = planner.row_of(sharding, resolved, largest)
            memory, lacks = row.memory, row.lacks
        setting = setting_of(resolved, self.shapes.hidden)
        engine = Engine(stage, setting.width, setting.zero)
        case = Case(layout, self._work(resolved, layout), engine, resolved.batch, cluster)
        return Prediction(case, memory, lacks, self._checkpoint(stage, layout, setting.width))

    def _of_divided(self, layout: Layout) -> Prediction:
        """Of debzero's own engine (train/engine_parallel), which trains on one host so far; on several, it is what it
        would send."""
        job, site = self.shapes.job, self.site
        zero = job.zero.model_copy(update={"stage": 1, "engine": "native"})
        job = job.model_copy(update={"ranks": layout.ranks, "zero": zero, "parallel": Parallel(
            tensor=layout.tensor, pipeline=layout.stage)})
        wrong = parallel_problems(job, self.file, self.shapes.config)
        if wrong:
            raise InputError(wrong)
        resolved = resolve(job, HostGpus(site.hardware.gpus, site.hardware.bf16), None, self.file, self.settings)
        memory = None
        if not site.cluster.gloo:
            resolved, memory = self._largest_that_fits(resolved)
        engine = Engine(1, setting_of(resolved, self.shapes.hidden).width, {}, divided=True)
        case = Case(layout, self._work(resolved, layout), engine, resolved.batch, site.cluster)
        lacks = ["GPU memory"] * (memory is not None and memory.device_bytes > site.hardware.gpu_memory)
        return Prediction(case, memory, lacks, self._checkpoint(1, layout, FLOAT))

    def _largest_that_fits(self, resolved: ResolvedJob) -> tuple[ResolvedJob, Memory]:
        """The job with the largest micro-batch of those that leave a pipeline busy; where none fits, with the
        smallest."""
        layout, batch = resolved.layout, resolved.batch
        key = layout.tensor, layout.stage
        if key not in self.divided:
            self.divided[key] = DividedMemory(self.shapes, layout, {0, layout.stage - 1})
        sizes = [batch.micro]
        if resolved.job.train.micro_batch == "auto":
            share = batch.total // batch.ranks
            sizes = [size for size in divisors(share) if size <= busy(layout, batch.total, share)][::-1]
        for micro in sizes:
            asked = with_micro(resolved, micro)
            memory = self.divided[key].largest(asked).memory
            if memory.device_bytes <= self.site.hardware.gpu_memory:
                break
        return asked, memory

    def _work(self, resolved: ResolvedJob, layout: Layout) -> Work:
        shapes, train, config = self.shapes, resolved.job.train, self.shapes.config
        own = not resolved.uses_deepspeed
        recorded = own and layout.each == 1 and compiles_layers(resolved) and not train.gradient_checkpointing
        launching = 0.0 if recorded or self.site.measured else shapes.counts.layer_tensors * rates.launching(
            layout, 0 if own else resolved.stage, resolved.job.zero.favour)
        tied = rates.predicts_tokens(shapes.job.task) and getattr(config, "tie_word_embeddings", False)
        return Work(shapes.counts.total, flops.layers(config), shapes.hidden, shapes.job.data.max_length,
                    self.sample_seconds, launching, train.gradient_checkpointing,
                    config.vocab_size * shapes.hidden if tied else 0, shapes.counts.total - shapes.counts.layers)

    def _checkpoint(self, stage: int, layout: Layout, width: int) -> Checkpoint:
        """The fp32 weights and Adam's moments, which are sharded among the copies from stage 1 on, and the weights of
        the forward pass, which only stage 3 shards."""
        site, count, parts = self.site, self.shapes.counts.total, layout.each
        share = 1 / site.cluster.hosts if stage else 1.0
        written = 3 * FLOAT * count * share
        if stage:
            written += width * count * (share if stage == 3 else min(parts, site.cluster.gpus) / parts)
        seconds, mtbf = written / site.disk, site.mtbf_days * DAY / site.cluster.hosts
        best = best_interval(seconds, mtbf)
        own = 60 * float(self.shapes.job.checkpoint.minutes)
        restart = RESTARTING + seconds
        return Checkpoint(written, seconds, best, lost_share(best, seconds, restart, mtbf),
                          lost_share(own, seconds, restart, mtbf))
