"""What a run is watched by: read back with the tools that people will read it with."""
import csv
import json
import shutil
import socket
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from contextlib import suppress

import numpy as np
import pytest
import yaml

from debzero.base import systemd
from debzero.base.files import read_json, read_lines, write_json
from debzero.base.text import computing_text
from debzero.job.schema import Job
from debzero.run import card, plots, progress, report, status
from debzero.run.folder import RunFolder
from debzero.run.progress import Progress
from debzero.run.records import EarlierReport, Metrics, Report, Status, read_record, read_report

STEP = {"total_steps": 6, "learning_rate": 1e-3, "samples_per_second": 64.0, "tokens_per_second": 640.0,
        "padding_share": 0.1, "tflops": 1.5, "peak_share": 0.4, "memory_bytes": [2**30, 2**31], "skipped_steps": 1,
        "loss_scale": 4096.0}


def step(number: int, loss: float, **values: object) -> Metrics:
    return Metrics(**{**STEP, "step": number, "epoch": number / 3, "loss": loss, "eta_seconds": 6.0 - number, **values})


@pytest.fixture
def output(tmp_path):
    made = RunFolder(str(tmp_path / "out"))
    made.lock()
    made.begin("/etc/debzero/jobs/tiny.yml", "0", False)
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
        full.begin("tiny.yml", "0", False)
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


# What a run leaves, in a report as training makes it.
REPORT = Report.model_validate({
    "job": "/etc/debzero/jobs/mrpc.yml", "task": "classification", "auto": "AutoModelForSequenceClassification",
    "metric": "f1", "evaluation": {"accuracy": 0.875, "f1": 0.9, "matthews": 0.7, "loss": 0.3}, "accuracy": 0.875,
    "f1": 0.9, "majority_accuracy": 0.68, "baseline": {"accuracy": 0.68, "f1": 0.81, "matthews": 0.0, "loss": 0.62},
    "eval_samples": 408, "train_samples": 3668, "classes": 2, "steps": 116, "total_steps": 174, "best_step": 58,
    "resumed": 1, "skipped_steps": 2, "training_seconds": 61.0, "steps_per_second": 2.0, "samples_per_second": 128.0,
    "tokens_per_second": 6800.0, "padding_share": 0.05, "tflops": 40.5, "peak_share": 0.13,
    "peak_memory_bytes": [2**32, 2**32], "peak_memory_of": "the GPU allocator", "world_size": 2, "zero_stage": 2,
    "offload_optimizer": "cpu", "offload_param": "none", "optimizer": "AdamW", "schedule": None, "precision": "bf16",
    "global_batch": 64, "micro_batch": 16, "accumulation": 2, "device": "NVIDIA A100-SXM4-40GB",
    "versions": {"torch": "7.1", "deepspeed": "7.2"}, "model": "/var/lib/debzero/mrpc/model",
    "checkpoint": "/var/lib/debzero/mrpc/checkpoints/step-116", "metrics": "/var/lib/debzero/mrpc/metrics.jsonl",
    "curves": "/var/lib/debzero/mrpc/tensorboard", "log": "journalctl -u debzero@mrpc"})
MRPC = {"model": "bert-large-uncased",
        "data": {"dataset": "glue/mrpc", "text": ["sentence1", "sentence2"], "label": "label"},
        "train": {"select": "best", "metric": "f1"}, "output": "/var/lib/debzero/mrpc"}


def test_the_card_says_what_hubs_and_people_ask(tmp_path):
    from huggingface_hub import ModelCard

    (tmp_path / "loss.svg").write_text("<svg/>")
    card.write(REPORT, Job.model_validate(MRPC), tmp_path)
    read = ModelCard.load(tmp_path / "README.md")
    data = read.data
    assert (data.base_model, data.datasets, data.license) == ("bert-large-uncased", ["glue"], None)
    assert (data.pipeline_tag, data.library_name, data.model_name) == ("text-classification", "transformers", "mrpc")
    results = {result.metric_type: result for result in data.eval_results}
    assert {name: result.metric_value for name, result in results.items()} == {
        "accuracy": 0.875, "f1": 0.9, "matthews_correlation": 0.7, "loss": 0.3}
    assert results["f1"].dataset_config == "mrpc"
    for words in ("| **f1** | **0.9000** | 0.8100 |", "64 = micro-batch 16 x 2 accumulation steps x 2 ranks",
                  "step 58", "(loss.svg)", "DeepSpeed ZeRO-2 + CPU", "bf16", "A100", "deepspeed 7.2",
                  "AutoModelForSequenceClassification.from_pretrained", "40.5 TFLOP/s (13% of peak)",
                  "| held out | this model | majority-class baseline |", "sentence1, sentence2 -> label"):
        assert words in read.text, words


