"""`debzero tune`: the search by itself on invented hosts, the job file that it writes, and a real search on the CPU."""
from __future__ import annotations

import json
from dataclasses import replace

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from support import SOURCE

from debzero.check import checks
from debzero.cli import main
from debzero.job.batch import divisors
from debzero.measure import run as runs
from debzero.measure.records import MeasuredRun, Segment
from debzero.plan.hardware import Hardware
from debzero.plan.largest_micro import predicted
from debzero.resolve.host import HostGpus
from debzero.resolve.sharding import Sharding
from debzero.run.folder import RunFolder
from debzero.tune import tuning, ways
from debzero.tune.job_file import with_values
from debzero.tune.search import BETTER, Unfit, Way, climb, search
from debzero.tune.trials import read_trials

PUBLISHED = SOURCE.parents[1] / "docs" / "benchmarks" / "tune.json"
SIZES = tuple(divisors(64))
MEASURED = MeasuredRun(segments=(Segment(steps=1, samples=24, seconds=1.0),), memory_bytes=(1,))


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
    assert len({size for _, size in host.trials}) == len(host.trials), "a trial was run twice"


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
    four = [way(stage=stage) for stage in (0, 1, 2, 3)]
    speeds = {0: 100.0, 1: 90.0, 2: 150.0, 3: 80.0}
    tried = []

    def trial(way, micro):
        tried.append((way.sharding.stage, micro))
        return speeds[way.sharding.stage] * micro / 64

    best, micro, speed = search(four, trial)
    assert (best.sharding.stage, micro, speed) == (2, 64, 150.0)
    assert [stage for stage, _ in tried] == [0, 0, 1, 2, 2, 3]
    assert len(tried) <= 28 // 3


def test_trials_without_memory_are_not_counted():
    """The plan said 64 and 32 is what fits: 16, which is faster, is still tried."""
    speeds = {64: None, 32: 100.0, 16: 200.0, 8: 150.0}
    assert search([way()], lambda _, micro: speeds[micro])[1:] == (16, 200.0)


def test_a_way_that_fails_for_another_reason_is_left_at_once():
    tried = []

    def trial(way, micro):
        tried.append((way.sharding.stage, micro))
        if way.sharding.stage != 2:
            raise Unfit
        return float(micro)

    best = search([way(stage=stage) for stage in (1, 2, 3)], trial)
    assert (best.way.sharding.stage, best[1]) == (2, 64)
    assert [stage for stage, _ in tried].count(1) == [stage for stage, _ in tried].count(3) == 1


def test_what_has_run_counts_when_another_size_fails():
    def trial(way, micro):
        if micro != 64:
            raise Unfit
        return 100.0

    assert search([way()], trial)[1:] == (64, 100.0)


@pytest.mark.parametrize("line", ["checkpoint: {<<: {keep: 1}, <<: {steps: 5}}", "zero: {nvme_path: 2024-13-01}"])
def test_a_job_file_that_cannot_be_rewritten_is_refused_before_the_first_trial(bench, capsys, line):
    path = bench.job()
    # debzero's parser takes it, the one that keeps comments does not
    path.write_text(f"{path.read_text()}{line}\n")
    assert main(["tune", str(path)]) == 2
    error = capsys.readouterr().err
    assert "cannot be rewritten" in error and "fix the line" in error


def test_a_way_that_does_not_run_costs_one_trial():
    def trial(way, micro):
        return None if way.sharding.stage else float(micro)

    tried = []
    best = search([way(), way(stage=3)], lambda *asked: tried.append(asked) or trial(*asked))
    assert best.way.sharding.stage == 0 and [asked[0].sharding.stage for asked in tried] == [0, 0, 3]


JOB_FILE = """\
# Mine.
model: 'bert-large-uncased'   # the large one
train: {epochs: 3, global_batch: 64}
ranks: 2
output: out
"""


def test_the_job_file_keeps_its_comments():
    text = with_values(JOB_FILE, {"train.micro_batch": 16, "zero.stage": 2, "zero.offload_optimizer": "none"})
    assert text.startswith(JOB_FILE.splitlines()[0] + "\n" + JOB_FILE.splitlines()[1] + "\n")
    assert "train: {epochs: 3, global_batch: 64, micro_batch: 16}\n" in text
    assert yaml.safe_load(text)["zero"] == {"stage": 2, "offload_optimizer": "none"}


