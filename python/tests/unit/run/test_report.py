"""What a finished run leaves: its report, the model's card and picture, and the records that its files are."""
import json
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from run_report import REPORT

from debzero.base.files import write_json
from debzero.job.schema import Job
from debzero.run import card, plots, report
from debzero.run.folder import RunFolder
from debzero.run.records import EarlierReport, Report, Status, read_record, read_report

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
                  'pipeline("text-classification", model=".")', '"text_pair": ', "40.5 TFLOP/s (13% of peak)",
                  "| held out | this model | majority-class baseline |", "sentence1, sentence2 -> label"):
        assert words in read.text, words


@pytest.mark.parametrize(("job", "example", "line"), [
    ("jobs/demo.yml", ["GNU compiler for C++"], 'debzero predict demo "GNU compiler for C++"'),
    ("jobs/my pairs.yml", ["a text", "its pair"], "debzero predict 'my pairs' \"a text\" \"its pair\""),
    ("elsewhere/demo.yml", ["a text"], 'debzero predict /out/demo "a text"')])
def test_it_ends_with_a_command_to_paste(tmp_path, monkeypatch, job, example, line):
    monkeypatch.setattr(report, "jobs_folder", lambda: tmp_path / "jobs")
    values = {**REPORT.as_json(), "job": str(tmp_path / job), "model": "/out/demo/model", "example": example}
    assert report.text(Report.model_validate(values)).splitlines()[-1] == f"  ask the model   {line}"


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


@pytest.mark.parametrize("name", ["cost_$5_{x$", "\\$\\frac{$", "\x1b[31m\u202e\udcff\r"])
def test_any_name_of_a_job_gives_a_picture_and_a_card(tmp_path, name):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 0.7}\n')
    assert plots.draw(tmp_path / "metrics.jsonl", "loss", None, tmp_path, name)
    job = Job.model_validate({**MRPC, "data": {"dataset": f"/data/{name}.csv".replace("\udcff", ""), "label": "x"}})
    card.write(Report.model_validate({**REPORT.as_json(), "job": f"/jobs/{name}.yml"}), job, tmp_path)
    assert (tmp_path / "README.md").read_text().replace("\n", "").isprintable()


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
    lines = [{"step": 1, "memory_bytes": [9, 1]}, {"step": 1, "eval_loss": 0.5}, {"step": 2, "memory_bytes": [7]},
             {"step": 3, "memory_bytes": None}]
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


def test_a_report_with_an_unknown_stage_shows_its_score(tmp_path):
    write_json(tmp_path / "report.json", {**REPORT.as_json(), "zero_stage": "bogus"})
    assert report.text(read_report(tmp_path / "report.json")).startswith("finished, f1 0.9000")


@pytest.mark.parametrize("line", ["null", "[]", "1", '{"step": null}', '{"step": "x"}',
                                  pytest.param("[" * 100000, id="deep")])
def test_a_spoilt_line_of_metrics_is_dropped(tmp_path, line):
    folder = RunFolder(str(tmp_path))
    folder.metrics_file.write_text(f'{{"step": 1}}\n{line}\n{{"step": 9}}\n')
    folder.cut_metrics(5)
    assert folder.metrics_file.read_text() == '{"step": 1}\n'


def test_no_name_is_markup_in_the_card_or_a_command_on_the_terminal(tmp_path):
    evil = "<img src=x>\x1b[2J\n# x"
    values = {**REPORT.as_json(), "job": f"{evil}.yml", "device": evil, "optimizer": evil, "evaluation": {evil: 1.0}}
    hostile = Report.model_validate(values)
    job = Job.model_validate({**MRPC, "data": {"dataset": "/" + evil.replace("/", ""), "text": [evil]}})
    card.write(hostile, job, tmp_path)
    body = (tmp_path / "README.md").read_text().split("\n---\n", 1)[1]
    assert r"\<img" in body and "<img" not in body.replace(r"\<img", "") and "\n# x" not in body
    assert "\x1b" not in (tmp_path / "README.md").read_text()
    assert all(line.isprintable() for line in report.text(hostile).split("\n"))
