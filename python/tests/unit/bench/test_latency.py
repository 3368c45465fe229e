"""`debzero bench --inference`: one series of all engines, in the results of the job's bench."""
import json
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest
import tensorrt_host
from bench_results import sample
from exported_runs import GPT2, run_of

from debzero.base.stack import stack
from debzero.bench import latency, page, results, tables
from debzero.bench.results import Inference, Timing
from debzero.cli import main
from debzero.predict.engines import ENGINES

INFERENCE = Inference(
    made="2030-01-02T03:04:05+00:00", command="debzero bench x --inference", device="cpu", tokens=17.0, writes=None,
    versions={"torch": "2.0.9", "onnxruntime": "1.0.9"}, left_out={"onnx int8": "the exported model is <another>"},
    timings=tuple(Timing(engine, "fp32", size, 100, took * size, 2 * took * size, 3 * took * size, 1 / took)
                  for size in (1, 8, 32) for engine, took in (("torch", 0.004), ("onnx", 0.002))))


def texts(page_text):
    return " ".join(" ".join(ElementTree.fromstring(page_text.split("\n", 1)[1]).itertext()).split())


@pytest.fixture
def quick(monkeypatch):
    for name, value in (("SIZES", (1, 2)), ("ROUNDS", 2), ("LEAST", 2), ("SECONDS", 0.0), ("PAUSE", 0.0),
                        ("WARMUP", 1)):
        monkeypatch.setattr(latency, name, value)


def test_each_engine_is_measured_in_one_series(bench, quick, capsys):
    run = run_of(bench, "fast")
    capsys.readouterr()
    assert main(["bench", str(run.folder), "--inference", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    timings = printed["inference"]["timings"]
    assert {(each["engine"], each["precision"], each["batch"]) for each in timings} == {
        (*engine, size) for size in (1, 2) for engine in (("torch", "fp32"), ("onnx", "fp32"), ("onnx", "int8"))}
    assert all(0 < each["p50_seconds"] <= each["p95_seconds"] <= each["p99_seconds"] and each["batches"] == 4
               for each in timings)
    folder = run.folder.with_name(run.folder.name + "-bench")
    kept = results.load(folder)
    assert json.loads(json.dumps(kept.as_json())) == printed and kept.configurations == ()
    assert sorted(path.name for path in folder.glob(".*")) == [".lock"], "its own exports are gone"
    assert not (run.folder / "export").exists()
    assert "onnx int8" in texts((folder / "results.html").read_text())


def test_a_model_of_few_positions_writes_as_many_tokens_as_it_has_room_for(bench, quick, monkeypatch, capsys):
    monkeypatch.setattr(latency, "precisions", lambda: ())
    run = run_of(bench, "short", 1, model={**GPT2, "n_positions": 40}, task="causal-lm", data__max_length=40,
                 data__label=None)
    capsys.readouterr()
    assert main(["bench", str(run.folder), "--inference", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["inference"]
    assert found["writes"] == found["tokens"] == 20 and len(found["timings"]) == 2


def test_on_a_gpu_compiled_layers_are_measured_too(bench, quick, monkeypatch, capsys):
    monkeypatch.setattr(latency, "_has_gpu", lambda: True)
    monkeypatch.setattr(latency, "precisions", lambda: ())
    monkeypatch.setitem(ENGINES, "compiled", ENGINES["torch"])
    run = run_of(bench, "replayed")
    capsys.readouterr()
    assert main(["bench", str(run.folder), "--inference", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["inference"]
    assert {each["engine"] for each in found["timings"]} == {"torch", "compiled"}


@pytest.mark.slow
def test_tensorrt_is_measured_where_it_is_installed(bench, quick, monkeypatch, capsys):
    tensorrt_host.install(monkeypatch)
    monkeypatch.setattr(latency, "precisions", lambda: ())  # of onnxruntime
    run = run_of(bench, "engines", steps=200)
    assert main(["export", str(run.folder), "--to", "tensorrt"]) == 0
    tensorrt_host.install(monkeypatch, gpu="NVIDIA A100")  # where that export is not good for
    capsys.readouterr()
    assert main(["bench", str(run.folder), "--inference", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["inference"]
    assert {(each["engine"], each["precision"]) for each in found["timings"]} == {
        ("torch", "fp32"), ("tensorrt", "fp32"), ("tensorrt", "fp16")} and found["left_out"] == {}
    assert found["versions"]["tensorrt"] == stack().tensorrt
    folder = run.folder.with_name(run.folder.name + "-bench")
    assert "tensorrt fp16, batch 2" in texts((folder / "results.html").read_text())
    assert sorted(path.name for path in folder.glob(".*")) == [".lock"], "its own exports are gone"


def test_published_figures_stand_where_they_fit():
    bench = replace(sample(), inference=INFERENCE)
    for model, shown, hidden in (("bert-base-uncased", "onnxruntime 1.4, fp16, batch 4", "TensorRT 8.5"),
                                 ("albert-base-v2", "Latency", "published")):
        text = texts(page.render(replace(bench, job={**bench.job, "model": model}, model=model)))
        assert shown in text and hidden not in text


def test_the_page_shows_it_beside_the_trainings():
    bench = replace(sample(), inference=INFERENCE)
    text = texts(page.render(bench))
    assert [each for each in ("4 ms", "250", "2.00x", "the exported model is <another>", "Plain DDP is the fastest",
                              "published: TensorRT 8.5, fp16, batch 1") if each not in text] == []
    assert "| onnx fp32, batch 8 | 16 ms | 32 ms | 48 ms | 500 | 2.00x | 100 |" in tables.as_markdown(bench)
    alone = replace(bench, configurations=())
    assert "Latency" in texts(page.render(alone)) and "Memory per rank" not in page.render(alone)


def test_only_trainings_look_as_before():
    assert "Latency" not in page.render(sample()) and "answers" not in tables.as_markdown(sample())
