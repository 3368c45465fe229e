"""The model card: what the model is, what it scored, and how it was made. It travels with the weights, so it names no
path."""
from __future__ import annotations

from pathlib import Path
from typing import Any, Optional

from debzero.base.files import write_text
from debzero.base.text import computing_text, duration_text, memory_text
from debzero.job.batch import Batch
from debzero.job.schema import SECTIONS_DATASET, Job

# What model hubs call the tasks, and the metrics that are not called there as here.
PIPELINES = {"classification": "text-classification", "regression": "text-classification",
             "causal-lm": "text-generation", "text-to-text": "text2text-generation"}
METRICS = {"matthews": "matthews_correlation", "pearson": "pearsonr", "spearman": "spearmanr"}


def write(report: dict[str, Any], job: Job, folder: Path) -> None:
    """README.md in the model's folder, where a picture of the run may lie already."""
    name = Path(report["job"]).stem
    rows = [f"| {key} | {_cell(value)} |" for key, value in _facts(report, job).items() if value]
    parts = [
        f"---\n{_metadata(report, job, name)}\n---", f"# {name}", _summary(report, job), "\n".join(_scores(report)),
        _held_out(report, job),
        *(["![Loss, score and speed over the steps](loss.svg)"] if (folder / "loss.svg").is_file() else []),
        "## Use", _code(report["auto"]),
        "## Training", "\n".join(["| | |", "|---|---|", *rows])]
    write_text(folder / "README.md", "\n\n".join(parts) + "\n")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _on_hub(name: object) -> bool:
    return isinstance(name, str) and not Path(name).is_absolute() and name != SECTIONS_DATASET


def _metadata(report: dict[str, Any], job: Job, name: str) -> str:
    """What hubs read. Without a licence: it depends on the base model and the data, and is their owner's to choose."""
    from huggingface_hub import EvalResult, ModelCardData

    from debzero.job.local_files import hub_name

    dataset, part = hub_name(job.data.dataset) if _on_hub(job.data.dataset) else (Path(job.data.dataset).name, None)
    results = [EvalResult(task_type=PIPELINES[job.task], dataset_type=dataset, dataset_name=Path(job.data.dataset).name,
                          dataset_config=part, metric_type=METRICS.get(metric, metric), metric_name=metric,
                          metric_value=value)
               for metric, value in report["evaluation"].items()]
    tags = ["debzero", *(["deepspeed"] if "deepspeed" in report["versions"] else [])]
    data = ModelCardData(
        base_model=job.model if _on_hub(job.model) else None, datasets=[dataset] if _on_hub(job.data.dataset) else None,
        library_name="transformers", pipeline_tag=PIPELINES[job.task], tags=tags, model_name=name, eval_results=results)
    return str(data.to_yaml()).strip()


def _base(job: Job) -> str:
    """The model that training began with, without the path to it."""
    if isinstance(job.model, dict):
        return f"a {job.model['type']} model with random weights"
    return job.model if _on_hub(job.model) else f"a local model, {Path(job.model).name}"


def _summary(report: dict[str, Any], job: Job) -> str:
    made = "Trained from scratch" if isinstance(job.model, dict) else "Fine-tuned"
    data = job.data.dataset if _on_hub(job.data.dataset) else Path(job.data.dataset).name
    return f"{made} from {_base(job)} on {data}, for {job.task} (transformers' `{report['auto']}`)."


def _scores(report: dict[str, Any]) -> list[str]:
    """The scores as a table, the one that counts in bold."""
    def row(metric: str, value: float) -> str:
        guess: Optional[float] = report["baseline"].get(metric)
        mark = "**" if metric == report["metric"] else ""
        return f"| {mark}{metric}{mark} | {mark}{value:.4f}{mark} | {'' if guess is None else f'{guess:.4f}'} |"

    return ["| held out | this model | a guess without looking |", "|---|---|---|",
            *(row(metric, value) for metric, value in report["evaluation"].items())]


def _held_out(report: dict[str, Any], job: Job) -> str:
    chosen = (f" The weights are those of step {report['best_step']}, the best in {report['metric']}: these scores are "
              "the ones that they were chosen by." if job.train.select == "best" else "")
    return f"Measured on {report['eval_samples']} samples that training has not seen.{chosen}"


def _code(auto: str) -> str:
    return "\n".join(["```python", f"from transformers import AutoTokenizer, {auto}", "",
                      'folder = "."  # where this file lies',
                      "tokenizer = AutoTokenizer.from_pretrained(folder)", f"model = {auto}.from_pretrained(folder)",
                      "```"])


def _facts(report: dict[str, Any], job: Job) -> dict[str, str]:
    train, stage = job.train, report["zero_stage"]
    batch = Batch(report["global_batch"], report["micro_batch"], report["accumulation"], report["world_size"])
    homes = {"optimizer": report["offload_optimizer"], "parameters": report["offload_param"]}
    offloaded = [f"{what} on {where}" for what, where in homes.items() if where != "none"]
    target = "" if job.task == "causal-lm" else f" -> {job.data.label}"
    labels = f", {report['classes']} classes" if report["classes"] and job.task != "regression" else ""
    speed = [f"{report['samples_per_second']:.1f} samples/s"] if report["samples_per_second"] else []
    if report["tflops"]:
        speed.append(f"{computing_text(report['tflops'], report['peak_share'])} a rank")
    return {
        "columns": ", ".join(job.data.text) + target,
        "samples": f"{report['train_samples']} for training{labels}, cut off after {job.data.max_length} tokens",
        "batch": str(batch), "steps": f"{report['steps']} (at most {train.epochs} epochs)",
        "learning rate": f"{train.learning_rate:g}, "
        + (report["schedule"] or f"rising over the first {train.warmup:.0%} of the steps, "
                                                         "then falling to 0 in a straight line"),
        "optimizer": f"{report['optimizer']}, weight decay {train.weight_decay:g} (none for biases and norms), "
                     + (f"gradients clipped to {train.gradient_clipping:g}" if train.gradient_clipping
                        else "gradients not clipped"),
        "precision": report["precision"] + (f", {report['skipped_steps']} steps skipped" if report["skipped_steps"]
                                            else ""),
        "sharding": "none (data parallel)" if stage == "none"
        else ", ".join([f"DeepSpeed ZeRO stage {stage}", *offloaded]), "seed": str(train.seed),
        "hardware": f"{report['world_size']} rank{'s' if report['world_size'] > 1 else ''} on {report['device']}",
        "speed": ", ".join(speed),
        "time": duration_text(report["training_seconds"]) + " of training, without evaluation and saving",
        "peak memory": f"{memory_text(report['peak_memory_bytes'])} a rank, of {report['peak_memory_of']}",
        "versions": ", ".join(f"{part} {version}" for part, version in report["versions"].items())}
