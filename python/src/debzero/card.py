"""The model card: what the model is, what it scored, and how it was made. It travels with the weights, so it names no path."""
from __future__ import annotations

from pathlib import Path
from typing import Any

KINDS = {"classification": "text-classification", "regression": "text-classification", "causal-lm": "text-generation",
         "text-to-text": "text2text-generation"}


def write(report: dict[str, Any], job: Any, auto: str, folder: Path) -> None:
    """README.md in the model's folder, with the metadata that model hubs read."""
    from huggingface_hub import EvalResult, ModelCardData

    data = job.data.dataset if not Path(job.data.dataset).is_absolute() else Path(job.data.dataset).name
    base = job.model if isinstance(job.model, str) and not Path(job.model).is_absolute() else None
    name = Path(report["job"]).stem
    scores = report["evaluation"]
    results = [EvalResult(task_type=KINDS[job.task], dataset_type=data, dataset_name=data, metric_type=metric, metric_value=value)
               for metric, value in scores.items()]
    meta = ModelCardData(base_model=base, library_name="transformers", pipeline_tag=KINDS[job.task], tags=["debzero", "deepspeed"],
                         model_name=name, eval_results=results)
    versions = ", ".join(f"{part} {version}" for part, version in report["versions"].items())
    stage = report["zero_stage"]
    facts = {
        "Base": base or (f"{job.model['type']}, trained from scratch" if isinstance(job.model, dict) else "a local model"),
        "Data": f"{data}: {', '.join(job.data.text)}" + ("" if job.task == "causal-lm" else f" -> {job.data.label}"),
        "Samples": f"{report['train_samples']} for training, {report['eval_samples']} held out",
        "Batch": f"{report['global_batch']} = {report['micro_batch']} x {report['accumulation']} accumulation x "
                 f"{report['world_size']} ranks",
        "Steps": f"{report['steps']} optimizer steps, at most {job.train.epochs} epochs",
        "Learning rate": f"{job.train.learning_rate:g}, rising over {job.train.warmup:.0%} of the steps, then falling to 0",
        "Regularisation": f"weight decay {job.train.weight_decay:g}, gradients clipped to {job.train.gradient_clipping:g}",
        "Precision": report["precision"], "Sharding": "none (data parallel)" if stage == "none" else f"DeepSpeed ZeRO stage {stage}",
        "Seed": str(job.train.seed), "Device": f"{report['world_size']} x {report['device']}",
        "Speed": f"{report['samples_per_second']:.1f} samples/s" if report["samples_per_second"] else "-", "Versions": versions,
    }
    metrics = [f"| {metric} | {value:.4f} | {_guess(report, metric)} |" for metric, value in scores.items()]
    (folder / "README.md").write_text("\n".join([
        "---", meta.to_yaml(), "---", "", f"# {name}", "",
        "| held-out metric | this model | best guess without looking |", "|---|---|---|", *metrics, "",
        "![Loss and speed over the steps](loss.svg)", "",
        "| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in facts.items()), "",
        "```python", f"from transformers import AutoTokenizer, {auto}", "", 'folder = "."  # where this file lies',
        f"model, tokenizer = {auto}.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)", "```", ""]), encoding="utf-8")


def _guess(report: dict[str, Any], metric: str) -> str:
    value = report["baseline"].get(metric)
    return "" if value is None else f"{value:.4f}"
