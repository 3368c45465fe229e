"""`debzero bench`: what it measures, and what it does with runs that fail or are interrupted."""
import json
import os
import signal
import subprocess
import sys
import time
from argparse import Namespace
from dataclasses import replace
from types import SimpleNamespace

import psutil
import pytest
import yaml
from bench_results import GB, failed, run
from support import SOURCE

from debzero.base.errors import InputError
from debzero.bench import page, results, runner, tables
from debzero.bench.configurations import chosen, problems, with_own
from debzero.bench.predict import read_plan
from debzero.bench.results import Configuration, Prediction, load
from debzero.check import checks
from debzero.cli import main, parser
from debzero.job.batch import Batch
from debzero.resolve.host import HostGpus
from debzero.resolve.sharding import Sharding
from debzero.tune import tuning

OPTIONS = {"job": None, "ranks": None, "share_gpu": False, "steps": 4, "warmup": 2, "repeats": 3, "limit": 5,
           "again": False, "json": False, "cap": None, "name": None}


def test_the_configurations_are_those_that_deepspeed_has():
    names = [configuration.name for configuration in chosen(["none", 1, 2, 3], ["none", "cpu", "nvme"])]
    assert names == ["baseline", "zero1", "zero2", "zero3", "zero1-cpu", "zero2-cpu", "zero3-cpu", "zero3-nvme"]
    assert [c.name for c in chosen(["none", 3], ["cpu"])] == ["zero3-cpu"]
    assert Sharding(3, "cpu", "cpu").about == ("shards optimizer states, gradients and parameters; "
                                                    "optimizer states and parameters on the host")


def test_what_cannot_be_measured_is_refused_before_anything_runs(bench, capsys):
    job = bench.job()
    resolved = checks.check(job)
    assert problems(resolved, "x", ["none"], chosen(["none"], ["none"]), False) == []
    assert [p.key for p in problems(resolved, "x", ["nvme"], [], False)] == ["zero.nvme_path", "--stages"]
    shared = SimpleNamespace(job=resolved.job, layout=resolved.layout, shares_gpus=True, host=SimpleNamespace(gpus=1))
    assert [p.key for p in problems(shared, "x", ["none"], chosen([1], ["none"]), False)] == ["--ranks"]
    assert problems(shared, "x", ["none"], chosen([1], ["none"]), True) == []
    for arguments, key in ((["--stages", "none", "--offload", "cpu"], "--stages"),
                           (["--offload", "nvme"], "zero.nvme_path")):
        assert main(["bench", str(job), *arguments]) == 2
        assert key in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parser().parse_args(["bench", "job.yml", "--stages", "4"])


@pytest.fixture
def planned(bench, monkeypatch):
    """A bench whose runs end as a list says, in order; that list; and the runs that were started, in order."""
    asked, answers = [], []

    def measure(job, folder, warmup, limit, cap):
        asked.append(folder.name)
        folder.mkdir(parents=True, exist_ok=True)
        answer = answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    monkeypatch.setattr(runner, "measure", measure)
    job = bench.job()

    def start(*, stages=("none", 2), offloads=("none",), **options):
        given = Namespace(**{**OPTIONS, "job": job, **options})
        resolved = checks.check(job)
        asked = with_own(resolved, chosen(list(stages), list(offloads)))
        return runner.Bench(given, resolved, bench.folder / "results", asked)

    (bench.folder / "results").mkdir()
    return start, answers, asked


def test_repeats_take_turns_and_a_failing_row_is_not_the_end(planned, bench):
    start, answers, asked = planned
    answers += [run(8, 100), failed("memory", "CUDA out of memory"), run(8, 90), run(8, 120)]
    assert start().run() == 0
    assert asked == ["baseline-1", "zero2-1", "baseline-2", "baseline-3"]
    baseline, zero2 = results.load(bench.folder / "results").configurations
    speed = baseline.summary.samples_per_second
    assert (speed.median, speed.lowest, speed.highest, speed.spread) == pytest.approx((100, 90, 120, 0.3))
    assert zero2.summary is None and zero2.reason == "out of memory: CUDA out of memory"
    assert "out of memory: CUDA out of memory" in (bench.folder / "results" / "results.md").read_text()


