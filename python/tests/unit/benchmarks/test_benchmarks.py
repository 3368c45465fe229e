"""The benchmark programs in small: their data is what they say it is, both sides finish, and the JSON has what is
judged."""
import argparse
import csv
import json
import os
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
import gpu  # noqa: E402
import pairs  # noqa: E402
import race  # noqa: E402


@pytest.fixture(scope="module")
def made():
    return list(pairs.Language(1200).pairs(pairs.TRAIN, "train 0"))


def test_pairs_have_the_lengths_and_the_labels_of_mrpc(made):
    tokenizer = pairs.tokenizer(1200)
    encoded = tokenizer([pair.sentence1 for pair in made], [pair.sentence2 for pair in made])["input_ids"]
    lengths = np.array([len(ids) for ids in encoded])
    assert abs(lengths.mean() - 53) < 1 and 12 < lengths.std() < 16
    assert lengths.max() == pairs.LONGEST == 103 and lengths.min() >= pairs.SHORTEST
    assert np.mean([pair.label for pair in made]) == pytest.approx(0.68, abs=0.001)
    assert tokenizer.unk_token_id not in np.concatenate(encoded)


def test_pairs_are_the_same_each_time_and_new_for_another_seed(made, tmp_path):
    assert list(pairs.Language(1200).pairs(50, "train 0")) == list(pairs.Language(1200).pairs(50, "train 0"))
    assert list(pairs.Language(1200).pairs(50, "train 0")) != list(pairs.Language(1200).pairs(50, "train 1"))
    pairs.write_pairs(tmp_path, rows=20, held_out=10)
    rows = {name: list(csv.DictReader((tmp_path / f"{name}.csv").read_text().splitlines()))
            for name in ("train", "validation")}
    assert [len(table) for table in rows.values()] == [20, 10]
    assert not {row["sentence1"] for row in rows["train"]} & {row["sentence1"] for row in rows["validation"]}


def test_the_label_shows_in_the_words_that_were_replaced(made):
    language = pairs.Language(1200)
    contraries, synonyms = set(language.contraries), set(language.synonyms)
    for pair in made[:500]:
        said = set(pair.sentence2.split())
        assert bool(said & synonyms) == bool(pair.label) and bool(said & contraries) != bool(pair.label)


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
    assert verdict["speed_ratios"] == [3, 1, 3.5] and verdict["speed_ratio"] == 3 and verdict["cpu_ratio"] == 3 and verdict["fast_enough"]
    assert verdict["accuracy"] == {"article": 0.9, "debzero": 0.8} and not verdict["accurate_enough"]


def test_a_program_that_fails_is_a_row_with_its_reason(tmp_path, capsys):
    def work(options, name):
        if name == "bad":
            raise common.Failed("out of memory")
        return {"samples_per_second": 8.0, "step_ms": 1.0, "tflops": 1.0, "peak_share": None,
                "peak_memory_bytes": [2**30]}

    options = argparse.Namespace(folder=tmp_path, python=sys.executable)
    rows = gpu.each(["bad", "plain"], work, options, lambda name, row: "good")
    assert "bad: FAILED: out of memory" in capsys.readouterr().out
    assert json.loads((tmp_path / "results.json").read_text())["rows"]["bad"]["failed"] == "out of memory"
    assert gpu.speed_table(rows).splitlines()[1].split() == ["bad", "failed"]
    assert gpu.memory_table(rows).splitlines()[2].split() == ["plain", "1.00", "1.00"]


@pytest.mark.timeout(1500)
def test_the_published_measurements_can_be_rehearsed(tmp_path):
    done = subprocess.run([sys.executable, BENCH / "published.py", "--tiny", "--results", tmp_path, "--only",
                           "bert-large-1", "tune"],
                          text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = json.loads((tmp_path / "bert-large-1.json").read_text())["configurations"]
    assert row["name"] == "baseline" and row["summary"]["samples_per_second"]["median"] > 0
    assert not list(tmp_path.glob("*.html")), "a page is made from the JSON when somebody wants it"
    tuned = json.loads((tmp_path / "tune.json").read_text())
    assert tuned["search"]["share_of_best"] > 0 and tuned["host"]["name"] == "gpu" and tuned["versions"]["deepspeed"]


def test_an_interruption_leaves_no_training_behind(tmp_path):
    process = psutil.Popen([sys.executable, BENCH / "published.py", "--tiny", "--results", tmp_path, "--only",
                            "bert-large-1", "tune"],
                           text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    until = time.monotonic() + 300
    while not list(tmp_path.glob("bert-large-1/runs/*/out/status.json")):  # its run writes it
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.1)
    started = process.children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 130 and "Traceback" not in said and "== tune" not in said, said
    assert len(started) >= 2 and not psutil.wait_procs(started, timeout=10)[1], "the bench and its run"


def finish(program, folder, *arguments):
    done = subprocess.run([sys.executable, BENCH / f"{program}.py", "--tiny", "--folder", folder, *arguments],
                          text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((folder / "results.json").read_text()), done.stdout


@pytest.mark.timeout(1500)  # two ranks, twice, where other tests run beside them
def test_both_sides_of_the_race_finish(tmp_path):
    results, said = finish("race", tmp_path)
    assert {run["side"] for run in results["runs"]} == {"article", "debzero"}
    for run in results["runs"]:
        assert run["samples_per_second"] > 0 and run["wall_seconds"] > 0 and 0 < run["accuracy"] <= 1
        assert len(run["accuracies"]) == 2, "one an epoch"
    assert {run["steps"] for run in results["runs"]} <= {4, 5, 6}, "160 rows at 64 a step, twice"
    assert results["verdict"]["speed_ratio"] > 0 and results["versions"]["torch"]
    assert f"{results['verdict']['speed_ratio']:.2f}" in said


@pytest.mark.timeout(1500)
def test_the_gpu_programs_finish_on_a_cpu(tmp_path):
    results, said = finish("gpu", tmp_path, "--only", "plain", "bucketed")
    assert list(results["rows"]) == ["plain", "bucketed"]
    for row in results["rows"].values():
        assert row["samples_per_second"] > 0 and row["step_ms"] > 0 and row["peak_memory_bytes"][0] > 0
    assert "bucketed" in said
