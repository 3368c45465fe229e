"""torch with compiled layers and CUDA graphs: what of it does not need a GPU."""
import json

import numpy as np
import pytest
from exported_runs import GPT2, run_of

from debzero.cli import main
from debzero.model.compiled import StepGraphs
from debzero.predict import engine_compiled

TEXTS = ["GNU compiler for C++", "a game", "fonts and " * 12]


def test_rows_are_padded_to_a_multiple_of_eight_that_the_model_takes():
    batch = {"input_ids": np.full((2, 5), 3), "attention_mask": np.ones((2, 5), np.int64)}
    wide = engine_compiled.padded(batch, 9, None)
    assert wide["input_ids"].tolist() == [[3] * 5 + [9] * 3] * 2
    assert wide["attention_mask"].tolist() == [[1] * 5 + [0] * 3] * 2
    assert engine_compiled.padded(batch, 9, 8)["input_ids"].shape == (2, 8)
    assert engine_compiled.padded(batch, 9, 7) is batch
    full = {"input_ids": np.zeros((1, 16), np.int64)}
    assert engine_compiled.padded(full, 9, 16)["input_ids"].shape == (1, 16)


def test_without_a_gpu_it_is_refused_in_a_sentence(bench, capsys):
    run = run_of(bench, "plain")
    capsys.readouterr()
    assert main(["predict", str(run.folder), "--engine", "compiled", "a text"]) == 2
    error = capsys.readouterr().err
    assert "compiled needs a GPU and torch 2.4 or later" in error and "use --engine torch" in error


def test_a_model_that_writes_is_refused(bench, capsys):
    run = run_of(bench, "writes", steps=1, model=GPT2, task="causal-lm", data__label=None)
    capsys.readouterr()
    assert main(["predict", str(run.folder), "--engine", "compiled", "a text"]) == 2
    assert "compiled does not answer for causal-lm models" in capsys.readouterr().err


@pytest.fixture
def as_if_compiled(monkeypatch):
    """Everything but the GPU's own: each batch goes through the padding and the place of the graphs."""
    shapes = []

    def run(self, work, batch, weights):
        shapes.append(tuple(batch["input_ids"].shape))
        return work(batch, weights)

    monkeypatch.setattr(engine_compiled, "can_compile", lambda device: True)
    monkeypatch.setattr(engine_compiled, "compile_layers", lambda model: 1)
    monkeypatch.setattr(StepGraphs, "run", run)
    return shapes


def test_it_answers_as_torch_does(bench, as_if_compiled, capsys):
    run = run_of(bench, "same")
    answers = {}
    for engine in ("torch", "compiled"):
        capsys.readouterr()
        assert main(["predict", str(run.folder), "--engine", engine, "--json", *TEXTS]) == 0
        answers[engine] = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert as_if_compiled and all(width % 8 == 0 for _, width in as_if_compiled)
    for ours, theirs in zip(answers["compiled"], answers["torch"]):
        assert ours["answer"] == theirs["answer"]
        assert ours["probabilities"] == pytest.approx(theirs["probabilities"], abs=1e-5)