def test_the_prediction_of_a_row_is_the_plans_for_its_sharding():
    choices = [{"stage": stage, "offload_optimizer": moved, "offload_param": "none", "peak_bytes": number,
                "parts": {"parameters": number}}
               for number, (stage, moved) in enumerate([("none", "none"), (2, "none"), (2, "cpu")])]
    found = read_plan(json.dumps({"choices": choices}), Sharding(0))
    assert found[Sharding(2, "cpu")] == Prediction(2, {"parameters": 2}) and Sharding(1) not in found


def test_the_prediction_of_a_divided_model_is_its_largest_stages():
    stages = [{"peak_bytes": size, "parts": {"parameters": size}} for size in (5, 9, 7)]
    facts = {"stages": stages, "largest_stage": 1, "peak_bytes": 9}
    assert read_plan(json.dumps(facts), Sharding(1)) == {Sharding(1): Prediction(9, {"parameters": 9})}


def test_a_divided_model_is_measured_beside_whole_ones_on_the_same_ranks(bench, warm_runs, capsys):
    job = bench.job(train__global_batch=8, train__micro_batch=8, parallel__tensor=2)
    folder = bench.folder / "results"
    assert main(["bench", str(job), "--steps", "1", "--warmup", "1", "--repeats", "1", "--stages", "none",
                 "-o", str(folder)]) == 0
    measured = results.load(folder)
    own, plain = measured.configurations
    assert (own.name, own.label, plain.name) == ("tensor2", "tensor 2", "baseline")
    assert own.configuration.about == "divides each layer over 2 ranks"
    assert [len(row.runs[0].memory_bytes) for row in (own, plain)] == [2, 2]
    jobs = [yaml.safe_load((folder / "runs" / f"{name}-1" / "job.yml").read_text()) for name in ("tensor2", "baseline")]
    assert [values["train"]["micro_batch"] for values in jobs] == [8, 4], "a copy on each rank has half of the batch"
    assert [values["parallel"]["tensor"] for values in jobs] == [2, 1]
    assert measured.settings.ranks == 2 and "2 ranks" in tables.title(measured)
    assert any("divided model" in note for note in tables.notes(measured))
    assert "tensor 2" in capsys.readouterr().out


def test_names_of_divisions():
    for parts, stage, name, label in (({"tensor": 2}, 0, "tensor2", "tensor 2"),
                                      ({"tensor": 2, "pipeline": 4}, 1, "tensor2-pipeline4-zero1",
                                       "tensor 2 x pipeline 4, ZeRO-1")):
        one = Configuration(Sharding(stage), **parts)
        assert (one.name, one.label) == (name, label)
        assert results.Row(**one.as_dict()).as_json()["name"] == name
    assert Configuration(Sharding(1), pipeline=4).about == (
        "divides the layers over 4 stages; shards optimizer states")


def test_ranks_that_do_not_divide_the_batch_are_refused_for_the_whole_copies(bench, capsys):
    job = bench.job(train__global_batch=6, train__micro_batch=3, ranks=4, parallel__tensor=2)
    assert main(["bench", str(job)]) == 2
    assert "undivided configurations" in " ".join(capsys.readouterr().err.split())


def test_nothing_measured_is_a_failure(planned):
    start, answers, _ = planned
    answers += [failed("failed", "a"), failed("refused", "b")]
    assert start().run() == 1


def test_one_rank_is_measured_where_several_have_a_gpu_each(planned, monkeypatch):
    start, answers, asked = planned
    began = start(stages=["none"], repeats=2)
    both = HostGpus(2, True)
    monkeypatch.setattr(began, "resolved", replace(began.resolved, host=both, batch=Batch(32, 8, 2, 2)))
    monkeypatch.setattr(runner, "predictions", lambda *asked: {})
    derived = []
    measure = runner.measure
    monkeypatch.setattr(runner, "measure", lambda job, *how: derived.append(job) or measure(job, *how))
    answers += [run(8, 100, ranks=1), run(8, 110), run(8, 100, ranks=1), run(8, 110)]
    assert began.run() == 0 and asked == ["alone-1", "baseline-1", "alone-2", "baseline-2"]
    assert (derived[0].ranks, derived[0].train.global_batch, derived[0].train.micro_batch) == (1, 16, 8)
    assert "plain DDP: more ranks do not pay (55% is below 60%)" in (
        began.folder / "results.md").read_text().replace("\\", "")
    assert load(began.folder).alone.repeats == 2


