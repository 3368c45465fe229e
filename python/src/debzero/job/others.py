"""Configuration files of other programs: how to tell whose one is, and their names for a job's settings."""
from __future__ import annotations

import shlex
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, Optional

# What a file of each program has, and how many of these keys are enough to be sure. The first that fits is it.
PROGRAMS: dict[str, tuple[frozenset[str], int]] = {
    "accelerate": (frozenset({
        "compute_environment", "distributed_type", "deepspeed_config", "fsdp_config", "num_machines", "machine_rank",
        "main_training_function", "mixed_precision", "num_processes", "downcast_bf16", "rdzv_backend"}), 2),
    "axolotl": (frozenset({
        "base_model", "datasets", "sequence_len", "sample_packing", "val_set_size", "micro_batch_size", "num_epochs",
        "dataset_prepared_path", "adapter", "load_in_8bit", "load_in_4bit"}), 3),
    "LLaMA-Factory": (frozenset({
        "finetuning_type", "template", "cutoff_len", "dataset_dir", "lora_target", "lora_rank", "stage", "plot_loss",
        "overwrite_cache", "freeze_trainable_layers", "infer_backend", "export_dir", "train_dataset", "dist_config",
        "model_class", "peft_config"}), 2),
    "transformers": (frozenset({
        "output_dir", "model_name_or_path", "per_device_train_batch_size", "per_gpu_train_batch_size", "do_train",
        "num_train_epochs", "learning_rate", "do_eval", "task_name", "dataset_name", "train_file", "max_seq_length",
        "save_steps", "eval_steps", "logging_steps", "warmup_ratio", "warmup_steps", "lr_scheduler_type",
        "save_strategy", "evaluation_strategy", "eval_strategy", "overwrite_output_dir"}), 3),
}
# The names of transformers, accelerate, axolotl and LLaMA-Factory for what a job has too.
NAMES: dict[str, str] = {
    "model_name_or_path": "model", "base_model": "model", "output_dir": "output", "deepspeed": "deepspeed",
    "deepspeed_config_file": "deepspeed", "num_processes": "ranks", "nproc_per_node": "ranks",
    "num_train_epochs": "train.epochs", "num_epochs": "train.epochs", "max_steps": "train.max_steps",
    "per_device_train_batch_size": "train.micro_batch", "per_gpu_train_batch_size": "train.micro_batch",
    "micro_batch_size": "train.micro_batch", "learning_rate": "train.learning_rate", "lr": "train.learning_rate",
    "weight_decay": "train.weight_decay", "max_grad_norm": "train.gradient_clipping",
    "gradient_clipping": "train.gradient_clipping", "warmup_ratio": "train.warmup", "seed": "train.seed",
    "mixed_precision": "train.precision", "gradient_checkpointing": "train.gradient_checkpointing",
    "logging_steps": "train.log_every", "eval_steps": "train.evaluate_every",
    "early_stopping_patience": "train.patience", "metric_for_best_model": "train.metric",
    "torch_compile": "train.compile", "save_steps": "checkpoint.steps", "save_total_limit": "checkpoint.keep",
    "max_seq_len": "data.max_length", "max_seq_length": "data.max_length",
    "max_length": "data.max_length", "sequence_len": "data.max_length",
    "cutoff_len": "data.max_length", "block_size": "data.max_length", "model_max_length": "data.max_length",
    "val_set_size": "data.held_out", "val_size": "data.held_out", "dataset_name": "data.dataset",
    "train_file": "data.dataset", "text_column": "data.text", "text_column_name": "data.text",
    "text_columns": "data.text", "target_column": "data.label", "grad_clip": "train.gradient_clipping",
    "clip_grad_norm": "train.gradient_clipping", "model_name": "model", "train_micro_batch_size_per_gpu":
    "train.micro_batch", "num_gpus": "ranks", "n_gpu": "ranks", "warmup_proportion": "train.warmup",
    "label_column": "data.label", "label_column_name": "data.label", "summary_column": "data.label",
    "max_source_length": "data.max_length", "source_prefix": "data.prefix",
    "max_target_length": "data.max_answer_length", "generation_max_length": "data.max_answer_length",
    "zero_stage": "zero.stage",
    "offload_optimizer_device": "zero.offload_optimizer", "offload_param_device": "zero.offload_param",
    "offload_optimizer_nvme_path": "zero.nvme_path", "offload_param_nvme_path": "zero.nvme_path",
}
_STEPS = "remove it: train.global_batch is micro-batch x accumulation steps x ranks"
_BATCH = "use train.global_batch, for all ranks in a step, or train.micro_batch, for one rank at a time"
_RATE = "remove it: the rate falls linearly; DeepSpeed's JSON can have another scheduler"
_ADAMW = "remove it: the optimizer is AdamW; DeepSpeed's JSON can have another"
_HELD_OUT = "use data.held_out, a share of the rows"
_CURVES = "remove it: the output has TensorBoard's files, and metrics.jsonl"
# Other names, and what to write here instead.
INSTEAD: dict[str, str] = {
    "gradient_accumulation": _STEPS, "grad_accum": _STEPS, "accumulation_steps": _STEPS,
    "batch_size": _BATCH, "train_batch_size": _BATCH, "per_device_batch_size": _BATCH,
    "lr_scheduler": _RATE, "scheduler": _RATE, "optimizer": _ADAMW, "optim": _ADAMW,
    "amp": "use train.precision", "dtype": "use train.precision", "torch_dtype": "use train.precision",
    "target": "use data.label", "target_text": "use data.label", "validation_split": _HELD_OUT, "test_size": _HELD_OUT,
    "validation_file": "give a folder with train.* and validation.* as data.dataset",
    "report_to": _CURVES, "logging_dir": _CURVES, "logging_strategy": "use train.log_every",
    "resume_from_checkpoint": "remove it: a start continues the run in the output folder, if it fits",
    "lora": "remove it: debzero trains all weights", "peft_config": "remove it: debzero trains all weights",
    "tokenizer_name": "remove it: the tokenizer lies with the model", "gpus": "use ranks",
    "trust_remote_code": "remove it: debzero runs no code of a model",
    "cpu_offload": "write zero.offload_optimizer: cpu",
    "fp16": "write train.precision: fp16", "bf16": "write train.precision: bf16",
    "gradient_accumulation_steps": _STEPS, "lr_scheduler_type": _RATE,
    "warmup_steps": "use train.warmup, the share of all steps", "load_best_model_at_end": "write train.select: best",
    "pad_to_max_length": "write data.padding: max_length",
    "predict_with_generate": "write task: text-to-text and data.answers: text",
    "val_max_target_length": "use data.max_answer_length", "generation_num_beams": "remove it: evaluations are greedy",
    "per_device_eval_batch_size": "remove it: evaluation takes train.micro_batch",
    "evaluation_strategy": "use train.evaluate_every", "eval_strategy": "use train.evaluate_every",
    "save_strategy": "use checkpoint.steps or checkpoint.minutes",
}


