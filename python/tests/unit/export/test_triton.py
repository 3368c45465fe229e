"""The model repository is what Triton reads: by NVIDIA's own schema, and with the graph that is in it."""
import importlib.util
import json
from importlib import metadata

import numpy as np
import onnxruntime
import pytest
from exported_runs import GPT2, run_of
from google.protobuf import text_format
from transformers import AutoTokenizer

from debzero.cli import main

TYPES = {"TYPE_INT64": np.int64, "TYPE_FP32": np.float32}


@pytest.fixture(scope="module")
def schema():
    """The module of NVIDIA's client that holds the schema, without the client, which wants gRPC."""
    [file] = [file for file in metadata.files("tritonclient") if str(file) == "tritonclient/grpc/model_config_pb2.py"]
    spec = importlib.util.spec_from_file_location("model_config_pb2", file.locate())
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def repository(trained):
    """Of a run that classifies."""
    run = run_of(trained, "triton")
    assert main(["export", str(run.folder), "--to", "onnx", "--layout", "triton"]) == 0
    return run.folder / "export/triton-fp32"


def test_the_graph_runs_by_its_configuration(schema, repository, capsys):
    [model] = repository.iterdir()
    config = text_format.Parse((model / "config.pbtxt").read_text(), schema.ModelConfig())
    assert config.name == model.name == "out-triton" and config.platform == "onnxruntime_onnx"
    assert config.max_batch_size == 64 and config.HasField("dynamic_batching")
    assert sorted(path.name for path in model.iterdir()) == ["1", "config.pbtxt", "labels.txt"]

    session = onnxruntime.InferenceSession(str(model / "1/model.onnx"))
    assert {each.name for each in config.input} == {each.name for each in session.get_inputs()}
    texts = ["the old cat", "a red saw near the house"]
    batch = AutoTokenizer.from_pretrained(model / "1")(texts, padding=True, return_tensors="np")
    feeds = {each.name: batch[each.name].astype(TYPES[schema.DataType.Name(each.data_type)]) for each in config.input}
    assert all([*each.dims] == [-1] for each in config.input)
    [output] = config.output
    [logits] = session.run([output.name], feeds)
    assert logits.dtype == TYPES[schema.DataType.Name(output.data_type)] and [*logits.shape[1:]] == [*output.dims]
    labels = (model / output.label_filename).read_text().splitlines()
    assert [labels[best] for best in logits.argmax(1)] == ["animal", "tool"]
    assert main(["predict", str(model / "1"), "--engine", "onnx", "--json", *texts]) == 0
    assert [json.loads(line)["answer"] for line in capsys.readouterr().out.splitlines()] == ["animal", "tool"]


@pytest.mark.slow
def test_it_is_replaced_by_the_next_export_and_other_models_stay(repository, trained, capsys):
    """What is at the model's own place alone is replaced, and only where it is one version of an export."""
    run = repository.parents[1]
    [model] = repository.iterdir()
    other = repository / "other/1"
    other.mkdir(parents=True)
    (other / "export.json").write_text("{}")
    arguments = ["export", str(run), "--to", "onnx", "--layout", "triton", "-o"]
    (model / "left").touch()
    assert main([*arguments, str(repository)]) == 0
    assert not (model / "left").exists() and (other / "export.json").is_file()
    assert {path.name for path in repository.iterdir()} == {"other", model.name}
    assert f"name: \"{model.name}\"" in (model / "config.pbtxt").read_text()

    (model / "2").mkdir()
    assert main([*arguments, str(repository)]) == 2
    assert "other versions than 1: 2" in " ".join(capsys.readouterr().err.split())
    (model / "2").rmdir()
    assert main(["export", str(run), "--to", "onnx", "-o", str(repository)]) == 2
    assert main(["export", str(run), "--to", "onnx", "-o", str(model)]) == 2
    assert main([*arguments, str(model / "labels.txt")]) == 2
    (model / "1/export.json").unlink()
    assert main([*arguments, str(repository)]) == 2
    assert {path.name for path in model.iterdir()} == {"1", "config.pbtxt", "labels.txt"}


def test_a_model_that_writes_is_refused(trained, capsys):
    run = run_of(trained, "triton-writes", steps=1, model=GPT2, task="causal-lm", data__label=None)
    assert main(["export", str(run.folder), "--to", "onnx", "--layout", "triton"]) == 2
    assert "its answers take a loop around the graphs" in " ".join(capsys.readouterr().err.split())
