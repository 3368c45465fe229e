"""The report of a finished run: written once as report.json, shown as text."""
from __future__ import annotations

import os
import platform
import resource
import shlex
import textwrap
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Optional

from debzero import __version__
from debzero.base.files import write_json
from debzero.base.stack import jobs_folder
from debzero.base.text import computing_text, count_text, printable
from debzero.data.tokens import Prepared
from debzero.job.batch import Batch
from debzero.job.schema import SECTIONS_DATASET
from debzero.model import flops
from debzero.model.tasks import Task
from debzero.resolve.layout import Layout
from debzero.resolve.resolve import ResolvedJob
from debzero.resolve.sharding import Sharding
from debzero.run import checkpoint
from debzero.run.folder import RunFolder
from debzero.run.records import AnyReport, Report, read_metrics

# What report.json says the peak memory is of.
OF_GPU, OF_PROCESS = "the GPU allocator", "the process (resident set)"
LISTED = 4  # ranks whose memory is shown one by one
PRINTED, WIDTH = 3, 100  # samples that people see here, and the columns of each of their texts; report.json has all


def peak_memory(device: Any) -> int:
    """This rank's peak in bytes: the allocator's on a GPU, the resident set's on a CPU."""
    import torch

    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@cache
def device_name(device: Any) -> str:
    import torch

    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{model} ({len(os.sched_getaffinity(0))} cores)"


def _versions(uses_deepspeed: bool) -> dict[str, str]:
    import torch
    import transformers

    versions = {"debzero": __version__, "python": platform.python_version(), "torch": str(torch.__version__),
                "transformers": transformers.__version__}
    if uses_deepspeed:
        import deepspeed

        versions["deepspeed"] = deepspeed.__version__
    return versions


@dataclass(frozen=True)
class Outcome:
    """What the training loop knows of a finished run. Sums are over all ranks and all starts of the run."""

    result: dict[str, float]   # the evaluation of the weights that were kept
    shown: list[dict[str, str]]  # samples with what those weights wrote
    metric: str                # the one that counts
    best_step: int
    steps: int
    total_steps: int
    samples: int
    seconds: float             # of training, without evaluation and saving
    padded_tokens: float
    real_tokens: float
    flops: float
    skipped_steps: int
    resumed: int               # times
    peaks: list[int]           # of this start: bytes, one per rank
    revisions: dict[str, str]  # the hub's commits


def _own(resolved: ResolvedJob, section: str) -> Optional[str]:
    """What the user's DeepSpeed JSON names as the type of its optimizer or scheduler."""
    values = (resolved.deepspeed or {}).get(section)
    name = values.get("type") if isinstance(values, dict) else None
    return name if isinstance(name, str) and name != "auto" else None


def highest(folder: RunFolder, peaks: list[int]) -> list[int]:
    """Each rank's peak over all starts of the run, in bytes: of this start, and of the lines that earlier ones left."""
    earlier = [line.memory_bytes for line in read_metrics(folder.metrics_file)
               if line.memory_bytes and len(line.memory_bytes) == len(peaks)]
    return [max(own) for own in zip(peaks, *earlier)]


