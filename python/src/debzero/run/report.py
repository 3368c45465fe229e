"""The report of a finished run: made once, kept as report.json, shown as text."""
from __future__ import annotations

import os
import platform
import resource
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Optional

from debzero import __version__
from debzero.base.files import read_json, read_lines, write_json
from debzero.base.text import computing_text
from debzero.model import flops
from debzero.run.folder import Output


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


def _own(resolved: Any, section: str) -> Optional[str]:
    """What the user's DeepSpeed JSON names as the type of its optimizer or scheduler."""
    values = (resolved.deepspeed or {}).get(section)
    name = values.get("type") if isinstance(values, dict) else None
    return name if isinstance(name, str) and name != "auto" else None


def highest(output: Output, peaks: list[int]) -> list[int]:
    """Each rank's peak over all starts of the run, from what this start has seen and the lines that earlier ones left;
    bytes."""
    seen = [line["memory_bytes"] for line in read_lines(output.metrics_file)
            if len(line.get("memory_bytes", ())) == len(peaks)]
    return [int(max(own)) for own in zip(peaks, *seen)]


def make(resolved: Any, output: Output, task: Any, data: Any, outcome: Outcome, device: Any) -> dict[str, Any]:
    """Gather the facts and write report.json."""
    job = str(read_json(output.status_file).get("job", ""))
    under_systemd = "INVOCATION_ID" in os.environ and "JOURNAL_STREAM" in os.environ
    baseline = task.baseline(data)
    seconds = outcome.seconds or None
    peak = flops.peak(device_name(device), resolved.precision)
    rate = outcome.flops / resolved.batch.ranks / seconds if seconds else None  # of one rank
    report = {
        "job": job, "task": resolved.job.task, "auto": task.auto,
        "metric": outcome.metric, "evaluation": outcome.result, "baseline": baseline,
        **{name: value for name, value in outcome.result.items() if name != "loss"},
        **({"majority_accuracy": baseline["accuracy"]} if "accuracy" in baseline else {}),
        "eval_samples": len(data.held_out), "train_samples": len(data.train), "classes": len(data.labels),
        "steps": outcome.steps, "total_steps": outcome.total_steps, "best_step": outcome.best_step,
        "resumed": outcome.resumed, "skipped_steps": outcome.skipped_steps, "training_seconds": outcome.seconds,
        "steps_per_second": outcome.steps / seconds if seconds else None,
        "samples_per_second": outcome.samples / seconds if seconds else None,
        "tokens_per_second": outcome.real_tokens / seconds if seconds else None,
        "padding_share": 1 - outcome.real_tokens / outcome.padded_tokens if outcome.padded_tokens else 0.0,
        "tflops": rate / 1e12 if rate else None, "peak_share": rate / peak if rate and peak else None,
        "peak_memory_bytes": highest(output, outcome.peaks),
        "peak_memory_of": "the GPU allocator" if device.type == "cuda" else "the process (resident set)",
        "world_size": resolved.batch.ranks, "zero_stage": resolved.stage if resolved.stage else "none",
        "offload_optimizer": resolved.job.zero.offload_optimizer, "offload_param": resolved.job.zero.offload_param,
        "optimizer": _own(resolved, "optimizer") or "AdamW", "schedule": _own(resolved, "scheduler"),
        "precision": resolved.precision, "global_batch": resolved.batch.total, "micro_batch": resolved.batch.micro,
        "accumulation": resolved.batch.accumulation, "device": device_name(device),
        "versions": _versions(resolved.uses_deepspeed), "model": str(output.model),
        "checkpoint": str(output.checkpoints / (output.checkpoints / "latest").read_text()),
        "metrics": str(output.metrics_file), "curves": str(output.folder / "tensorboard"),
        "log": f"journalctl -u debzero@{Path(job).stem}" if under_systemd else "the terminal it ran in",
    }
    write_json(output.report_file, report)
    return report


def headline(report: dict[str, Any]) -> str:
    """The score that counts, in a few words."""
    metric = report.get("metric", "accuracy")  # reports of before there were other tasks
    value = report.get("evaluation", report).get(metric)
    return metric if value is None else f"{metric} {value:.4f}"


def _rate(value: Optional[float], unit: str) -> str:
    return f"{value:.2f} {unit}" if value else f"- {unit}"


def _score(report: dict[str, Any], name: str, value: float) -> str:
    """A score beside what a guess without looking gets."""
    guess = report["baseline"].get(name)
    if guess is None:
        return f"{value:.4f}"
    if name == "accuracy":
        times = f"; {value / guess:.1f} times that" if guess else ""
        return f"{value:.4f}   (always the commonest class: {guess:.4f}{times})"
    return f"{value:.4f}   (a guess without looking: {guess:.4f})"


def _steps(report: dict[str, Any]) -> str:
    """How many, how many more there might have been, and whose weights were kept."""
    early = f" of {report['total_steps']}, stopped early" if report["steps"] < report["total_steps"] else ""
    best = f"; best at step {report['best_step']}" if 0 < report["best_step"] < report["steps"] else ""
    resumed = f"; resumed {report['resumed']} time{'s' if report['resumed'] > 1 else ''}" if report["resumed"] else ""
    skipped = f"; {report['skipped_steps']} skipped for an overflow" if report["skipped_steps"] else ""
    return f"{report['steps']}{early}{best}{skipped}{resumed}"


def text(report: dict[str, Any]) -> str:
    """The report for people."""
    if "evaluation" not in report:
        return f"finished, {headline(report)}: a report of an earlier release, see report.json"
    peaks = " ".join(f"{peak / 2**20:.0f}" for peak in report["peak_memory_bytes"])
    stage = report["zero_stage"]
    classes = f", {report['classes']} classes" if report["classes"] else ""
    computed = f"{computing_text(report['tflops'], report['peak_share'])} a rank, " if report["tflops"] else ""
    rows = {
        **{name: _score(report, name, value) for name, value in report["evaluation"].items()},
        "samples": f"{report['train_samples']} training, {report['eval_samples']} held out{classes}",
        "speed": f"{_rate(report['steps_per_second'], 'steps/s')}, {_rate(report['samples_per_second'], 'samples/s')}, "
                 f"{report['tokens_per_second'] or 0:.0f} tokens/s",
        "computing": f"{computed}{report['padding_share']:.0%} of the tokens were padding",
        "steps": _steps(report),
        "peak memory": f"{peaks} MiB per rank, of {report['peak_memory_of']}",
        "ranks": f"{report['world_size']}, " + ("plain DDP" if stage == "none" else f"ZeRO stage {stage}"),
        "batch": f"{report['global_batch']} = {report['micro_batch']} x {report['accumulation']} accumulation x "
                 f"{report['world_size']} ranks, {report['precision']}",
        "device": report["device"],
        "model": report["model"], "checkpoint": report["checkpoint"], "metrics": report["metrics"],
        "log": report["log"],
    }
    lines = ["", f"Finished: {report['job']}", *(f"  {name:<13}{value}" for name, value in rows.items()), "",
             "What next", f"  use the model   {report['auto']}.from_pretrained(\"{report['model']}\")",
             *([f"  see the curves  tensorboard --logdir {report['curves']}"]
               if Path(report.get("curves", "-")).is_dir() else []),
             f"  train another   copy and change {report['job']}, then: debzero check, debzero train",
             f"  see this again  debzero status {Path(report['model']).parent}"]
    return "\n".join(lines)
