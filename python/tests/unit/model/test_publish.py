"""Saved models, used by transformers alone in another process, answer as debzero's own evaluation did."""
import csv
import json
import re
import subprocess
import sys

import numpy as np
import pytest

from debzero.base.files import read_json

pytestmark = pytest.mark.slow
GPT2 = {"type": "gpt2", "vocab_size": 200, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64}
T5 = {"type": "t5", "vocab_size": 200, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
JOBS = {
    "classes": {"data__dataset": "classes"},
    "numbers": {"task": "regression", "data__dataset": "numbers"},
    "continues": {"task": "causal-lm", "model": GPT2, "train__gradient_checkpointing": True},
    "writes": {"task": "text-to-text", "model": T5, "data__dataset": "writes", "data__answers": "text",
               "data__max_answer_length": 5, "train__epochs": 1},
}
# generate() looks for FSDP, which torch 1.13 cannot import on Python 3.11.
PROGRAM = """
import json, re, sys
import torch.distributed
torch.distributed.fsdp = sys.modules["torch.distributed.fsdp"] = type(sys)("fsdp")
torch.distributed.fsdp.FullyShardedDataParallel = type("None", (), {})
from pathlib import Path
import os, transformers
transformers.logging.set_verbosity_error()
texts, answers = json.load(sys.stdin), {}
for name, folder in zip(("classes", "numbers", "continues", "writes"), sys.argv[1:]):
    os.chdir(folder)
    exec(re.search("```python\\n(.*?)```", Path("README.md").read_text(), re.DOTALL)[1])
    own = {"config": transformers.AutoConfig.from_pretrained(".").to_dict()}
    if name in ("classes", "numbers"):
        options = {"function_to_apply": "none"} if name == "numbers" else {}
        own["answers"] = [found["label"] if name == "classes" else found["score"] for found in model(texts, **options)]
    elif name == "continues":
        own["answers"] = model("the old", max_new_tokens=4, do_sample=False)[0]["generated_text"]
        own["prompt"] = model.tokenizer.convert_ids_to_tokens(model.tokenizer("the old")["input_ids"])
        own["cache"] = model.model.generation_config.use_cache
    else:
        own["answers"] = [tokenizer.decode(model.generate(**tokenizer(text, return_tensors="pt"), max_new_tokens=5)[0],
                                           skip_special_tokens=True) for text in texts]
        own["cache"] = model.generation_config.use_cache
    answers[name] = own
Path(sys.argv[-1]).write_text(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def published(trained):
    """The held-out texts, the reports of one job for each task, and what transformers makes of their models."""
    lines = list(csv.reader((trained.folder / "rows.csv").read_text().splitlines()[1:]))
    labels = {"classes": lambda text, label: label, "numbers": lambda text, label: -len(text) / 20,
              "writes": lambda text, label: text.split()[0]}
    for name, label in labels.items():
        (trained.folder / name).mkdir()
        for part, rows in (("train", lines[:-60]), ("validation", lines[-60:])):
            with open(trained.folder / name / f"{part}.csv", "w") as file:
                csv.writer(file).writerows([("text", "label"), *((text, label(text, own)) for text, own in rows)])
    reports = {name: trained.train(f"published-{name}", ranks=1, **changes,
                                   data__held_out=None if "data__dataset" in changes else 0.1)
               for name, changes in JOBS.items()}
    folders = [str(trained.output(f"published-{name}") / "model") for name in JOBS]
    texts = [text for text, _ in lines[-60:]]
    done = subprocess.run([sys.executable, "-I", "-c", PROGRAM, *folders, str(trained.folder / "answers.json")],
                          input=json.dumps(texts), text=True, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return lines[-60:], reports, read_json(trained.folder / "answers.json")


def test_a_pipeline_classifies_as_the_evaluation_did(published):
    rows, reports, answers = published
    right = np.mean([label == answer for (_, label), answer in zip(rows, answers["classes"]["answers"])])
    assert right == pytest.approx(reports["classes"]["accuracy"])
    assert answers["classes"]["config"]["problem_type"] == "single_label_classification"


def test_a_pipeline_gives_a_regressions_numbers(published):
    rows, reports, answers = published
    numbers = answers["numbers"]["answers"]
    wanted = [-len(text) / 20 for text, _ in rows]
    assert max(numbers) < 0, "no sigmoid"
    assert np.corrcoef(numbers, wanted)[0, 1] == pytest.approx(reports["numbers"]["evaluation"]["pearson"], abs=1e-3)


def test_a_language_model_continues_a_prompt_with_its_cache(published):
    _, _, answers = published
    assert answers["continues"]["prompt"] == ["the", "old"]
    assert answers["continues"]["answers"].startswith("the old")
    assert answers["continues"]["cache"] and answers["continues"]["config"]["use_cache"]


def test_a_text_model_writes_what_the_evaluation_saw(published):
    rows, reports, answers = published
    right = np.mean([answer == text.split()[0] for (text, _), answer in zip(rows, answers["writes"]["answers"])])
    assert right == pytest.approx(reports["writes"]["evaluation"]["exact_match"])
    assert answers["writes"]["cache"] and answers["writes"]["config"]["use_cache"]


def test_the_card_names_the_classes(trained, published):
    text = (trained.output("published-classes") / "model" / "README.md").read_text()
    assert re.search(r"^Classes: animal, tool\.$", text, re.MULTILINE)
