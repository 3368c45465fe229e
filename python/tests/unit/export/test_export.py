"""An export answers as the original does, alone in another process, or is not there."""
import json
import shutil
from pathlib import Path

import pytest
from exported_runs import graph, infinite, one_weight, run_alone, run_of, score_alone
from safetensors.torch import load_file, save_file

from debzero.base.errors import InputError, UserError
from debzero.base.files import read_json
from debzero.cli import main, parser
from debzero.export import exporting, samples
from debzero.export.verify import METRIC_LIMIT
from debzero.predict import trained
from debzero.predict.engine import Choice
from debzero.predict.engine_torch import TorchEngine


@pytest.fixture(scope="module")
def run(trained):
    """A run that classifies."""
    return run_of(trained, "exported")


@pytest.fixture(scope="module")
def export(run):
    """Its export in fp32."""
    assert main(["export", str(run.folder), "--to", "onnx"]) == 0
    return run.folder / "export" / "onnx-fp32"


def left_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob(".*")) + sorted(path.name for path in folder.glob("*"))


def test_the_record_says_what_was_compared(run, export):
    record = read_json(export / "export.json")
    found = record["verification"]
    assert record["precision"] == "fp32" and record["accepted"] == [] and record["opset"] == 14
    assert found["samples"] == found["answers"] == 100 and found["differing"] == found["not_finite"] == 0
    assert found["original"]["accuracy"] == found["exported"]["accuracy"] > 0.9
    assert 0 < found["mean_difference"] < found["largest_difference"] < 1e-4
    assert record["axes"]["model.onnx"]["input_ids"] == ["batch", "sequence"]
    assert {"onnx", "onnxruntime", "torch", "debzero"} <= record["versions"].keys()
    assert left_of(run.folder / "export") == ["onnx-fp32"], "nothing temporary is left"


def test_the_readme_runs_without_debzero(export):
    """In a copy elsewhere: the folder is all that it takes."""
    program = """
import csv
rows = list(csv.reader(open("ROWS")))[1:]
batch = tokenizer([text for text, _ in rows], padding=True, truncation=True, max_length=16, return_tensors="np")
inputs = {each.name: batch[each.name].astype(numpy.int64) for each in session.get_inputs()}
names = json.load(open("config.json"))["id2label"]
answers = [names[str(best)] for best in session.run(None, inputs)[0].argmax(1)]
print(sum(answer == label for answer, (_, label) in zip(answers, rows)) / len(rows))
""".replace("ROWS", str(export.parents[2] / "rows.csv"))
    printed = run_alone(export, program).split("\n")
    assert printed[0] in ("['animal']", "['tool']")
    assert float(printed[1]) > 0.9


def test_onnxruntime_alone_scores_it_alike(run, export):
    found = read_json(export / "export.json")["verification"]["original"]
    assert score_alone(run, export, "accuracy") == pytest.approx(found["accuracy"], abs=METRIC_LIMIT)


def test_predict_answers_with_it(run, export, capsys):
    answers = {}
    for engine in ("torch", "onnx"):
        assert main(["predict", str(run.folder), "the old cat", "a red saw near the house", "--json", "--engine",
                     engine]) == 0
        answers[engine] = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [each["answer"] for each in answers["onnx"]] == ["animal", "tool"]
    for one, other in zip(*answers.values()):
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5)


def test_the_build_for_gpus_says_what_it_computes_on(run, export, capsys, monkeypatch):
    """Without a GPU, the CPU; with one that it cannot use, onnxruntime would only log that it takes the CPU."""
    both = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: both)
    assert main(["predict", str(run.folder), "the old cat", "--engine", "onnx"]) == 0
    assert capsys.readouterr().out.startswith("animal")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert main(["predict", str(run.folder), "the old cat", "--engine", "onnx"]) == 1
    assert "it cannot use the GPU: a library of CUDA" in capsys.readouterr().err


