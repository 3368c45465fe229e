"""The files of a run's folder, which the user of the jobs writes: `debzero status` on anything, alone and among others,
and what a new start reads of them."""
from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from fuzzing import JSON_TOKENS, Figures, as_json, command, damaged, fuzz, limits, spoilt
from hypothesis import strategies as st
from run_report import REPORT
from support import JOB, stand_in

from debzero.base.errors import InputError, UserError
from debzero.run import decision, exporters, plots, report, status
from debzero.run.folder import RunFolder

JOB_NOW = stand_in()
METRICS = {"step": 3, "total_steps": 9, "epoch": 0.3, "loss": 0.7, "learning_rate": 1e-5, "samples_per_second": 99.5,
           "tokens_per_second": 1e4, "tflops": 2.5, "peak_share": 0.2, "memory_bytes": [2**30, 2**31],
           "skipped_steps": 1, "eta_seconds": 90.0, "interval_steps": 3, "interval_samples": 96,
           "interval_seconds": 1.5, "eval_accuracy": 0.5, "time": "2030-01-02T03:04:05+00:00"}
STATUS = {**METRICS, "state": "failed", "job": "/etc/debzero/jobs/mrpc.yml", "fingerprint": "0123456789abcdef",
          "pid": 1, "started": "2030-01-02T03:04:05+00:00", "updated": "2030-01-02T03:04:05+00:00",
          "micro_batch": 8,
          "error": "rank 1 failed: the disk is full\n  -> make room", "warning": "slow", "given_up": "failed 3 times"}
FILES: dict[str, Any] = {
    "status.json": STATUS, "report.json": REPORT.as_json(), "metrics.jsonl": METRICS,
    "run.json": {"fingerprint": JOB_NOW.fingerprint, "weights": {**JOB_NOW.identity.weights, "model.type": "bert"},
                 "others": {"train.epochs": 2, "train.metric": "f1"}, "contents": {"data": {"rows.csv": "0123"}},
                 "steps_per_epoch": 3},
    ".error.json": {"rank": 1, "error": "no", "memory": True}, ".failures.json": {"step": 3, "error": "no", "count": 2}}
STATES = st.sampled_from(["preparing", "training", "stopping", "finished", "failed", "stopped", "\x1b[31m"])
KNOWN = {("state",): STATES}
ODD = ["fifo", "zeros", "link", "device", "folder", "socket", "secret"]  # instead of a file


def _content(name: str) -> st.SearchStrategy:
    values = FILES[name]
    lines = [st.lists(damaged(values).map(as_json), max_size=3).map(b"\n".join)] if name.endswith("l") else []
    return st.one_of(damaged(values, KNOWN if name == "status.json" else {}).map(as_json), *lines,
                     spoilt(json.dumps(values).encode(), JSON_TOKENS))


def inputs() -> st.SearchStrategy:
    names = st.sampled_from([*["status.json"] * 3, *FILES])
    return st.lists(names.flatmap(lambda name: st.tuples(st.just(name), st.one_of(*[_content(name)] * 9,
                                                                               st.sampled_from(ODD)))),
                    min_size=1, max_size=3)


def _odd(path: Path, kind: str) -> None:
    path.unlink(missing_ok=True)
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "zeros":
        with open(path, "wb") as file:
            file.truncate(2**42)
    elif kind == "secret":
        path.write_text("{}")
        path.chmod(0)
    else:
        path.symlink_to({"device": "/dev/zero", "socket": "/dev/log", "link": "/etc/hostname"}[kind])


def check(folder: Path, given: list[tuple[str, Any]]) -> int:
    run = RunFolder(str(folder / "out"))
    for name in FILES:
        path = run.folder / name
        path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
        if name in ("status.json", "report.json"):
            path.write_text(json.dumps({**FILES[name], "state": "finished"}))
    for name, content in given:
        path = run.folder / name
        if path.is_dir():
            path.rmdir()
        if isinstance(content, str):
            _odd(path, content)
        else:
            path.unlink(missing_ok=True)
            path.write_bytes(content)
    code = command("status", run.folder)[0]
    assert isinstance(json.loads(command("status", run.folder, "--json")[1] or "{}"), dict)
    overview = command("status")[1]
    assert "good  " in overview and len(overview.splitlines()) == 3, "one line for each job"
    _start(run)
    return code


def _start(run: RunFolder) -> None:
    """What a start of the job reads, besides its checkpoints."""
    decided = decision.decide(JOB_NOW, run)
    assert str(decided) and json.dumps(decided.as_json())
    run.error_note()
    report.highest(run, [1, 2])
    plots._curves(run.metrics_file, "accuracy")
    try:
        run.record_failure("again")
        run.cut_metrics(2)
        exporters.Table(run.folder)
        run.update(state="training")
    except (OSError, InputError, UserError):  # of a folder in the place of a file
        return


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("good", "job"):
        (tmp_path / f"{name}.yml").write_text(yaml.safe_dump({**JOB, "output": "out" if name == "job" else "none"}))
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(status, "jobs_folder", lambda: tmp_path)
    monkeypatch.setattr(sys, "argv", ["debzero"])
    return tmp_path


def test_no_run_crashes_status(folder: Path, cases: int, fuzzed: Any) -> None:
    fuzz(fuzzed("runs"), cases, inputs(), lambda given: check(folder, given))


# Each ended in a traceback or a hang.
FOUND: list[tuple[str, Any]] = [*(("status.json", kind) for kind in ODD), ("status.json", b"[" * 100_000)]


@pytest.mark.parametrize(("name", "content"), FOUND, ids=range(len(FOUND)))
def test_what_was_found(folder: Path, name: str, content: Any) -> None:
    with limits(Figures("runs")):
        check(folder, [(name, content)])


def test_one_bad_job_does_not_end_the_overview(folder: Path) -> None:
    os.mkfifo(folder / "a.yml")
    (folder / "b.yml").symlink_to("/dev/zero")
    (folder / "c\x1b[31m\n.yml").write_text("output: [\x1b")
    (folder / "d.yml").write_text(f"output: {'x' * 5000}")
    code, printed = command("status")
    lines = printed.splitlines()
    assert code == 0 and len(lines) == 7, printed
    assert all("invalid" in line for line in lines[1:4]) and lines[6].startswith("job ")
