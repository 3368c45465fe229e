"""The training of one rank: steps, evaluations and checkpoints, until the last step or a request to stop."""
from __future__ import annotations

import time
import traceback
from collections.abc import Iterator

import numpy as np
import torch

from debzero.base.environment import environment
from debzero.base.errors import OutOfMemory
from debzero.base.failures import as_user_error
from debzero.data import stream
from debzero.data.sampler import EpochSampler
from debzero.model import compiled
from debzero.resolve.resolve import ResolvedJob
from debzero.run.folder import RunFolder
from debzero.run.progress import Progress
from debzero.train import exchange, placement
from debzero.train.agreement import Control, Stop, Stopping
from debzero.train.context import Context
from debzero.train.engine import rate_at
from debzero.train.evaluate import evaluate
from debzero.train.finish import finish
from debzero.train.meter import Meter
from debzero.train.saving import Saver
from debzero.train.setup import Setup, set_up


def train(resolved: ResolvedJob, folder: RunFolder, device: torch.device, stop: Stop) -> None:
    """Run a job to its report. All ranks call this. Raises Stopping, with a checkpoint written, when the run was asked
    to stop."""
    progress = Progress(folder, speaks=placement.leads())
    try:
        setup = set_up(Context(resolved, folder, device, progress))
        saver = Saver(setup, Meter(setup))
        progress.resume(setup.state.step)
        Training(setup, saver, stop).run()
    finally:
        progress.close()


