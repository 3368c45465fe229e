"""Runs whose job changes between two starts, trained for real."""
import json

import pytest

from debzero.base.files import read_json, read_lines
from debzero.run import status
from debzero.train.engine import rate_at

JOB = {"ranks": 1, "train__global_batch": 64, "train__select": "best"}  # 7 steps an epoch


@pytest.mark.slow
def test_a_finished_run_continues_with_more_epochs_and_is_found_again(bench, capsys):
    out = bench.output("longer")
    first = bench.train("longer", train__epochs=1, **JOB)
    assert (first["steps"], first["total_steps"], first["metric"]) == (7, 7, "accuracy")
    before = read_lines(out / "metrics.jsonl")
    done = bench.quick("train", bench.job("longer", train__epochs=2, train__metric="f1", **JOB))
    assert done.returncode == 0, done.stdout
    assert ("this job continues after step 7 of 14 with train.epochs 1 -> 2, train.metric auto -> f1. Its learning "
            "rate is from now on that of a run of the new length") in done.stdout
    assert "the best f1 counts from step 7 on" in done.stdout
    assert "\ndata: rows " in done.stdout and "; classes 2: " in done.stdout and " tokens (median)" in done.stdout
    lines = read_lines(out / "metrics.jsonl")
    assert lines[:len(before)] == before, "what was done and measured stays"
    rates = [line["learning_rate"] for line in lines if "loss" in line]
    assert rates == pytest.approx([rate_at(step, 7 if step < 7 else 14, 1e-2, 0.1) for step in range(14)])
    second = json.loads((out / "report.json").read_text())
    assert (second["steps"], second["total_steps"], second["resumed"], second["metric"]) == (14, 14, 1, "f1")
    assert read_json(out / "model" / "debzero.json")["step"] == second["best_step"] and second["best_step"] >= 7
    assert (read_json(out / "run.json")["steps_per_epoch"], read_json(out / "status.json")["step"]) == (7, 14)

    done = bench.quick("train", bench.job("longer", train__max_steps=1, train__seed=1, **JOB))
    assert done.returncode == 0 and "starts anew because this is another training: train.seed 101 -> 1" in done.stdout
    assert read_json(out / "report.json")["steps"] == 1
    done = bench.quick("train", bench.job("longer", train__epochs=2, train__metric="f1", **JOB))
    assert done.returncode == 0 and "which fits, and has finished, after step 14 of 14" in done.stdout, done.stdout
    assert read_json(out / "report.json") == second and len(list((out / "archive").iterdir())) == 2
    done = bench.quick("train", bench.job("longer", train__epochs=1, **JOB))
    assert done.returncode == 0 and "which fits, and has finished, after step 7 of 7" in done.stdout, done.stdout
    assert read_json(out / "report.json") == first, "as it was before the run was lengthened"
    assert status.status(str(out), as_json=True, watch=False) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["state"], shown["step"], shown["report"]["metric"]) == ("finished", 7, "accuracy")


def test_a_schedule_of_the_json_follows_the_new_length_from_its_first_step(bench):
    schedule = {"type": "WarmupDecayLR", "params": {"total_num_steps": "auto", "warmup_num_steps": 0,
                                                    "warmup_max_lr": "auto"}}
    for steps in (4, 8):
        bench.train("json", ranks=1, train__max_steps=steps, deepspeed={"scheduler": schedule})
    # DeepSpeed's own count is a step behind, and warms up for at least two.
    lines = read_lines(bench.output("json") / "metrics.jsonl")
    rates = [line["learning_rate"] / 1e-2 for line in lines if "loss" in line]
    assert rates == pytest.approx([0, 0, 1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6])
