"""Whoever watches a run is told the same numbers, none of what was undone, and cannot end it."""
import csv
import json
import types
import xml.etree.ElementTree as ElementTree

import pytest

from debzero import card, flops, plots, watch

LARGE = types.SimpleNamespace(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096, vocab_size=30522)


def measured(step, **values):
    return {"step": step, "total_steps": 9, "epoch": step / 9, "loss": 1 / step, "learning_rate": 1e-3, "samples_per_second": 50.0,
            "tokens_per_second": 900.0, "memory_bytes": [100, 200], "skipped_steps": 0, "eta_seconds": 3.0, **values}


@pytest.fixture
def run(tmp_path):
    """A run's folder with five lines and an evaluation, and its watchers."""
    rows = [*map(measured, range(1, 6)), {"step": 5, "epoch": 0.5, "eval_accuracy": 0.75, "eval_loss": 0.5}]
    said = []
    watchers = watch.Watchers(tmp_path, "mine", 0, said.append)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        for row in rows:
            file.write(json.dumps(row) + "\n")
            watchers.measured(row)
    watchers.close()
    assert not said
    return tmp_path


def events(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder / "tensorboard"))
    found.Reload()
    return {name: [(e.step, round(e.value, 5)) for e in found.Scalars(name)] for name in found.Tags()["scalars"]}


def test_tensorboard_reads_what_was_measured(run):
    read = events(run)
    assert read["training/loss"] == [(step, round(1 / step, 5)) for step in range(1, 6)]
    assert read["evaluation/accuracy"] == [(5, 0.75)]
    assert read["memory/rank1"][-1] == (5, 200)


def test_the_table_is_the_lines(run):
    rows = list(csv.DictReader((run / "metrics.csv").open()))
    assert [row["step"] for row in rows] == ["1", "2", "3", "4", "5", "5"]
    assert rows[0]["memory_bytes"] == "100 200" and rows[-1]["eval_accuracy"] == "0.75" and rows[-1]["loss"] == ""


def test_prometheus_has_the_newest_values(run, monkeypatch, tmp_path):
    from prometheus_client.parser import text_string_to_metric_families

    text = (run / "debzero-mine.prom").read_text()
    found = {(s.name, *sorted(s.labels.items())): s.value for family in text_string_to_metric_families(text) for s in family.samples}
    assert found["debzero_step", ("job", "mine")] == 5
    assert found["debzero_memory_bytes", ("job", "mine"), ("rank", "1")] == 200
    assert found["debzero_eval", ("job", "mine"), ("metric", "accuracy")] == 0.75
    monkeypatch.setenv("DEBZERO_TEXTFILE_DIR", str(tmp_path / "collector"))
    (tmp_path / "collector").mkdir()
    watch.Prometheus(run, "mine").measured(measured(6))
    assert "debzero_step" in (tmp_path / "collector" / "debzero-mine.prom").read_text()


def test_a_resumed_run_forgets_what_came_after_its_checkpoint(run):
    from debzero.runstate import Output

    Output(str(run)).cut_metrics(3)
    watchers = watch.Watchers(run, "mine", 3, pytest.fail)
    watchers.measured(measured(4, loss=9.0))
    watchers.close()
    assert [row["step"] for row in csv.DictReader((run / "metrics.csv").open())] == ["1", "2", "3", "4"]
    assert events(run)["training/loss"] == [(1, 1.0), (2, 0.5), (3, 0.33333), (4, 9.0)]


def test_a_watcher_that_fails_is_left_out_and_said_once(tmp_path):
    said = []
    watchers = watch.Watchers(tmp_path, "mine", 0, said.append)
    watchers.working["Prometheus"].files = [tmp_path / "no" / "such" / "folder.prom"]
    for step in (1, 2):
        watchers.measured(measured(step))
    watchers.close()
    assert len(said) == 1 and said[0].startswith("Prometheus is left out")
    assert len(list(csv.DictReader((tmp_path / "metrics.csv").open()))) == 2


@pytest.mark.parametrize("lines", [1, 5])
def test_the_picture_is_one_and_the_same_each_time(run, tmp_path, lines):
    metrics = tmp_path / "some.jsonl"
    metrics.write_text("".join((run / "metrics.jsonl").read_text().splitlines(True)[:lines]))
    drawings = []
    for _ in range(2):
        plots.draw(metrics, "accuracy", tmp_path, "mine")
        drawings.append((tmp_path / "loss.svg").read_bytes())
    assert drawings[0] == drawings[1]
    assert ElementTree.fromstring(drawings[0]).tag.endswith("svg")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_the_card_says_what_the_report_says_and_no_path(tmp_path):
    from huggingface_hub import ModelCard

    from debzero.job import Job

    job = Job.model_validate({"model": "bert-large-uncased", "data": {"dataset": "glue/mrpc"}, "output": "/secret/place"})
    report = {"job": "/secret/mrpc.yml", "evaluation": {"accuracy": 0.875, "loss": 0.3}, "baseline": {"accuracy": 0.68},
              "versions": {"torch": "1"}, "zero_stage": 2, "train_samples": 10, "eval_samples": 5, "global_batch": 64, "micro_batch": 8, "accumulation": 4,
              "world_size": 2, "steps": 100, "precision": "bf16", "device": "a GPU", "samples_per_second": 12.5}
    card.write(report, job, "AutoModelForSequenceClassification", tmp_path)
    made = ModelCard.load(tmp_path / "README.md")
    assert made.data.base_model == "bert-large-uncased"
    assert {result.metric_type: result.metric_value for result in made.data.eval_results} == {"accuracy": 0.875, "loss": 0.3}
    assert "| accuracy | 0.8750 | 0.6800 |" in made.text and "ZeRO stage 2" in made.text and "/secret" not in made.content


@pytest.mark.parametrize(("length", "giga"), [(53, 96.9), (128, 236.8), (512, 1005)])
def test_berts_flops_are_the_published_ones(length, giga):
    assert flops.per_sample(LARGE, length, "classification") / 1e9 == pytest.approx(giga, rel=0.02)


def test_a_language_model_computes_its_head_for_each_token():
    more = flops.per_sample(LARGE, 10, "causal-lm") - flops.per_sample(LARGE, 10, "classification")
    assert more == 6 * 1024 * 30522 * 10


def test_peaks_are_known_by_the_devices_name():
    assert flops.peak("NVIDIA A100-SXM4-40GB", "bf16") == 312e12
    assert flops.peak("NVIDIA H100 PCIe", "bf16") == 756e12
    assert flops.peak("NVIDIA H100 80GB HBM3", "fp32") == 67e12
    assert flops.peak("AMD EPYC", "fp32") is None