class Training:
    """The loop of one rank. Every rank has one, and all call the same methods in the same order."""

    def __init__(self, setup: Setup, saver: Saver, stop: Stop) -> None:
        self.setup, self.saver, self.meter = setup, saver, saver.meter
        self.context, self.samples, self.state = setup.context, setup.samples, setup.state
        self.progress, self.settings = setup.context.progress, setup.context.resolved.job.train
        self.every = self.settings.evaluate_every or self.samples.per_epoch  # optimizer steps between evaluations
        self.measured = environment().measured
        self.stop, self.control = stop, Control(stop, self.context.ranks)

    def run(self) -> None:
        self.progress.ready()
        self.stop.orderly.set()
        try:
            self._steps()
        except Stopping:
            self.control.heard()
            self.progress.state("stopping", f"{self._place()}, writing a checkpoint before the stop",
                                step=self.state.step)
            self.saver.save()
            raise
        if self.measured:
            exchange.barrier()
        else:
            finish(self.setup, self.saver)

    def _place(self) -> str:
        return f"step {self.state.step}/{self.samples.steps}"

    def _batches(self) -> Iterator[stream.Step]:
        """The global batches that are left, this rank's part of each."""
        data, batch = self.samples.prepared.train, self.context.resolved.batch
        bucketed = self.context.resolved.job.data.batching == "bucketed"
        sampler = EpochSampler(data.lengths, batch, self.context.place.data, self.settings.seed, bucketed)
        numbers = range(self.state.step, self.samples.steps)
        return stream.steps(sampler.epoch, lambda part: self.samples.collate(data, part), numbers,
                            self.samples.per_epoch, batch, fill=self.context.device.type == "cuda")

    def _steps(self) -> None:
        """Train, evaluate and save until the last step is done, or no further one is worth it."""
        state, meter, batches = self.state, self.meter, self._batches()
        self._resume_best()
        self._evaluate_if_due()
        started = time.perf_counter()
        for batch in batches:
            if self._out_of_patience():
                break
            # Dropout's numbers depend on the step and the rank's place alone, so that a resumed run equals one that
            # never stopped.
            stream_number = self.context.resolved.layout.dropout_stream(self.context.rank)
            torch.manual_seed(int(np.random.SeedSequence([self.settings.seed, state.step,
                                                          stream_number]).generate_state(1)[0]))
            rate = self.setup.engine.rate_of(rate_at(state.step, self.samples.steps, self.settings.learning_rate,
                                                     self.settings.warmup))
            meter.loss_sum += self._step(batch, rate)
            state.step, state.since = state.step + 1, state.since + 1
            due = self._evaluation_due()
            turn = self.control.turn(save=self.context.rank == 0 and self.saver.due())
            # Reading the loss waits for the device; only then is the time that it took known.
            reduced = meter.reduce() if due or state.step % self.settings.log_every == 0 else None
            if (turn.stop or turn.save) and self.context.device.type == "cuda":
                torch.cuda.synchronize(self.context.device)
            now = time.perf_counter()
            meter.count(batch, now - started)
            if reduced:
                self.progress.step(meter.line(reduced, rate))
            if turn.stop:
                raise Stopping
            if turn.save and not due:
                self.saver.save_if_possible()
            self._evaluate_if_due()
            self.progress.alive()
            started = time.perf_counter() if reduced or turn.save else now

    def _step(self, batch: stream.Step, rate: float) -> torch.Tensor:
        """One optimizer step; this rank's part of its loss. A rank that is alone and runs out of memory in it saves the
        step before, from which the job resumes. Where there are more ranks, the others wait for it in a collective, and
        the job resumes from its newest checkpoint."""
        try:
            return self.setup.engine.step(batch.micros, rate)
        except Exception as error:
            unsaved = self.state.step != self.saver.saved_step and not (self.setup.engine.updating or self.measured)
            folder = str(self.context.folder.folder)
            if self.context.ranks == 1 and unsaved and isinstance(as_user_error(error, folder), OutOfMemory):
                traceback.clear_frames(error.__traceback__)  # they hold the step's tensors
                if self.context.device.type == "cuda":
                    torch.cuda.empty_cache()
                try:
                    self.saver.save_if_possible()
                except Exception as second:
                    self.progress.warn(f"no checkpoint of step {self.state.step}: {type(second).__name__}: {second}")
            raise

    def _evaluation_due(self) -> bool:
        return not self.measured and (self.state.step % self.every == 0 or self.state.step == self.samples.steps)

    def _out_of_patience(self) -> bool:
        patience = self.settings.patience
        return patience is not None and self.state.since_best >= patience

    def _evaluate_if_due(self) -> None:
        state = self.state
        if not state.step or state.evaluated == state.step or not self._evaluation_due():
            return
        self.progress.state("evaluating", f"{self._place()}, evaluating")
        self.setup.engine.model.eval()
        with compiled.eager():
            state.result, state.shown = evaluate(self.setup.engine, self.samples, self.context, self._between)
        state.evaluated = state.step
        self._keep_best(state.result)
        self.progress.evaluated(state.step, state.step / self.samples.per_epoch, state.result)
        if self._out_of_patience() and state.step < self.samples.steps:
            self.progress.say(f"{self.setup.metric} has not improved in {state.since_best} evaluations: stopping early")
        # At each evaluation: what it cost is never paid twice.
        self.saver.save_if_possible()
        self.progress.state("training", self._place())

    def _keep_best(self, result: dict[str, float]) -> None:
        """Note the best scores so far, and save their model where the job selects it."""
        state, metric = self.state, self.setup.metric
        value = result[metric]
        if state.best is None or (value > state.best if self.samples.task.higher_is_better(metric)
                                  else value < state.best):
            state.best, state.best_of, state.best_step = value, metric, state.step
            state.best_result, state.best_shown, state.since_best = result, state.shown, 0
            if self.settings.select == "best":
                self.saver.save_model()
        else:
            state.since_best += 1

    def _resume_best(self) -> None:
        """Forget the best scores so far where they are of another metric than the job's now, or where the job selects
        the best weights and those were not kept. Then the best counts from here on."""
        state, selects = self.state, self.settings.select == "best"
        if state.best is None or state.best_of == self.setup.metric and not (
                selects and set(self.context.everywhere(self.context.folder.step_of_model)) != {state.best_step}):
            return
        state.best, state.best_step, state.best_result, state.since_best = None, 0, {}, 0
        if selects:
            self.progress.say(f"the best {self.setup.metric} counts from step {state.step} on: the weights of earlier "
                              "steps were not kept")
        if state.evaluated == state.step:
            self._keep_best(state.result)

    def _between(self) -> None:
        """After each batch of an evaluation."""
        if self.control.turn().stop:
            raise Stopping
        self.progress.alive()
