"""`debzero bench`: the jobs it derives, what it does with runs that fail or are interrupted, and its arithmetic."""
import json
import os
import signal
import subprocess
import sys
import time
from argparse import Namespace
from contextlib import suppress

import psutil
import pytest
import yaml
from bench_results import GB, failed, run, sample
from support import SOURCE

from debzero import tune
from debzero.bench import page, results, runner
from debzero.bench.configurations import chosen, problems
from debzero.bench.predict import prediction
from debzero.check import checks
from debzero.cli import main, parser
from debzero.measure import run as runs
from debzero.measure.derive import derive
from debzero.measure.run import per_second
from debzero.resolve.sharding import Sharding
from debzero.run.folder import Output

OPTIONS = {"job": None, "ranks": None, "share_gpu": False, "steps": 4, "warmup": 2, "repeats": 3, "limit": 5,
           "again": False, "json": False, "cap": None, "name": None}


def test_the_configurations_are_those_that_deepspeed_has():
    names = [configuration.name for configuration in chosen(["none", 1, 2, 3], ["none", "cpu", "nvme"])]
    assert names == ["baseline", "zero1", "zero2", "zero3", "zero1-cpu", "zero2-cpu", "zero3-cpu", "zero3-nvme"]
    assert [c.name for c in chosen(["none", 3], ["cpu"])] == ["zero3-cpu"]
    assert Sharding(3, "cpu", "cpu").about == ("shards optimizer states, gradients and parameters; "
                                                    "optimizer states and parameters on the host")


def test_a_derived_job_differs_in_what_is_compared_alone(bench):
    resolved = checks.check(bench.job(zero__stage=2, train__evaluate_every=1, train__select="best",
                                  deepspeed={"gradient_clipping": 0.5}))
    made = derive(resolved, Sharding(3, "cpu", "cpu"), str(bench.folder / "out"), 10, 20)
    path = bench.folder / "derived.yml"
    path.write_text(yaml.safe_dump(made))
    derived = checks.check(path)
    assert (derived.stage, derived.job.zero.offload_optimizer, derived.job.zero.offload_param) == (3, "cpu", "cpu")
    assert derived.batch == resolved.batch and derived.precision == resolved.precision
    assert derived.job.data == resolved.job.data.model_copy(update={"padding": "max_length"}), "steps of other lengths would be compiled for"
    assert derived.job.train.gradient_clipping == 0.5 and derived.deepspeed is None
    assert (derived.job.train.max_steps, derived.job.train.log_every, derived.job.train.select) == (30, 10, "last")
    assert derived.job.train.evaluate_every is None
    baseline = bench.folder / "baseline.yml"
    baseline.write_text(yaml.safe_dump(derive(resolved, Sharding(0), str(bench.folder / "out"), 10, 20)))
    assert not checks.check(baseline).uses_deepspeed


def test_what_cannot_be_measured_is_said_before_anything_runs(bench, capsys):
    job = bench.job()
    resolved = checks.check(job)
    assert problems(resolved, "x", ["none"], chosen(["none"], ["none"]), False) == []
    assert [p.key for p in problems(resolved, "x", ["nvme"], [], False)] == ["zero.nvme_path", "--stages"]
    shared = type("ResolvedJob", (),
                  {"job": resolved.job, "batch": resolved.batch, "shares_gpus": True, "host": type("Host", (), {"gpus": 1})})
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
    """A bench whose runs are those of a list, in order; and what was asked for, in order."""
    asked, answers = [], []

    def measure(job, folder, warmup, limit, cap):
        asked.append(folder.name)
        folder.mkdir(parents=True, exist_ok=True)
        answer = answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return runs.Run(**answer)

    monkeypatch.setattr(runner, "measure", measure)
    job = bench.job()

    def start(*, stages=("none", 2), offloads=("none",), **options):
        made = Namespace(**{**OPTIONS, "job": job, **options})
        return runner.Bench(made, checks.check(job), bench.folder / "results", chosen(list(stages), list(offloads)))

    (bench.folder / "results").mkdir()
    return start, answers, asked


