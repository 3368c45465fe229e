"""The end of a run: the model with its card and its picture, and the report."""
from __future__ import annotations

from pathlib import Path
from typing import Callable

import torch
import torch.distributed as dist

from debzero.run import card, plots, report
from debzero.run.records import Report
from debzero.train import exchange
from debzero.train.saving import Saver
from debzero.train.setup import Setup


def finish(setup: Setup, saver: Saver) -> None:
    """Write the model and the report. The last evaluation and the last checkpoint are there already. All ranks call
    this."""
    context, state, engine = setup.context, setup.state, setup.engine
    context.progress.state("saving", "writing the model")
    best = context.resolved.job.train.select == "best" and all(context.everywhere(
        lambda: context.folder.step_of_model() == state.best_step))
    if not best:
        saver.save_model()
    tokens = torch.tensor(state.tokens, dtype=torch.float64, device=context.device)
    dist.all_reduce(tokens)
    peaks = exchange.gather(report.peak_memory(context.device))
    if context.leads:
        outcome = report.Outcome(
            result=state.best_result if best else state.result, shown=state.best_shown if best else state.shown,
            metric=setup.metric, best_step=state.best_step,
            steps=state.step, total_steps=setup.samples.steps, samples=state.samples, seconds=state.seconds,
            padded_tokens=tokens[0].item(), real_tokens=tokens[1].item(), flops=tokens[2].item(),
            skipped_steps=state.step - engine.applied_steps, resumed=state.resumed, peaks=peaks,
            revisions=setup.samples.prepared.revisions)
        finished = report.write(context.resolved, context.folder, setup.samples.task, setup.samples.prepared, outcome,
                                context.device)
        _describe(setup, finished)
        context.folder.end("finished")
        context.progress.state("finished", f"finished, {report.headline(finished)}")
        context.progress.say(report.text(finished))
    exchange.barrier()


def _describe(setup: Setup, finished: Report) -> None:
    """A picture of the run and a card, beside the weights. Where they fail the model is complete without them."""
    context = setup.context
    folder, name = context.folder.model, Path(finished.job).stem
    parts: dict[str, Callable[[], object]] = {
        "picture": lambda: plots.draw(context.folder.metrics_file, setup.metric, finished.baseline.get(setup.metric),
                                      folder, name),
        "card": lambda: card.write(finished, context.resolved.job, folder)}
    for part, write in parts.items():
        try:
            write()
        except Exception as error:
            context.progress.warn(f"the model has no {part}: {type(error).__name__}: {error}")
