"""What a model is asked for is what its task answers, whatever shares its batch."""
import json
import shutil
from copy import deepcopy
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from predicting import answers, saved

from debzero import cli
from debzero.base.errors import OutOfMemory
from debzero.base.files import read_json, write_json
from debzero.data.collator import Collator
from debzero.predict import answers as module
from debzero.predict import trained
from debzero.predict.answers import Answers, ends
from debzero.predict.engine import Choice, Writing
from debzero.predict.engines import ENGINES

BEGINNINGS = ["the", "the old red", "cat", "a small house near the old dog and", "red small", "dog dog dog dog"]


@pytest.fixture(scope="module")
def models(trained):
    """saved() in one bench, each model once."""
    return cache(lambda kind, task: saved(trained, f"model-{kind}-{task}", kind, task))


@pytest.fixture
def copy(models, tmp_path):
    """A folder like a model's, to change."""
    return lambda kind, task: Path(shutil.copytree(models(kind, task).folder, tmp_path / "model"))


def ask(capsys, *arguments):
    capsys.readouterr()
    code = cli.main(["predict", *map(str, arguments), "--json"])
    said = capsys.readouterr()
    assert code == 0, said.out + said.err
    return answers(said.out)


def held_out_texts(model):
    """The held-out samples as texts, which this tokenizer encodes to the same tokens."""
    side = model.samples.held_out
    return [model.tokenizer.decode(side.ids[start : start + length], skip_special_tokens=True)
            for start, length in zip(side.offsets, side.lengths)]


@pytest.mark.parametrize(("kind", "task"), [("bert", "classification"), ("gpt2", "classification"),
                                            ("bert", "regression"), ("t5", "text-to-text")])
def test_answers_are_those_of_the_evaluation(models, capsys, kind, task):
    model = models(kind, task)
    texts = held_out_texts(model)[:40]
    found = ask(capsys, model.folder, *texts)
    with torch.no_grad():
        batch = Collator(model.tokenizer, 1, None, False)(model.samples.held_out, np.arange(40))
        wanted = model.task.answers(model.model, batch)[:, 1]
    assert [row["text"] for row in found] == texts
    if task == "regression":
        assert [row["answer"] for row in found] == pytest.approx(wanted.tolist(), abs=1e-4)
        return
    assert [row["answer"] for row in found] == [model.samples.labels[int(number)] for number in wanted]
    assert len({row["answer"] for row in found}) > 1
    for row in found:
        assert row["probability"] == max(row["probabilities"].values()) and sum(
            row["probabilities"].values()) == pytest.approx(1, abs=1e-5)


def test_a_pair_of_texts_and_a_prefix_are_put_together_as_in_training(bench, capsys):
    lines = [line.split(",") for line in (bench.folder / "rows.csv").read_text().splitlines()[1:]]
    (bench.folder / "pairs.csv").write_text("\n".join(
        ["a,b,label", *(f"{text},the {text.split()[0]},{label}" for text, label in lines)]))
    changes = {"data__dataset": str(bench.folder / "pairs.csv"), "data__text": ["a", "b"]}
    model = saved(bench, "pairs", "bert", "classification", **changes)
    (row,) = ask(capsys, model.folder, "the old dog", "red cat")
    with torch.no_grad():
        logits = model.model(**model.tokenizer("the old dog", "red cat", return_tensors="pt")).logits[0]
    assert list(row)[:2] == ["a", "b"]
    assert row["probability"] == pytest.approx(float(logits.softmax(-1).max()), abs=1e-5)
    model = saved(bench, "prefixed", "bert", "classification", data__prefix=["cat ", " dog "], **changes)
    (row,) = ask(capsys, model.folder, "the old dog", "red cat")
    with torch.no_grad():
        logits = model.model(**model.tokenizer("cat the old dog dog red cat", return_tensors="pt")).logits[0]
    assert row["probability"] == pytest.approx(float(logits.softmax(-1).max()), abs=1e-5)


@pytest.mark.parametrize("changes", [{"data__prefix": ["cat ", " dog "]}, {}])
def test_a_model_that_writes_takes_pairs_where_it_was_trained_on_them(bench, capsys, changes):
    lines = [line.split(",") for line in (bench.folder / "rows.csv").read_text().splitlines()[1:]]
    (bench.folder / "pairs.csv").write_text("\n".join(
        ["a,b,label", *(f"{text},the {text.split()[0]},{text.split()[0]}" for text, _ in lines)]))
    model = saved(bench, "written", "t5", "text", data__dataset=str(bench.folder / "pairs.csv"), data__text=["a", "b"],
                  **changes)
    texts = ["cat the old dog dog red cat"] if changes else ["the old dog", "red cat"]
    (row,) = ask(capsys, model.folder, "the old dog", "red cat", "--max-tokens", 6)
    assert list(row) == ["a", "b", "answer"] and row["answer"] == alone(model, *texts)


