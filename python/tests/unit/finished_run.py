"""What a finished run leaves: its report, and the job that it trained."""
from debzero.run.records import Report

REPORT = Report.model_validate({
    "job": "/etc/debzero/jobs/mrpc.yml", "task": "classification", "auto": "AutoModelForSequenceClassification",
    "metric": "f1", "evaluation": {"accuracy": 0.875, "f1": 0.9, "matthews": 0.7, "loss": 0.3}, "accuracy": 0.875,
    "f1": 0.9, "majority_accuracy": 0.68, "baseline": {"accuracy": 0.68, "f1": 0.81, "matthews": 0.0, "loss": 0.62},
    "eval_samples": 408, "train_samples": 3668, "classes": 2, "steps": 116, "total_steps": 174, "best_step": 58,
    "resumed": 1, "skipped_steps": 2, "training_seconds": 61.0, "steps_per_second": 2.0, "samples_per_second": 128.0,
    "tokens_per_second": 6800.0, "padding_share": 0.05, "tflops": 40.5, "peak_share": 0.13,
    "peak_memory_bytes": [2**32, 2**32], "peak_memory_of": "the GPU allocator", "world_size": 2, "zero_stage": 2,
    "offload_optimizer": "cpu", "offload_param": "none", "optimizer": "AdamW", "schedule": None, "precision": "bf16",
    "global_batch": 64, "micro_batch": 16, "accumulation": 2, "device": "NVIDIA A100-SXM4-40GB",
    "versions": {"torch": "7.1", "deepspeed": "7.2"}, "model": "/var/lib/debzero/mrpc/model",
    "checkpoint": "/var/lib/debzero/mrpc/checkpoints/step-116", "metrics": "/var/lib/debzero/mrpc/metrics.jsonl",
    "curves": "/var/lib/debzero/mrpc/tensorboard", "log": "journalctl -u debzero@mrpc"})
MRPC = {"model": "bert-large-uncased",
        "data": {"dataset": "glue/mrpc", "text": ["sentence1", "sentence2"], "label": "label"},
        "train": {"select": "best", "metric": "f1"}, "output": "/var/lib/debzero/mrpc"}
