"""A model's configuration is found without the hub where it can be, and refused where it is none."""
import json

import pytest
from planning import TINY, job

from debzero import cli
from debzero.model import tasks


@pytest.mark.parametrize(("model", "task", "parameters"), [
    ("bert-large-uncased", "classification", 335_143_938), ("gpt2-medium", "causal-lm", 354_823_168),
    ("t5-base", "text-to-text", 222_903_552)])
def test_plan_knows_the_published_models_without_the_hub(bench, planned, model, task, parameters):
    found = planned(job(bench, model=model, task=task, zero={"favour": "memory"}), "--gpus", 2, "--gpu-memory", "40G")
    assert found["model"]["parameters"] == parameters and model in found["notes"][0]
    rows = {(row["stage"], row["offload_optimizer"], row["offload_param"]): row for row in found["choices"]}
    for row in rows.values():
        assert sum(row["parts"].values()) == pytest.approx(row["peak_bytes"], abs=10)
        assert 32 % row["largest_micro_batch"] == 0
    peaks = [rows[stage, "none", "none"]["peak_bytes"] for stage in ("none", 1, 2)]
    assert peaks == sorted(peaks, reverse=True)
    assert rows[2, "cpu", "none"]["peak_bytes"] < peaks[2] and rows[2, "cpu", "none"]["ram_bytes"] > 16 * parameters
    assert rows[3, "nvme", "nvme"]["nvme_bytes"] > rows[3, "nvme", "cpu"]["nvme_bytes"] > 0


def test_a_namesake_of_a_published_model_is_asked_of_the_hub(bench, monkeypatch):
    asked = []

    def nowhere(name, *_, **how):
        asked.append((name, how))
        raise OSError("it is not there")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", nowhere)
    assert cli.main(["plan", str(job(bench, model="somebody/gpt2"))]) == 0
    assert [how.get("local_files_only", False) for _, how in asked] == [True, False]


@pytest.mark.parametrize(("model", "key"), [
    ({"type": "nonsense", "vocab_size": 100}, "model.type"),
    ({"type": "bert", "vocab_size": 100, "hidden_size": "abc"}, "model.hidden_size"),
    ({"type": "bert", "vocab_size": 100, "hidden_size": 64, "num_attention_heads": 5}, "model")])
def test_a_model_that_cannot_be_is_one_problem(bench, refused, model, key):
    assert [problem["key"] for problem in refused(job(bench, model=model))] == [key]


@pytest.mark.parametrize("config", [[], {"model_type": "bert", "num_attention_heads": "x"},
                                    {"model_type": "bert", "hidden_size": 100}])
def test_a_configuration_that_is_none_is_one_problem(bench, refused, config):
    (bench.folder / "config.json").write_text(json.dumps(config))
    (problem,) = refused(job(bench, model="gpt2"), "--config", bench.folder / "config.json")
    assert problem["key"] in ("--config", "model") and problem["fix"]


def test_every_task_has_a_model_here():
    assert {*TINY, "regression"} == set(tasks.TASKS)
