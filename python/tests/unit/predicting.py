"""Saved models for `debzero predict`, and what their tasks answer: small ones with random weights."""
from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from support import plan_of

from debzero.base.files import write_json
from debzero.model import build, tasks
from debzero.model.publish import as_published, inputs_of
from debzero.train import prepare

SMALL: dict[str, dict[str, Any]] = {
    "bert": {"type": "bert", "vocab_size": 200, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
             "intermediate_size": 32, "max_position_embeddings": 64},
    "gpt2": {"type": "gpt2", "vocab_size": 200, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64},
    "t5": {"type": "t5", "vocab_size": 200, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2},
}


def saved(bench, name: str, kind: str, task: str, **changes: object) -> SimpleNamespace:
    """A model with random weights in the folder `name` of the bench, as a training saves it; beside it the task and the
    samples. `task` text is text-to-text with texts of its own."""
    if task == "text":
        task, changes = "text-to-text", {"data__answers": "text", "data__max_answer_length": 6, **changes}
    if task == "regression":
        rows = [line.rpartition(",")[0] for line in (bench.folder / "rows.csv").read_text().splitlines()[1:]]
        (bench.folder / "scores.csv").write_text("\n".join(["text,label", *(f"{row},{len(row)}" for row in rows)]))
        changes = {"data__dataset": str(bench.folder / "scores.csv"), **changes}
    resolved = plan_of(bench, model=SMALL[kind], task=task, data__max_length=24, **changes)
    own = tasks.of(resolved.job)
    loaded = prepare.load(prepare.prepare(resolved, bench.folder / "cache"), own)
    torch.manual_seed(0)
    settings = build.config(resolved.job.model, loaded.labels, loaded.tokenizer)
    settings.initializer_range, settings.initializer_factor = 0.3, 5.0  # else all answers are nearly the same
    model = build.build(resolved, resolved.job.model, settings, {}).eval()
    folder = Path(bench.folder, name)
    with as_published(model, task):
        model.save_pretrained(folder, safe_serialization=True)
    loaded.tokenizer.save_pretrained(folder)
    write_json(folder / "debzero.json", {"step": 1, "inputs": inputs_of(resolved.job)})
    model.generate = partial(model.generate, synced_gpus=False)  # see engine_torch
    return SimpleNamespace(folder=folder, task=own, samples=loaded, model=model, tokenizer=loaded.tokenizer,
                           texts=[line.rpartition(",")[0] for line in
                                  (bench.folder / "rows.csv").read_text().splitlines()[1:]])


def answers(text: str) -> list[dict[str, Any]]:
    """What --json printed, or a .jsonl file."""
    return [json.loads(line) for line in text.splitlines()]
