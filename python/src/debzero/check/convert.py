"""`debzero check --convert FILE`: a job from the configuration of another program, as far as that is possible."""
from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

import yaml
from pydantic import ValidationError

from debzero.base.errors import InputError, Problem
from debzero.base.privileges import become_owner
from debzero.job import others
from debzero.job.document import read_mapping
from debzero.job.schema import Job

# Columns of the data sets of GLUE, which transformers' scripts know by their task.
PAIR = ["sentence1", "sentence2"]
GLUE = {"cola": ["sentence"], "sst2": ["sentence"], "mrpc": PAIR, "rte": PAIR, "stsb": PAIR, "wnli": PAIR,
        "qqp": ["question1", "question2"], "qnli": ["question", "sentence"], "mnli": ["premise", "hypothesis"]}
METRICS = {"accuracy": "accuracy", "f1": "f1", "matthews_correlation": "matthews", "pearson": "pearson",
           "spearmanr": "spearman", "loss": "loss", "rougeL": "rouge_l", "exact_match": "exact_match"}
WRITING = {"predict_with_generate", "max_target_length", "summary_column", "source_lang"}  # its scripts for texts
SHARDING = {"FULL_SHARD": 3, "SHARD_GRAD_OP": 2, "NO_SHARD": 0, "HYBRID_SHARD": 3, "1": 3, "2": 2, "3": 0,
            "TRUE": 3, "FALSE": 2}
# What needs no word: it is so in every training of debzero, or concerns the other program's own work.
NEEDLESS = {
    "bf16", "compute_environment", "dataloader_num_workers", "dataset_config_name", "dataset_prepared_path",
    "datasets", "ddp_timeout", "debug", "deepspeed_multinode_launcher", "distributed_type", "do_eval", "do_train",
    "downcast_bf16", "enable_cpu_affinity", "eval_batch_size", "eval_strategy", "evaluation_strategy", "fp16",
    "gpu_ids", "gradient_accumulation_steps", "logging_dir", "logging_strategy", "machine_rank",
    "main_process_port", "main_training_function", "mixed_precision", "overwrite_cache", "overwrite_output_dir",
    "per_device_eval_batch_size", "plot_loss", "predict_with_generate", "preprocessing_num_workers", "rdzv_backend",
    "remove_unused_columns", "report_to", "same_network", "save_strategy", "task_name", "tpu_env",
    "tpu_use_cluster", "tpu_use_sudo", "use_cpu", "use_fast_tokenizer", "zero3_init_flag", "zero3_save_16bit_model"}
ADAPTERS = "debzero trains all weights, no adapters"
PREFERENCES = "debzero learns to continue texts, nothing from rewards or preferences"
SCHEDULE = "the rate falls linearly; a scheduler of DeepSpeed's JSON can be another"
WHY = {
    "adapter": ADAPTERS, "finetuning_type": ADAPTERS, "optim": "debzero trains with AdamW",
    "optimizer": "debzero trains with AdamW", "lr_scheduler_type": SCHEDULE, "lr_scheduler": SCHEDULE,
    "load_in_8bit": "weights of 8 bits cannot be trained", "load_in_4bit": "weights of 4 bits cannot be trained",
    "template": "debzero puts no chat template around a text", "tf32": "debzero decides it itself",
    "chat_template": "debzero puts no chat template around a text", "num_machines": "debzero trains on one host",
    "datasets": "give one file or data set with a column of texts",
    "dataset": "it is a name of the program's own list: give the file",
    "warmup_steps": "train.warmup is a share of all steps",
    "validation_file": "give a folder with train.* and validation.* as data.dataset",
    "stage": PREFERENCES, "rl": PREFERENCES,
    "sample_packing": "data.batching puts texts of similar length together",
    "trust_remote_code": "debzero runs no code of a model"}
# What Trainer takes where its file does not say, and a job would take otherwise.
TRAINERS = {"per_device_train_batch_size": 8, "learning_rate": 5e-5, "weight_decay": 0.0, "warmup_ratio": 0.0}
IDLE: tuple[Any, ...] = ("no", "none", "", "auto", [], {})
# Values that ask for nothing, or for what debzero does anyway.
USUAL = {"max_steps": (-1, 0), "val_set_size": (0,), "val_size": (0,), "num_machines": (1,),
         "lr_scheduler_type": ("linear",), "lr_scheduler": ("linear",),
         "finetuning_type": ("full",), "torch_compile": (True,), "stage": ("pt", "sft")}


