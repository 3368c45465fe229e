"""What `debzero plan --hosts` predicts: the step time, memory and checkpoints of each layout of a job over many
hosts."""
from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, Callable, Optional

from debzero.base.errors import InputError
from debzero.job.batch import Batch, divisors
from debzero.job.schema import Parallel
from debzero.model import flops
from debzero.plan import rates
from debzero.plan.failures import DAY, best_interval, lost_share
from debzero.plan.layouts import label, layouts
from debzero.plan.model_shapes import Shapes
from debzero.plan.parts import PartOfShapes
from debzero.plan.planner import Planner, Row, compiles_layers, setting_of
from debzero.plan.site import Site
from debzero.plan.step_time import FLOAT, Case, Engine, Work
from debzero.resolve.layout import FULL, Layout
from debzero.resolve.micro_batch import is_fixed
from debzero.resolve.resolve import ResolvedJob
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
    """A layout that the job can be trained in. `memory`: None on processors, whose memory is not predicted."""

    case: Case
    memory: Optional[Row]
    checkpoint: Checkpoint

    @property
    def label(self) -> str:
        return label(self.case.engine.stage, self.case.layout)

    @property
    def samples_per_second(self) -> float:
        return self.case.batch.total / self.case.step().total

    @property
    def fits(self) -> bool:
        return not (self.memory and self.memory.lacks)

    def as_dict(self) -> dict[str, Any]:
        """As --json has it: seconds, bytes, and links in bits per second."""
        step, link, batch, row = self.case.step(), self.case.smallest_link(), self.case.batch, self.memory
        layout = self.case.layout
        return {
            "stage": self.case.engine.stage, "tensor": layout.tensor, "pipeline": layout.stage, "label": self.label,
            "copies": layout.data, "micro_batch": batch.micro, "accumulation": batch.accumulation,
            "step_seconds": step.total, "compute_seconds": step.compute, "launching_seconds": step.launching,
            "bubble_seconds": step.bubble, "exposed_seconds": step.exposed,
            "samples_per_second": self.samples_per_second, "efficiency": step.efficiency,
            "transfers": [asdict(transfer) for transfer in step.transfers],
            "smallest_link_bits_per_second": link and 8 * link, "fits": self.fits,
            "device_bytes": row and row.memory.device_bytes, "lacks": row.lacks if row else [],
            "checkpoint": asdict(self.checkpoint)}


class Scale:
    """Predicts the layouts of one job on one site. `refused`: those that the job cannot be trained in, and why."""

    def __init__(self, shapes: Shapes, settings: Optional[dict[str, Any]], site: Site, file: str) -> None:
        """`settings`: the job's own DeepSpeed JSON; `file`: the job's, for errors. Raises an InputError where the
        speed of a rank is not known."""
        self.shapes, self.settings, self.site, self.file = shapes, settings, site, file
        self.trace: Callable[[str, bool], Any] = cache(shapes.curve)
        self.precision = self._planner(Layout(1)).resolved(Sharding(0)).precision
        train, length = shapes.job.train, float(shapes.job.data.max_length)
        answer = shapes.answer if shapes.job.task == "text-to-text" else 0
        self.sample_flops = float(flops.per_sample(shapes.config, length, shapes.job.task, answer))
        self.sample_seconds = site.sample_seconds(self.sample_flops * (4 / 3 if train.gradient_checkpointing else 1),
                                                  self.precision)
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

    def _planner(self, layout: Layout, micro: Optional[int] = None) -> Planner:
        """Of the job with so many ranks that each hold a copy, or part of one, and this micro-batch or its own."""
        job = self.shapes.job.model_copy(update={"ranks": layout.data, "parallel": Parallel()})
        if micro:
            job = job.model_copy(update={"train": job.train.model_copy(update={"micro_batch": micro})})
        if layout.each > 1:  # pipelines are DeepSpeed's
            engine = "deepspeed" if layout.stage > 1 else "native"
            job = job.model_copy(update={"zero": job.zero.model_copy(update={"engine": engine})})
        return Planner(job, self.settings, self.site.hardware, self.file,
                       PartOfShapes(self.shapes, layout, self.trace))

    def _prediction(self, stage: int, layout: Layout) -> Prediction:
        cluster, sharding, copies = self.site.cluster, Sharding(stage), layout.data
        planner = self._planner(layout)
        resolved, row = planner.resolved(sharding), None
        batch = resolved.batch
        if not cluster.gloo:
            row = planner.row(sharding)
            most = batch.total // copies // (FULL * layout.stage)
            automatic = resolved.job.train.micro_batch == "auto" and not is_fixed(resolved)
            if layout.stage > 1 and automatic and row.micro_batch > most:
                micro = max((size for size in divisors(batch.total // copies) if size <= most), default=1)
                planner = self._planner(layout, micro)
                resolved, row = planner.resolved(sharding), planner.row(sharding)
            batch = Batch(batch.total, row.micro_batch, row.accumulation, copies)
        setting = setting_of(resolved, self.shapes.hidden)
        engine = Engine(stage, setting.width, setting.zero)
        case = Case(layout, self._work(resolved), engine, batch, cluster)
        return Prediction(case, row, self._checkpoint(stage, layout, setting.width))

    def _work(self, resolved: ResolvedJob) -> Work:
        shapes, train = self.shapes, resolved.job.train
        recorded = not resolved.uses_deepspeed and compiles_layers(resolved) and not train.gradient_checkpointing
        launching = rates.LAUNCHING[resolved.stage if resolved.uses_deepspeed else 0]
        if recorded or self.site.measured:
            launching = 0.0
        return Work(shapes.counts.total, flops.layers(shapes.config), shapes.hidden, shapes.job.data.max_length,
                    self.sample_seconds, launching, train.gradient_checkpointing)

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
