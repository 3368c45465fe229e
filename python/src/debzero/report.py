"""The report of a finished run: made once, kept as report.json, shown as text."""
from __future__ import annotations

import os
import platform
import resource
from pathlib import Path
from typing import Any, Optional

from debzero import __version__
from debzero.files import read_json, write_json
from debzero.runstate import Output


def peak_memory(device: Any) -> int:
    """This rank's peak in bytes: the allocator's on a GPU, the resident set's on a CPU."""
    import torch

    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


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


from dataclasses import dataclass
@dataclass
class Outcome:
    result: Any; metric: Any; best_step: Any; steps: Any; total_steps: Any; samples: Any; seconds: Any; padded_tokens: Any; real_tokens: Any; flops: Any; skipped_steps: Any; resumed: Any; peaks: Any
def headline(r): return f"{r.get('metric')} {r.get(r.get('metric')):.4f}"
def make(plan, output, data, o, device):
    job = str(read_json(output.status_file).get("job", ""))
    report = {
        "job": job, **o.result, "metric": o.metric, "majority_accuracy": data.task.baseline(data).get("accuracy"), "steps": o.steps, "resumed": o.resumed,
        "steps_per_second": o.steps/o.seconds, "samples_per_second": o.samples/o.seconds, "padding_share": 1-o.real_tokens/o.padded_tokens,
        "eval_samples": len(data.held_out), "train_samples": len(data.train), "classes": len(data.labels),
        "peak_memory_bytes": o.peaks, "skipped_steps": o.skipped_steps,
        "peak_memory_of": "the GPU allocator" if device.type == "cuda" else "the process (resident set)",
        "world_size": plan.batch.ranks, "zero_stage": plan.stage if plan.stage else "none",
        "precision": plan.precision, "global_batch": plan.batch.total, "micro_batch": plan.batch.micro,
        "accumulation": plan.batch.accumulation, "device": device_name(device), "versions": _versions(plan.uses_deepspeed),
        "model": str(output.model), "checkpoint": "", "metrics": "", "log": ""}
    write_json(output.report_file, report)
    return report
def _rate(value: Optional[float], unit: str) -> str:
    return f"{value:.2f} {unit}" if value else f"- {unit} (all steps were done before an interruption)"


def text(report: dict[str, Any]) -> str:
    """The report for people."""
    peaks = " ".join(f"{peak / 2**20:.0f}" for peak in report["peak_memory_bytes"])
    better = report["accuracy"] / report["majority_accuracy"] if report["majority_accuracy"] else float("inf")
    stage = report["zero_stage"]
    rows = {
        "accuracy": f"{report['accuracy']:.4f}   (always the commonest class: {report['majority_accuracy']:.4f}; "
                    f"{better:.1f} times that)",
        "F1": f"{report['f1']:.4f}",
        "samples": f"{report['train_samples']} training, {report['eval_samples']} held out, {report['classes']} classes",
        "speed": f"{_rate(report['steps_per_second'], 'steps/s')}, {_rate(report['samples_per_second'], 'samples/s')}, "
                 f"{report['steps']} steps in all",
        "peak memory": f"{peaks} MiB per rank, of {report['peak_memory_of']}",
        "ranks": f"{report['world_size']}, " + ("plain DDP" if stage == "none" else f"ZeRO stage {stage}"),
        "batch": f"{report['global_batch']} = {report['micro_batch']} x {report['accumulation']} accumulation x "
                 f"{report['world_size']} ranks, {report['precision']}",
        "device": report["device"],
        "model": report["model"], "checkpoint": report["checkpoint"], "metrics": report["metrics"], "log": report["log"],
    }
    lines = ["", f"Finished: {report['job']}", *(f"  {name:<13}{value}" for name, value in rows.items()), "",
             "What next", "  use the model   AutoModelForSequenceClassification.from_pretrained("
             f"\"{report['model']}\")",
             f"  train another   copy and change {report['job']}, then: debzero check, debzero train",
             f"  see this again  debzero status {Path(report['model']).parent}"]
    return "\n".join(lines)