def instead_of(name: str) -> str:
    """What to write in a job for another program's name of a setting; empty where there is nothing known."""
    return INSTEAD.get(name) or (f"here it is {NAMES[name]}" if name in NAMES else "")


def near(name: str) -> Optional[str]:
    """The known name of another program's that this is a misspelling of."""
    return next(iter(get_close_matches(name, [*NAMES, *INSTEAD], 1, 0.88)), None)


def program_of(values: Mapping[Any, Any]) -> Optional[str]:
    """The program whose configuration this is; None for a job, for DeepSpeed's JSON and for what cannot be told."""
    if any(isinstance(values.get(key), dict) for key in ("data", "train", "zero", "zero_optimization")):
        return None
    for program, (own, enough) in PROGRAMS.items():
        if len(own & set(values)) >= enough:
            return program
    return None


def refusal(program: str, file: str) -> tuple[str, str]:
    """The reason and the fix for a file that is another program's."""
    instead = "a job's ranks, train.precision and zero say the same: " if program == "accelerate" else ""
    kind = " (TrainingArguments)" if program == "transformers" else ""
    return (f"this is {program}'s own configuration{kind}, not a job",
            f"{instead}`debzero check --convert {shlex.quote(file)}` prints the job that it comes to, and names "
            "what is left out")
