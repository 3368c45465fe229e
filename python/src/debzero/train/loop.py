"""The training of one rank, top to bottom: data, model, steps, evaluation, checkpoints, weights, report."""
from __future__ import annotations

import math
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Callable, Optional

import numpy as np
import torch
import torch.distributed as dist

from debzero.base.environment import environment
from debzero.base.errors import OutOfMemory, UserError, explain
from debzero.base.files import new_folder
from debzero.data import stream
from debzero.data.collator import Collator
from debzero.data.sampler import EpochSampler, steps_per_epoch
from debzero.model import build, compiled, flops, tasks
from debzero.resolve import deepspeed_config, nvme_swap
from debzero.resolve.resolve import ResolvedJob
from debzero.run import card, checkpoint, plots, report, reshard_zero3
from debzero.run.folder import Output
from debzero.run.progress import Progress
from debzero.train import prepare
from debzero.train.agreement import Control, Stop, Stopping
from debzero.train.engine import rate_at
from debzero.train.engine_plain import PlainEngine
from debzero.train.engine_zero import ZeroEngine
from debzero.train.evaluate import evaluate

Agree = Callable[[Callable[[], Any]], Any]


@dataclass
class State:
    """Where the loop is: what a checkpoint holds beside the engine's own state."""

    step: int = 0                       # optimizer steps done
    samples: int = 0                    # samples trained on, on all ranks
    seconds: float = 0.0                # spent on them, without evaluation and saving
    tokens: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])  # this rank's: padded, real; and their FLOPs
    evaluated: int = 0                  # the step of the last evaluation
    result: dict[str, float] = field(default_factory=dict)
    best: Optional[float] = None
    best_step: int = 0
    best_result: dict[str, float] = field(default_factory=dict)
    since_best: int = 0                 # evaluations
    resumed: int = 0                    # times
    # Since the last progress line: the ranks' loss sums (in order of rank), steps, samples, seconds, and tokens as
    # above.
    losses: list[float] = field(default_factory=list)
    since: int = 0
    interval: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0, 0.0, 0.0])


def train(resolved: ResolvedJob, output: Output, device: torch.device, agree: Agree, stop: Stop) -> None:
    """Run `plan` to its report. `agree` runs a function on rank 0 and gives all ranks its result or its error. Raises Stopping,
    with a checkpoint written, when the run was asked to stop."""
    progress = Progress(output, speaks=dist.get_rank() == 0)
    try:
        Run(resolved, output, device, agree, stop, progress).run()
    finally:
        progress.close()


