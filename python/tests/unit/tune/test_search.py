"""`debzero tune`: the search by itself on made-up hosts, the job file that it writes, and a real search on the CPU."""
from __future__ import annotations

import json
from dataclasses import replace

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from debzero.check import checks
from debzero.cli import main
from debzero.job.batch import divisors
from debzero.measure.run import Run
from debzero.resolve.host import Host
from debzero.resolve.sharding import Sharding
from debzero.run.folder import Output
from debzero.tune import tuning
from debzero.tune.job_file import rewritten
from debzero.tune.search import BETTER, Unfit, Way, climb, search
from debzero.tune.tuning import Tuning

SIZES = tuple(divisors(64))
MEASURED = Run(segments=[{"steps": 1, "samples": 24, "seconds": 1.0}], memory_bytes=[1])


class Machine:
    """A GPU on which samples/s rise with the micro-batch and level off, until the memory ends."""

    def __init__(self, half, fits, scale=1.0):
        """`half`: the micro-batch with half of the highest speed; `fits`: the largest one that has room."""
        self.half, self.fits, self.scale, self.trials = half, fits, scale, []

    def __call__(self, way, micro):
        self.trials.append((way, micro))
        return self.scale * 1000 * micro / (micro + self.half) if micro <= self.fits else None


def interrupted(*_):
    raise KeyboardInterrupt


def way(first=64, stage=0, sizes=SIZES):
    return Way(Sharding(stage), False, sizes, first)


