"""What `debzero plan` prints, and what it refuses."""
import re

import pytest
import transformers
from planning import TINY, job

from debzero import cli
from debzero.plan.activations import LayersNotTrainedError
from debzero.resolve.sharding import SHARDINGS


def tables(lines):
    """The rows of both: what is held, and what is needed."""
    rows = [line for line in lines if line[2:].startswith(("plain", "ZeRO")) and line[:2] in ("* ", "x ", "  ")]
    return rows[:len(SHARDINGS)], rows[len(SHARDINGS):]


def test_the_tables_are_narrow_and_name_the_choice(bench, capsys):
    assert cli.main(["plan", str(job(bench, model="bert-large-uncased")), "--gpus", "2", "--gpu-memory", "40G"]) == 0
    lines = capsys.readouterr().out.splitlines()
    held, needed = tables(lines)
    assert len(held) == len(needed) == len(SHARDINGS) and max(map(len, lines)) <= 100
    assert [line[0] for line in needed] == ["*"] + [" "] * (len(needed) - 1)
    assert lines[-3].startswith("Recommended: plain DDP: it fits, so nothing has to be sharded or offloaded")
    assert lines[-2].endswith("ZeRO-1, which fits too, was 1.18 times as fast") and lines[-1] == "  zero: {stage: none}"
    assert [line.split()[-1] for line in needed[:4]] == ["1.00", "1.18", "0.82", "0.15"]
    assert all(line.endswith("not measured") for line in needed[4:])
    text = " ".join(" ".join(lines).split())
    for part in ("6% of it for fragmentation", "1.27 GiB for the CUDA context", "3.00 GiB for its process",
                 "docs/benchmarks/article-2-deepspeed.json"):
        assert part in text


def test_what_is_not_held_at_the_peak_is_no_number_and_the_phase_says_why(bench, capsys):
    path = job(bench, model="bert-large-uncased", train={"global_batch": 2, "micro_batch": 1})
    assert cli.main(["plan", str(path), "--gpus", "2", "--gpu-memory", "40G"]) == 0
    row = tables(capsys.readouterr().out.splitlines())[0][1].split()  # ZeRO-1, at the optimizer's step
    assert row[4] == "-" and row[-1] == "step", row


def test_the_settings_are_given_where_the_user_sets_them(bench, capsys):
    (bench.folder / "ds.json").write_text('{"zero_optimization": {"stage": 3}}')
    path = job(bench, model="bert-large-uncased", deepspeed="ds.json")
    assert cli.main(["plan", str(path), "--gpus", "2", "--gpu-memory", "40G"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f'  "zero_optimization": {{"stage": 0}}, in {bench.folder / "ds.json"}'


def test_a_tiny_model_has_parameters(bench, capsys):
    assert cli.main(["plan", str(job(bench, model={**TINY["causal-lm"], "n_layer": 1}, task="causal-lm"))]) == 0
    text = capsys.readouterr().out
    assert re.search(r": 0\.0\d+ M parameters", text), text
    assert max(map(len, text.splitlines())) <= 100


def test_a_table_of_which_nothing_fits_says_so(bench, capsys):
    assert cli.main(["plan", str(job(bench, model="bert-large-uncased")), "--gpus", "2", "--gpu-memory", "1G"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("Nothing fits: not even a micro-batch of one sample")
    assert {line[0] for line in tables(lines)[1]} == {"x"}


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


@pytest.mark.parametrize("options", [("--gpu-memory", "lots"), ("--config", "none.json")])
def test_bad_options_are_found_before_the_hub_is_asked(bench, monkeypatch, refused, options):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", lambda *_, **__: pytest.fail("it is looked for"))
    (problem,) = refused(job(bench, model="someone/unknown"), *options)
    assert problem["file"] == "the command line" and problem["key"] == options[0]


@pytest.mark.parametrize("model", ["bert-large-uncased", {**TINY["classification"], "max_position_embeddings": 512},
                                   {"type": "roberta", "vocab_size": 100, "max_position_embeddings": 514}])
def test_more_tokens_than_positions_are_one_problem(bench, refused, model):
    data = {"dataset": "rows.csv", "held_out": 0.2, "max_length": 514}
    (problem,) = refused(job(bench, model=model, data=data))
    assert problem["key"] == "data.max_length" and "positions" in problem["reason"]


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
