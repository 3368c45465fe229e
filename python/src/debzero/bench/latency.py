"""How fast a run's model answers: each engine and precision that the host has, in one series, on the same batches of
its held-out samples."""
from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Callable, Literal

import numpy as np

from debzero.base.errors import InputError, UserError
from debzero.base.text import printable_lines
from debzero.bench import page, runner
from debzero.bench.latency_page import as_text
from debzero.bench.results import NAME, Inference, Timing, load
from debzero.check import checks
from debzero.data.collator import Collator
from debzero.export import engines, exporting, samples
from debzero.export.samples import HeldOut
from debzero.measure.facts import command_line, identity
from debzero.measure.run import claim
from debzero.model.tasks import TextToText
from debzero.predict import exported, tensorrt_process, trained
from debzero.predict.engine import Batch, Choice, Engine, Writing
from debzero.predict.engine_onnx import precisions
from debzero.predict.engine_tensorrt import check_host
from debzero.predict.engines import ENGINES
from debzero.predict.trained import Trained
from debzero.run.folder import RunFolder, now

SIZES = (1, 8, 32)           # rows of a batch
DIFFERENT = 16               # batches of each size, asked in turn
WARMUP = 2 * DIFFERENT       # each twice: a CUDA graph is recorded at the second time
ROUNDS = 5                   # all engines, then all again: a host that slows down slows all
LEAST, SECONDS = 20, 0.5     # batches of a round, and how long they take together at least
MOST_SECONDS = 20.0          # of a round, however few batches that is
WRITTEN = 32                 # tokens that a model writes, if it has twice as many positions
PAUSE = 0.1                  # before each measurement: an idle engine's threads spin for a moment

Ask = Callable[[Batch], object]
Kind = Literal["torch", "compiled", "onnx", "tensorrt"]
Key = tuple[Kind, str]       # of an engine: and its precision


def start(options: argparse.Namespace) -> int:
    """Exit code: 0 where at least one engine was measured, else 1."""
    name = str(options.job)
    found = trained.find(name, options.output)
    model = trained.load(found)
    held_out = samples.of_run(model, name)
    status = RunFolder(str(found.parent)).written_status()
    job = Path(status.job if status else "")
    resolved = checks.check(job, works_in=lambda job: options.output or Path(job.output))
    folder = (options.output or Path(resolved.job.output + "-bench")).absolute()
    claim(folder)
    results = runner.facts(argparse.Namespace(**{**vars(options), "job": job}), resolved)
    if (folder / NAME).exists():
        earlier = load(folder / NAME, "move the file away, or give another --output")
        same = identity(resolved, asdict(earlier.settings), results.host, results.versions)
        if earlier.identity == same:
            results = earlier
        else:
            _say(options, f"the earlier results are of another job or host: moved to {runner.archive(folder)}")
    commands = [*results.command.splitlines(), command_line()]
    inference = measure(model, held_out, folder, lambda text: _say(options, text))
    results = replace(results, command="\n".join(dict.fromkeys(commands)), made=now(), inference=inference)
    page.write(results, folder / NAME)
    if options.json:
        print(json.dumps(results.as_json(), indent=2))
    _say(options, "\n" + as_text(results), f"\nwritten: {folder / page.NAME}, and results.json and .md beside it")
    return 0 if results.inference and results.inference.timings else 1


def _say(options: argparse.Namespace, *lines: str) -> None:
    for line in lines:
        print(printable_lines(line), flush=True, file=sys.stderr if options.json else sys.stdout)


def measure(model: Trained, held_out: HeldOut, folder: Path, say: Callable[[str], None]) -> Inference:
    """`folder`: for what has to be exported."""
    left_out: dict[str, str] = {}
    asks: dict[Key, Ask] = {}
    device = ""
    with ExitStack() as stack:
        for kind, precision, open_engine in _engines(model, held_out, folder, stack):
            try:
                engine = open_engine()
            except (InputError, UserError) as error:
                left_out[f"{kind} {precision}"] = str(error).splitlines()[0]
                say(f"{kind} {precision}: left out: {left_out[f'{kind} {precision}']}")
            else:
                device = device or engine.device
                asks[kind, engine.precision] = _ask(model, engine)
        batches = {size: _batches(model, held_out, size) for size in SIZES}
        times = _series(asks, batches, say)
    timings = tuple(_timing(*key, seconds) for key, seconds in times.items())
    width = float(np.mean([batch["input_ids"].shape[1] for batch in batches[SIZES[1]]]))
    versions = {name: metadata.version(name) for name in ("torch", "transformers", *(["onnxruntime"] if any(
        kind == "onnx" for kind, _ in asks) else []))}
    if any(kind == "tensorrt" for kind, _ in asks):
        versions["tensorrt"] = tensorrt_process.Process().host["tensorrt"]
    return Inference(now(), command_line(), device, width, _written(model) if model.writes else None, versions, timings,
                     left_out)


