"""The model card: what the model is, how it scored and how it was trained. It travels with the weights, so it names
no path."""
from __future__ import annotations

from pathlib import Path

from debzero.base.files import read_json, write_text
from debzero.base.text import computing_text, count_text, duration_text, markdown_text, memory_text, printable
from debzero.job.schema import SECTIONS_DATASET, Job
from debzero.run.records import Report
from debzero.run.report import batch_text, sharding_text

# What model hubs call the tasks, and the metrics that are not called there as here.
PIPELINES = {"classification": "text-classification", "regression": "text-classification",
             "causal-lm": "text-generation", "text-to-text": "text2text-generation"}
MOST_CLASSES = 50  # whose names are listed
METRICS = {"matthews": "matthews_correlation", "pearson": "pearsonr", "spearman": "spearmanr", "rouge_l": "rouge"}


def write(report: Report, job: Job, folder: Path) -> None:
    """Write README.md into the model's folder. It shows the picture of the run that is there."""
    name = Path(report.job).stem
    rows = [f"| {key} | {markdown_text(value)} |" for key, value in _facts(report, job).items() if value]
    parts = [
        f"---\n{_metadata(report, job, name)}\n---", f"# {markdown_text(name)}", _summary(report, job),
        "\n".join(_scores(report)), _held_out(report, job),
        *(["![Loss, score and speed over the steps](loss.svg)"] if (folder / "loss.svg").is_file() else []),
        "## Use", *_use(report.auto, job, folder),
        "## Training", "\n".join(["| | |", "|---|---|", *rows])]
    write_text(folder / "README.md", "\n\n".join(parts) + "\n")


def _on_hub(name: object) -> bool:
    return isinstance(name, str) and not Path(name).is_absolute() and name != SECTIONS_DATASET


def _metadata(report: Report, job: Job, name: str) -> str:
    """What hubs read. Without a licence: it depends on the base model and the data, and is their owner's to choose."""
    from huggingface_hub import EvalResult, ModelCardData

    from debzero.job.local_files import hub_name

    own = printable(Path(job.data.dataset).name)
    dataset, part = hub_name(job.data.dataset) if _on_hub(job.data.dataset) else (own, None)
    results = [EvalResult(task_type=PIPELINES[job.task], dataset_type=dataset, dataset_name=own,
                          dataset_config=part, metric_type=METRICS.get(metric, metric), metric_name=metric,
                          metric_value=value)
               for metric, value in report.evaluation.items()]
    tags = ["debzero", *(["deepspeed"] if "deepspeed" in report.versions else [])]
    data = ModelCardData(
        base_model=job.model if _on_hub(job.model) else None, datasets=[dataset] if _on_hub(job.data.dataset) else None,
        library_name="transformers", pipeline_tag=PIPELINES[job.task], tags=tags, model_name=printable(name),
        eval_results=results)
    return str(data.to_yaml()).strip()


def _summary(report: Report, job: Job) -> str:
    """What the model is, without the paths of its base and its data."""
    at = {part: f" (commit {commit})" for part, commit in report.revisions.items()}
    data = job.data.dataset + at.get("data", "") if _on_hub(job.data.dataset) else Path(job.data.dataset).name
    if isinstance(job.model, dict):
        origin = f"A {job.model['type']} model, trained from scratch"
    elif _on_hub(job.model):
        origin = f"Fine-tuned from {job.model}{at.get('model', '')}"
    else:
        origin = f"Fine-tuned from a local model, {Path(job.model).name},"
    return f"{markdown_text(f'{origin} on {data}')}, for {job.task} (transformers' `{report.auto}`)."


def _scores(report: Report) -> list[str]:
    """The scores as a table, the one that counts in bold."""
    def row(metric: str, value: float) -> str:
        baseline = report.baseline.get(metric)
        mark = "**" if metric == report.metric else ""
        shown = "" if baseline is None else f"{baseline:.4f}"
        return f"| {mark}{markdown_text(metric)}{mark} | {mark}{value:.4f}{mark} | {shown} |"

    baseline = "majority-class baseline" if "accuracy" in report.baseline else "baseline"
    return [f"| held out | this model | {baseline} |", "|---|---|---|",
            *(row(metric, value) for metric, value in report.evaluation.items())]