@dataclass
class Conversion:
    """A job so far. `left_out`: keys of the other program, each with the reason."""

    program: str
    job: dict[str, Any] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def set(self, path: str, value: Any) -> None:
        inner = self.job
        *sections, name = path.split(".")
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[name] = value

    def get(self, path: str) -> Any:
        value: Any = self.job
        for part in path.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return value

    @property
    def missing(self) -> list[str]:
        return [path for path in ("model", "data.dataset", "output") if self.get(path) is None]


def convert(path: Path, ranks: Optional[int] = None) -> Conversion:
    """The job that the file in `path` comes to. Raises an InputError for a file that is no other program's."""
    values = read_mapping(path)
    program = others.program_of(values)
    if program is None:
        known = ", ".join(others.PROGRAMS)
        raise InputError([Problem(str(path), "file", f"is no configuration of {known}, as far as its keys tell",
                                  "start from a job file, see `man debzero`")])
    made = Conversion(program)
    flat = _flat(values, made)
    for key, value in flat.items():
        _take(made, key, value)
    _precision(made, flat)
    _task(made, flat)
    _batch(made, flat, ranks)
    _validated(made, flat)
    return made


def _flat(values: Mapping[str, Any], made: Conversion) -> dict[str, Any]:
    """The keys of a file with those of its sections that matter here."""
    flat: dict[str, Any] = dict(TRAINERS) if made.program in ("transformers", "LLaMA-Factory") else {}
    flat.update({str(key): value for key, value in values.items() if value is not None})
    for key, value in flat.items():  # quoted numbers would be no factors of the batch
        if isinstance(value, str) and re.fullmatch(r"\d{1,15}", value):
            flat[key] = int(value)
    for section in ("deepspeed_config", "training_args"):
        inner = flat.pop(section, None)
        flat.update(inner if isinstance(inner, dict) else {})
    fsdp, words = flat.pop("fsdp_config", None), flat.pop("fsdp", None)
    words = words.split() if isinstance(words, str) else words if isinstance(words, list) else []
    if isinstance(fsdp, dict) or words:
        _fsdp({str(key).removeprefix("fsdp_"): value for key, value in (fsdp or {}).items()},
              [str(word).upper() for word in words], flat, made)
    return flat


def _fsdp(theirs: Mapping[str, Any], words: list[str], flat: dict[str, Any], made: Conversion) -> None:
    """The stage and the offload of FSDP's section, and of TrainingArguments' words for it. Its second version has
    reshard_after_forward for the strategy."""
    said = [str(theirs[key]) for key in ("sharding_strategy", "reshard_after_forward") if key in theirs]
    strategy = next((one for one in [*said, *words] if one.upper() in SHARDING), "FULL_SHARD")
    flat.setdefault("zero_stage", SHARDING[strategy.upper()])
    if strategy.upper() in ("TRUE", "FALSE"):
        strategy = f"reshard_after_forward: {strategy.lower()}"
    made.left_out["fsdp"] = f"ZeRO stage {flat['zero_stage']} shards the same as {strategy}"
    if (theirs.get("offload_params") in (True, "true") or "OFFLOAD" in words) and flat["zero_stage"]:
        flat.setdefault("offload_optimizer_device", "cpu")
        if flat["zero_stage"] == 3:
            flat.setdefault("offload_param_device", "cpu")


def _take(made: Conversion, key: str, value: Any) -> None:
    """A key's value into the job, or its reason into what is left out."""
    name = "model" if key == "model" else others.NAMES.get(key)
    adamw = key in ("optim", "optimizer") and re.fullmatch("adamw(_torch|_hf)?(_fused)?", str(value))
    if key == "zero_stage" and value in (0, "0"):
        made.set("zero.stage", "none")
    elif value is False or value in IDLE or key in NEEDLESS or value in USUAL.get(key, ()):
        return
    elif key == "load_best_model_at_end":
        made.set("train.select", "best")
    elif key == "pad_to_max_length":
        made.set("data.padding", "max_length")
    elif key == "metric_for_best_model" and (metric := METRICS.get(str(value).replace("eval_", ""))):
        made.set("train.metric", metric)
    elif name == "train.epochs" and isinstance(value, float) and math.isfinite(value):
        made.set(name, math.ceil(value))
        if value != math.ceil(value):
            made.left_out[key] = f"debzero counts whole epochs: {math.ceil(value)} instead of {value}"
    elif name is not None:
        made.set(name, value)
    elif not adamw:
        made.left_out[key] = WHY.get(key, ADAPTERS if key.startswith("lora_") else "debzero has no such setting")


