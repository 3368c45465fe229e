"""The benchmark programs with tiny models: their data has the shape that they promise, every program finishes, and its
JSON has what is judged."""
import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

BENCH = Path(__file__).resolve().parents[3] / "benchmarks"
sys.path.insert(0, str(BENCH))

import common  # noqa: E402
import pairs  # noqa: E402
import predict  # noqa: E402
import published  # noqa: E402
import race  # noqa: E402

from debzero.bench.results import load  # noqa: E402
from debzero.cli import parser  # noqa: E402
from debzero.tune.trials import read_trials  # noqa: E402


@pytest.fixture(scope="module")
def training_pairs():
    return list(pairs.Language(1200).pairs(pairs.TRAIN, "train 0"))


def test_pairs_have_the_lengths_and_the_labels_of_mrpc(training_pairs):
    tokenizer = pairs.tokenizer(1200)
    encoded = tokenizer([pair.sentence1 for pair in training_pairs],
                        [pair.sentence2 for pair in training_pairs])["input_ids"]
    lengths = np.array([len(ids) for ids in encoded])
    assert abs(lengths.mean() - 53) < 1 and 12 < lengths.std() < 16
    assert lengths.max() == pairs.LONGEST == 103 and lengths.min() >= pairs.SHORTEST
    assert np.mean([pair.label for pair in training_pairs]) == pytest.approx(0.68, abs=0.001)
    assert tokenizer.unk_token_id not in np.concatenate(encoded)


def test_pairs_are_the_same_each_time_and_new_for_another_seed(tmp_path):
    assert list(pairs.Language(1200).pairs(50, "train 0")) == list(pairs.Language(1200).pairs(50, "train 0"))
    assert list(pairs.Language(1200).pairs(50, "train 0")) != list(pairs.Language(1200).pairs(50, "train 1"))
    pairs.write_pairs(tmp_path, rows=20, held_out=10)
    rows = {name: list(csv.DictReader((tmp_path / f"{name}.csv").read_text().splitlines()))
            for name in ("train", "validation")}
    assert [len(table) for table in rows.values()] == [20, 10]
    assert not {row["sentence1"] for row in rows["train"]} & {row["sentence1"] for row in rows["validation"]}


def test_the_label_shows_in_the_words_that_were_replaced(training_pairs):
    language = pairs.Language(1200)
    contraries, synonyms = set(language.contraries), set(language.synonyms)
    for pair in training_pairs[:500]:
        words = set(pair.sentence2.split())
        assert bool(words & synonyms) == bool(pair.label) and bool(words & contraries) != bool(pair.label)


def test_words_are_never_alike():
    assert len({pairs.word(number) for number in range(30522)}) == 30522


def test_the_speed_leaves_out_the_first_steps_and_counts_the_short_ones():
    assert [common.samples_done(step, 100, 64) for step in range(5)] == [0, 64, 100, 164, 200]
    metrics = [{"step": 2, "samples_per_second": 1.0, "tflops": 9.0}, {"step": 2, "eval_accuracy": 0.5},
               {"step": 3, "samples_per_second": 64.0, "tflops": 1.0},
               {"step": 4, "samples_per_second": 12.0, "tflops": 5.0}]
    # 64 samples in one second, then 36 in three.
    assert common.steady(metrics, 100, 64, 2) == {"samples_per_second": pytest.approx(25.0),
                                                  "tflops": pytest.approx(4.0)}
    with pytest.raises(SystemExit, match="train longer"):
        common.steady(metrics, 100, 64, 4)


def test_the_verdict_is_the_median_over_the_seeds():
    runs = [{"side": side, "seed": seed, "samples_per_second": speed, "wall_seconds": 100 / speed,
             "cpu_seconds": 10 / speed, "accuracy": accuracy}
            for side, speeds, scores in (("debzero", (9, 5, 7), (0.9, 0.7, 0.8)),
                                         ("article", (3, 5, 2), (0.9, 0.7, 0.9)))
            for seed, speed, accuracy in zip((1, 2, 3), speeds, scores)]
    verdict = race.judge(runs)
    assert verdict["speed_ratios"] == [3, 1, 3.5] and verdict["fast_enough"]
    assert verdict["speed_ratio"] == verdict["cpu_ratio"] == 3
    assert verdict["accuracy"] == {"article": 0.9, "debzero": 0.8} and not verdict["accurate_enough"]


