"""What a run writes of its own, where every rank holds a part of each layer."""
import json

import numpy as np
import pytest
import torch

from debzero.data import tokens
from debzero.data.collator import Collator
from debzero.model.free_text import FreeText
from debzero.run.checkpoint import tags
from debzero.run.records import CheckpointRecord

T5 = {"type": "t5", "vocab_size": 80, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4}
CHANGES = {"model": T5, "task": "text-to-text", "data__dataset": "pairs.csv", "data__label": "summary",
           "data__answers": "text", "data__max_answer_length": 6, "data__held_out": 0.15, "train__epochs": 2,
           "train__select": "best", "train__metric": "loss"}


@pytest.fixture(scope="module")
def report(trained):
    """Of a run that sums a text up by its first words."""
    lines = (trained.folder / "rows.csv").read_text().splitlines()[1:]
    texts = [line.rpartition(",")[0] for line in lines]
    (trained.folder / "pairs.csv").write_text("\n".join(["text,summary", *(
        f"{text},{' '.join(text.split()[: 1 + i % 3])}" for i, text in enumerate(texts))]))
    return trained.train("summary", **CHANGES, zero__stage=3)


def test_two_ranks_of_stage_3_write_and_score_as_plain_transformers_does(trained, report):
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    folder = trained.output("summary") / "model"
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    generate = model.generate
    model.generate = lambda **inputs: generate(**inputs, synced_gpus=False)
    data = next((trained.output("summary") / "data").glob("tokenised-*")) / "held_out"
    held_out = tokens.read(data, limit=16, answer_limit=6)
    task = FreeText("auto", 6)
    task.bind(tokenizer, [])
    with torch.no_grad():
        answers = task.answers(model, Collator(tokenizer, 1, None, False)(held_out, np.arange(len(held_out))))
    sides = type("Sides", (), {"tokenizer": tokenizer, "held_out": held_out})
    assert task.shown(answers, sides) == report["samples"] and len(report["samples"]) == 5
    assert report["evaluation"] == pytest.approx(task.metrics(answers, sides), rel=1e-4)
    assert report["metric"] == "loss" and report["rouge_l"] == report["evaluation"]["rouge_l"]


def test_stage_3_begins_with_the_weights_that_a_whole_model_has(trained, report):
    """T5's initialisation reaches into inner modules, whose weights are sharded: it left them as torch makes them."""
    trained.train("whole", **CHANGES, train__max_steps=1)
    assert trained.losses("whole")[0] == pytest.approx(trained.losses("summary")[0], abs=1e-4)


def test_the_samples_are_in_the_report_and_the_checkpoint_but_not_in_the_card(trained, report):
    out, sample = trained.output("summary"), report["samples"][0]
    shown = trained.quick("status", out).stdout
    assert f"text       {sample['text']}" in shown and f"target     {sample['target']}" in shown
    card = (out / "model/README.md").read_text()
    assert sample["text"] not in card and "max_new_tokens=6" in card and "text2text-generation" in card
    assert "rouge_l" in (out / "metrics.csv").read_text() and (out / "model/loss.png").is_file()
    checkpoints = out / "checkpoints"
    record = CheckpointRecord.model_validate_json((checkpoints / tags(checkpoints)[-1] / "debzero.json").read_bytes())
    assert record.state.best_shown == report["samples"]
    assert json.loads((out / "status.json").read_text())["state"] == "finished"