def write(resolved: ResolvedJob, folder: RunFolder, task: Task, data: Prepared, outcome: Outcome,
          device: Any) -> Report:
    """Gather the facts and write report.json."""
    status = folder.written_status()
    job = status.job if status else ""
    baseline = task.baseline(data)
    scores = {name: value for name, value in outcome.result.items() if name != "loss"}
    if "accuracy" in baseline:
        scores["majority_accuracy"] = baseline["accuracy"]
    report = Report(
        job=job, task=resolved.job.task, auto=task.auto, metric=outcome.metric, evaluation=outcome.result,
        baseline=baseline, **scores, samples=outcome.shown, eval_samples=len(data.held_out),
        train_samples=len(data.train), classes=len(data.labels), **_rates(resolved, outcome, device),
        steps=outcome.steps, total_steps=outcome.total_steps, best_step=outcome.best_step, resumed=outcome.resumed,
        skipped_steps=outcome.skipped_steps, peak_memory_bytes=highest(folder, outcome.peaks),
        peak_memory_of=OF_GPU if device.type == "cuda" else OF_PROCESS,
        world_size=resolved.layout.ranks, tensor=resolved.layout.tensor, pipeline=resolved.layout.stage,
        zero_stage=resolved.stage or "none",
        offload_optimizer=resolved.job.zero.offload_optimizer, offload_param=resolved.job.zero.offload_param,
        optimizer=_own(resolved, "optimizer") or "AdamW", schedule=_own(resolved, "scheduler"),
        precision=resolved.precision, global_batch=resolved.batch.total, micro_batch=resolved.batch.micro,
        accumulation=resolved.batch.accumulation, device=device_name(device),
        versions=_versions(resolved.uses_deepspeed), revisions=outcome.revisions, example=_example(resolved),
        model=str(folder.model),
        checkpoint=str(folder.checkpoints.joinpath(*checkpoint.tags(folder.checkpoints)[-1:])),
        metrics=str(folder.metrics_file), curves=str(folder.folder / "tensorboard"), log=_log(job))
    write_json(folder.report_file, report.as_json())
    return report


def _rates(resolved: ResolvedJob, outcome: Outcome, device: Any) -> dict[str, Optional[float]]:
    """How long the training took and how fast it was; None where no step was trained in this run."""
    seconds = outcome.seconds or None
    peak = flops.peak(device_name(device), resolved.precision)
    rate = outcome.flops / resolved.layout.ranks / seconds if seconds else None  # of one rank
    return {
        "training_seconds": outcome.seconds, "steps_per_second": outcome.steps / seconds if seconds else None,
        "samples_per_second": outcome.samples / seconds if seconds else None,
        "tokens_per_second": outcome.real_tokens / seconds if seconds else None,
        "padding_share": 1 - outcome.real_tokens / outcome.padded_tokens if outcome.padded_tokens else 0.0,
        "tflops": rate / 1e12 if rate else None, "peak_share": rate / peak if rate and peak else None}


def _example(resolved: ResolvedJob) -> list[str]:
    if resolved.job.data.dataset == SECTIONS_DATASET:
        return ["GNU compiler for C++"]
    return ["a text", "its pair"][: len(resolved.job.data.text)]


def _name(report: Report) -> str:
    """What commands call the run, for a shell."""
    job = Path(report.job)
    return shlex.quote(job.stem if job.parent == jobs_folder() else str(Path(report.model).parent))


def _log(job: str) -> str:
    """Where what the run printed can be read."""
    under_systemd = "INVOCATION_ID" in os.environ and "JOURNAL_STREAM" in os.environ
    return f"journalctl -u {shlex.quote(f'debzero@{Path(job).stem}')}" if under_systemd else "the terminal it ran in"


def headline(report: Optional[AnyReport]) -> str:
    """The score that counts, in a few words; empty without a report."""
    if report is None:
        return ""
    earlier = getattr(report, "accuracy", None) if report.metric == "accuracy" else None
    value = report.evaluation.get(report.metric, earlier)
    return report.metric if value is None else f"{report.metric} {value:.4f}"


def _rate(value: Optional[float], unit: str) -> str:
    return f"{value:.2f} {unit}" if value else f"- {unit}"


def _score(report: Report, name: str, value: float) -> str:
    """A score beside the baseline's."""
    baseline = report.baseline.get(name)
    if baseline is None:
        return f"{value:.4f}"
    return f"{value:.4f} ({'majority-class baseline' if name == 'accuracy' else 'baseline'} {baseline:.4f})"


def _steps(report: Report) -> str:
    """How many, how many more there might have been, and whose weights were kept."""
    early = f" of {report.total_steps}, stopped early" if report.steps < report.total_steps else ""
    best = f"; best at step {report.best_step}" if 0 < report.best_step < report.steps else ""
    resumed = f"; resumed {count_text(report.resumed, 'time')}" if report.resumed else ""
    skipped = f"; {report.skipped_steps} skipped for an overflow" if report.skipped_steps else ""
    return f"{report.steps}{early}{best}{skipped}{resumed}"