def _precision(made: Conversion, flat: Mapping[str, Any]) -> None:
    mixed = flat.get("mixed_precision")
    half = next((half for half in ("bf16", "fp16") if flat.get(half) in (True, "full") or mixed == half), None)
    if half:
        made.set("train.precision", half)
    elif mixed == "no" or made.program != "accelerate" and "auto" not in (flat.get("bf16"), flat.get("fp16")):
        made.set("train.precision", "fp32")  # the default of all of them
    if mixed == "fp8":
        made.left_out["mixed_precision"] = "debzero computes in fp32, fp16 or bf16"


def _task(made: Conversion, flat: Mapping[str, Any]) -> None:
    """The task, and the data with its columns."""
    glue = str(flat.get("task_name", "")).lower()
    if glue in GLUE:
        made.job["data"] = {"dataset": f"glue/{glue}", "text": GLUE[glue], **made.job.get("data", {})}
        if glue == "stsb":
            made.set("task", "regression")
    elif glue:
        made.left_out["task_name"] = "debzero knows no such task"
    configuration = flat.get("dataset_config_name")
    if configuration and made.get("data.dataset"):
        made.set("data.dataset", f"{made.get('data.dataset')}/{configuration}")
    if made.program in ("axolotl", "LLaMA-Factory") or "block_size" in flat:
        made.set("task", "causal-lm")
    if WRITING & set(flat):
        made.set("task", "text-to-text")
        made.set("data.answers", "text")
    sets = flat.get("datasets")
    one = sets[0] if isinstance(sets, list) and len(sets) == 1 and isinstance(sets[0], dict) else {}
    if one.get("type") == "completion" and one.get("path"):
        made.set("data.dataset", one["path"])
        made.set("data.text", [one.get("field", "text")])
    elif sets:
        made.left_out["datasets"] = WHY["datasets"]


def _batch(made: Conversion, flat: Mapping[str, Any], ranks: Optional[int]) -> None:
    micro, steps = made.get("train.micro_batch"), flat.get("gradient_accumulation_steps", 1)
    count = ranks or made.get("ranks")
    steps = steps if isinstance(steps, int) else 1
    if isinstance(micro, int):
        made.set("train.global_batch", micro * steps * (count if isinstance(count, int) else 1))
        if not isinstance(count, int):
            made.left_out["number of ranks"] = ("the file has none, so train.global_batch is for one rank: "
                                                "multiply it, or give --ranks")
    elif "gradient_accumulation_steps" in flat and flat["gradient_accumulation_steps"] != "auto":
        made.left_out["gradient_accumulation_steps"] = ("debzero computes it: train.global_batch is micro-batch x "
                                                        "accumulation steps x ranks")
    if ranks:
        made.set("ranks", ranks)
    warmup, total = flat.get("warmup_steps"), flat.get("max_steps")
    if isinstance(warmup, int) and isinstance(total, int) and 0 < warmup < total:
        made.set("train.warmup", round(warmup / total, 4))
        made.left_out.pop("warmup_steps", None)


def _validated(made: Conversion, flat: Mapping[str, Any]) -> None:
    """Take out what no job can hold."""
    spare = {"model": "x", "output": "x", **made.job}
    spare["data"] = {"dataset": "x", **(made.job.get("data") or {})}
    try:
        Job.model_validate(spare)
    except ValidationError as error:
        for detail in error.errors():
            path = [str(part) for part in detail["loc"] if not (isinstance(part, str) and "[" in part)][:2]
            inner = made.job if len(path) == 1 else made.job.get(path[0], {})
            if isinstance(inner, dict) and path[-1] in inner:
                theirs = next((key for key in flat if others.NAMES.get(key) == ".".join(path)), ".".join(path))
                made.left_out[theirs] = f"{json.dumps(inner.pop(path[-1]), default=str)} cannot be {'.'.join(path)}"


def as_yaml(made: Conversion, path: Path) -> str:
    """The job file, with what is left out as comments."""
    order = [name for name in Job.model_fields if made.job.get(name) not in (None, {})]
    lines = [f"# From {path.name}, a configuration of {made.program}."]
    lines += [f"# Missing, and not in that file: {name}" for name in made.missing]
    lines += [f"# Left out: {key}: {reason}" for key, reason in made.left_out.items()]
    job = yaml.safe_dump({name: made.job[name] for name in order}, sort_keys=False) if order else ""
    return "\n".join(lines) + "\n" + job


def run(path: Path, ranks: Optional[int], as_json: bool) -> int:
    """Print the job; the exit code."""
    become_owner(path)
    made = convert(path, ranks)
    if as_json:
        print(json.dumps({"program": made.program, "job": made.job, "missing": made.missing, "left_out": made.left_out},
                         indent=2))
    else:
        print(as_yaml(made, path), end="")
    return 0
