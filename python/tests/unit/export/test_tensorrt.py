"""Engines of TensorRT, built, judged and asked on a stand-in of TensorRT: what runs on a GPU is not shown here."""
import json
import shlex
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import tensorrt_host
from exported_runs import graph, infinite, one_weight, run_of
from safetensors.torch import load_file, save_file

from debzero.base.errors import UserError
from debzero.base.files import read_json
from debzero.base.stack import stack
from debzero.cli import main, parser
from debzero.export import engines, graphs, readme
from debzero.predict import engine_tensorrt, rows, tensorrt_process, trained
from debzero.predict.engine import Choice


@pytest.fixture(autouse=True)
def host(monkeypatch):
    tensorrt_host.install(monkeypatch)


@pytest.fixture(scope="module")
def run(request):
    return run_of(request.getfixturevalue("trained"), "engines")


@pytest.fixture(scope="module")
def export(run):
    """Its export in fp32."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        tensorrt_host.install(monkeypatch)
        assert main(["export", str(run.folder), "--to", "tensorrt"]) == 0
    return run.folder / "export" / "tensorrt-fp32"


def test_the_record_says_for_what_it_was_built(run, export):
    record = read_json(export / "export.json")
    found = record["verification"]
    assert record["to"] == "tensorrt" and record["precision"] == "fp32"
    assert record["built_for"] == {"gpu": "NVIDIA Stand-in", "capability": "8.0", "driver": "of CUDA 11.5",
                                   "tensorrt": stack().tensorrt}
    assert found["samples"] == found["answers"] == 100 and found["differing"] == found["not_finite"] == 0
    assert 0 < found["largest_difference"] < 1e-4 and record["verified_on"] == "NVIDIA Stand-in"
    assert '--engine tensorrt' in (export / "README.md").read_text()
    assert sorted(path.name for path in export.glob("*.on*")) == [] and (export / "model.engine").is_file()
    assert [name.name for name in export.glob(".*")] == []


@pytest.mark.parametrize("columns", [["text"], ["text", "pair"]])
def test_the_readme_asks_for_a_text_of_each_column(export, columns):
    model = trained.load(export, weights=False)
    model = replace(model, inputs=model.inputs.model_copy(update={"text": columns}))
    [line] = [line for line in readme._engines(model, {"built_for": {}}) if line.startswith("debzero predict")]
    asked = parser().parse_args(shlex.split(line)[1:])
    pieces = rows.of_arguments(asked.texts, len(columns))
    assert [len(texts) for texts in pieces.texts] == [1] * len(columns)


def test_predict_answers_with_it(run, export, capsys):
    """Texts of several widths, more than a profile takes rows: each batch is padded, and divided."""
    rows = run.folder.parent / "asked.csv"
    texts = [f"the old cat {'near the house ' * (number % 7)}" for number in range(150)]
    rows.write_text("\n".join(["text", *texts]))
    answers = {}
    for engine in ("torch", "tensorrt"):
        assert main(["predict", str(run.folder), "--input", str(rows), "--json", "--engine", engine]) == 0
        answers[engine] = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(answers["torch"]) == 150
    for one, other in zip(*answers.values()):
        assert one["answer"] == other["answer"]
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5)


@pytest.mark.slow
def test_half_precision_keeps_layer_norms_in_fp32(run, monkeypatch, capsys):
    """What TensorRT is known for: the square of 300 is more than half precision holds."""
    copy = shutil.copytree(run.folder, run.folder.with_name("large"), ignore=shutil.ignore_patterns("export"))
    weights = load_file(copy / "model" / "model.safetensors")
    for name in ("word", "position", "token_type"):
        weights[f"bert.embeddings.{name}_embeddings.weight"] *= 2.0**14
    save_file(weights, copy / "model" / "model.safetensors", {"format": "pt"})
    command = ["export", str(copy), "--to", "tensorrt", "--precision", "fp16"]
    with monkeypatch.context() as all_in_half:
        all_in_half.setattr(engines, "layer_norms", lambda graph: [])
        assert main(command) == 1
    assert "of its outputs are no finite numbers" in capsys.readouterr().err
    assert list((copy / "export").iterdir()) == []
    assert main([*command, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["layers_in_fp32"] == {"model.engine": 5 * 7}, "two norms in each of two layers, and the embeddings'"
    assert 1e-5 < record["verification"]["largest_difference"] < 0.1


@pytest.mark.parametrize("changed", [{"gpu": "NVIDIA A100", "cuda": 12020}, {"tensorrt": "8.6.1"},
                                     pytest.param({"capability": "8.6"}, marks=pytest.mark.slow)])
def test_another_host_builds_it_again(run, export, changed, monkeypatch, capsys):
    tensorrt_host.install(monkeypatch, **changed)
    command = ["predict", str(run.folder), "the old cat", "--engine", "tensorrt"]
    assert main(command) == 1
    said = capsys.readouterr().err
    assert "was built for another host" in said and "debzero export NAME --to tensorrt --precision fp32" in said
    names = {"cuda": "driver of CUDA 11.5, here of CUDA 12.2"}
    assert [name for name in changed if names.get(name, name) not in said] == []
    monkeypatch.setattr(engine_tensorrt, "check_host", lambda *given: None)
    if "gpu" not in changed:  # what TensorRT itself refuses
        assert main(command) == 1
        assert "TensorRT: it cannot load the engine: " in capsys.readouterr().err


@pytest.mark.slow
def test_export_builds_it_again_for_this_host(run, export, tmp_path, monkeypatch):
    copy = shutil.copytree(run.folder, tmp_path / "copy")
    tensorrt_host.install(monkeypatch, gpu="NVIDIA A100")
    assert main(["export", str(copy), "--to", "tensorrt"]) == 0
    assert read_json(copy / "export" / "tensorrt-fp32" / "export.json")["built_for"]["gpu"] == "NVIDIA A100"
    assert main(["predict", str(copy), "the old cat", "--engine", "tensorrt"]) == 0


def test_longer_texts_than_it_was_built_for_are_refused(export):
    engine = engine_tensorrt.TensorRTEngine(trained.load(export, weights=False), Choice())
    batch = {name: np.ones((2, 17), np.int64) for name in ("input_ids", "attention_mask", "token_type_ids")}
    with pytest.raises(UserError, match="was built for shorter texts than 17 tokens"):
        engine.logits(batch)


@pytest.mark.slow
@pytest.mark.parametrize(("damage", "said"), [
    (one_weight, "a logit differs by"), (infinite, "of its outputs are no finite numbers")])
def test_a_damaged_engine_does_not_pass(run, damage, said, monkeypatch, capsys):
    written = graphs.write

    def damaged(trained, model, example, folder, cache=True):
        written(trained, model, example, folder, cache)
        graph(damage)(folder)

    monkeypatch.setattr(graphs, "write", damaged)
    before = sorted(path.name for path in (run.folder / "export").iterdir())
    assert main(["export", str(run.folder), "--to", "tensorrt", "-o", str(run.folder / "damaged")]) == 1
    assert said in capsys.readouterr().err and not (run.folder / "damaged").exists()
    assert sorted(path.name for path in (run.folder / "export").iterdir()) == before


def test_a_changed_engine_is_not_asked(run, export, tmp_path, capsys):
    copy = shutil.copytree(export, tmp_path / "copy")
    with open(copy / "model.engine", "ab") as file:
        file.write(b"x")
    assert main(["predict", str(copy), "a text", "--engine", "tensorrt"]) == 1
    assert "is not the engine that was verified" in capsys.readouterr().err


@pytest.mark.parametrize(("host", "said"), [({"gpu": ""}, "Failed to dlopen libcuda.so.1"),
                                            ({"memory": 100}, "out of memory")])
def test_what_the_host_cannot_do_is_one_sentence(run, export, host, said, monkeypatch, capsys):
    tensorrt_host.install(monkeypatch, **host)
    assert main(["predict", str(run.folder), "the old cat", "--engine", "tensorrt"]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("debzero: TensorRT: ") and said in printed and "Traceback" not in printed


def test_bad_input_is_one_sentence(run, export, monkeypatch, capsys):
    asked = ["predict", "x", "--engine", "tensorrt"]
    for arguments, said in ((["export", "--to", "tensorrt", "--precision", "int8"], "no exports to TensorRT in int8"),
                            ([*asked, "--precision", "int8"], "there are no exports to TensorRT in int8"),
                            ([*asked, "--precision", "fp16"], "is not an export in fp16"),
                            ([*asked, "--device", "cpu"], "TensorRT needs a GPU")):
        assert main([arguments[0], str(run.folder), *arguments[1:]]) == 2
        assert said in capsys.readouterr().err
    monkeypatch.undo()
    assert main(["export", str(run.folder), "--to", "tensorrt", "-o", str(run.folder / "none")]) == 1
    assert "TensorRT is not installed on this host" in capsys.readouterr().err


def test_a_process_that_dies_is_explained(run, export, monkeypatch, capsys):
    program = "import sys; sys.exit('no memory')"
    monkeypatch.setattr(tensorrt_process, "command", lambda: [sys.executable, "-c", program])
    assert main(["predict", str(run.folder), "x", "--engine", "tensorrt"]) == 1
    assert "the process of TensorRT ended with code 1: no memory" in capsys.readouterr().err
