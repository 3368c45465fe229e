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
def test_it_is_replaced_by_the_next_export(repository):
    run = repository.parents[1]
    for _ in range(2):
        assert main(["export", str(run), "--to", "onnx", "--layout", "triton", "-o", str(repository)]) == 0
    assert main(["export", str(run), "--to", "onnx", "--layout", "triton", "-o", str(run)]) == 2


def test_a_model_that_writes_is_refused(trained, capsys):
    run = run_of(trained, "triton-writes", steps=1, model=GPT2, task="causal-lm", data__label=None)
    assert main(["export", str(run.folder), "--to", "onnx", "--layout", "triton"]) == 2
    assert "its answers take a loop around the graphs" in " ".join(capsys.readouterr().err.split())