def test_repeats_take_turns_and_a_failing_row_is_not_the_end(planned, bench):
    start, answers, asked = planned
    answers += [run(8, 100), failed("memory", "CUDA out of memory"), run(8, 90), run(8, 120)]
    assert start().run() == 0
    assert asked == ["baseline-1", "zero2-1", "baseline-2", "baseline-3"]
    made = results.load(bench.folder / "results")
    baseline, zero2 = made["configurations"]
    assert baseline["summary"]["samples_per_second"] == pytest.approx({"median": 100, "lowest": 90, "highest": 120,
                                                                       "spread": 0.3})
    assert zero2["summary"] is None and results.reason(zero2) == "out of memory: CUDA out of memory"
    assert "out of memory: CUDA out of memory" in (bench.folder / "results" / "results.md").read_text()


def test_the_prediction_of_a_row_is_the_choice_with_its_stage_and_offload():
    choices = [{"stage": stage, "offload_optimizer": moved, "offload_param": "none", "peak_bytes": number,
                "parts": {"parameters": number}}
               for number, (stage, moved) in enumerate([("none", "none"), (2, "none"), (2, "cpu")])]
    assert prediction(choices, Sharding(2, "cpu").as_dict()) == {"total_bytes": 2, "parts": {"parameters": 2}}
    assert prediction(choices, Sharding(1).as_dict()) is None


def test_nothing_measured_is_a_failure(planned):
    start, answers, _ = planned
    answers += [failed("failed", "a"), failed("refused", "b")]
    assert start().run() == 1


def test_an_interrupted_bench_goes_on_and_another_setting_starts_anew(planned, bench, capsys):
    start, answers, asked = planned
    answers += [run(8, 100), KeyboardInterrupt()]
    with pytest.raises(KeyboardInterrupt):
        start(repeats=1).run()
    answers += [run(5, 80)]
    assert start(repeats=1).run() == 0
    assert asked == ["baseline-1", "zero2-1", "zero2-1"]
    assert "going on" in capsys.readouterr().out
    assert start(repeats=1).run() == 0 and len(asked) == 3      # nothing is left to do
    answers += [run(4, 70)]
    assert start(repeats=1, stages=[3]).run() == 0              # another row, beside those that are there
    rows = {row["name"]: row["summary"]["memory_bytes"]
            for row in results.load(bench.folder / "results")["configurations"]}
    assert rows == {"baseline": 8 * GB, "zero2": 5 * GB, "zero3": 4 * GB}
    answers += [run(8, 100), run(8, 100)]
    assert start(repeats=1, steps=6).run() == 0                 # other figures: not to be mixed with the first
    assert [len(row["runs"]) for row in results.load(bench.folder / "results")["configurations"]] == [1, 1]
    assert [path.name for path in (bench.folder / "results" / "archive").glob("*/results.json")] == ["results.json"]


def test_what_else_lies_in_the_folder_stays_there(planned, bench):
    start, answers, _ = planned
    (bench.folder / "results" / "thesis.tex").touch()
    answers += [run(8, 100)] * 4
    assert start(repeats=1).run() == start(repeats=1, steps=6).run() == 0
    assert {path.name for path in (bench.folder / "results").iterdir()} == {"archive", "runs", "thesis.tex",
                                                                            *page.FILES}


def test_all_commands_that_made_the_figures_are_shown(planned, bench, monkeypatch):
    start, answers, _ = planned
    answers += [run(8, 100), run(5, 80)]
    for words in (["bench", "job.yml", "--stages", "none"], ["bench", "job.yml", "--stages", "2"],
                  ["bench", "job.yml", "--stages", "2"]):
        monkeypatch.setattr(sys, "argv", ["debzero", *words])
        start(repeats=1, stages=["none" if words[-1] == "none" else 2]).run()
    made = results.load(bench.folder / "results")
    assert made["command"] == "debzero bench job.yml --stages none\ndebzero bench job.yml --stages 2"
    assert "`debzero bench job.yml --stages none` and `debzero bench job.yml --stages 2`" in results.as_markdown(made)