@given(half=st.floats(0, 64), fits=st.sampled_from(SIZES))
def test_where_the_plan_is_right_two_trials_find_the_best(half, fits):
    host = Machine(half, fits)
    _, micro, speed = search([way(first=fits)], host)
    assert (micro, len(host.trials)) == (fits, 2 if fits > 1 else min(2, len(host.trials)))
    assert speed >= 0.95 * max(filter(None, (Machine(half, fits)(None, size) for size in SIZES)))
    assert len(host.trials) <= max(2, len(SIZES) // 3)


@given(fits=st.sampled_from(SIZES), first=st.sampled_from(SIZES))
def test_whatever_the_plan_says_something_that_runs_is_found(fits, first):
    host = Machine(8, fits)
    found, micro, _ = search([way(first=first)], host)
    assert found.first == first and micro <= fits
    assert len({size for _, size in host.trials}) == len(host.trials), "a trial was made twice"


def test_nothing_runs_where_there_is_no_memory():
    host = Machine(8, 0)
    assert search([way()], host) is None
    assert [micro for _, micro in host.trials] == [64, 32, 16, 8, 4, 2, 1]


def test_a_smaller_micro_batch_wins_where_it_is_faster():
    speeds = {64: 100.0, 32: 110.0, 16: 125.0, 8: 120.0}
    assert climb(way(), lambda _, micro: speeds[micro], 4) == (16, 125.0)
    assert climb(way(), lambda _, micro: speeds[micro], 2) == (32, 110.0)
    assert climb(way(first=16), lambda _, micro: speeds[micro], 3) == (16, 125.0)


def test_other_ways_get_one_trial_unless_they_win():
    ways = [way(stage=stage) for stage in (0, 1, 2, 3)]
    speeds = {0: 100.0, 1: 90.0, 2: 150.0, 3: 80.0}
    made = []

    def trial(way, micro):
        made.append((way.choice.stage, micro))
        return speeds[way.choice.stage] * micro / 64

    best, micro, speed = search(ways, trial)
    assert (best.choice.stage, micro, speed) == (2, 64, 150.0)
    assert [stage for stage, _ in made] == [0, 0, 1, 2, 2, 3]
    assert len(made) <= 28 // 3


def test_trials_without_memory_are_not_counted():
    """The plan said 64 and 32 is what fits: 16, which is faster, is still tried."""
    speeds = {64: None, 32: 100.0, 16: 200.0, 8: 150.0}
    assert search([way()], lambda _, micro: speeds[micro])[1:] == (16, 200.0)


def test_a_way_that_fails_for_another_reason_is_left_at_once():
    made = []

    def trial(way, micro):
        made.append((way.choice.stage, micro))
        if way.choice.stage != 2:
            raise Unfit
        return float(micro)

    best = search([way(stage=stage) for stage in (1, 2, 3)], trial)
    assert (best[0].choice.stage, best[1]) == (2, 64)
    assert [stage for stage, _ in made].count(1) == [stage for stage, _ in made].count(3) == 1


def test_what_has_run_counts_when_another_size_fails():
    def trial(way, micro):
        if micro != 64:
            raise Unfit
        return 100.0

    assert search([way()], trial)[1:] == (64, 100.0)


def test_a_job_file_that_cannot_be_written_is_refused_before_the_first_trial(bench, capsys):
    path = bench.job()
    # one parser takes both, the other none
    path.write_text(path.read_text() + "checkpoint: {<<: {keep: 1}, <<: {steps: 5}}\n")
    assert main(["tune", str(path)]) == 2
    assert "cannot be written again" in capsys.readouterr().err


def test_a_way_that_does_not_run_costs_one_trial():
    def trial(way, micro):
        return None if way.choice.stage else float(micro)

    made = []
    best = search([way(), way(stage=3)], lambda *asked: made.append(asked) or trial(*asked))
    assert best[0].choice.stage == 0 and [asked[0].choice.stage for asked in made] == [0, 0, 3]


JOB_FILE = """\
# Mine.
model: 'bert-large-uncased'   # the large one
train: {epochs: 3, global_batch: 64}
ranks: 2
output: out
"""


def test_the_job_file_keeps_its_comments():
    made = rewritten(JOB_FILE, {"train.micro_batch": 16, "zero.stage": 2, "zero.offload_optimizer": "none"})
    assert made.startswith(JOB_FILE.splitlines()[0] + "\n" + JOB_FILE.splitlines()[1] + "\n")
    assert "train: {epochs: 3, global_batch: 64, micro_batch: 16}\n" in made
    assert yaml.safe_load(made)["zero"] == {"stage": 2, "offload_optimizer": "none"}


def test_what_is_searched(bench, monkeypatch):
    resolved = checks.check(bench.job(train__global_batch=24, train__micro_batch=4))
    ways = tuning.ways(resolved, bench.folder / "job.yml", [])
    assert ways == [Way(Sharding(0), False, (1, 2, 3, 4, 6, 12), 4)]
    both = tuning.ways(resolved, bench.folder / "job.yml", ["stage", "checkpointing"])
    assert [(way.choice.stage, way.checkpointing) for way in both] == [(s, c) for s in range(4) for c in (False, True)]
    offloads = tuning.ways(resolved, bench.folder / "job.yml", ["stage", "offload"])
    assert {str(way.choice.optimizer) for way in offloads} == {"none", "cpu"}, "no folder is named for NVMe"
    monkeypatch.setattr(tuning, "predicted", lambda resolved, file: 12 if resolved.stage == 3 else 0)
    there = tuning.ways(replace(resolved, host=Host(gpus=2, bf16=True)), bench.folder / "job.yml", ["stage"])
    assert [(way.choice.stage, way.first)
            for way in there] == [(0, 1), (3, 12)], "its own way stays, whatever the plan says"
    monkeypatch.setattr(tuning, "predicted", lambda resolved, file: None)
    there = tuning.ways(replace(resolved, host=Host(gpus=2, bf16=True)), bench.folder / "job.yml", ["stage"])
    assert [(way.choice.stage, way.first)
            for way in there] == [(stage, 4) for stage in range(4)], "where nothing can be told, as it was"


def test_an_exhaustive_search_tries_the_rest_once_and_says_how_good_the_search_was(bench, monkeypatch, capsys):
    speeds = {1: 10.0, 2: 20.0, 3: 30.0, 4: 100.0, 6: 60.0, 12: 125.0}  # two hills: the search stays on the first

    def trial(self, way, micro):
        self.trials.append({"way": str(way), "micro_batch": micro, "samples_per_second": speeds[micro]})
        return speeds[micro]

    monkeypatch.setattr(Tuning, "_trial", trial)
    path = bench.job(train__global_batch=24, train__micro_batch=4)
    link = bench.folder / "link.yml"
    link.symlink_to(path)
    path.chmod(0o600)
    assert main(["tune", str(link), "--exhaustive", "--json", "--ranks", "2"]) == 0
    assert link.is_symlink() and path.stat().st_mode & 0o777 == 0o600
    made = json.loads(capsys.readouterr().out)
    assert sorted(trial["micro_batch"] for trial in made["trials"]) == sorted(speeds)
    assert made["search"] == {"train.micro_batch": 4, "ranks": 2, "samples_per_second": 100.0, "trials": 2,
                              "share_of_best": 0.8}
    assert made["chosen"] == {"train.micro_batch": 12, "ranks": 2, "samples_per_second": 125.0}
    assert yaml.safe_load(path.read_text())["train"]["micro_batch"] == 12


def test_an_interrupted_search_keeps_what_it_has_seen_and_leaves_no_run_behind(bench, monkeypatch):
    from debzero.bench import run as runs

    monkeypatch.setattr(runs.Watch, "look", interrupted)
    path = bench.job(train__global_batch=24, train__micro_batch=4)
    before = path.read_text()
    assert main(["tune", str(path)]) == 130
    assert path.read_text() == before
    left = {found.name for found in (bench.folder / "out-job-tune" / "runs" / "1").iterdir()}
    assert left == {"job.yml", "train.log"}, "neither the run's output nor its swapped tensors"


def test_a_trial_is_on_the_disk_before_the_next_one(bench, monkeypatch):
    made = []

    def measure(*_):
        file = bench.folder / "out-job-tune" / "tune.json"
        made.append(len(json.loads(file.read_text())["trials"]) if file.is_file() else 0)
        return Run(segments=[{"steps": 1, "samples": 24, "seconds": 1.0}], memory_bytes=[1])

    monkeypatch.setattr(tuning, "measure", measure)
    assert main(["tune", str(bench.job(train__global_batch=24, train__micro_batch=4)), "--dry-run"]) == 0
    assert made == [0, 1]


@pytest.fixture
def trials(monkeypatch):
    """What the trials of the following starts end with, then MEASURED; and the micro-batches that were asked for."""
    answers, asked = [], []

    def measure(job, *_):
        asked.append(job["train"]["micro_batch"])
        answer = answers.pop(0) if answers else MEASURED
        if isinstance(answer, BaseException):
            raise answer
        return answer

    monkeypatch.setattr(tuning, "measure", measure)
    # This process makes all starts, and would stand in its own way.
    monkeypatch.setattr(Output, "lock", lambda self: self.folder.mkdir(exist_ok=True))
    return answers, asked


def test_an_interrupted_search_goes_on_with_its_trials_and_an_ended_one_begins_anew(bench, trials, capsys):
    answers, asked = trials
    answers += [MEASURED, KeyboardInterrupt(), Run(kind="failed", reason="a cable"),
                Run(kind="memory", reason="out of memory"), MEASURED]
    command = ["tune", str(bench.job(train__global_batch=24, train__micro_batch=4)), "--dry-run", "--limit", "3"]
    assert main(command) == 130 and asked == [4, 3]
    assert main(command) == 0 and asked == [4, 3, 3, 6], "the interrupted one is tried again, what was measured is not"
    assert "micro-batch 4  measured before  24 samples/s" in capsys.readouterr().out
    ended = len(asked)
    assert main(command) == 0 and asked[ended] == 4


def test_trials_of_other_ranks_are_not_taken_for_these(bench, trials):
    answers, asked = trials
    answers += [MEASURED, KeyboardInterrupt()]
    command = ["tune", str(bench.job(train__global_batch=24, train__micro_batch=4)), "--dry-run"]
    assert main(command) == 130 and asked == [4, 3]
    assert main([*command, "--ranks", "1"]) == 0 and asked[2] == 4


def test_a_job_with_its_own_json_is_refused(bench, capsys):
    path = bench.job(deepspeed={"train_micro_batch_size_per_gpu": 8, "zero_optimization": {"stage": 2}})
    assert main(["tune", str(path)]) == 2
    assert "deepspeed" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--search", "micro"], ["--steps", "0"]])
def test_bad_options_are_refused(bench, arguments):
    with pytest.raises(SystemExit) as ended:
        main(["tune", str(bench.job()), *arguments])
    assert ended.value.code == 2


def test_a_real_search_writes_what_it_found_and_the_job_still_trains(bench):
    path = bench.job(train__micro_batch=None, train__max_steps=3)
    before = path.read_text()
    done = bench.run("tune", path, "--steps", "4", "--warmup", "2", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    made = json.loads(done.stdout)
    assert len(made["trials"]) == 2 and made["sweep"] == len(divisors(16)), made
    best = max(made["trials"], key=lambda trial: trial["samples_per_second"])
    assert made["chosen"]["samples_per_second"] * BETTER >= best["samples_per_second"]
    assert yaml.safe_load(path.read_text()) == {**yaml.safe_load(before), "train": {
        **yaml.safe_load(before)["train"], "micro_batch": made["chosen"]["train.micro_batch"]}}
    assert bench.run("check", path).returncode == 0
    assert not (bench.folder / "out-job").exists(), "the job itself has not begun"