def _engines(model: Trained, held_out: HeldOut, folder: Path, stack: ExitStack
             ) -> Iterator[tuple[Kind, str, Callable[[], Engine]]]:
    """The engines of this host, with a function that loads each."""
    def torch_in(name: str, precision: str) -> Callable[[], Engine]:
        return lambda: ENGINES[name](model, Choice("auto", precision))

    def exported_to(to: str, precision: str) -> Callable[[], Engine]:
        return lambda: ENGINES[to](_exported(model, held_out, exporting.Target(to, precision), folder, stack),
                                   Choice("auto", precision))

    gpu = _has_gpu()
    for precision in ("fp32", "auto") if gpu else ("fp32",):
        yield "torch", precision, torch_in("torch", precision)
    if gpu:
        yield "compiled", "auto", torch_in("compiled", "auto")
    for precision in precisions():
        yield "onnx", precision, exported_to("onnx", precision)
    for precision in exported.PRECISIONS["tensorrt"] if tensorrt_process.is_installed() else ():
        yield "tensorrt", precision, exported_to("tensorrt", precision)


def _has_gpu() -> bool:
    import torch

    return bool(torch.cuda.is_available())


def _exported(model: Trained, held_out: HeldOut, target: exporting.Target, folder: Path, stack: ExitStack) -> Trained:
    """The run's export, or where there is none, or none for this host, one for this series alone."""
    try:
        found, record = exported.load(model.folder, *target)
        if target.to == "tensorrt":
            check_host(found, record, tensorrt_process.Process().host)
        return found
    except (InputError, UserError):
        if target.to == "tensorrt":
            engines.check(model, target.precision)
        made = Path(stack.enter_context(TemporaryDirectory(dir=folder, prefix=f".{target.to}-")))
        exporting.write(model, held_out, target, made, accept=False)
        return trained.load(made, weights=False)


def _ask(model: Trained, engine: Engine) -> Ask:
    if model.writes:
        how = Writing(_written(model), (), model.tokenizer.pad_token_id)
        return lambda batch: engine.generate(batch, how)
    if model.task == "text-to-text":
        names = TextToText("auto").bind(model.tokenizer, model.labels)
        return lambda batch: engine.likelihoods(batch, names)
    return engine.logits


def _written(model: Trained) -> int:
    """Tokens that it writes after each text."""
    return min(WRITTEN, max(1, (model.positions or 2 * WRITTEN) // 2))


def _batches(model: Trained, held_out: HeldOut, size: int) -> list[Batch]:
    """Held-out samples at random, each batch padded to its own longest. Of what a model continues, the beginnings, so
    that there is room for more."""
    rows = np.random.default_rng(size).integers(len(held_out), size=(DIFFERENT, size))
    collate = Collator(held_out.prepared.tokenizer, 1, None, pin=False)
    batches = [{name: tensor.numpy() for name, tensor in collate(held_out.prepared.held_out, each).items()
                if name != "labels"} for each in rows]
    if not model.continues:
        return batches
    longest = max(1, held_out.prepared.held_out.limit // 2)
    return [{name: values[:, :longest] for name, values in batch.items()} for batch in batches]


def _series(asks: dict[Key, Ask], batches: dict[int, list[Batch]], say: Callable[[str], None]
            ) -> dict[tuple[Key, int], list[float]]:
    """{(engine, rows): the seconds that each batch took}."""
    times: dict[tuple[Key, int], list[float]] = {(key, size): [] for size in batches for key in asks}
    for number in range(ROUNDS):
        for (key, size), kept in times.items():
            ask, some = asks[key], batches[size]
            time.sleep(PAUSE)
            began = time.perf_counter()
            for turn in range(WARMUP if number == 0 else 2):
                if time.perf_counter() - began < MOST_SECONDS:
                    ask(some[turn % len(some)])
            began, done = time.perf_counter(), 0
            took = 0.0
            while (done < LEAST or took < SECONDS) and took < MOST_SECONDS:
                before = time.perf_counter()
                ask(some[done % len(some)])
                kept.append(time.perf_counter() - before)
                done, took = done + 1, time.perf_counter() - began
        say(f"round {number + 1} of {ROUNDS} done")
    return times


def _timing(key: Key, size: int, seconds: list[float]) -> Timing:
    p50, p95, p99 = (float(np.percentile(seconds, share)) for share in (50, 95, 99))
    return Timing(*key, size, len(seconds), p50, p95, p99, size * len(seconds) / sum(seconds))