def test_results_name_the_host_and_the_job_as_they_are_to_be_known(planned, bench):
    start, answers, _ = planned
    answers += [run(8, 100)]
    start(repeats=1, stages=["none"], name="gpu1").run()
    text = (bench.folder / "results" / "results.json").read_text()
    made = json.loads(text)
    assert made["host"]["name"] == "gpu1" and str(bench.folder) not in text
    assert (made["job"]["data"]["dataset"], made["job"]["output"]) == ("./rows.csv", "./out-job")


def test_more_time_is_another_chance(planned):
    start, answers, asked = planned
    answers += [{**failed("time", "not done after 1 minutes"), "wall_seconds": 60.2}, run(8, 100)]
    assert start(repeats=1, stages=["none"], limit=1).run() == 1
    assert start(repeats=1, stages=["none"], limit=1).run() == 1 and len(asked) == 1
    assert start(repeats=1, stages=["none"], limit=2).run() == 0 and len(asked) == 2


def test_a_new_start_tries_again_what_somebody_may_have_mended(planned, bench):
    start, answers, asked = planned
    answers += [run(8, 100), failed("refused", "the swap folder does not exist"),
                failed("memory", "CUDA out of memory")]
    start(repeats=1, stages=["none", 2, 3]).run()
    start(repeats=1, stages=["none"]).run()
    assert results.load(bench.folder / "results")["configurations"][1]["runs"], "the reason of a row that is not asked for stays"
    answers += [run(5, 80)]
    start(repeats=1, stages=["none", 2, 3]).run()
    assert asked == ["baseline-1", "zero2-1", "zero3-1", "zero2-1"], "what memory did not suffice for is a result"
    zero2 = results.load(bench.folder / "results")["configurations"][1]
    assert [found["kind"] for found in zero2["runs"]] == ["measured"] and zero2["summary"]["memory_bytes"] == 5 * GB


def test_figures_of_changed_data_are_not_mixed(planned, bench):
    start, answers, asked = planned
    answers += [run(8, 100), run(5, 80)]
    start(repeats=1).run()
    with open(bench.folder / "rows.csv", "a") as file:
        file.write("the red hammer,tool\n")
    answers += [run(8, 100), run(5, 80)]
    start(repeats=1).run()
    assert len(asked) == 4


def test_a_summary_is_the_highest_memory_and_the_median_speed():
    found = results.summarize([run(5, 100, memory_bytes=[5 * GB, 4 * GB]), run(5, 140, memory_bytes=[3 * GB, 6 * GB]),
                               run(5, 110, memory_bytes=[1, 1]), failed("time", "late")])
    assert (found["repeats"], found["memory_bytes"], found["memory_bytes_per_rank"]) == (3, 6 * GB, [5 * GB, 6 * GB])
    assert found["samples_per_second"] == pytest.approx({"median": 110, "lowest": 100, "highest": 140,
                                                         "spread": 40 / 110})
    assert found["steps_per_second"]["median"] == pytest.approx(110 / 64)
    assert results.summarize([failed("time", "late")]) is None
    slow, fast = {"steps": 10, "samples": 640, "seconds": 9}, {"steps": 10, "samples": 640, "seconds": 1}
    assert per_second({"segments": [slow, fast]}, "samples") == 128  # not the mean of the segments' speeds


def test_the_reasons_of_failures_are_told_apart(bench, tmp_path):
    output = Output(str(tmp_path / "out"))
    output.folder.mkdir()
    output.update(state="failed", error="rank 1 failed: CUDA out of memory. Tried to\n  -> set a smaller")
    assert runs._failure(1, output, "log") == ("memory", "rank 1 failed: CUDA out of memory. Tried to -> set a smaller")
    output.update(error="rank 0 was killed by SIGSEGV")
    assert runs._failure(1, output, "log")[0] == "failed"
    job = derive(checks.check(bench.job()), Sharding(1), str(bench.folder / "runs" / "x" / "out"), 1, 1)
    job["train"]["global_batch"] = 31
    found = runs.measure(job, bench.folder / "runs" / "x", 1, 60)
    assert found.kind == "refused" and "31 samples cannot be shared" in found.reason and "->" in found.reason
    job["train"]["global_batch"] = 32
    assert runs.measure(job, bench.folder / "runs" / "x", 1, 1).kind == "time"
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(bench.folder) in " ".join(p.info["cmdline"] or [])]