def test_a_run_is_asked_by_its_job_its_folder_or_a_copy_of_its_model(trained, tmp_path, capsys):
    job = {"ranks": 1, "train__max_steps": 2, "data__prefix": ["old "]}
    trained.train("asked-by-name", **job)
    output = trained.output("asked-by-name")
    found = [ask(capsys, name, "the red cat") for name in (
        trained.folder / "asked-by-name.yml", output, shutil.copytree(output / "model", tmp_path / "copy"))]
    assert found[0] == found[1] == found[2]
    assert read_json(tmp_path / "copy" / "debzero.json")["inputs"] == {
        "task": "classification", "text": ["text"], "prefix": ["old "], "max_length": 16, "answers": "classes",
        "max_answer_length": 128}
    shutil.rmtree(output / "model")
    assert cli.main(["predict", str(output), "a"]) == 2
    assert "holds no trained model: its run is finished" in " ".join(capsys.readouterr().err.split())


def alone(model, *texts, **options):
    """What transformers writes for one text, or a pair."""
    given = model.tokenizer(*texts, return_tensors="pt")
    given.pop("token_type_ids", None)
    skipped = given["input_ids"].shape[1] if model.task.label == "nothing" else 0
    written = model.model.generate(**given, max_new_tokens=6, eos_token_id=model.tokenizer.eos_token_id,
                                   pad_token_id=model.tokenizer.pad_token_id, **options)[0]
    text = model.tokenizer.decode(written, skip_special_tokens=True)
    before = model.tokenizer.decode(written[:skipped], skip_special_tokens=True)
    return text[len(before) :] if skipped else text.strip()


@pytest.mark.parametrize(("kind", "task"), [("gpt2", "causal-lm"), ("bert", "causal-lm"), ("t5", "text")])
def test_what_is_written_does_not_depend_on_the_batch(models, capsys, kind, task):
    model = models(kind, task)
    found = ask(capsys, model.folder, *BEGINNINGS, "--max-tokens", 6)
    assert [row["answer"] for row in found] == [alone(model, text) for text in BEGINNINGS]
    found = ask(capsys, model.folder, *BEGINNINGS, "--max-tokens", 6, "--beams", 3)
    assert [row["answer"] for row in found] == [alone(model, text, num_beams=3) for text in BEGINNINGS]


def test_what_is_written_joins_the_text_before_it(models, capsys):
    """Decoded alone it would lack the blank before a word, and show the mark of a word that goes on."""
    model = models("gpt2", "causal-lm")
    found = [row["answer"] for row in ask(capsys, model.folder, *BEGINNINGS)]
    assert not any("##" in answer for answer in found) and {answer[0].isspace() for answer in found} == {True, False}


@pytest.mark.parametrize("kind", sorted(module.PADDED_LEFT))
def test_types_that_may_be_padded_on_the_left_write_the_same(models, tmp_path, kind):
    tokenizer = models("gpt2", "causal-lm").tokenizer
    config = transformers.AutoConfig.for_model(kind, vocab_size=200, hidden_size=16, num_hidden_layers=2,
                                               num_attention_heads=2, intermediate_size=32, initializer_range=0.3,
                                               max_position_embeddings=64, pad_token_id=tokenizer.pad_token_id,
                                               **{"opt": {"ffn_dim": 32, "word_embed_proj_dim": 16}, "gpt_neo": {
                                                   "num_layers": 2, "num_heads": 2, "attention_types": [
                                                       [["global", "local"], 1]]}, "gptj": {"rotary_dim": 4}
                                               }.get(kind, {}))
    torch.manual_seed(0)
    folder = tmp_path / kind
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    model = trained.load(folder)
    how = Writing(6, ends(model), tokenizer.pad_token_id)
    asked = Answers(model, ENGINES["torch"](model, Choice()), how)
    assert asked.of([BEGINNINGS]) == [asked.of([[text]])[0] for text in BEGINNINGS]


