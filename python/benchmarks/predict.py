#!/usr/bin/env python3
"""`make bench-predict`: `debzero predict --input` against a plain transformers pipeline, in turns, on the same rows.

Both answer the same generated descriptions with the same model, as a process of its own each: the pipeline with its
default batch (one text at a time), debzero with its defaults. Without --model it is the packaged demo's model with
random weights, on which the speed does not depend. Rows/s are of the whole process, imports and loading included; the
CPU time, which a busy machine changes least, is shown beside it. Exit code 1: the two answer differently, or debzero is
less than twice as fast (the medians).
"""
from __future__ import annotations

import argparse
import csv
import json
import random
import statistics
import sys
from pathlib import Path
from typing import Any

import common
import yaml

LEAST = 2.0
CLASSES = ["devel", "doc", "golang", "haskell", "javascript", "libdevel", "libs", "net", "perl", "python", "rust",
           "utils"]
PIPELINE = """
import csv, json, sys
from transformers import pipeline
ask = pipeline("text-classification", model=sys.argv[1])
with open(sys.argv[2], newline="") as file:
    texts = [row["text"] for row in csv.DictReader(file)]
with open(sys.argv[3], "w") as file:
    json.dump([answer["label"] for answer in ask(texts)], file)
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=common.ROOT / ".cache" / "bench" / "predict",
                        help="where model, rows and results are written")
    parser.add_argument("--model", type=Path, help="the folder of a model for classification")
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    texts = descriptions(options.rows)
    write(options.folder / "rows.csv", texts)
    model = options.model or demo_model(options.folder / "model", texts)
    runs: dict[str, list[dict[str, float]]] = {"pipeline": [], "debzero": []}
    for _ in range(options.repeats):
        answers = {name: ask(name, model.absolute(), options.folder, runs[name]) for name in runs}
        if answers["pipeline"] != answers["debzero"]:
            raise common.Failed("the pipeline and debzero answer differently")
    middle = {name: {what: statistics.median(run[what] for run in found) for what in found[0]}
              for name, found in runs.items()}
    ratios = {what: middle["pipeline"][what] / middle["debzero"][what] for what in middle["debzero"]}
    print(f"{options.rows} rows, {options.repeats} repeats, medians; {common.processor()}")
    print(common.table([["", "rows/s", "CPU s"], *([name, f"{options.rows / found['wall_seconds']:.0f}",
                                                   f"{found['cpu_seconds']:.1f}"] for name, found in middle.items()),
                        ["ratio", f"{ratios['wall_seconds']:.1f}", f"{ratios['cpu_seconds']:.1f}"]]))
    return int(ratios["wall_seconds"] < LEAST)


def ask(name: str, model: Path, folder: Path, runs: list[dict[str, float]]) -> list[str]:
    """One process's answers; what it took is appended to `runs`."""
    made = folder / f"{name}.{'json' if name == 'pipeline' else 'csv'}"
    made.unlink(missing_ok=True)
    command = ["-c", PIPELINE, model, folder / "rows.csv", made] if name == "pipeline" else [
        "-m", "debzero", "predict", model, "--input", folder / "rows.csv", "--output", made]
    runs.append(common.run([sys.executable, *command], folder / f"{name}.log", 3600))
    if name == "pipeline":
        found: list[str] = json.loads(made.read_text())
        return found
    with open(made, newline="", encoding="utf-8") as file:
        return [row["answer"] for row in csv.DictReader(file)]


def descriptions(rows: int) -> list[str]:
    """As long as those of packages: 3 to 12 words, of 3000."""
    dice = random.Random(1)
    letters = "etaoinshrdlu"
    words = ["".join(dice.choices(letters, k=dice.randint(2, 9))) for _ in range(3000)]
    return [" ".join(dice.choices(words, k=dice.randint(3, 12))) for _ in range(rows)]


def write(file: Path, texts: list[str]) -> None:
    with open(file, "w", newline="", encoding="utf-8") as lines:
        csv.writer(lines).writerows([["text"], *([text] for text in texts)])


def demo_model(folder: Path, texts: list[str]) -> Path:
    """The packaged demo's, with random weights and a tokenizer for the texts."""
    import torch
    from transformers import AutoModelForSequenceClassification

    from debzero.model import build
    from debzero.model.folder import no_code
    from debzero.model.tokenizer import load_tokenizer

    job: dict[str, Any] = yaml.safe_load((common.ROOT / "debian" / "jobs" / "demo.yml").read_text())
    tokenizer = load_tokenizer(job["model"], lambda: texts, job["model"]["max_position_embeddings"])
    torch.manual_seed(0)
    settings = build.config(job["model"], CLASSES, tokenizer)
    settings.initializer_range = 0.3  # else the classes are nearly as likely as each other
    AutoModelForSequenceClassification.from_config(settings, **no_code()).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


if __name__ == "__main__":
    sys.exit(main())
