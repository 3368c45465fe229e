"""Small models to trace, and jobs to plan."""
from __future__ import annotations

from pathlib import Path

import torch
import yaml

from debzero.job.schema import Job
from debzero.plan.activations import shorten, stacks, trace
from debzero.plan.model_shapes import Shapes

BENCHMARKS = Path(__file__).resolve().parents[3] / "docs" / "benchmarks"
TINY = {
    "classification": {"type": "bert", "vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 6,
                       "num_attention_heads": 2, "intermediate_size": 128},
    "causal-lm": {"type": "gpt2", "vocab_size": 100, "n_embd": 32, "n_layer": 6, "n_head": 2, "bos_token_id": 0,
                  "eos_token_id": 0},
    "text-to-text": {"type": "t5", "vocab_size": 100, "d_model": 32, "d_ff": 64, "d_kv": 16, "num_layers": 6,
                     "num_heads": 2},
}


def shapes(task, length=16, checkpointing=False, **changes):
    model = {**TINY[task], **changes}
    job = Job.model_validate({"model": model, "task": task, "data": {"dataset": "x.csv", "max_length": length},
                              "train": {"gradient_checkpointing": checkpointing}, "output": "out"})
    return Shapes(job, "job.yml", None)


def curve(task, half=None, whole=False, dtype=torch.float32, compiled=False, **changes):
    """The trace of a tiny model; `whole`: of all its layers; `changes`: those of shapes()."""
    own = shapes(task, **changes)
    model = own._build().to(dtype)
    stack = [(layer, 1) for _, _, layers in stacks(model) for layer in layers] if whole else shorten(model)
    return trace(model, stack, own.task.losses, own._batch(), half, compiled)


def job(bench, name="plan", **values):
    """A job file for `debzero plan`."""
    path = bench.folder / f"{name}.yml"
    path.write_text(yaml.safe_dump({"data": {"dataset": "rows.csv", "held_out": 0.2, "max_length": 128},
                                    "output": "out", "train": {"global_batch": 64}, **values}))
    return path