def _held_out(report: Report, job: Job) -> str:
    chosen = (f" The weights are those of step {report.best_step}, chosen by their {report.metric} on these very "
              "samples." if job.train.select == "best" else "")
    return f"Measured on {count_text(report.eval_samples, 'sample')} not seen in training.{chosen}"


def _use(auto: str, job: Job, folder: Path) -> list[str]:
    """Code that runs where this file lies, and the classes that it answers with."""
    if job.task == "text-to-text":
        limit = job.data.max_answer_length
        lines = [f"from transformers import AutoTokenizer, {auto}", "",
                 'tokenizer = AutoTokenizer.from_pretrained(".")', f'model = {auto}.from_pretrained(".")',
                 f"inputs = tokenizer({_example(job)}, return_tensors=\"pt\")",
                 f"answer = model.generate(**inputs, max_new_tokens={limit})[0]",
                 "print(tokenizer.decode(answer, skip_special_tokens=True))"]
    else:
        text = "a text to continue" if job.task == "causal-lm" else None
        options = {"regression": ', function_to_apply="none"', "causal-lm": ", max_new_tokens=50"}.get(job.task, "")
        lines = ["from transformers import pipeline", "", f'model = pipeline("{PIPELINES[job.task]}", model=".")',
                 f"print(model({repr(text) if text else _example(job)}{options}))"]
    names = (read_json(folder / "config.json") or {}).get("id2label") if job.task == "classification" else None
    classes = [markdown_text(str(name)) for name in (names or {}).values()]
    more = f" and {len(classes) - MOST_CLASSES} more" if len(classes) > MOST_CLASSES else ""
    return ["\n".join(["```python", *lines, "```"]),
            *([f"Classes: {', '.join(classes[:MOST_CLASSES])}{more}."] if classes else [])]


def _example(job: Job) -> str:
    """A sample as the arguments of a call, put together as in training."""
    texts = ["a text", "its pair"][: len(job.data.text)]
    if job.data.prefix:
        texts = ["".join(prefix + text for prefix, text in zip(job.data.prefix, texts))]
    if len(texts) == 2 and job.task != "text-to-text":  # for a pipeline
        return f'{{"text": {texts[0]!r}, "text_pair": {texts[1]!r}}}'
    return ", ".join(map(repr, texts))


def _facts(report: Report, job: Job) -> dict[str, str]:
    train = job.train
    target = "" if job.task == "causal-lm" else f" -> {job.data.label}"
    answers = f", answers to {job.data.max_answer_length}" if job.data.answers == "text" else ""
    classes = f", {count_text(report.classes, 'class')}" if report.classes and job.task != "regression" else ""
    schedule = report.schedule or f"linear warm-up over {train.warmup:.0%} of the steps, then linear decay to 0"
    clipped = f"clipped to {train.gradient_clipping:g}" if train.gradient_clipping else "not clipped"
    skipped = f", {count_text(report.skipped_steps, 'step')} skipped" if report.skipped_steps else ""
    deepspeed = "DeepSpeed " if "deepspeed" in report.versions else ""
    speed = [f"{report.samples_per_second:.1f} samples/s"] if report.samples_per_second else []
    if report.tflops:
        speed.append(f"{computing_text(report.tflops, report.peak_share)} per rank")
    return {
        "columns": ", ".join(job.data.text) + target,
        "samples": f"{report.train_samples} for training{classes}, truncated to {job.data.max_length} tokens{answers}",
        "batch": batch_text(report), "steps": f"{report.steps} (at most {count_text(train.epochs, 'epoch')})",
        "learning rate": f"{train.learning_rate:g}, {schedule}",
        "optimizer": f"{report.optimizer}, weight decay {train.weight_decay:g} (none for biases and norms), "
                     f"gradients {clipped}",
        "precision": report.precision + skipped,
        "sharding": deepspeed + sharding_text(report), "seed": str(train.seed),
        "hardware": f"{count_text(report.world_size, 'rank')} on {report.device}",
        "speed": ", ".join(speed),
        "time": duration_text(report.training_seconds) + " of training, without evaluation and saving",
        "peak memory": f"{memory_text(report.peak_memory_bytes)} per rank, of {report.peak_memory_of}",
        "versions": ", ".join(f"{part} {version}" for part, version in report.versions.items())}
