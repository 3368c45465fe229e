"""The process of TensorRT, on its stand-in: what it refuses is one sentence, and pipes carry nothing but numbers."""
import io
from types import SimpleNamespace

import numpy as np
import pytest
import tensorrt_host
from onnx import TensorProto, helper, save

from debzero.base.errors import HostError, UserError
from debzero.export import engines
from debzero.export.norms import layer_norms
from debzero.predict import tensorrt_process, wire
from debzero.predict.tensorrt_process import Process


def graph(file, *nodes, length="length"):
    """y of x, float32[rows, length]."""
    shape = ["rows", length]
    save(helper.make_model(helper.make_graph(
        list(nodes), "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)]), opset_imports=[helper.make_opsetid("", 14)],
        ir_version=8), str(file))
    return str(file)


@pytest.fixture
def process(monkeypatch):
    tensorrt_host.install(monkeypatch)
    return Process()


def build(process, file, **changes):
    given = {"engine": f"{file}.engine", "precision": "fp32", "keep": [], "workspace": 2**20,
             "profiles": [{"x": [[1, 4], [2, 4], [8, 4]]}], **changes}
    process.ask("build", graph=str(file), **given)
    return given["engine"]


def test_what_it_refuses_is_one_sentence(process, tmp_path):
    good = graph(tmp_path / "good", helper.make_node("Mul", ["x", "x"], ["y"], name="square"))
    fused = graph(tmp_path / "fused", helper.make_node("FusedMatMul", ["x", "x"], ["y"], domain="com.microsoft"))
    fixed = graph(tmp_path / "fixed", helper.make_node("Neg", ["x"], ["y"]), length=5)
    (tmp_path / "none").write_text("no graph")
    for file, changes, said in (
            (good, {"profiles": []}, "no optimization profile has been defined"),
            (good, {"profiles": [{"other": [[1], [1], [1]]}]}, "x has a dynamic shape and is in no profile"),
            (good, {"profiles": [{"x": [[4, 4], [2, 4], [8, 4]]}]}, "inconsistent with other shapes"),
            (good, {"profiles": [{}]}, "it refuses the profile"),
            (good, {"precision": "fp16", "keep": ["norm"]}, "it has no layer norm, which must be computed in fp32"),
            (fused, {}, "it cannot read the graph: No importer registered for op: FusedMatMul"),
            (fixed, {}, "the profile's shapes are not those of the network"),
            (tmp_path / "none", {}, "Failed to parse ONNX model")):
        with pytest.raises(UserError, match=said):
            build(process, file, **changes)
    with pytest.raises(UserError, match="Magic tag does not match"):
        process.ask("load", engine=good)
    number = process.ask("load", engine=build(process, good))[0]["number"]
    for shape, profile, said in (((9, 4), 0, "x cannot have the shape"), ((2, 5), 0, "x cannot have the shape"),
                                 ((2, 4), 1, "profile 1 cannot be used")):
        with pytest.raises(UserError, match=said):
            process.ask("run", {"x": np.ones(shape, np.float32)}, number=number, profile=profile, last={})
    values = np.arange(8, dtype=np.float32).reshape(2, 4)
    _, made = process.ask("run", {"x": values}, number=number, profile=0, last={})
    assert (made["y"] == values**2).all(), "and it still answers"


def test_half_precision_overflows_but_for_what_is_kept(process, tmp_path):
    nodes = [helper.make_node("Mul", ["x", "x"], ["square"], name="square"),
             helper.make_node("Sqrt", ["square"], ["y"], name="root")]
    found = {}
    for keep in ((), ("square", "root")):
        engine = build(process, graph(tmp_path / "graph", *nodes), precision="fp16", keep=list(keep))
        number = process.ask("load", engine=engine)[0]["number"]
        found[keep] = process.ask("run", {"x": np.full((1, 4), 300, np.float32)}, number=number, profile=0, last={})[1]
    assert not np.isfinite(found[()]["y"]).any() and (found["square", "root"]["y"] == 300).all()


def test_an_unsupported_precision(monkeypatch, tmp_path):
    tensorrt_host.install(monkeypatch, fp16=False)
    with pytest.raises(UserError, match="no half precision that is faster"):
        build(Process(), tmp_path / "any", precision="fp16")


def test_it_ends_with_its_owner(monkeypatch):
    tensorrt_host.install(monkeypatch)
    process = Process()
    child = process.child
    del process
    assert child.wait(10) < 0


def test_a_killed_process_is_explained(process, tmp_path):
    process.child.kill()
    with pytest.raises(HostError, match="the process of TensorRT was ended by signal 9"):
        process.ask("load", engine=str(tmp_path / "any"))


def test_norms_are_found_and_nothing_else(tmp_path):
    """Without names, too; a mean, a square or a root by itself is no norm, but a mean is cheap and kept."""
    def node(kind, *names):
        return helper.make_node(kind, list(names[:-1]), [names[-1]])

    file = graph(tmp_path / "graph", node("ReduceMean", "x", "mean"), node("Sub", "x", "mean", "far"),
                 node("Pow", "far", "two", "square"), node("ReduceMean", "square", "variance"),
                 node("Add", "variance", "small", "more"), node("Sqrt", "more", "root"),
                 node("Div", "far", "root", "norm"), node("Mul", "norm", "weight", "scaled"),
                 node("Pow", "scaled", "three", "cube"), node("Sqrt", "cube", "else"), node("Add", "else", "x", "y"))
    assert layer_norms(tmp_path / "graph") == ["ReduceMean_0", "Sub_1", "Pow_2", "ReduceMean_3", "Add_4", "Sqrt_5",
                                               "Div_6"]
    assert file


def test_messages_come_back_as_they_were():
    arrays = {"a": np.arange(6, dtype=np.int64).reshape(2, 3).T, "b": np.zeros((0, 3), np.float32),
              "c": np.float32(2.5).reshape(())}
    stream = io.BytesIO()
    wire.send(stream, {"op": "run"}, arrays)
    wire.send(stream, {"op": "end"})
    stream.seek(0)
    message, found = wire.receive(stream)
    assert message == {"op": "run"} and list(found) == list(arrays)
    assert all((found[name] == array).all() and found[name].shape == array.shape for name, array in arrays.items())
    assert wire.receive(stream) == ({"op": "end"}, {}) and wire.receive(stream) is None


def test_it_runs_under_a_python_of_its_own(monkeypatch, tmp_path):
    monkeypatch.setattr(tensorrt_process, "python", lambda: tmp_path / "python")
    with pytest.raises(UserError, match="TensorRT is not installed on this host"):
        tensorrt_process.command()
    (tmp_path / "python").touch()
    assert tensorrt_process.command() == [str(tmp_path / "python"), "-I", str(tensorrt_process.SCRIPT)]
    assert tensorrt_process.SCRIPT.is_file()


@pytest.mark.parametrize(("task", "kind", "longest", "positions", "widths", "rows"), [
    ("classification", "bert", 128, 512, [32, 64, 128], [64, 64, 64]),
    ("classification", "bert", 100, 512, [32, 64, 100], [64, 64, 64]),
    ("classification", "bert", 16, 512, [16], [64]),
    ("causal-lm", "gpt2", 128, 1024, [32, 64, 128, 256, 512, 1024], [64, 41, 20, 10, 5, 2]),
    ("text-to-text", "t5", 128, None, [32, 64, 128], [64, 64, 64])])
def test_each_width_has_a_profile(task, kind, longest, positions, widths, rows):
    """As many rows as their logits' memory allows."""
    model = SimpleNamespace(task=task, continues=kind == "gpt2", limit=20, positions=positions,
                            inputs=SimpleNamespace(max_length=longest), config=SimpleNamespace(vocab_size=50257))
    axes = {"input_ids": ["batch", "sequence"], "attention_mask": ["batch", "sequence"], "logits": ["batch", 2]}
    if kind == "t5":
        axes = {"input_ids": ["batch", "answer"], "encoder_attention_mask": ["batch", "text"],
                "encoder_hidden_states": ["batch", "text", 768], "logits": ["batch", "answer", 50257]}
    found = engines.profiles(model, axes)
    assert [shapes[list(shapes)[1]][2][:2] for shapes in found] == [list(each) for each in zip(rows, widths)]
    assert all(shapes[name][0][0] == 1 and shapes[name][1][0] == min(32, count)
               for shapes, count in zip(found, rows) for name in shapes)
    if kind == "t5":
        assert {tuple(shapes["input_ids"][2]) for shapes in found} == {(64, 24)}, "20 tokens, the first one, in eights"
        assert found[0]["encoder_hidden_states"][2] == [64, 32, 768]


@pytest.mark.parametrize(("said", "error"), [
    (b'{"op": "run"', EOFError), (b'{"arrays": [["a", "|O", [1]]]}\n', ValueError), (b"no JSON\n", ValueError),
    (b'{"arrays": [["a", "<f4", [-1]]]}\n', ValueError), (b'{"arrays": [["a", "<f4", [2]]]}\n\0\0\0\0', EOFError)])
def test_what_is_no_message_is_refused(said, error):
    with pytest.raises(error):
        wire.receive(io.BytesIO(said))
    with pytest.raises(ValueError, match="not sent"):
        wire.send(io.BytesIO(), {}, {"a": np.array([object()])})
