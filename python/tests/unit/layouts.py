"""Tiny models of three families, trained in many layouts, and how far two trainings are apart."""
import json
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors.numpy import load_file

# In fp32 a sum's order is all that may differ. Adam makes steps of its learning rate of whatever gradients it gets, so
# differences grow with the steps; a planted fault makes them more than a hundred times as large.
LOSS_TOLERANCE = 5e-6
WEIGHT_TOLERANCE = 5e-5
STEPS = 50
# Gradients here are about as long as what train.gradient_clipping leaves of them, 1. So clipping shows a factor that
# AdamW alone would take out again.
RATE = {"bert": 3e-3, "gpt2": 3e-3, "t5": 1e-3}

FAMILIES = {
    "bert": {"model": {"type": "bert", "vocab_size": 201, "hidden_size": 32, "num_hidden_layers": 2,
                       "num_attention_heads": 4, "intermediate_size": 64, "hidden_dropout_prob": 0.0,
                       "attention_probs_dropout_prob": 0.0}},
    "gpt2": {"model": {"type": "gpt2", "vocab_size": 201, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32,
                       "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}, "task": "causal-lm"},
    "t5": {"model": {"type": "t5", "vocab_size": 201, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2,
                     "num_heads": 4, "dropout_rate": 0.0}, "task": "text-to-text"},
}
LAYOUTS = {
    "ddp": {},
    "zero1": {"zero__stage": 1},
    "zero2": {"zero__stage": 2},
    "zero3": {"zero__stage": 3},
    "native2": {"zero__stage": 2, "zero__engine": "native"},
    "native3": {"zero__stage": 3, "zero__engine": "native"},
    "tensor2": {"parallel__tensor": 2},
    "tensor2 x data2": {"parallel__tensor": 2, "ranks": 4},
    "pipeline2": {"parallel__pipeline": 2},
    "pipeline2 x data2": {"parallel__pipeline": 2, "ranks": 4},
    "pipeline2 x data2, zero1": {"parallel__pipeline": 2, "ranks": 4, "zero__stage": 1, "zero__engine": "native"},
    "pipeline2 x tensor2": {"parallel__pipeline": 2, "parallel__tensor": 2, "ranks": 4},
    "pipeline3": {"parallel__pipeline": 3, "ranks": 3},
    "tensor2 x data2, zero1": {"parallel__tensor": 2, "ranks": 4, "zero__stage": 1, "zero__engine": "native"},
}
TOO_SHALLOW = {("bert", "pipeline3"), ("gpt2", "pipeline3")}  # two layers; T5 has four


class Trained(NamedTuple):
    """`losses`: of each step; `weights`: by name; `scores`: of the last evaluation."""

    losses: np.ndarray
    weights: dict
    scores: dict


def settings(family, layout, **others) -> dict:
    """A job's. `family`: one of FAMILIES, or as they are."""
    known = FAMILIES.get(family) if isinstance(family, str) else family
    return {"train__epochs": 10, "train__max_steps": STEPS, "train__evaluate_every": STEPS, "train__global_batch": 16,
            "train__micro_batch": 4, "train__learning_rate": RATE.get(str(family), 3e-3), **known, **LAYOUTS[layout],
            **others}


def train(bench, family, layout, fault=None, name=None, **others) -> Trained:
    name = name or re.sub(r"\W+", "-", "-".join(filter(None, (family, layout, fault))))
    done = bench.quick("train", bench.job(name, **settings(family, layout, **others)),
                       **({"PLANTED": fault} if fault else {}))
    assert done.returncode == 0, done.stdout
    return result(bench.output(name))


def result(output: Path) -> Trained:
    lines = map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
    losses = {line["step"]: line["loss"] for line in lines if "learning_rate" in line}
    return Trained(np.array(list(losses.values())), load_file(output / "model" / "model.safetensors"),
                   json.loads((output / "report.json").read_text())["evaluation"])


def differences(one: Trained, other: Trained) -> tuple[float, float]:
    """The largest between their losses and between their weights. The biases of attention's keys do not count: they
    change no attention, so their gradients are rounding errors alone, of which AdamW makes steps all the same."""
    assert one.weights.keys() == other.weights.keys()
    weights = 0.0
    for name, weight in one.weights.items():
        gap = np.abs(weight - other.weights[name])
        if name.endswith("c_attn.bias"):
            gap = np.delete(gap, np.s_[len(gap) // 3 : 2 * len(gap) // 3])
        if not name.endswith("key.bias"):
            weights = max(weights, float(gap.max()))
    return float(np.abs(one.losses - other.losses).max()), weights


def same(one: Trained, other: Trained) -> bool:
    losses, weights = differences(one, other)
    print(f"losses differ by {losses:.1e}, weights by {weights:.1e}")
    return losses < LOSS_TOLERANCE and weights < WEIGHT_TOLERANCE
