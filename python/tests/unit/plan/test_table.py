"""What `debzero plan` prints, and what it refuses."""
import re

from planning import TINY, job

from debzero import cli
from debzero.plan.activations import LayersNotTrainedError
from debzero.resolve.sharding import SHARDINGS


def test_the_table_is_narrow_and_names_the_choice(bench, capsys):
    assert cli.main(["plan", str(job(bench, model="bert-large-uncased")), "--gpus", "2", "--gpu-memory", "40G"]) == 0
    lines = capsys.readouterr().out.splitlines()
    table = [line for line in lines if line[2:].startswith(("plain", "ZeRO"))]
    assert len(table) == len(SHARDINGS) and max(map(len, lines)) <= 100
    assert [line[0] for line in table] == ["*"] + [" "] * (len(table) - 1)
    assert lines[-2:] == ["Recommended: plain DDP: it fits, so nothing has to be sharded or offloaded",
                          "  zero: {stage: none}"]


def test_a_tiny_model_has_parameters(bench, capsys):
    assert cli.main(["plan", str(job(bench, model={**TINY["causal-lm"], "n_layer": 1}, task="causal-lm"))]) == 0
    text = capsys.readouterr().out
    assert re.search(r": 0\.0\d+ M parameters", text), text
    assert re.search(r"Beyond torch's peak, plain DDP needs another [\d.]+ [MG]iB \(", text)
    assert max(map(len, text.splitlines())) <= 100


def test_a_table_of_which_nothing_fits_says_so(bench, capsys):
    assert cli.main(["plan", str(job(bench, model="bert-large-uncased")), "--gpus", "2", "--gpu-memory", "1G"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("Nothing fits: not even a micro-batch of one sample")
    assert {line[0] for line in lines if line[2:].startswith(("plain", "ZeRO"))} == {"x"}


def test_a_bad_value_is_one_problem_and_not_also_its_consequences(bench, refused):
    problems = refused(job(bench, model="gpt2", train={"global_batch": "abc"}), "--gpus", 3)
    assert [problem["key"] for problem in problems] == ["train.global_batch"]


def test_a_model_that_cannot_be_traced_is_named(bench, monkeypatch, refused):
    def curve(*_):
        raise AssertionError("odd")

    monkeypatch.setattr("debzero.plan.model_shapes.Shapes.curve", curve)
    (problem,) = refused(job(bench, model="bert-large-uncased"))
    assert problem["key"] == "model" and "bert-large-uncased cannot be traced" in problem["reason"]
    assert "debzero tune" in problem["fix"]


def test_layers_that_would_not_learn_are_blamed_on_checkpointing(bench, monkeypatch, refused):
    def curve(*_):
        raise LayersNotTrainedError

    monkeypatch.setattr("debzero.plan.model_shapes.Shapes.curve", curve)
    (problem,) = refused(job(bench, model="bert-large-uncased", train={"gradient_checkpointing": True}))
    assert problem["key"] == "train.gradient_checkpointing" and "would not learn" in problem["reason"]


def test_everything_wrong_is_reported_at_once(bench, refused):
    path = job(bench, model="/no/such/folder", train={"global_batch": 63})
    problems = refused(path, "--gpus", 2, "--gpu-memory", "lots", "--ram", "-3")
    keys = {problem["key"] for problem in problems}
    assert {"--gpu-memory", "--ram", "train.global_batch", "model"} <= keys
