"""The training of one rank, top to bottom: data, model, epochs, evaluation, checkpoints, weights, report."""
from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Callable

import torch
import torch.distributed as dist

from debzero import checkpoint, data, dsconfig, models, report
from debzero.engine import Micro, PlainEngine, ZeroEngine, rate_at
from debzero.errors import UserError
from debzero.evaluate import evaluate
from debzero.files import new_folder
from debzero.plan import Plan
from debzero.progress import Progress, Stopwatch
from debzero.runstate import Output
from debzero.sampler import EpochSampler, steps_per_epoch


def train(plan: Plan, output: Output, device: torch.device, agree: Callable[[Callable[[], Any]], Any]) -> None:
    """Run `plan` to its report. `agree` runs a function on rank 0 and gives all ranks its result or its error."""
    settings, batch = plan.job.train, plan.batch
    rank, ranks = dist.get_rank(), batch.ranks
    progress = Progress(output, speaks=rank == 0)

    progress.state("preparing", "preparing the data", world_size=ranks, zero_stage=plan.stage if plan.stage else "none")
    prepared = data.load(agree(lambda: data.prepare(plan, output.data)), plan.job)
    collate = data.Collator(prepared.tokenizer, 8 if device.type == "cuda" else 1,
                            plan.job.data.max_length if plan.job.data.padding == "max_length" else None, device.type == "cuda")
    samples = len(prepared.train)
    per_epoch = steps_per_epoch(samples, batch.total)
    steps = min(settings.epochs * per_epoch, settings.max_steps or settings.epochs * per_epoch)
    epochs = math.ceil(steps / per_epoch)
    progress.say(f"{samples} training and {len(prepared.held_out)} held-out samples, {len(prepared.labels)} classes; "
                 f"{batch}; {epochs} epochs, {steps} steps")

    progress.state("preparing", "preparing the model", total_steps=steps)
    engine = _engine(plan, prepared, device, steps)
    facts = {"fingerprint": plan.fingerprint, "ranks": ranks, "data": prepared.digest}
    tag, words = agree(lambda: checkpoint.newest(output.checkpoints, facts))
    if words:
        progress.say(words)
    first_epoch = 0
    if tag:
        engine.load(output.checkpoints, tag)
        first_epoch = int(tag.split("-")[1])
    if rank == 0:
        output.cut_metrics(min(steps, first_epoch * per_epoch))

    progress.ready()
    watch = Stopwatch()
    step = first = min(steps, first_epoch * per_epoch)
    sampler = EpochSampler(prepared.train.lengths, batch, rank, settings.seed, plan.job.data.batching == "bucketed")
    result: dict[str, float] = {}

    def on_device(tensors: dict[str, Any]) -> dict[str, Any]:
        return {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}

    def measure() -> dict[str, float]:
        engine.model.eval()
        return evaluate(engine.forward, prepared, collate, device, batch.micro, lambda: None)

    main = prepared.task.main
    loss_sum, since, seen, marked = torch.zeros((), device=device), 0, 0, 0.0
    trained = 0
    for epoch in range(first_epoch, epochs):
        # Dropout's numbers are drawn anew in each epoch, so a run that went on from a checkpoint equals one that never stopped.
        torch.manual_seed(settings.seed + 1_000_003 * (epoch + 1) + 7_919 * rank)
        watch.start()
        for size, parts in sampler.epoch(epoch):
            rate = rate_at(step, steps, settings.learning_rate, settings.warmup)
            micros = [Micro(on_device(collate(prepared.train, part)), batch.accumulation * ranks / size if len(part) else 0.0)
                      for part in parts]
            loss_sum += engine.step(micros, rate)
            step, since, seen, trained = step + 1, since + 1, seen + size, trained + size
            if step % settings.log_every == 0 or step == steps:
                dist.all_reduce(loss_sum)
                loss, spent = loss_sum.item() / ranks / since, watch.running_total
                if math.isnan(loss):  # the same on every rank, and no later step can mend it
                    raise UserError(f"the loss is not a number any more (between steps {step - since + 1} and {step})",
                                    "lower train.learning_rate, or set train.precision to bf16 or fp32; then start the job again: "
                                    "it goes on from its newest checkpoint")
                progress.step(step, steps, step / per_epoch, loss, rate, seen / (spent - marked),
                              (steps - step) * spent / (step - first))
                loss_sum, since, seen, marked = torch.zeros((), device=device), 0, 0, spent
            if step == steps:
                break
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        watch.stop()
        progress.state("evaluating", f"step {step}/{steps}, evaluating")
        result = measure()
        progress.say(f"epoch {epoch + 1}/{epochs}  " + "  ".join(f"held-out {k} {v:.4f}" for k, v in result.items()))
        progress.measured(step=step, epoch=epoch + 1, **{k: v for k, v in result.items() if k != "loss"})
        checkpoint.save(engine, output.checkpoints, epoch + 1, facts)
        progress.state("training", f"step {step}/{steps}, checkpoint written")
    if not result:  # all steps were done before the interruption
        result = measure()

    progress.state("saving", "writing the model")
    _save_model(engine, prepared, output.model)
    speed = {"steps": steps, "steps_per_second": (step - first) / watch.total if watch.total else None,
             "samples_per_second": trained / watch.total if watch.total else None,
             "training_seconds": watch.total}
    peaks: list[Any] = [None] * ranks
    dist.all_gather_object(peaks, report.peak_memory(device))
    if rank == 0:
        made = report.make(plan, output, prepared, result, speed, peaks, device)
        output.end("finished")
        progress.state("finished", f"finished, {main} {result[main]:.4f}", loss=output.status().get("loss"))
        progress.say(report.text(made))
    dist.barrier()


def _engine(plan: Plan, prepared: data.Prepared, device: torch.device, steps: int) -> Any:
    settings = models.config(plan.job.model, prepared.labels, prepared.tokenizer)
    hidden: int = getattr(settings, "hidden_size", None) or getattr(settings, "d_model", None) or 768
    config = dsconfig.generate(plan, hidden, steps) if plan.uses_deepspeed else {}
    torch.manual_seed(plan.job.train.seed)  # the same first weights on every rank
    model = models.build(plan, settings, config)
    return ZeroEngine(model, plan, device, config) if plan.uses_deepspeed else PlainEngine(model, plan, device)


def _save_model(engine: Any, prepared: data.Prepared, folder: Path) -> None:
    """A folder that transformers' from_pretrained loads: safetensors, configuration and tokenizer."""
    weights = engine.weights()
    if dist.get_rank() == 0:
        with new_folder(folder) as temporary:
            engine.model.save_pretrained(temporary, state_dict=weights, safe_serialization=True)
            prepared.tokenizer.save_pretrained(temporary)
    dist.barrier()
