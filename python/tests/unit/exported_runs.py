"""Runs to export, made within the process of the tests: what a training leaves, without its ranks."""
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import torch
import yaml
from support import JOB, changed

from debzero.base.files import write_json
from debzero.check import checks
from debzero.data.collator import Collator
from debzero.export import samples
from debzero.model import source, tasks
from debzero.model.build import build, config
from debzero.model.publish import as_published, inputs_of
from debzero.predict import trained
from debzero.run.folder import RunFolder
from debzero.train import prepare

BERT = {**JOB["model"], "num_hidden_layers": 2}
GPT2 = {"type": "gpt2", "vocab_size": 200, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}
T5 = {"type": "t5", "vocab_size": 200, "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2,
      "dropout_rate": 0.0}


def run_of(bench, name, steps=30, **changes) -> RunFolder:
    """A finished run of the bench's job with `changes`, trained for some steps."""
    file = bench.folder / f"{name}.yml"
    file.write_text(yaml.safe_dump(changed(JOB, {
        "output": f"out-{name}", "ranks": 1, "model": BERT, "train.micro_batch": 32,
        **{key.replace("__", "."): value for key, value in changes.items()}})))
    resolved = checks.check(file)
    run = RunFolder(resolved.job.output)
    task = tasks.of(resolved.job)
    data = prepare.load(prepare.prepare(resolved, run.data), task)
    torch.manual_seed(3)
    where = source.local(resolved.job)
    model = build(resolved, where, config(where, data.labels, data.tokenizer), {})
    _train(model, task, data, steps)
    with as_published(model, resolved.job.task):
        model.save_pretrained(run.model, safe_serialization=True)
    data.tokenizer.save_pretrained(run.model)
    write_json(run.model / "debzero.json", {"step": steps, "inputs": inputs_of(resolved.job)})
    write_json(run.status_file, {"state": "finished", "job": str(file), "fingerprint": resolved.fingerprint})
    return run


def _train(model, task, data, steps) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    collate, count = Collator(data.tokenizer, 1, None, pin=False), len(data.train)
    dice = torch.Generator().manual_seed(5)
    torch.set_num_threads(1)  # a machine of many tests has no more to give
    model.train()
    for _ in range(steps):
        batch = collate(data.train, torch.randint(count, (32,), generator=dice).numpy())
        optimizer.zero_grad()
        task.losses(model, batch).mean().backward()
        optimizer.step()
    model.eval()


def run_alone(folder: Path, more: str = "") -> str:
    """What the program in the README of a folder prints, in a process that knows nothing of debzero; with `more`."""
    code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    done = subprocess.run([sys.executable, "-I", "-c", code + more], cwd=folder, text=True, capture_output=True,
                          timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def score_alone(run: RunFolder, folder: Path, metric: str) -> float:
    """What onnxruntime alone, in a process that knows nothing of debzero, scores with an export on the held-out samples
    of its run."""
    model = trained.load(run.model)
    held_out = samples.of_run(model, "x")
    order, batches = zip(*held_out.batches(1))

    def all_of(name, fill):
        width = max(batch[name].shape[1] for batch in batches)
        return np.concatenate([np.pad(batch[name].numpy(), ((0, 0), (0, width - batch[name].shape[1])),
                                      constant_values=fill) for batch in batches])

    arrays = {"ids": all_of("input_ids", 0), "mask": all_of("attention_mask", 0)}
    if metric == "accuracy":
        classes = held_out.prepared.held_out.labels[np.concatenate(order)]
        arrays["labels"] = np.array([model.labels[number] for number in classes])
    if metric == "accuracy" and model.task == "text-to-text":
        arrays["names"] = tasks.TextToText("auto").bind(model.tokenizer, model.labels)
    if metric == "exact_match":
        answers = all_of("labels", -100)
        arrays["answers"] = np.where(answers < 0, model.tokenizer.pad_token_id, answers)
    np.savez(folder / "samples.npz", **arrays)
    try:
        done = subprocess.run([sys.executable, "-I", str(Path(__file__).with_name("score_alone.py")), str(folder),
                               str(folder / "samples.npz"), metric], text=True, capture_output=True, timeout=120)
    finally:
        (folder / "samples.npz").unlink()
    assert done.returncode == 0, done.stderr
    return float(json.loads(done.stdout)[metric])


def graph(change, file="model.onnx"):
    """A damage to the graph's weights, by name."""
    def damage(folder):
        model = onnx.load(str(folder / file))
        for tensor in model.graph.initializer:
            values = onnx.numpy_helper.to_array(tensor).copy()
            if change(tensor.name, values):
                tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
        onnx.save(model, str(folder / file))
    return damage


def one_weight(name, values):
    """Of the classifier's, so little that no answer changes."""
    if not name.endswith("classifier.weight"):
        return False
    values.flat[3] += 0.05
    return True


def infinite(name, values):
    if not name.endswith("classifier.bias"):
        return False
    values[0] = np.inf
    return True