def _peaks(report: Report) -> str:
    """Each rank's peak memory, and of what it is; of many ranks, the least and the most."""
    each = [f"{peak / 2**20:.0f} MiB" for peak in report.peak_memory_bytes]
    if len(each) > LISTED:
        each = [f"{min(report.peak_memory_bytes) / 2**20:.0f} to {max(report.peak_memory_bytes) / 2**20:.0f} MiB"]
        who = f"each of {len(report.peak_memory_bytes)} ranks"
    else:
        who = "rank 0" if len(each) == 1 else "ranks 0 " + ("and 1" if len(each) == 2 else f"to {len(each) - 1}")
    memory = "GPU memory that torch allocated" if report.peak_memory_of == OF_GPU else (
        "host memory, resident set of the process")
    return f"{', '.join(each)} ({who}; {memory})"


def sharding_text(report: Report) -> str:
    """What is sharded and offloaded, as all commands spell it."""
    stage = 0 if report.zero_stage == "none" else int(report.zero_stage)
    label = Sharding(stage, report.offload_optimizer, report.offload_param).label
    ways = {"pipeline": report.pipeline, "tensor parallel": report.tensor}
    return ", ".join([label, *(f"{way} {size}" for way, size in ways.items() if size > 1)])


def batch_text(report: Report) -> str:
    """The batch arithmetic."""
    copies = report.world_size // report.tensor // report.pipeline
    layout = Layout(copies, report.tensor, report.pipeline)
    return f"{Batch(report.global_batch, report.micro_batch, report.accumulation, layout.data)}{layout}"


def _samples(report: Report) -> list[str]:
    """Some of the texts that the model wrote, each shortened to a line."""
    lines = [f"{name:<11}{textwrap.shorten(sample.get(name, ''), WIDTH, placeholder=' ...')}"
             for sample in report.samples[:PRINTED] for name in ("text", "target", "answer")]
    return ["", "Written", *(f"  {'- ' if number % 3 == 0 else '  '}{line}" for number, line in enumerate(lines))
            ] if lines else []


def text(report: AnyReport) -> str:
    """The report for people."""
    if not isinstance(report, Report):
        return printable(f"finished, {headline(report)}: a report of an earlier release, see report.json")
    classes = f", {count_text(report.classes, 'class')}" if report.classes else ""
    computed = f"{computing_text(report.tflops, report.peak_share)} per rank, " if report.tflops else ""
    rows = {
        **{name: _score(report, name, value) for name, value in report.evaluation.items()},
        "samples": f"{report.train_samples} training, {report.eval_samples} held out{classes}",
        "speed": f"{_rate(report.steps_per_second, 'steps/s')}, {_rate(report.samples_per_second, 'samples/s')}, "
                 f"{report.tokens_per_second or 0:.0f} tokens/s",
        "computing": f"{computed}{report.padding_share:.0%} of the tokens were padding",
        "steps": _steps(report),
        "peak memory": _peaks(report),
        "ranks": f"{report.world_size}, {sharding_text(report)}",
        "batch": f"{batch_text(report)}, {report.precision}",
        "device": report.device,
        "model": report.model, "checkpoint": report.checkpoint, "metrics": report.metrics,
        "log": report.log,
    }
    curves = [f"  see the curves  tensorboard --logdir {shlex.quote(report.curves or '')}"]
    return "\n".join(map(printable, [
        "", f"Finished: {report.job}", *(f"  {name:<13}{value}" for name, value in rows.items()), *_samples(report),
        "", "What next",
        f"  use the model   {report.auto}.from_pretrained(\"{report.model}\")",
        *(curves if report.curves and os.path.isdir(report.curves) else []),
        f"  train another   copy and change {report.job}, then: debzero check, debzero train",
        f"  see this again  debzero status {_name(report)}",
        f"  ask the model   debzero predict {_name(report)} " + " ".join(f'"{text}"' for text in report.example)]))