def test_what_is_searched(bench, monkeypatch):
    resolved = checks.check(bench.job(train__global_batch=24, train__micro_batch=4))
    assert ways.ways(resolved, bench.folder / "job.yml", []) == [Way(Sharding(0), False, (1, 2, 3, 4, 6, 12), 4)]
    both = ways.ways(resolved, bench.folder / "job.yml", ["stage", "checkpointing"])
    expected = [(stage, checkpointing) for stage in range(4) for checkpointing in (False, True)]
    assert [(way.sharding.stage, way.checkpointing) for way in both] == expected
    offloads = ways.ways(resolved, bench.folder / "job.yml", ["stage", "offload"])
    assert {way.sharding.offload_optimizer for way in offloads} == {"none", "cpu"}, "no folder is named for NVMe"
    monkeypatch.setattr(ways, "predicted", lambda resolved, file: 12 if resolved.stage == 3 else 0)
    there = ways.ways(replace(resolved, host=HostGpus(gpus=2, bf16=True)), bench.folder / "job.yml", ["stage"])
    assert [(way.sharding.stage, way.first)
            for way in there] == [(0, 1), (3, 12)], "its own way stays, whatever the plan says"
    monkeypatch.setattr(ways, "predicted", lambda resolved, file: None)
    there = ways.ways(replace(resolved, host=HostGpus(gpus=2, bf16=True)), bench.folder / "job.yml", ["stage"])
    assert [(way.sharding.stage, way.first)
            for way in there] == [(stage, 4) for stage in range(4)], "without a prediction, the job's own micro-batch"


def test_a_divided_model_is_searched_with_the_engine_that_it_has(bench, monkeypatch):
    job = bench.job(train__global_batch=64, train__micro_batch=None, ranks=4, parallel__pipeline=2,
                    model__num_hidden_layers=2)
    resolved = checks.check(job)
    (own,) = ways.ways(resolved, job, ["offload", "favour", "engine"])
    assert own == Way(Sharding(0), False, (1, 2, 4, 8, 16, 32), 4), "two copies; four micro-batches for each stage"
    assert [way.sharding for way in ways.ways(resolved, job, ["stage", "offload"])] == [Sharding(0), Sharding(1)]
    on_gpus = replace(resolved, host=HostGpus(gpus=4, bf16=True))
    sizes = {"gpu_memory": 2**40, "ram": 2**40, "gpus": 4, "nvme": 0, "bf16": True, "source": ""}
    assert predicted(on_gpus, job, Hardware(**sizes)) == 4, "the largest that keeps the stages busy"
    assert predicted(on_gpus, job, Hardware(**{**sizes, "gpu_memory": 2**30})) == 0


def test_a_divided_model_is_measured_on_all_its_ranks(bench, warm_runs, capsys):
    path = bench.job(train__global_batch=8, train__micro_batch=2, parallel__pipeline=2, model__num_hidden_layers=2)
    assert main(["tune", str(path), "--steps", "1", "--warmup", "1", "--json"]) == 0
    written = json.loads(capsys.readouterr().out)
    assert [len(trial["memory_bytes"]) for trial in written["trials"]] == [2, 2], written
    assert written["settings"]["ranks"] == 2 and written["sweep"] == len(divisors(8)), "both ranks train one copy"
    values = yaml.safe_load(path.read_text())
    assert values["train"]["micro_batch"] == written["chosen"]["train.micro_batch"]
    assert values["parallel"] == {"pipeline": 2}


def test_an_exhaustive_search_tries_the_rest_once_and_says_how_good_the_search_was(bench, monkeypatch, capsys):
    speeds = {1: 10.0, 2: 20.0, 3: 30.0, 4: 100.0, 6: 60.0, 12: 125.0}  # two hills: the search stays on the first

    def measure(job, *_):
        micro = job.train.micro_batch
        return replace(MEASURED, segments=(Segment(steps=1, samples=speeds[micro], seconds=1.0),))

    monkeypatch.setattr(tuning, "measure", measure)
    path = bench.job(train__global_batch=24, train__micro_batch=4)
    link = bench.folder / "link.yml"
    link.symlink_to(path)
    path.chmod(0o600)
    assert main(["tune", str(link), "--exhaustive", "--json", "--ranks", "2"]) == 0
    assert link.is_symlink() and path.stat().st_mode & 0o777 == 0o600
    written = json.loads(capsys.readouterr().out)
    assert sorted(trial["micro_batch"] for trial in written["trials"]) == sorted(speeds)
    assert written["search"] == {"train.micro_batch": 4, "ranks": 2, "samples_per_second": 100.0, "trials": 2,
                              "share_of_best": 0.8}
    assert written["chosen"] == {"train.micro_batch": 12, "ranks": 2, "samples_per_second": 125.0}
    assert yaml.safe_load(path.read_text())["train"]["micro_batch"] == 12


