"""What a run is watched by: read back with the tools that people will read it with."""
import csv
import json
import shutil
import socket
import subprocess
import sys
from contextlib import suppress

import pytest
from support import stand_in

from debzero.base import systemd
from debzero.base.files import read_json, read_lines
from debzero.base.text import computing_text
from debzero.run import progress, status
from debzero.run.folder import RunFolder
from debzero.run.progress import Progress
from debzero.run.records import Metrics

STEP = {"total_steps": 6, "learning_rate": 1e-3, "samples_per_second": 64.0, "tokens_per_second": 640.0,
        "padding_share": 0.1, "tflops": 1.5, "peak_share": 0.4, "memory_bytes": [2**30, 2**31], "skipped_steps": 1,
        "loss_scale": 4096.0}


def step(number: int, loss: float, **values: object) -> Metrics:
    return Metrics(**{**STEP, "step": number, "epoch": number / 3, "loss": loss, "eta_seconds": 6.0 - number, **values})


@pytest.fixture
def output(tmp_path):
    made = RunFolder(str(tmp_path / "out"))
    made.lock()
    made.begin("/etc/debzero/jobs/tiny.yml", stand_in().identity)
    return made


@pytest.fixture
def interrupted(output, monkeypatch, tmp_path):
    """A run that went to step 5 with an evaluation at 3, was killed, and went on from step 3 to the end."""
    (tmp_path / "node").mkdir()
    monkeypatch.setenv("DEBZERO_TEXTFILE_DIR", str(tmp_path / "node"))
    first = Progress(output, speaks=True)
    first.resume(0)
    for number in range(1, 6):
        first.step(step(number, 10.0 - number))
        if number == 3:
            first.evaluated(3, 1.0, {"accuracy": 0.5, "loss": 0.9})
    second = Progress(output, speaks=True)
    second.resume(3)
    for number in range(4, 7):
        second.step(step(number, 1.0 / number))
    second.evaluated(6, 2.0, {"accuracy": 0.75, "loss": 0.5})
    second.close()
    return output


LOSSES = [(1, 9.0), (2, 8.0), (3, 7.0), (4, 1 / 4), (5, 1 / 5), (6, 1 / 6)]


def test_tensorboard_shows_a_resumed_run_as_one(interrupted):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(interrupted.folder / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("training/loss")] == [(s, pytest.approx(loss))
                                                                            for s, loss in LOSSES]
    assert [(e.step, e.value) for e in events.Scalars("evaluation/accuracy")] == [(3, 0.5), (6, 0.75)]
    assert events.Scalars("memory/rank1")[-1].value == 2**31