def test_an_interrupted_bench_resumes_and_another_setting_starts_over(planned, bench, capsys):
    start, answers, asked = planned
    answers += [run(8, 100), KeyboardInterrupt()]
    with pytest.raises(KeyboardInterrupt):
        start(repeats=1).run()
    answers += [run(5, 80)]
    assert start(repeats=1).run() == 0
    assert asked == ["baseline-1", "zero2-1", "zero2-1"]
    assert "continuing with" in capsys.readouterr().out
    assert start(repeats=1).run() == 0 and len(asked) == 3      # nothing is left to do
    answers += [run(4, 70)]
    assert start(repeats=1, stages=[3]).run() == 0              # another row, beside those that are there
    rows = {row.name: row.summary.memory_bytes for row in results.load(bench.folder / "results").configurations}
    assert rows == {"baseline": 8 * GB, "zero2": 5 * GB, "zero3": 4 * GB}
    answers += [run(8, 100), run(8, 100)]
    assert start(repeats=1, steps=6).run() == 0                 # other figures: not to be mixed with the first
    assert [len(row.runs) for row in results.load(bench.folder / "results").configurations] == [1, 1]
    assert [path.name for path in (bench.folder / "results" / "archive").glob("*/results.json")] == ["results.json"]


def test_what_else_lies_in_the_folder_stays_there(planned, bench):
    start, answers, _ = planned
    (bench.folder / "results" / "thesis.tex").touch()
    answers += [run(8, 100)] * 4
    assert start(repeats=1).run() == start(repeats=1, steps=6).run() == 0
    assert {path.name for path in (bench.folder / "results").iterdir()} == {"archive", "runs", "thesis.tex",
                                                                            *page.FILES}


def test_all_commands_that_measured_the_figures_are_shown(planned, bench, monkeypatch):
    start, answers, _ = planned
    answers += [run(8, 100), run(5, 80)]
    for words in (["bench", "job.yml", "--stages", "none"], ["bench", "job.yml", "--stages", "2"],
                  ["bench", "job.yml", "--stages", "2"]):
        monkeypatch.setattr(sys, "argv", ["debzero", *words])
        start(repeats=1, stages=["none" if words[-1] == "none" else 2]).run()
    measured = results.load(bench.folder / "results")
    assert measured.command == "debzero bench job.yml --stages none\ndebzero bench job.yml --stages 2"
    markdown = tables.as_markdown(measured)
    assert "`debzero bench job.yml --stages none` and `debzero bench job.yml --stages 2`" in markdown


def test_results_name_the_host_as_asked_and_no_folder_of_it(planned, bench):
    start, answers, _ = planned
    answers += [run(8, 100)]
    start(repeats=1, stages=["none"], name="gpu1").run()
    text = (bench.folder / "results" / "results.json").read_text()
    values = json.loads(text)
    assert values["host"]["name"] == "gpu1" and str(bench.folder) not in text
    assert (values["job"]["data"]["dataset"], values["job"]["output"]) == ("./rows.csv", "./out-job")


def test_a_longer_limit_is_another_chance(planned):
    start, answers, asked = planned
    answers += [replace(failed("time", "not done after 1 minutes"), wall_seconds=60.2), run(8, 100)]
    assert start(repeats=1, stages=["none"], limit=1).run() == 1
    assert start(repeats=1, stages=["none"], limit=1).run() == 1 and len(asked) == 1
    assert start(repeats=1, stages=["none"], limit=2).run() == 0 and len(asked) == 2