def test_an_interrupted_search_keeps_what_it_has_seen_and_leaves_no_run_behind(bench, monkeypatch):
    monkeypatch.setattr(runs.MemoryWatch, "poll", interrupted)
    path = bench.job(train__global_batch=24, train__micro_batch=4)
    before = path.read_text()
    assert main(["tune", str(path)]) == 130
    assert path.read_text() == before
    left = {found.name for found in (bench.folder / "out-job-tune" / "runs" / "1").iterdir()}
    assert left == {"job.yml", "train.log"}, "neither the run's output nor its swapped tensors"


def test_a_trial_is_on_the_disk_before_the_next_one(bench, monkeypatch):
    kept = []

    def measure(*_):
        file = bench.folder / "out-job-tune" / "tune.json"
        kept.append(len(read_trials(file)) if file.is_file() else 0)
        return MEASURED

    monkeypatch.setattr(tuning, "measure", measure)
    assert main(["tune", str(bench.job(train__global_batch=24, train__micro_batch=4)), "--dry-run"]) == 0
    assert kept == [0, 1]


@pytest.fixture
def trials(monkeypatch):
    """What the trials of the following starts end with, in order (then MEASURED); and the micro-batches tried."""
    answers, asked = [], []

    def measure(job, *_):
        asked.append(job.train.micro_batch)
        answer = answers.pop(0) if answers else MEASURED
        if isinstance(answer, BaseException):
            raise answer
        return answer

    monkeypatch.setattr(tuning, "measure", measure)
    # This process does all starts, and would find its own lock.
    monkeypatch.setattr(RunFolder, "lock", lambda self: self.folder.mkdir(exist_ok=True))
    return answers, asked


def test_an_interrupted_search_resumes_with_its_trials_and_an_ended_one_starts_over(bench, trials, capsys):
    answers, asked = trials
    answers += [MEASURED, KeyboardInterrupt(), MeasuredRun("failed", "a cable"),
                MeasuredRun("memory", "out of memory"), MEASURED]
    command = ["tune", str(bench.job(train__global_batch=24, train__micro_batch=4)), "--dry-run", "--limit", "3"]
    assert main(command) == 130 and asked == [4, 3]
    assert main(command) == 0 and asked == [4, 3, 3, 6], "the interrupted one is tried again, what was measured is not"
    assert "micro-batch 4  measured before  24 samples/s" in capsys.readouterr().out
    ended = len(asked)
    assert main(command) == 0 and asked[ended] == 4


def test_trials_with_other_ranks_do_not_count(bench, trials):
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


def test_a_damaged_tune_json_is_bad_input(bench, trials, capsys):
    answers, _ = trials
    answers += [MEASURED, KeyboardInterrupt()]
    command = ["tune", str(bench.job(train__global_batch=24, train__micro_batch=4)), "--dry-run"]
    assert main(command) == 130
    file = bench.folder / "out-job-tune" / "tune.json"
    values = json.loads(file.read_text())
    values["trials"][0]["micro_batch"] = "four"
    file.write_text(json.dumps(values))
    assert main(command) == 2
    error = capsys.readouterr().err
    assert str(file) in error and "micro_batch" in error and "must be a whole number, not a text" in error


def test_the_published_search_is_read():
    assert [trial.key for trial in read_trials(PUBLISHED)][:2] == [("plain DDP", 64), ("plain DDP", 32)]
    for trial, written in zip(read_trials(PUBLISHED), json.loads(PUBLISHED.read_text())["trials"]):
        assert json.loads(json.dumps(trial.as_json())) == {
            "favour": "memory", "engine": "auto", "compile": "auto", "bucket": None, "overlap": None, "live": None,
            "prefetch": None, "fell_out": False, **written}, "of a release without them"


@pytest.mark.slow
def test_a_real_search_writes_what_it_found_and_the_job_still_checks(bench, capsys):
    path = bench.job(train__global_batch=8, train__micro_batch=None, train__max_steps=3)
    before = yaml.safe_load(path.read_text())
    assert main(["tune", str(path), "--steps", "2", "--warmup", "2", "--json"]) == 0
    written = json.loads(capsys.readouterr().out)
    assert len(written["trials"]) == 2 and written["sweep"] == len(divisors(4)), written
    assert all(len(trial["memory_bytes"]) == 2 for trial in written["trials"]), "each rank's peak"
    best = max(trial["samples_per_second"] for trial in written["trials"])
    assert written["chosen"]["samples_per_second"] * BETTER >= best
    micro = written["chosen"]["train.micro_batch"]
    assert yaml.safe_load(path.read_text()) == {**before, "train": {**before["train"], "micro_batch": micro}}
    assert main(["check", str(path)]) == 0
    assert not (bench.folder / "out-job").exists(), "the job itself has not begun"