def test_a_killed_run_leaves_no_lock_that_later_builds_would_wait_for(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    for name, age in (("ours", 0), ("theirs", 100)):
        lock = tmp_path / "py" / name / "lock"
        lock.parent.mkdir(parents=True)
        lock.touch()
        os.utime(lock, (time.time() - age,) * 2)
    runs.unlock(time.time() - 50)
    assert [path.parent.name for path in tmp_path.glob("**/lock")] == ["theirs"]


def test_a_run_is_ended_with_what_it_starts_meanwhile(tmp_path):
    (tmp_path / "breeder.py").write_text("import subprocess\nwhile True:\n    subprocess.Popen(['sleep', '4242'])\n")
    breeder = psutil.Popen([sys.executable, str(tmp_path / "breeder.py")], start_new_session=True)
    session = os.getsid(breeder.pid)
    time.sleep(0.3)
    runs.end(breeder)
    left = [process for process in psutil.process_iter() if _session(process) == session]
    for process in left:
        process.kill()
    assert not left
    runs.end(breeder)  # that has ended already


def _session(process):
    try:
        return os.getsid(process.pid) if process.status() != psutil.STATUS_ZOMBIE else None
    except (ProcessLookupError, psutil.NoSuchProcess):
        return None


@pytest.mark.parametrize("command", ["bench", "tune"])
def test_what_a_killed_one_has_left_does_not_run_beside_the_next(bench, monkeypatch, command):
    job = bench.job()
    output = bench.folder / f"out-job-{command}" / "runs" / "another" / "out"
    hold = f"import time; from debzero.run.folder import Output; Output({str(output)!r}).lock(); print('held', flush=True); time.sleep(600)"
    left = subprocess.Popen([sys.executable, "-c", hold], env={**os.environ, "PYTHONPATH": str(SOURCE)},
                            stdout=subprocess.PIPE)
    assert left.stdout.readline() == b"held\n"

    def measure(*_):
        assert not psutil.pid_exists(left.pid)
        return runs.Run(**run(8, 100))

    monkeypatch.setattr(runner, "measure", measure)
    monkeypatch.setattr(tune, "measure", measure)
    assert main([command, str(job)]) == 0
    assert not psutil.pid_exists(left.pid)


@pytest.mark.parametrize("ignored", [False, True])
def test_a_hang_up_ends_the_command_unless_nohup_says_otherwise(ignored):
    program = ("import os, signal; from debzero.bench.run import interruptible\n"
               f"signal.signal(signal.SIGHUP, signal.SIG_{'IGN' if ignored else 'DFL'})\n"
               "interruptible(); os.kill(os.getpid(), signal.SIGHUP); os.kill(os.getpid(), signal.SIGTERM)")
    done = subprocess.run([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": str(SOURCE)})
    assert done.returncode == 128 + (signal.SIGTERM if ignored else signal.SIGHUP)


def test_pages_go_where_nothing_is_lost(bench, capsys):
    made = [bench.folder / name for name in ("a", "b")]
    for folder in made:
        folder.mkdir()
        page.write(sample(folder.name), folder / page.FILES[0])
    compare = ["bench", "--compare", *map(str, made), "-o"]
    assert main([*compare, str(made[0])]) == 0
    assert {path.name for path in made[0].iterdir()} == {*page.FILES, "comparison.html"}
    assert main([*compare, str(bench.folder / "no" / "such" / "page.html")]) == 2
    assert "cannot be written" in capsys.readouterr().err
    (made[1] / page.NAME).unlink()
    assert main(["bench", "--render", str(made[1] / "results.json")]) == 0 and (made[1] / page.NAME).is_file()
    (made[1] / "results.json").rename(made[0] / "other.json")
    before = (made[0] / page.NAME).read_text()
    assert main(["bench", "--render", str(made[0] / "other.json")]) == 0
    assert (made[0] / "other.html").is_file() and (made[0] / page.NAME).read_text() == before, "it took another bench's page"


PUBLISHED = [path for path in sorted((SOURCE.parents[1] / "docs" / "benchmarks").glob("*.json"))
             if "configurations" in json.loads(path.read_text())]


@pytest.mark.parametrize("file", PUBLISHED, ids=lambda path: path.stem)
def test_a_published_bench_is_whole_and_makes_its_page(file, tmp_path):
    """Every row has its figures, from as many runs as the others; the page is made from a copy, beside which it
    lands."""
    rows = json.loads(file.read_text())["configurations"]
    assert {run["kind"] for row in rows for run in row["runs"]} == {"measured"}
    assert len({len(row["runs"]) for row in rows}) == 1, "a row was measured less often than the others"
    copy = tmp_path / file.name
    copy.write_bytes(file.read_bytes())
    assert main(["bench", "--render", str(copy)]) == 0
    text = copy.with_suffix(".html").read_text()
    assert [row["label"] for row in rows if f'<span class="label">{row["label"]}</span>' not in text] == []


def test_each_published_bench_is_found():
    assert {path.stem for path in PUBLISHED} == {"article-2", "article-2-gpus", "article-4", "bert-large-1"}


def test_a_folder_that_cannot_be_is_bad_input(bench, capsys):
    for folder in (bench.folder / "rows.csv", "/proc/bench"):
        assert main(["bench", str(bench.job()), "-o", str(folder)]) == 2
        assert "no folder that this user may write to" in capsys.readouterr().err


def test_an_interruption_while_a_run_starts_ends_that_run(bench, monkeypatch):
    started = []

    class Popen(psutil.Popen):
        def __init__(self, *words, **options):
            super().__init__(*words, **options)
            started.append(psutil.Process(self.pid))
            os.kill(os.getpid(), signal.SIGTERM)

    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    monkeypatch.setattr(psutil, "Popen", Popen)
    job = derive(checks.check(bench.job()), Sharding(1), str(bench.folder / "runs" / "x" / "out"), 1, 1)
    runs.interruptible()
    try:
        with pytest.raises(SystemExit):
            runs.measure(job, bench.folder / "runs" / "x", 1, 60)
        assert not started[0].is_running()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for process in started:
            with suppress(psutil.NoSuchProcess):
                runs.end(process)


@pytest.mark.timeout(1500)
def test_a_real_bench_that_is_interrupted_ends_with_all_its_figures(bench):
    folder = bench.folder / "results"
    arguments = ["bench", str(bench.job()), "--stages", "none,1", "--offload", "none", "--steps", "4", "--warmup", "2",
                 "--repeats", "1", "-o", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen([sys.executable, "-m", "debzero", *arguments], env=environment, cwd=bench.folder)
    deadline = time.monotonic() + 200
    while not (folder / "runs" / "zero1-1").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(bench.folder) in " ".join(p.info["cmdline"] or [])]
    first = results.load(folder)["configurations"][0]
    done = bench.run(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert made["configurations"][0] == first, "what was measured is kept"
    for row in made["configurations"]:
        (one,) = row["runs"]
        assert sum(segment["steps"] for segment in one["segments"]) == 4
        assert sum(segment["samples"] for segment in one["segments"]) == 4 * 32
        assert len(row["summary"]["memory_bytes_per_rank"]) == 2 and row["summary"]["samples_per_second"]["median"] > 0
        left = {path.name for path in (folder / "runs" / f"{row['name']}-1").iterdir()}
        assert left == {"job.yml", "train.log", "metrics.jsonl"}, "neither checkpoints nor models stay"
    assert bench.run("bench", "--render", folder).returncode == 0