def test_tensorboard_forgets_a_run_that_began_anew(output):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for loss in (5.0, 6.0):
        reporter = Progress(output, speaks=True)
        reporter.resume(0)
        reporter.step(step(1, loss))
        reporter.close()
    events = EventAccumulator(str(output.folder / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("training/loss")] == [(1, 6.0)]


def test_the_table_holds_what_the_lines_hold(interrupted):
    with open(interrupted.folder / "metrics.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    lines = read_lines(interrupted.metrics_file)
    assert len(rows) == len(lines) == 8
    assert [(int(row["step"]), float(row["loss"])) for row in rows if row["loss"]] == LOSSES
    assert [(int(row["step"]), float(row["eval_accuracy"])) for row in rows
            if row["eval_accuracy"]] == [(3, 0.5), (6, 0.75)]
    assert {row["memory_bytes"] for row in rows} == {"", str(2**31)}
    for row, line in zip(rows, lines):
        assert {name for name in line if not isinstance(line[name], list)} <= set(row), "a number has no column"


def test_prometheus_reads_the_newest_values_in_both_folders(interrupted, tmp_path):
    from prometheus_client.parser import text_string_to_metric_families

    for folder in (interrupted.folder, tmp_path / "node"):
        assert [path.name for path in folder.glob("*.prom*")] == ["debzero-tiny.prom"], "nothing half-written stays"
        samples = {}
        for family in text_string_to_metric_families((folder / "debzero-tiny.prom").read_text()):
            for sample in family.samples:
                assert sample.labels.pop("job") == "tiny"
                samples[(sample.name, *sample.labels.values())] = sample.value
        assert samples["debzero_step", ] == samples["debzero_steps_total", ] == 6
        assert samples["debzero_loss", ] == pytest.approx(1 / 6)
        assert samples["debzero_eval", "accuracy"] == 0.75
        assert (samples["debzero_memory_bytes", "0"], samples["debzero_memory_bytes", "1"]) == (2**30, 2**31)
        shown = ("step", "steps_total", "loss", "learning_rate", "samples_per_second", "tokens_per_second",
                 "padding_share", "tflops", "peak_share", "skipped_steps", "loss_scale", "eta_seconds")
        assert {name[0] for name in samples} == {"debzero_eval", "debzero_memory_bytes",
                                                 *(f"debzero_{name}" for name in shown)}


def test_a_watcher_that_fails_is_left_out_once_and_the_others_go_on(output, monkeypatch, tmp_path, capsys):
    node = tmp_path / "node"
    node.mkdir()
    monkeypatch.setenv("DEBZERO_TEXTFILE_DIR", str(node))
    monkeypatch.setitem(sys.modules, "tensorboard.summary.writer.record_writer", None)
    reporter = Progress(output, speaks=True)
    reporter.resume(0)
    missing = "the package tensorboard.summary.writer.record_writer is not installed"
    assert f"the run continues without TensorBoard: {missing}" in capsys.readouterr().out
    node.rmdir()
    for number in (1, 2):
        reporter.step(step(number, 1.0))
    reporter.close()
    assert capsys.readouterr().out.count(f"the run continues without Prometheus in {node}") == 1
    assert "debzero_step{" in (output.folder / "debzero-tiny.prom").read_text()
    assert len((output.folder / "metrics.csv").read_text().splitlines()) == 3


def test_a_full_disk_ends_no_run_and_no_line_is_lost(tmp_path, capsys):
    """On a real file system of a quarter of a megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], check=True)
    try:
        full = RunFolder(str(disk))
        full.lock()
        full.begin("tiny.yml", stand_in().identity)
        reporter = Progress(full, speaks=True)
        reporter.resume(0)
        subprocess.run(["dd", "if=/dev/zero", f"of={disk}/filler", "bs=4k"], capture_output=True)  # until it is full
        assert shutil.disk_usage(disk).free == 0
        before = capsys.readouterr().out
        for number in range(1, 100):
            reporter.step(step(number, 1.0))
            reporter.state("evaluating", "evaluating")
        assert (before + capsys.readouterr().out).count("cannot be written down") == 1
        assert len(read_lines(full.metrics_file)) == full.metrics_file.read_bytes().count(b"\n") < 99
        (disk / "filler").unlink()
        reporter.step(step(100, 1.0))
        reporter.close()
        assert [line["step"] for line in read_lines(full.metrics_file)] == list(range(1, 101))
        assert read_json(full.status_file)["step"] == 100
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)  # this process holds the folder


def test_a_number_that_is_none_is_told_and_the_files_stay_json(output, capsys):
    reporter = Progress(output, speaks=True)
    reporter.step(step(6, float("inf"), loss_scale=float("nan")))
    reporter.close()
    assert "loss inf" in capsys.readouterr().out

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    for text in (output.status_file.read_text(), *output.metrics_file.read_text().splitlines()):
        assert json.loads(text, parse_constant=refuse)["loss"] is None


def test_systemd_hears_of_it_and_need_not_listen(output, monkeypatch, tmp_path):
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(address)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        speaking, silent = Progress(output, speaks=True), Progress(output, speaks=False)
        for one in (speaking, silent):
            one.ready()
            one.step(step(2, 0.5))
            one.alive()
            one.alive()
        listener.settimeout(0.1)
        heard = []
        with suppress(OSError):  # nothing more in time
            while True:
                heard.append(listener.recv(1000).decode())
    assert heard[:2] == ["READY=1", "STATUS=step 2/6, loss 0.5000, ETA 0:04"]
    assert [words for words in heard if "WATCHDOG=1" in words] == heard[2:] and len(heard) == 3
    systemd.notify("READY=1")  # nobody is there any more


def test_the_line_shows_what_is_known():
    assert progress.line(step(2, 0.5)) == (
        "step 2/6  epoch 0.67  loss 0.5000  lr 1.00e-03  64.0 samples/s  640 tokens/s  1.5 TFLOP/s (40% of peak)  "
        "1.00-2.00 GiB  1 skipped  ETA 0:04")
    assert progress.line(Metrics(step=2, total_steps=None, loss=None)) == "step 2/?  ETA -"


def test_a_line_fits_the_terminal():
    whole = progress.line(step(2, 0.5))
    assert progress.line(step(2, 0.5), len(whole)) == whole
    for width in range(42, len(whole)):
        line = progress.line(step(2, 0.5), width)
        assert len(line) <= width and line.startswith("step 2/6  ") and line.endswith("  1 skipped  ETA 0:04")
        assert "  loss 0.5000  " in line and "tokens/s" not in line
    assert progress.line(step(2, 0.5), 12) == "step 2/6  lo"


def test_a_watched_line_does_not_wrap(output):
    output.update(state="training", **step(2, 0.5).as_json())
    shown = status.show(output.status(), 80)
    assert shown.startswith("training  step 2/6") and "ETA 0:04" in shown and len(shown) <= 80


def test_small_numbers_keep_their_figures():
    assert computing_text(0.01234, None) == "12.3 GFLOP/s"


def test_a_real_run_leaves_all_of_it(bench):
    from huggingface_hub import ModelCard
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    node = bench.folder / "node"
    node.mkdir()
    job = bench.job(train__epochs=1)
    done = bench.run("train", job, DEBZERO_TEXTFILE_DIR=str(node))
    printed = done.stdout + done.stderr
    assert done.returncode == 0 and "warning" not in printed and "continues without" not in printed, printed
    out, made = bench.output(), json.loads((bench.output() / "report.json").read_text())
    assert {path.name for path in (out / "model").iterdir()} >= {"README.md", "loss.svg", "loss.png",
                                                                 "model.safetensors", "config.json"}
    assert ModelCard.load(out / "model" / "README.md").data.eval_results[0].metric_value == made["accuracy"]
    assert str(bench.folder) not in (out / "model" / "README.md").read_text()
    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    losses = bench.losses("job")
    assert len(losses) == made["steps"] > 5
    assert [event.value for event in events.Scalars("training/loss")] == pytest.approx(losses)
    with open(out / "metrics.csv", newline="", encoding="utf-8") as file:
        assert [float(row["loss"]) for row in csv.DictReader(file) if row["loss"]] == losses
    assert (node / "debzero-job.prom").read_text() == (out / "debzero-job.prom").read_text()
    assert made["tflops"] > 0 and made["peak_share"] is None
    # A BERT of one layer, 32 wide and 64 inside: what it computed follows from how many tokens it read.
    least = 6 * (4 * 32 * 32 + 2 * 32 * 64)
    assert least < made["tflops"] * 1e12 * 2 / made["tokens_per_second"] < 2 * least
    shown = bench.quick("status", job)
    assert shown.returncode == 0 and "tensorboard --logdir" in shown.stdout and "GFLOP/s per rank" in shown.stdout