def test_int8_is_smaller_and_judged_alike(run, export, capsys):
    assert main(["export", str(run.folder), "--to", "onnx", "--precision", "int8", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["verification"]["largest_difference"] > 0 and record["accepted"] == []
    assert (Path(record["folder"]) / "model.onnx").stat().st_size < (export / "model.onnx").stat().st_size / 2
    assert main(["predict", str(run.folder), "the old cat", "--engine", "onnx", "--precision", "int8"]) == 0
    assert capsys.readouterr().out.startswith("animal")


@pytest.fixture(scope="module")
def gate(run, export):
    """Judges a copy of the export after a change to it; returns what the gate says, or the comparison."""
    model = trained.load(run.model)
    original, held_out = TorchEngine(model, Choice("cpu", "fp32")).model, samples.of_run(model, "x")

    def judge(damage, folder, precision="fp32", accept=False):
        shutil.copytree(export, folder)
        damage(folder)
        return exporting.judge(model, original, held_out, folder, exporting.Target("onnx", precision), accept)

    return judge


def swap_labels(folder):
    config = read_json(folder / "config.json")
    config["id2label"] = {"0": config["id2label"]["1"], "1": config["id2label"]["0"]}
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(("damage", "said"), [
    (graph(one_weight), "a logit differs by"), (graph(infinite), "of its outputs are no finite numbers"),
    (swap_labels, "its classes have other names, or another order")])
def test_a_damaged_export_does_not_pass(gate, tmp_path, damage, said):
    with pytest.raises(UserError, match=said):
        gate(damage, tmp_path / "damaged")


def test_what_is_no_such_model_passes_with_no_option(gate, tmp_path):
    for number, damage in enumerate((graph(infinite), swap_labels)):
        with pytest.raises(UserError, match="the original any more"):
            gate(damage, tmp_path / str(number), accept=True)


def test_a_loss_is_accepted_and_written_down(gate, tmp_path):
    found, accepted = gate(graph(one_weight), tmp_path / "damaged", accept=True)
    assert len(accepted) == 1 and "rounding" in accepted[0] and found.differing == 0


def test_half_precision_that_overflows_is_seen_on_a_cpu(run, tmp_path):
    """In fp32 the model is as good as before: what one layer makes larger the next makes smaller again."""
    copy = shutil.copytree(run.folder, tmp_path / "copy", ignore=shutil.ignore_patterns("export"))
    arguments = ["export", str(copy), "--to", "onnx", "--precision", "fp16", "--accept-loss"]
    assert main(arguments) == 0
    assert read_json(copy / "export" / "onnx-fp16" / "export.json")["verification"]["peak"] < 1000
    shutil.rmtree(copy / "export")
    weights = load_file(copy / "model" / "model.safetensors")
    for name, factor in (("intermediate.dense.weight", 2.0**20), ("intermediate.dense.bias", 2.0**20),
                         ("output.dense.weight", 2.0**-20)):
        weights[f"bert.encoder.layer.0.{name}"] *= factor
    save_file(weights, copy / "model" / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="half precision ends at 65504"):
        raising(arguments)
    assert left_of(copy / "export") == []


def raising(arguments):
    """As main, with the error itself."""
    options = parser().parse_args(arguments)
    return options.run(options)


def test_a_failed_export_leaves_the_one_before(run, export, monkeypatch, capsys):
    monkeypatch.setattr(exporting, "optimise", lambda file, config, precision: graph(one_weight)(file.parent))
    before = (export / "model.onnx").read_bytes()
    assert main(["export", str(run.folder), "--to", "onnx"]) == 1
    assert "not the original any more" in capsys.readouterr().err
    assert (export / "model.onnx").read_bytes() == before
    assert left_of(export.parent) in (["onnx-fp32"], ["onnx-fp32", "onnx-int8"])


def test_a_changed_graph_is_not_asked(run, export, tmp_path, capsys):
    copy = shutil.copytree(export, tmp_path / "copy")
    with open(copy / "model.onnx", "ab") as file:
        file.write(b"x")
    assert main(["predict", str(copy), "a text", "--engine", "onnx"]) == 1
    assert "is not the graph that was verified" in capsys.readouterr().err


def one_class_more(folder):
    config = read_json(folder / "config.json")
    (folder / "config.json").write_text(json.dumps({**config, "id2label": {**config["id2label"], "2": "more"}}))


def recorded(**files):
    """A change to what an export says of its files."""
    def damage(folder):
        record = read_json(folder / "export.json")
        (folder / "export.json").write_text(json.dumps({**record, "files": {**record["files"], **files}}))
    return damage


def vouched_for_nothing(folder):
    (folder / "export.json").write_text(json.dumps({**read_json(folder / "export.json"), "files": {}}))


@pytest.mark.parametrize(("damage", "said"), [
    (swap_labels, "config.json is not the file that was verified"),
    (lambda folder: (folder / "tokenizer.json").write_text("{}"), "tokenizer.json is not the file that was verified"),
    (lambda folder: (folder / "debzero.json").unlink(), "debzero.json does not exist"),
    (vouched_for_nothing, "model.onnx was not verified"), (recorded(**{"a\0": ""}), "cannot be read: embedded null"),
    (recorded(**{"../x": ""}), "does not exist"),
    (lambda folder: [damage(folder) for damage in (vouched_for_nothing, one_class_more, recorded(**{
        "model.onnx": read_json(folder / "export.json")["files"]["model.onnx"]}))][0],
     "answers with 2 classes, and its config.json names 3")])
def test_what_decides_its_answers_is_what_was_verified(export, tmp_path, capsys, damage, said):
    copy = shutil.copytree(export, tmp_path / "copy")
    damage(copy)
    assert main(["predict", str(copy), "a text", "--engine", "onnx"]) == 1
    assert said in " ".join(capsys.readouterr().err.split())


def test_an_export_of_earlier_weights_is_not_asked(run, export, tmp_path, capsys):
    copy = shutil.copytree(run.folder, tmp_path / "copy")
    (copy / "model" / "debzero.json").write_text(json.dumps({**read_json(run.model / "debzero.json"), "step": 31}))
    assert main(["predict", str(copy), "a text", "--engine", "onnx"]) == 1
    assert "after step 30" in capsys.readouterr().err


def test_bad_input_is_one_sentence(run, tmp_path, capsys):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_text("mine")
    shutil.copytree(run.model, tmp_path / "model")
    for arguments, said in (([str(run.folder), "-o", str(tmp_path / "there")], "is there, and no export"),
                            ([str(tmp_path / "model")], "is not the model of a run"),
                            ([str(run.folder), "-o", "/proc/new"], "/proc/new cannot be made")):
        assert main(["export", *arguments, "--to", "onnx"]) == 2
        assert said in " ".join(capsys.readouterr().err.split())
    assert (tmp_path / "there" / "file").read_text() == "mine"
    assert main(["predict", str(tmp_path / "model"), "x", "--engine", "onnx"]) == 2
    assert "is not an export to ONNX" in capsys.readouterr().err


def test_samples_that_are_gone_are_made_again(run, tmp_path, monkeypatch):
    model = trained.load(run.model)
    before = samples.of_run(model, "x").prepared
    monkeypatch.setattr(samples.seal, "is_intact", lambda folder: False)
    again = samples.of_run(model, "x").prepared
    assert again.digest == before.digest
    status = read_json(run.status_file)
    for key, value, said in (("fingerprint", "another", "is another job than the run's"),
                             ("job", str(tmp_path / "gone.yml"), "does not exist")):
        run.status_file.write_text(json.dumps({**status, key: value}))
        with pytest.raises(InputError, match=said):
            samples.of_run(model, "x")
    run.status_file.write_text(json.dumps(status))
