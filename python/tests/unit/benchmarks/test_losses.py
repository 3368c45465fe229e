"""python/benchmarks/losses.py: it trains, stops and resumes on CPU ranks, and what differs or fails is a failure."""
import json
import re
import sys
from pathlib import Path

import pytest
from warm import server

BENCH = Path(__file__).resolve().parents[3] / "benchmarks"
sys.path.insert(0, str(BENCH))

import common  # noqa: E402
import losses  # noqa: E402

PAGES = losses.common.ROOT / "docs" / "benchmarks"


@pytest.fixture
def start(tmp_path, monkeypatch):
    """losses.py with command-line arguments, in this process: its exit code."""
    for name in ("CUDA_VISIBLE_DEVICES", "DS_ACCELERATOR", "LOCAL_SIZE", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["losses.py", "--quick", "--results", str(tmp_path / "losses.json"),
                                          "--scratch", str(tmp_path / "scratch"), *arguments])
        return losses.main()

    return run


def invented(off):
    """A run's losses, that differ by `off[name]` in the last steps."""
    def train(self, run):
        if run.name in off and off[run.name] is None:
            return {"failed": "a traceback\nout of memory"}
        return {"losses": [1.0] * 90 + [0.1 + off.get(run.name, 0.0)] * 10, "code": [run.code], "seconds": 1.0}

    return train


@pytest.fixture
def judge():
    """Of the published runs."""
    judge = object.__new__(losses.Losses)
    judge.found = json.loads((PAGES / "losses-2.json").read_text())["runs"]
    return judge


def test_the_page_states_how_much_they_differ_at_most(judge):
    page = " ".join((PAGES / "README.md").read_text().split())
    stated = re.search(r"In fp32 they differ from plain DDP by at most (\S+), in bf16 by at most (\S+) .* "
                       r"not stopped by at most (\S+)\. ", page)
    kinds = [[run for run in losses.runs(quick=False) if run != losses.REFERENCE and run.resumed == resumed
              and run.precision in precisions]
             for resumed, precisions in ((False, ["fp32"]), (False, ["bf16"]), (True, losses.TOLERANCE))]
    for kind, text in zip(kinds, stated.groups()):
        most = max(map(judge.difference, kind))
        assert 0.8 * float(text) < most <= float(text)


def test_all_published_runs_agree(judge):
    asked = losses.runs(quick=False)
    assert {run.name for run in asked} == set(judge.found)
    assert [judge.line(run) for run in asked if not judge.verdict(run)[0]] == []


@pytest.mark.parametrize(("off", "wrong"), [
    ({"zero2-fp32-eager": 9e-4}, []), ({"zero2-fp32-eager": 2e-3}, ["zero2-fp32-eager", "zero2-fp32-eager-resumed"]),
    ({"zero2-fp32-compiled-resumed": -2e-3}, ["zero2-fp32-compiled-resumed"]),
    ({"zero2-fp32-compiled": None}, ["zero2-fp32-compiled", "zero2-fp32-compiled-resumed"])],
    ids=["within", "a stage", "a resumed run", "one that failed"])
def test_what_differs_or_fails_is_told_apart(start, monkeypatch, capsys, off, wrong):
    monkeypatch.setattr(losses.Losses, "train", invented(off))
    assert start("--only", "zero2-fp32") == int(bool(wrong))
    printed = capsys.readouterr().out
    assert [line.split()[0] for line in printed.splitlines() if " DIFFERS " in line] == wrong
    assert f"{4 - len(wrong)} of 4 runs agree" in printed


def test_runs_that_learn_nothing_show_nothing(start, monkeypatch, capsys):
    monkeypatch.setattr(losses.Losses, "train", lambda *given: {"losses": [0.7] * 100, "code": [], "seconds": 1.0})
    assert start("--only", "zero1-fp32-eager") == 1 and "has not learned" in capsys.readouterr().out


def test_a_run_that_there_is_not_is_refused(start, capsys):
    with pytest.raises(SystemExit, match="2"):
        start("--only", "zero2", "native4")
    error = capsys.readouterr().err
    assert "no run begins with 'native4' (the runs: none-fp32-eager, " in error and "native3-fp32-eager" in error


def test_each_stage_and_engine_is_compared_in_both_precisions_and_resumed_with_other_code():
    runs = losses.runs(quick=False)
    assert runs[0] == losses.REFERENCE and len(set(runs)) == len(runs)
    assert {run.contestant for run in runs} == set(losses.ZERO) and {run.precision for run in runs} == {"fp32", "bf16"}
    assert {(run.contestant, run.code) for run in runs if run.resumed} >= {
        ("none", "compiled"), ("none", "eager"), ("native2", "compiled"), ("native2", "eager"), ("zero3", "eager")}


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_stage_is_trained_stopped_and_resumed(tmp_path, start, monkeypatch):
    """The commands are those of the warm server: what they do is debzero's own."""
    def run(command, log, timeout, **environment):
        done = server().run([str(argument) for argument in command[3:]], tmp_path)
        log.write_text(done.stdout)
        if done.returncode:
            raise common.Failed(done.stdout)
        return {"wall_seconds": 1.0, "cpu_seconds": 1.0}

    monkeypatch.setattr(common, "run", run)
    monkeypatch.setattr(losses.Losses, "start", staticmethod(
        lambda job, log: log.write_text("") or server().start(["train", str(job), "--again"], tmp_path)))
    assert start("--only", "native2-fp32-eager") == 0
    runs = json.loads((tmp_path / "losses.json").read_text())["runs"]
    assert runs["native2-fp32-eager-resumed"]["code"] == ["eager", "compiled"]
    assert runs["native2-fp32-eager-resumed"]["losses"] == runs["native2-fp32-eager"]["losses"]