def test_drawn_texts_are_the_same_for_a_seed_and_end_at_a_stop(models, capsys):
    model = models("gpt2", "causal-lm")
    drawn = [[row["answer"] for row in ask(capsys, model.folder, *BEGINNINGS, "--sample", "--seed", seed)]
             for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    (whole,) = ask(capsys, model.folder, "the")
    stop = next(word for word in whole["answer"].split()[2:] if word in model.tokenizer.get_vocab())
    (cut,) = ask(capsys, model.folder, "the", "--stop", stop)
    assert cut["answer"].split() == whole["answer"].split()[: whole["answer"].split().index(stop)]


def test_a_long_prompt_keeps_its_end(models, capsys):
    model = models("gpt2", "causal-lm")
    (row,) = ask(capsys, model.folder, "cat " * 100 + "the old red", "--max-tokens", 6)
    assert row["answer"] == alone(model, "cat " * 55 + "the old red")


def test_a_folder_of_transformers_own_says_its_task_itself(copy, models, capsys):
    folder = copy("bert", "regression")
    before = ask(capsys, folder, "the old dog")
    (folder / "debzero.json").unlink()
    assert ask(capsys, folder, "the old dog") == before
    shutil.rmtree(folder)
    folder = copy("t5", "text")
    (folder / "debzero.json").unlink()
    assert ask(capsys, folder, "the", "--max-tokens", 6)[0]["answer"] == alone(models("t5", "text"), "the")


def test_a_model_of_an_earlier_release_is_asked_as_its_run_was(copy, capsys):
    folder = copy("bert", "classification")
    plain = ask(capsys, folder, "the old dog")
    write_json(folder / "debzero.json", {"step": 1})
    settings = {"task": "classification", "data.text": ["text"], "data.prefix": ["cat "], "data.max_length": 24}
    write_json(folder.parent / "run.json", {"fingerprint": "f", "weights": settings, "others": {}, "contents": {}})
    prefixed = ask(capsys, folder, "the old dog")
    (folder.parent / "run.json").unlink()
    assert ask(capsys, folder, "the old dog") == plain != prefixed
    assert ask(capsys, folder, "cat the old dog")[0]["probability"] == prefixed[0]["probability"]


def test_answers_that_are_no_numbers_are_an_error(copy, models, capsys):
    folder, model = copy("bert", "classification"), deepcopy(models("bert", "classification").model)
    with torch.no_grad():
        model.classifier.weight[0, 0] = float("nan")
    model.save_pretrained(folder)
    assert cli.main(["predict", str(folder), "the"]) == 1
    assert "are no numbers in fp32" in capsys.readouterr().err


@pytest.mark.parametrize(("spoil", "said"), [
    (lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"), "pytorch_model.bin alone"),
    (lambda folder: change(folder, auto_map={"AutoModel": "x.Y"}, model_type="own"), "names code of its own"),
    (lambda folder: change(folder, architectures=["BertForMaskedLM"]), "names BertForMaskedLM, which has no answers"),
    (lambda folder: change(folder, architectures=["BertLMHeadModel"]), "its weights have no cls."),
    (lambda folder: change(folder, id2label={"0": "a", "1": "b", "2": "c"}), "size mismatch for classifier.weight"),
    (lambda folder: change(folder, num_attention_heads=3), "transformers cannot load it: ValueError"),
    (lambda folder: change(folder, vocab_size=7), "but the model's embedding holds 7"),
    (lambda folder: (folder / "tokenizer.json").unlink(), "has no tokenizer"),
])
def test_a_folder_that_cannot_be_asked_is_refused(copy, capsys, spoil, said):
    folder = copy("bert", "classification")
    (folder / "debzero.json").unlink()
    spoil(folder)
    assert cli.main(["predict", str(folder), "the"]) in (1, 2)
    error = capsys.readouterr().err
    assert said in " ".join(error.split()) and "Traceback" not in error


def change(folder, **values):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def test_a_batch_that_the_gpu_has_no_memory_for_is_halved_and_later_ones_are_still_answered(models):
    engine = ENGINES["torch"](trained.load(models("bert", "classification").folder), Choice())
    largest, batch = 0, {"input_ids": np.ones((4, 3), np.int64)}

    def of(part):
        if len(part["input_ids"]) > largest:
            raise torch.cuda.OutOfMemoryError
        return part["input_ids"].numpy()

    for _ in range(2):
        with pytest.raises(OutOfMemory):
            engine._in_parts(batch, of)
    largest = 1
    assert engine._in_parts(batch, of).shape == (4, 3)