class Run:
    """One training. Every rank makes one, and all call the same methods in the same order."""

    def __init__(self, resolved: ResolvedJob, output: Output, device: torch.device, agree: Agree, stop: Stop,
                 progress: Progress) -> None:
        self.resolved, self.output, self.device, self.agree, self.stop, self.progress = resolved, output, device, agree, stop, progress
        self.settings, self.batch = resolved.job.train, resolved.batch
        self.rank, self.ranks = dist.get_rank(), resolved.batch.ranks
        self.state = State()
        self.measured = environment().measured

        progress.state("preparing", "preparing the data", world_size=self.ranks,
                       zero_stage=resolved.stage if resolved.stage else "none")
        self.task = tasks.of(resolved.job)
        self.data = prepare.load(agree(lambda: prepare.prepare(resolved, output.data)), self.task)
        cuda = device.type == "cuda"
        width = resolved.job.data.max_length if resolved.job.data.padding == "max_length" else None
        self.collate = Collator(self.data.tokenizer, 8 if cuda else 1, width, pin=cuda)
        samples = len(self.data.train)
        self.per_epoch = steps_per_epoch(samples, self.batch.total)
        self.steps = min(self.settings.epochs * self.per_epoch,
                         self.settings.max_steps or self.settings.epochs * self.per_epoch)
        self.every = self.settings.evaluate_every or self.per_epoch
        progress.say(f"{samples} training and {len(self.data.held_out)} held-out samples; {self.batch}; "
                     f"{resolved.precision}{f' ({resolved.why})' if resolved.why else ''}; "
                     f"{math.ceil(self.steps / self.per_epoch)} epochs, {self.steps} steps")

        progress.state("preparing", "preparing the model", total_steps=self.steps)
        self.facts = {"fingerprint": resolved.fingerprint, "data": self.data.digest}
        found, words = agree(self._look)
        for line in words:
            progress.say(line)
        self.config = build.config(resolved.job.model, self.data.labels, self.data.tokenizer)
        self.engine = self._engine(found)
        self.metric = self.task.main if self.settings.metric == "auto" else self.settings.metric
        self.saved_at, self.saved_step = time.monotonic(), self.state.step
        progress.resume(self.state.step)
        self.control = Control(stop, self.ranks)
        words = 0 if self.data.train.targets is None else self.data.train.targets.shape[1]
        self._flops = cache(lambda width: flops.per_sample(self.config, float(width), resolved.job.task, words))

    def _look(self) -> tuple[Optional[checkpoint.Found], list[str]]:
        """The checkpoint to go on from (for another number of ranks: converted), and what to say about it. Rank 0's
        work."""
        words: list[str] = []
        found = checkpoint.newest(self.output.checkpoints, self.facts, words.append)
        if found and found.ranks != self.ranks and checkpoint.is_dealt(self.output.checkpoints / found.tag):
            if self.resolved.stage == 3:
                words.append(f"the checkpoint {found.tag} was written by {found.ranks} ranks: dealing it out anew to "
                             f"{self.ranks}")
                checkpoint.drop_resharded(self.output.checkpoints)
                root = self.output.checkpoints
                reshard_zero3.reshard(root / found.tag, root / checkpoint.RESHARDED, found.ranks, self.ranks)
            else:
                words.append(f"the checkpoint {found.tag} was written by {found.ranks} ranks: converting it to a "
                             f"universal checkpoint for {self.ranks}")
                checkpoint.reshard(self.output.checkpoints, found.tag)
            return found._replace(tag=checkpoint.RESHARDED), [*words, f"going on from step {found.state['step']}"]
        return found, [*words, f"going on from the checkpoint {found.tag}"] if found else words

    def _engine(self, found: Optional[checkpoint.Found]) -> Any:
        hidden: int = getattr(self.config, "hidden_size", None) or getattr(self.config, "d_model", None) or 768
        nvme, aio = self.agree(self._swap)
        config = deepspeed_config.generate(self.resolved, hidden, self.steps, nvme, aio) if self.resolved.uses_deepspeed else {}
        resharded = found is not None and found.tag == checkpoint.RESHARDED
        if resharded and self.resolved.stage != 3:
            config["checkpoint"] = {**config.get("checkpoint", {}), "load_universal": True}
        torch.manual_seed(self.settings.seed)  # the same first weights on every rank
        model = build.build(self.resolved, self.config, config)
        engine: Any = (ZeroEngine(model, self.resolved, self.device, self.task, config) if self.resolved.uses_deepspeed
                       else PlainEngine(model, self.resolved, self.device, self.task))
        if found:
            engine.load(self.output.checkpoints, found.tag)
            self.state = State(**found.state)
            self.state.resumed += 1
            # what the ranks had summed up, the first one keeps; a rank's share of all is another now
            if found.ranks != self.ranks:
                share = found.ranks / self.ranks
                self.state.losses = [sum(self.state.losses) / share] + [0.0] * (self.ranks - 1)
                self.state.tokens = [count * share for count in self.state.tokens]
                self.state.interval[2:] = [count * share for count in self.state.interval[2:]]
            if resharded:
                dist.barrier()
                if self.rank == 0:
                    checkpoint.drop_resharded(self.output.checkpoints)
        return engine

    def _swap(self) -> tuple[str, Optional[dict[str, Any]]]:
        """The folder for NVMe offload and what DeepSpeed's asynchronous I/O is set to there. Rank 0's work."""
        zero = self.resolved.job.zero
        if "nvme" not in (zero.offload_optimizer, zero.offload_param) or zero.nvme_path is None:
            return "", None
        own = nvme_swap.prepare(zero.nvme_path, str(self.output.folder))
        return str(own), nvme_swap.aio_settings(own, self.output.folder / "aio.json", self.progress.say)

    def run(self) -> None:
        self.progress.ready()
        self.stop.orderly.set()
        try:
            self._steps()
        except Stopping:
            self.control.heard()
            self.progress.state("stopping",
                                f"step {self.state.step}/{self.steps}, writing a checkpoint before the stop",
                                step=self.state.step)
            self._save()
            raise
        if self.measured:
            dist.barrier()
        else:
            self._finish()

    def _steps(self) -> None:
        """Train, evaluate and save until the last step is done, or no further one is worth it."""
        state = self.state
        self.loss_sum = torch.tensor(state.losses[self.rank] if state.losses else 0.0, device=self.device)
        bucketed = self.resolved.job.data.batching == "bucketed"
        sampler = EpochSampler(self.data.train.lengths, self.batch, self.rank, self.settings.seed, bucketed)
        batches = stream.steps(sampler.epoch, lambda part: self.collate(self.data.train, part), state.step, self.steps,
                               self.per_epoch, self.batch, fill=self.device.type == "cuda")
        self._evaluate_if_due()
        started = time.perf_counter()
        for batch in batches:
            if self._worn_out():
                break
            # Dropout's numbers depend on the step alone, so a run that went on from a checkpoint equals one that never
            # stopped.
            torch.manual_seed(int(np.random.SeedSequence([self.settings.seed, state.step,
                                                          self.rank]).generate_state(1)[0]))
            rate = self.engine.rate_of(rate_at(state.step, self.steps, self.settings.learning_rate,
                                               self.settings.warmup))
            self.loss_sum += self._step(batch.micros, rate)
            state.step, state.since = state.step + 1, state.since + 1
            due = self._evaluation_due()
            turn = self.control.turn(save=self.rank == 0 and self._checkpoint_due())
            # Reading the loss waits for the device; only then is the time that it took known.
            reduced = self._reduced() if due or state.step % self.settings.log_every == 0 else None
            if (turn.stop or turn.save) and self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            now = time.perf_counter()
            self._count(batch, now - started)
            if reduced:
                self._say(reduced, rate)
            if turn.stop:
                raise Stopping
            if turn.save and not due:
                self._save_if_possible()
            self._evaluate_if_due()
            self.progress.alive()
            started = time.perf_counter() if reduced or turn.save else now

    def _step(self, micros: Any, rate: float) -> Any:
        """One optimizer step. A rank that is alone and runs out of memory in it leaves a checkpoint of the step before, from which the
        job goes on; where there are more, the others wait for it in a collective, and it goes on from the newest."""
        try:
            return self.engine.step(micros, rate)
        except Exception as error:
            unsaved = self.state.step != self.saved_step and not (self.engine.updating or self.measured)
            if self.ranks == 1 and unsaved and isinstance(explain(error, str(self.output.folder)), OutOfMemory):
                traceback.clear_frames(error.__traceback__)  # they hold the step's tensors
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()
                try:
                    self._save_if_possible()
                except Exception as second:
                    self.progress.warn(f"no checkpoint of step {self.state.step}: {type(second).__name__}: {second}")
            raise

    def _count(self, batch: stream.Step, seconds: float) -> None:
        state = self.state
        work = sum(rows * self._flops(width) for rows, width in batch.widths)
        for number, more in enumerate((batch.tokens, batch.real_tokens, work)):
            state.tokens[number] += more
            state.interval[2 + number] += more
        state.samples, state.seconds = state.samples + batch.size, state.seconds + seconds
        state.interval[0] += batch.size
        state.interval[1] += seconds

    def _reduced(self) -> dict[str, Any]:
        """The mean loss since the last line, and every rank's peak memory: one exchange."""
        shares = torch.zeros(1 + self.ranks, dtype=torch.float64, device=self.device)
        shares[0], shares[1 + self.rank] = self.loss_sum, float(report.peak_memory(self.device))
        if self.ranks > 1:
            dist.all_reduce(shares)
        loss, *memory = shares.tolist()
        loss = loss / self.ranks / self.state.since
        if math.isnan(loss):  # the same on every rank, and no later step can mend it
            raise UserError("the loss is not a number any more (between steps "
                            f"{self.state.step - self.state.since + 1} and {self.state.step})",
                            "lower train.learning_rate, or set train.precision to bf16 or fp32; then start the job "
                            "again: it goes on from its newest checkpoint")
        return {"loss": loss, "memory_bytes": [int(share) for share in memory]}

    def _say(self, reduced: dict[str, Any], rate: float) -> None:
        state = self.state
        samples, seconds, padded, real, work = state.interval
        total = max(seconds, 1e-9)
        # Every rank does its share; rank 0's tokens stand for all.
        peak = flops.peak(report.device_name(self.device), self.resolved.precision)
        tflops = work / total / 1e12
        self.progress.step({
            "step": state.step, "total_steps": self.steps, "epoch": round(state.step / self.per_epoch, 4), **reduced,
            "learning_rate": rate, "samples_per_second": round(samples / total, 2),
            "tokens_per_second": round(real * self.ranks / total, 1),
            "padding_share": round(1 - real / padded, 4) if padded else 0.0, "tflops": round(tflops, 3),
            "peak_share": round(tflops * 1e12 / peak, 4) if peak else None,
            "skipped_steps": state.step - self.engine.applied_steps, "loss_scale": self.engine.loss_scale,
            "eta_seconds": round((self.steps - state.step) * total / state.since, 1),
            # Unrounded, for what is computed from them.
            "interval_steps": state.since, "interval_samples": samples, "interval_seconds": total})
        self.loss_sum = torch.zeros((), device=self.device)
        state.since, state.interval = 0, [0.0] * 5

    def _evaluation_due(self) -> bool:
        return not self.measured and (self.state.step % self.every == 0 or self.state.step == self.steps)

    def _worn_out(self) -> bool:
        patience = self.settings.patience
        return patience is not None and self.state.since_best >= patience

    def _evaluate_if_due(self) -> None:
        state = self.state
        if not state.step or state.evaluated == state.step or not self._evaluation_due():
            return
        self.progress.state("evaluating", f"step {state.step}/{self.steps}, evaluating")
        self.engine.model.eval()
        with compiled.eager():
            result = evaluate(self.engine.forward, self.task, self.data, self.collate, self.device, self.batch.micro,
                              self._between)
        state.evaluated, state.result = state.step, result
        value = result[self.metric]
        better = state.best is None or (value > state.best if self.task.higher_is_better(self.metric)
                                        else value < state.best)
        if better:
            state.best, state.best_step, state.best_result, state.since_best = value, state.step, result, 0
            if self.settings.select == "best":
                self._save_model()
        else:
            state.since_best += 1
        self.progress.evaluated(state.step, state.step / self.per_epoch, result)
        if self._worn_out() and state.step < self.steps:
            self.progress.say(f"{self.metric} has not become better in {state.since_best} evaluations: stopping early")
        # At each evaluation: what it cost is never paid twice.
        self._save_if_possible()
        self.progress.state("training", f"step {state.step}/{self.steps}")

    def _between(self) -> None:
        if self.control.turn().stop:
            raise Stopping
        self.progress.alive()

    def _checkpoint_due(self) -> bool:
        wanted = self.resolved.job.checkpoint
        late = time.monotonic() - self.saved_at > 60 * wanted.minutes
        if late:  # the ranks hear of it at the next turn, when it must not be asked for again
            self.saved_at = time.monotonic()
        return late or bool(wanted.steps and self.state.step % wanted.steps == 0)

    def _save_if_possible(self) -> None:
        """A checkpoint on the way: where there is no room for it the run goes on, says so, and tries again later."""
        try:
            self.agree(lambda: checkpoint.room(self.output.checkpoints))
        except UserError as error:
            self.saved_at = time.monotonic()
            self.progress.warn(str(error))
            return
        self._save()

    def _save(self) -> None:
        own = self.loss_sum.item()
        shares: list[Any] = [own] * self.ranks
        if self.ranks > 1:
            dist.all_gather_object(shares, own)
        self.state.losses = shares
        with self._patience(self.output.checkpoints):
            checkpoint.save(self.engine, self.output.checkpoints, self.state.step, self.facts, asdict(self.state),
                            self.resolved.job.checkpoint.keep, self.progress.alive)
        self.saved_at, self.saved_step = time.monotonic(), self.state.step

    @contextmanager
    def _patience(self, folder: Path) -> Iterator[None]:
        """Writing may take long, also in libraries; as long as the folder's size changes, the run is alive."""
        done = threading.Event()

        def watch() -> None:
            before = -1
            while not done.wait(5):
                size = checkpoint.size(folder)
                if size != before:
                    self.progress.alive()
                before = size

        thread = threading.Thread(target=watch, daemon=True)
        if self.rank == 0:
            thread.start()
        try:
            yield
        finally:
            done.set()

    def _save_model(self) -> None:
        """A folder that transformers' from_pretrained loads: safetensors, configuration and tokenizer."""
        weights = self.engine.weights()
        if self.rank == 0:
            with self._patience(self.output.folder), new_folder(self.output.model, self.progress.alive) as temporary:
                self.engine.model.save_pretrained(temporary, state_dict=weights, safe_serialization=True)
                self.data.tokenizer.save_pretrained(temporary)
        dist.barrier()

    def _describe(self, made: dict[str, Any]) -> None:
        """A picture of the run and a card, beside the weights. Whatever is wrong with them, the model is there."""
        folder, name = self.output.model, Path(made["job"]).stem
        works: dict[str, Callable[[], Any]] = {
            "picture": lambda: plots.draw(self.output.metrics_file, self.metric, made["baseline"].get(self.metric),
                                          folder, name),
            "card": lambda: card.write(made, self.resolved.job, folder)}
        for what, work in works.items():
            try:
                work()
            except Exception as error:
                self.progress.warn(f"the model has no {what}: {type(error).__name__}: {error}")

    def _finish(self) -> None:
        """The model and the report. What evaluation found, and the last checkpoint, are there already."""
        state, best = self.state, self.settings.select == "best"
        self.progress.state("saving", "writing the model")
        if not (best and self.output.model.is_dir()):
            self._save_model()
        tokens = torch.tensor(state.tokens, dtype=torch.float64, device=self.device)
        dist.all_reduce(tokens)
        peaks: list[Any] = [None] * self.ranks
        dist.all_gather_object(peaks, report.peak_memory(self.device))
        if self.rank == 0:
            made = report.make(self.resolved, self.output, self.task, self.data, report.Outcome(
                result=state.best_result if best else state.result, metric=self.metric,
                best_step=state.best_step, steps=state.step, total_steps=self.steps, samples=state.samples,
                seconds=state.seconds, padded_tokens=tokens[0].item(), real_tokens=tokens[1].item(),
                flops=tokens[2].item(), skipped_steps=state.step - self.engine.applied_steps, resumed=state.resumed,
                peaks=peaks), self.device)
            self._describe(made)
            self.output.end("finished")
            self.progress.state("finished", f"finished, {report.headline(made)}")
            self.progress.say(report.text(made))
        dist.barrier()
