"""From a resolved job to what one rank trains with: samples, model, engine, and the state to start from."""
from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import torch

from debzero.base.errors import InputError, Problem
from debzero.base.text import count_text, printable
from debzero.data.collator import Collator
from debzero.data.sampler import steps_per_epoch, total_steps
from debzero.data.tokens import Prepared
from debzero.job.schema import SECTIONS_DATASET
from debzero.model import build, source, tasks
from debzero.model.tokenizer import Model
from debzero.resolve import deepspeed_config, nvme_swap
from debzero.run import checkpoint
from debzero.run.records import RunIdentity, TrainingState
from debzero.train import placement, prepare
from debzero.train.context import Context
from debzero.train.engine import Engine
from debzero.train.engine_native import NativeEngine
from debzero.train.engine_parallel import ParallelEngine
from debzero.train.engine_plain import PlainEngine
from debzero.train.engine_sharded import ShardedEngine
from debzero.train.engine_zero import ZeroEngine
from debzero.train.resume import Start, find_start, loaded, resumed_state

HIDDEN = 768  # where a model's configuration does not say how wide it is


@dataclass(frozen=True)
class Samples:
    """A job's samples, and how many optimizer steps they make."""

    task: tasks.Task
    prepared: Prepared
    collate: Collator
    per_epoch: int     # optimizer steps
    steps: int         # optimizer steps in all, unless the run stops early


@dataclass(frozen=True)
class Setup:
    """What one rank trains with. Only `engine` and `state` change."""

    context: Context
    samples: Samples
    identity: RunIdentity
    config: Any        # the model's, of transformers
    engine: Engine
    state: TrainingState

    @property
    def metric(self) -> str:
        """The score that counts."""
        wanted = self.context.resolved.job.train.metric
        return self.samples.task.main if wanted == "auto" else wanted


def set_up(context: Context) -> Setup:
    """All ranks call this. Rank 0 prepares the data, looks for a checkpoint and empties the swap folder; the others
    wait for it each time."""
    resolved, progress = context.resolved, context.progress
    import_models(tasks.of(resolved.job))
    progress.state("preparing", "preparing the data", world_size=context.ranks, zero_stage=resolved.stage or "none")
    samples = _samples(context)
    progress.say(printable("data: " + "; ".join(f"{key} {value}" for key, value in samples.prepared.facts.items())))
    progress.say(_summary(context, samples))
    progress.state("preparing", "preparing the model", total_steps=samples.steps)
    identity = RunIdentity(fingerprint=resolved.fingerprint, data=samples.prepared.digest)
    start = find_start(context, identity)
    for message in start.messages:
        progress.say(message)
    model = resolved.job.model
    if isinstance(model, str):
        model = context.agree(lambda: source.local(resolved.job, samples.prepared.revisions.get("model")))
    config = build.config(model, samples.prepared.labels, samples.prepared.tokenizer)
    engine = _engine(context, samples, model, config)
    state = _load(context, engine, start)
    return Setup(context, samples, identity, config, engine, state)


def import_models(task: tasks.Task) -> None:
    """What reads tokenizers and models: by the launcher, before it forks the ranks, or else by all ranks at once, for
    rank 0 would do it while the others wait for its data, and they afterwards: seconds of each start."""
    import transformers

    for name in ("AutoConfig", "AutoTokenizer", task.auto):
        getattr(transformers, name)


def _samples(context: Context) -> Samples:
    resolved, task = context.resolved, tasks.of(context.resolved.job)
    prepared = prepare.load(Path(context.agree(lambda: str(prepare.prepare(resolved, context.folder.data)))), task)
    _compare(context, prepared)
    cuda = context.device.type == "cuda"
    width = resolved.job.data.max_length if resolved.job.data.padding == "max_length" else None
    per_epoch = steps_per_epoch(len(prepared.train), resolved.batch.total)
    context.agree(lambda: context.folder.note_steps_per_epoch(per_epoch))
    return Samples(task, prepared, Collator(prepared.tokenizer, 8 if cuda else 1, width, pin=cuda), per_epoch,
                   total_steps(resolved.job.train, per_epoch))


def _compare(context: Context, prepared: Prepared) -> None:
    """Raises an InputError where the hosts have other samples, as of another revision of the hub's."""
    job = context.resolved.job
    facts = context.everywhere(lambda: {"samples": prepared.digest, **prepared.revisions})
    for key in sorted({key for fact in facts for key in fact}, key="samples".__eq__):  # what it depends on first
        values = [str(fact.get(key)) for fact in facts]
        if len(set(values)) > 1:
            each = ", ".join(f"{value} on {host}" for value, host in zip(values, placement.hosts()))
            fix = ("run `apt-get update` on all of them" if job.data.dataset == SECTIONS_DATASET else
                   "empty the hub's cache on the host that differs, or name one `revision`")
            raise InputError([Problem(context.resolved.origins.file, "data" if key != "model" else key,
                                      f"the hosts have different {key if key == 'samples' else 'revisions'}: {each}",
                                      fix)])


def _summary(context: Context, samples: Samples) -> str:
    resolved = context.resolved
    why = f" ({resolved.why})" if resolved.why else ""
    return (f"{len(samples.prepared.train)} training and {len(samples.prepared.held_out)} held-out samples; "
            f"{resolved.batch_text}; {resolved.precision}{why}; "
            f"{count_text(math.ceil(samples.steps / samples.per_epoch), 'epoch')}, "
            f"{count_text(samples.steps, 'step')}")


def _engine(context: Context, samples: Samples, model: Model, config: Any) -> Engine:
    resolved = context.resolved
    hidden: int = getattr(config, "hidden_size", None) or getattr(config, "d_model", None) or HIDDEN
    nvme, aio = context.agree(lambda: _swap(context))
    deepspeed: dict[str, Any] = {}
    if resolved.uses_deepspeed:
        deepspeed = deepspeed_config.generate(resolved, hidden, samples.steps, nvme, aio)
    torch.manual_seed(resolved.job.train.seed)  # the same first weights on every rank
    built = build.build(resolved, model, config, deepspeed)
    if resolved.layout.each > 1:
        return ParallelEngine(built, resolved, context.device, samples.task)
    if resolved.uses_deepspeed:
        return ZeroEngine(built, resolved, context.device, samples.task, deepspeed)
    native = ShardedEngine if resolved.stage == 3 else NativeEngine
    return (native if resolved.is_native else PlainEngine)(
        built, resolved, context.device, samples.task, lambda text: print(f"rank {context.rank} {text}", flush=True))


def _swap(context: Context) -> tuple[str, Optional[dict[str, Any]]]:
    """The folder for NVMe offload, and what DeepSpeed's asynchronous I/O is set to there. Rank 0's work."""
    job = context.resolved.job
    if "nvme" not in (job.zero.offload_optimizer, job.zero.offload_param) or job.zero.nvme_path is None:
        return "", None
    own = nvme_swap.prepare(job.zero.nvme_path, job.output)
    return str(own), nvme_swap.aio_settings(own, context.folder.folder / "aio.json", context.progress.say)


def _load(context: Context, engine: Engine, start: Start) -> TrainingState:
    """The state to start from. The engine loads the checkpoint, whose copies are not needed after that."""
    if start.found is None:
        return TrainingState()
    engine.load(context.folder.checkpoints, start.tag)
    if start.tag in checkpoint.TEMPORARY or context.resolved.hosts > 1:
        loaded(context)
    return resumed_state(start.found, context.ranks)