def test_the_published_measurements_ask_for_what_the_commands_have():
    for job, command, arguments in published.PARTS.values():
        parser().parse_args([command, job, *arguments])
        parser().parse_args([command, job, *arguments, *published.TINY_OPTIONS[command]])


def published_command(folder, *parts):
    return [sys.executable, BENCH / "published.py", "--tiny", "--results", folder, "--only", *parts]


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_the_published_measurements_are_rehearsed_after_an_interruption_that_leaves_no_training_behind(tmp_path):
    process = psutil.Popen(published_command(tmp_path, "bert-large-1", "tune"), text=True, stdout=subprocess.PIPE,
                           stderr=subprocess.STDOUT, start_new_session=True)
    until = time.monotonic() + 300
    while not list(tmp_path.glob("bert-large-1/runs/*/out/status.json")):  # its run writes it
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.1)
    started = process.children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)
    printed = process.communicate(timeout=120)[0]
    assert process.returncode == 130 and "Traceback" not in printed and "== tune" not in printed, printed
    assert len(started) >= 2 and not psutil.wait_procs(started, timeout=10)[1], "the bench and its run"

    done = subprocess.run(published_command(tmp_path, "bert-large-1"), text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = load(tmp_path / "bert-large-1.json").measured
    assert row.name == "baseline" and row.summary.samples_per_second.median > 0
    assert not list(tmp_path.glob("*.html")), "pages are rendered from the JSON on demand"


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_the_published_search_and_answers_are_rehearsed(tmp_path):
    done = subprocess.run(published_command(tmp_path, "tune", "inference"), text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {timing.engine for timing in load(tmp_path / "inference.json").inference.timings} == {"torch", "onnx"}
    tuned = json.loads((tmp_path / "tune.json").read_text())
    assert tuned["search"]["share_of_best"] > 0 and tuned["host"]["name"] == "gpu" and tuned["versions"]["deepspeed"]
    assert len(read_trials(tmp_path / "tune.json")) == 2


def finish(program, folder, *arguments):
    done = subprocess.run([sys.executable, BENCH / f"{program}.py", "--tiny", "--folder", folder, *arguments],
                          text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((folder / "results.json").read_text()), done.stdout


@pytest.mark.long
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("options", [["--ranks", "1", "--stage", "none"], []], ids=["one rank", "as measured"])
def test_both_sides_of_the_race_finish(tmp_path, options):
    results, printed = finish("race", tmp_path, *options)
    assert {run["side"] for run in results["runs"]} == {"article", "debzero"}
    for run in results["runs"]:
        assert run["samples_per_second"] > 0 and run["wall_seconds"] > 0 and 0 < run["accuracy"] <= 1
        assert len(run["accuracies"]) == 2, "one an epoch"
    assert {run["steps"] for run in results["runs"]} <= {4, 5, 6, 10}, "160 rows at 32 (one rank) or 64 a step, twice"
    assert results["verdict"]["speed_ratio"] > 0 and results["versions"]["torch"]
    assert f"{results['verdict']['speed_ratio']:.2f}" in printed


@pytest.mark.slow
def test_predict_and_a_pipeline_answer_alike(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # the pipeline's threads spin while they wait for each other
    monkeypatch.setattr(sys, "argv", ["predict.py", "--folder", str(tmp_path), "--rows", "100", "--repeats", "1"])
    assert predict.main() in (0, 1), "so few rows are mostly imports"
    assert re.search(r"(?m)^pipeline +\d+ .*\n^debzero +\d+ .*\n^ratio ", capsys.readouterr().out)


def test_a_start_is_timed_beside_the_imports(tmp_path):
    done = subprocess.run([sys.executable, BENCH / "start.py", "--tiny", "--ranks", "2", "--rounds", "1",
                           "--results", tmp_path / "start.json", "--scratch", tmp_path], text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "start.json").read_text())
    (one,) = found["rounds"]
    assert found["facts"]["ranks"] == 2 and 0 < one["imports"] < one["first_step"]
    assert one["beyond"] == pytest.approx(one["first_step"] - one["imports"], abs=0.02)