def test_the_card_of_a_language_model_has_no_label(tmp_path):
    values = {**REPORT.as_json(), "task": "causal-lm", "classes": 0, "baseline": {"loss": 9.0},
              "evaluation": {"loss": 3.0}}
    job = Job.model_validate({"model": "gpt2", "task": "causal-lm", "train": {"epochs": 1}, "output": "/var/lib/x",
                              "data": {"dataset": "wikitext/wikitext-2-raw-v1", "text": ["text"]}})
    card.write(Report.model_validate(values), job, tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert "| columns | text |" in text and "at most 1 epoch)" in text and "| this model | baseline |" in text


def test_the_card_of_local_things_names_no_path(tmp_path):
    from huggingface_hub import ModelCard

    job = Job.model_validate({**MRPC, "model": "/home/kim/secret/mine",
                              "data": {"dataset": "/srv/customers/rows|a.csv", "label": "x|y"}})
    card.write(REPORT, job, tmp_path)
    read = ModelCard.load(tmp_path / "README.md")
    assert (read.data.base_model, read.data.datasets) == (None, None)
    for secret in ("/home", "secret", "/srv", "customers", "/etc", "/var"):
        assert secret not in read.content
    assert "loss.svg" not in read.content, "there is none"
    assert "text -> x\\|y" in read.content, "a bar would end the table's cell"


def test_the_report_says_whose_weights_and_how_fast():
    text = report.text(REPORT)
    for words in ("AutoModelForSequenceClassification.from_pretrained", "0.8750 (majority-class baseline 0.6800)",
                  "116 of 174, stopped early; best at step 58; 2 skipped for an overflow; resumed 1 time",
                  "6800 tokens/s", "40.5 TFLOP/s (13% of peak) per rank, 5% of the tokens were padding",
                  "2, ZeRO-2 + CPU", "4096 MiB, 4096 MiB (ranks 0 and 1; GPU memory that torch allocated)"):
        assert words in text, text
    assert report.headline(REPORT) == "f1 0.9000"


@pytest.mark.parametrize(("values", "headline"), [
    ({"accuracy": 0.5}, "accuracy 0.5000"), ({"metric": "f1", "evaluation": {"f1": 0.25}, "steps": 3}, "f1 0.2500"),
    ({"other": True}, "accuracy")])
def test_a_report_of_an_earlier_release_is_shown(tmp_path, values, headline):
    write_json(tmp_path / "report.json", values)
    found = read_report(tmp_path / "report.json")
    assert isinstance(found, EarlierReport) and found.as_json() == values
    assert report.headline(found) == headline and headline in report.text(found)


def test_a_record_is_what_its_file_holds(tmp_path):
    """A key of another release survives; what is damaged or foreign is not there."""
    file = tmp_path / "status.json"
    for values in ({"state": "training", "step": 3, "of_later": [1]}, REPORT.as_json()):
        write_json(file, values)
        kind = Status if "state" in values else Report
        assert read_record(file, kind).as_json() == json.loads(file.read_text()) == values
    assert read_record(file, Status) is None
    for text in ("", "{", "[1]", "{}", '{"state": 3}', '{"state": "training", "step": "three"}'):
        file.write_text(text)
        assert read_record(file, Status) is None
    assert read_report(tmp_path / "absent.json") is None and report.headline(None) == ""


def test_the_peak_is_that_of_all_starts(tmp_path):
    output = RunFolder(str(tmp_path))
    assert report.highest(output, [5, 6]) == [5, 6]
    lines = [{"step": 1, "memory_bytes": [9, 1]}, {"step": 1, "eval_loss": 0.5}, {"step": 2, "memory_bytes": [7]}]
    output.metrics_file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert report.highest(output, [5, 6]) == [9, 6], "not of a start with another number of ranks"


@pytest.mark.parametrize(("rows", "metric"), [
    ([{"step": 1, "loss": 0.7, "samples_per_second": 5.0}], "accuracy"),
    ([{"step": 1, "loss": 0.7, "samples_per_second": 5.0}, {"step": 1, "eval_loss": 0.6, "eval_accuracy": 0.5}],
     "accuracy"),
    ([{"step": n, "loss": 1 / n, "samples_per_second": 0.0} for n in range(1, 5000)]
     + [{"step": 4000, "eval_loss": 0.6}], "loss"),
    ([{"step": 1, "loss": None, "samples_per_second": None}, {"step": 2, "loss": 1.0, "samples_per_second": None}],
     "f1"),
], ids=["one", "one-evaluated", "many", "holes"])
def test_the_picture_is_one_and_always_the_same(tmp_path, rows, metric):
    from PIL import Image

    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 9, "lo')
    made = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        assert plots.draw(metrics, metric, 0.55, folder, "tiny")
        made.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert made[0] == made[1] and set(made[0]) == {"loss.svg", "loss.png"}
    assert ElementTree.fromstring(made[0]["loss.svg"]).tag == "{http://www.w3.org/2000/svg}svg"
    assert len(made[0]["loss.svg"]) < 150_000
    with Image.open(tmp_path / "a" / "loss.png") as image:
        image.verify()
        assert image.format == "PNG" and image.size[0] == 1080 and image.size[1] in (690, 900)
    with Image.open(tmp_path / "a" / "loss.png") as image:
        colours = {tuple(pixel) for pixel in np.asarray(image.convert("RGB")).reshape(-1, 3)}
    assert tuple(bytes.fromhex(plots.TRAINING[1:])) in colours, "the loss is not to be seen"


def test_nothing_is_no_picture(tmp_path):
    assert not plots.draw(tmp_path / "metrics.jsonl", "accuracy", None, tmp_path, "tiny")
    assert list(tmp_path.iterdir()) == []


def test_a_thinned_line_keeps_its_mean():
    points = [(float(n), float(n % 7)) for n in range(6000)]
    thin = plots.thinned(points)
    assert len(thin) == plots.MOST and plots.thinned(thin) == thin
    assert np.mean(thin, 0) == pytest.approx(np.mean(points, 0))


@pytest.fixture
def jobs(tmp_path, monkeypatch):
    """Job files in each state that a run can be in."""
    folder = tmp_path / "jobs"
    folder.mkdir()
    monkeypatch.setattr(status, "jobs_folder", lambda: folder)
    states = {
        "going": {"state": "training", "step": 3, "total_steps": 6, "loss": 0.5, "eta_seconds": 61.0},
        "done": {"state": "finished", "step": 6, "total_steps": 6},
        "broken": {"state": "failed", "step": 2, "total_steps": 6, "error": "out of memory\n  -> buy more"},
        "hopeless": {"state": "failed", "step": 2, "total_steps": 6, "error": "no",
                     "given_up": "failed 3 times in the same way"},
        "old": {"state": "stopped", "step": 0}}
    held = []
    for name, values in states.items():
        (folder / f"{name}.yml").write_text(yaml.safe_dump({"output": f"../{name}"}))
        held.append(RunFolder(str(tmp_path / name)))
        held[-1].lock()
        write_json(held[-1].status_file, values)
    write_json(held[1].report_file, REPORT.as_json())
    (folder / "new.yml").write_text("output: ../new\n")
    (folder / "unreadable.yml").write_text("a: [")
    return held


def test_status_without_a_name_lists_all_jobs(jobs, capsys):
    assert status.status(None, as_json=False, watch=False) == 0
    lines = {line.split()[0]: " ".join(line.split()[1:]) for line in capsys.readouterr().out.splitlines()[1:]}
    assert lines == {
        "going": "training 3/6 loss 0.5000, ETA 1:01 -", "done": "finished 6/6 f1 0.9000 -",
        "broken": "failed 2/6 out of memory -", "hopeless": "failed 2/6 given up: failed 3 times in the same way -",
        "old": "stopped 0/? -", "new": "not started - -", "unreadable": lines["unreadable"]}
    assert lines["unreadable"].startswith("invalid - line ") and "is not YAML" in lines["unreadable"]
    assert status.status(None, as_json=True, watch=False) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["going"]["loss"] == 0.5 and rows["new"]["state"] == "not started"


def test_status_says_that_a_run_is_given_up(jobs, capsys):
    assert status.status("hopeless", as_json=False, watch=False) == 1
    shown = capsys.readouterr().out
    assert "failed  at step 2/6" in shown and "given up: failed 3 times in the same way; fix the cause" in shown


def test_to_watch_needs_a_name(jobs):
    from debzero.base.errors import InputError

    with pytest.raises(InputError, match="follows one run") as caught:
        status.status(None, as_json=False, watch=True)
    assert "broken, done, going" in caught.value.problems[0].fix


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