def test_a_new_start_tries_again_what_someone_may_have_fixed(planned, bench):
    start, answers, asked = planned
    answers += [run(8, 100), failed("refused", "the swap folder does not exist"),
                failed("memory", "CUDA out of memory")]
    start(repeats=1, stages=["none", 2, 3]).run()
    start(repeats=1, stages=["none"]).run()
    zero2 = results.load(bench.folder / "results").configurations[1]
    assert zero2.runs, "the reason of a row that is not asked for stays"
    answers += [run(5, 80)]
    start(repeats=1, stages=["none", 2, 3]).run()
    assert asked == ["baseline-1", "zero2-1", "zero3-1", "zero2-1"], "out of memory is a result"
    zero2 = results.load(bench.folder / "results").configurations[1]
    assert [found.kind for found in zero2.runs] == ["measured"] and zero2.summary.memory_bytes == 5 * GB


def test_figures_of_changed_data_are_not_mixed(planned, bench):
    start, answers, asked = planned
    answers += [run(8, 100), run(5, 80)]
    start(repeats=1).run()
    with open(bench.folder / "rows.csv", "a") as file:
        file.write("the red hammer,tool\n")
    answers += [run(8, 100), run(5, 80)]
    start(repeats=1).run()
    assert len(asked) == 4


@pytest.mark.parametrize("command", ["bench", "tune"])
def test_what_a_killed_start_has_left_does_not_run_beside_the_next(bench, monkeypatch, command):
    job = bench.job()
    output = bench.folder / f"out-job-{command}" / "runs" / "another" / "out"
    hold = ("import time; from debzero.run.folder import RunFolder; "
            f"RunFolder({str(output)!r}).lock(); print('held', flush=True); time.sleep(600)")
    left = subprocess.Popen([sys.executable, "-c", hold], env={**os.environ, "PYTHONPATH": str(SOURCE)},
                            stdout=subprocess.PIPE)
    assert left.stdout.readline() == b"held\n"

    def measure(*_):
        assert not psutil.pid_exists(left.pid)
        return run(8, 100)

    monkeypatch.setattr(runner, "measure", measure)
    monkeypatch.setattr(tuning, "measure", measure)
    assert main([command, str(job)]) == 0
    assert not psutil.pid_exists(left.pid)


def test_a_folder_that_cannot_be_is_bad_input(bench, capsys):
    for folder in (bench.folder / "rows.csv", "/proc/bench"):
        assert main(["bench", str(bench.job()), "-o", str(folder)]) == 2
        assert "no folder that this user may write to" in capsys.readouterr().err


def test_earlier_results_that_cannot_be_read_are_named_and_again_archives_them(planned, bench, capsys):
    start, answers, _ = planned
    file = bench.folder / "results" / "results.json"
    file.write_text('{"format": 1}')
    with pytest.raises(InputError, match="identity: is missing"):
        start()
    assert file.read_text() == '{"format": 1}'
    answers += [run(8, 100)]
    assert start(repeats=1, stages=["none"], again=True).run() == 0
    assert [path.read_text() for path in file.parent.glob("archive/*/results.json")] == ['{"format": 1}']


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_real_bench_that_is_interrupted_ends_with_all_its_figures(bench, capsys):
    folder = bench.folder / "results"
    arguments = ["bench", str(bench.job(ranks=1)), "--stages", "none,1", "--offload", "none", "--steps", "4",
                 "--warmup", "2", "--repeats", "1", "-o", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen([sys.executable, "-m", "debzero", *arguments], env=environment, cwd=bench.folder)
    deadline = time.monotonic() + 200
    while not (folder / "runs" / "zero1-1").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(bench.folder) in " ".join(p.info["cmdline"] or [])]
    first = results.load(folder).configurations[0]
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((folder / "results.json").read_text())
    measured = results.load(folder)
    assert measured.configurations[0] == first, "what was measured is kept"
    for row in measured.configurations:
        (one,) = row.runs
        assert sum(segment.steps for segment in one.segments) == 4
        assert sum(segment.samples for segment in one.segments) == 4 * 32
        assert row.summary.memory_bytes > 2**27 and row.summary.samples_per_second.median > 0
        left = {path.name for path in (folder / "runs" / f"{row.name}-1").iterdir()}
        assert left == {"job.yml", "train.log", "metrics.jsonl"}, "neither checkpoints nor models stay"
    assert main(["bench", "--render", str(folder)]) == 0
