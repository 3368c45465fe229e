"""Each task's loss is transformers' own, sample by sample, whatever a batch is padded to; answers and scores are what
they say."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support import WORDS, plan_of

from debzero.base.errors import InputError, UserError
from debzero.data.collator import Collator
from debzero.model import build, tasks
from debzero.resolve.layout import Place
from debzero.train import exchange, prepare
from debzero.train.evaluate import evaluate
from debzero.train.setup import Samples

SMALL = {
    "bert": {"type": "bert", "vocab_size": 200, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
             "intermediate_size": 32},
    "gpt2": {"type": "gpt2", "vocab_size": 200, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64},
    "t5": {"type": "t5", "vocab_size": 200, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2},
}
PAIRS = [("bert", "classification"), ("gpt2", "classification"), ("t5", "classification"), ("bert", "regression"),
         ("gpt2", "regression"), ("gpt2", "causal-lm"), ("bert", "causal-lm"), ("t5", "text-to-text"), ("t5", "text")]


WRITING = {"task": "text-to-text", "model": SMALL["t5"], "data__answers": "text"}


@pytest.fixture
def make(bench):
    """The task of a job, its data and its model."""
    texts = [line.rpartition(",")[0] for line in (bench.folder / "rows.csv").read_text().splitlines()[1:]]
    (bench.folder / "scores.csv").write_text("\n".join(["text,label", *(f"{text},{len(text) / 10}" for text in texts)]))
    (bench.folder / "ends.csv").write_text("\n".join(["text,label", *(f"{text},{text.partition(' ')[2]}"
                                                                      for text in texts)]))
    files = {"regression": "scores.csv", "text": "ends.csv"}

    def made(kind, task, **changes):
        """`task` text is text-to-text with texts of its own."""
        dataset = str(bench.folder / files.get(task, "rows.csv"))
        if task == "text":
            task, changes = "text-to-text", {"data__answers": "text", "data__max_answer_length": 6, **changes}
        changes = {"model": SMALL[kind], "task": task, "data__dataset": dataset, "data__max_length": 24, **changes}
        resolved = plan_of(bench, **changes)
        own = tasks.of(resolved.job)
        loaded = prepare.load(prepare.prepare(resolved, bench.folder / "cache"), own)
        torch.manual_seed(0)
        settings = build.config(resolved.job.model, loaded.labels, loaded.tokenizer)
        model = build.build(resolved, resolved.job.model, settings, {}).eval()
        # As the engines do: transformers would look for FSDP, which torch 1.13 cannot import on Python 3.11.
        model.generate = partial(model.generate, synced_gpus=False)
        return own, loaded, model

    return made


def own_loss(model, loaded, batch, row):
    """What transformers computes for one sample alone, without padding."""
    length = int(batch["attention_mask"][row].sum())
    alone = {name: tensor[row : row + 1, :length] for name, tensor in batch.items() if name != "labels"}
    labels = alone["input_ids"] if "labels" not in batch else batch["labels"][row : row + 1]
    if labels.ndim == 2 and (labels == -100).any():
        labels = labels[:, : int((labels != -100).sum())]
    return float(model(**alone, labels=labels).loss)


@pytest.mark.parametrize(("kind", "task"), PAIRS)
@torch.no_grad()
def test_a_samples_loss_is_transformers_own(make, kind, task):
    own, loaded, model = make(kind, task)
    assert model.dtype == torch.float32 and type(model).__name__.startswith({"bert": "Bert", "gpt2": "GPT2",
                                                                             "t5": "T5"}[kind])
    batch = Collator(loaded.tokenizer, 8, None, False)(loaded.train, np.arange(9))
    losses = own.losses(model, batch)
    assert losses.shape == (9,) and losses.dtype == torch.float32
    assert losses.tolist() == pytest.approx([own_loss(model, loaded, batch, row) for row in range(9)], rel=1e-4)
    answers = own.answers(model, batch)
    assert answers[:, 0] == pytest.approx(losses.numpy(), rel=1e-5)


@pytest.mark.parametrize(("kind", "task"), [("bert", "causal-lm"), ("gpt2", "causal-lm")])
@torch.no_grad()
def test_no_language_model_sees_what_it_is_asked_for(make, kind, task):
    own, loaded, model = make(kind, task)
    batch = Collator(loaded.tokenizer, 8, None, False)(loaded.train, np.arange(1))
    before = model(batch["input_ids"]).logits
    batch["input_ids"][0, 10:] = 7
    assert torch.allclose(model(batch["input_ids"]).logits[0, :10], before[0, :10], atol=1e-6)


@torch.no_grad()
def test_text_to_text_answers_the_likeliest_name(make):
    own, loaded, model = make("t5", "text-to-text")
    batch = Collator(loaded.tokenizer, 8, None, False)(loaded.train, np.arange(16))
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    unlikely = []
    for label in loaded.labels:
        words = torch.tensor([loaded.tokenizer(label)["input_ids"]] * 16)
        likelihood = torch.log_softmax(model(**inputs, labels=words).logits, -1).gather(-1, words[..., None])
        unlikely.append(-likelihood.sum((1, 2)))
    assert own.answers(model, batch)[:, 1].tolist() == torch.stack(unlikely, 1).argmin(1).tolist()
    assert len(unlikely) == len(WORDS)


@pytest.mark.slow
def test_text_to_text_learns(make):
    """The words are the classes' own, so a few dozen steps tell them apart."""
    own, loaded, model = make("t5", "text-to-text",
                              model={**SMALL["t5"], "d_model": 64, "num_layers": 1, "dropout_rate": 0.0})
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    collate = Collator(loaded.tokenizer, 1, None, False)
    for step in range(40):
        picks = np.random.default_rng(step).permutation(len(loaded.train))[:64]
        own.losses(model, collate(loaded.train, picks)).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    with torch.no_grad():
        scores = own.metrics(own.answers(model, collate(loaded.held_out, np.arange(len(loaded.held_out)))), loaded)
    assert scores["accuracy"] > own.baseline(loaded)["accuracy"] + 0.1


@torch.no_grad()
def test_what_a_model_writes_is_transformers_own(make):
    """Whatever settings for writing came with it."""
    own, loaded, model = make("t5", "text")
    held_out, collate = loaded.held_out, Collator(loaded.tokenizer, 8, None, False)
    assert held_out.answers.lengths.max() == 6 and len(held_out.labels) == 0
    greedy = model.generate(**{name: tensor for name, tensor in collate(held_out, np.arange(7)).items()
                               if name != "labels"}, max_new_tokens=6, eos_token_id=loaded.tokenizer.eos_token_id)
    texts = loaded.tokenizer.batch_decode(greedy, skip_special_tokens=True)
    model.generation_config.update(num_beams=3, min_length=5, no_repeat_ngram_size=2, max_length=142)
    answers = own.answers(model, collate(held_out, np.arange(7)))
    assert answers.shape == (7, 1 + 6)
    shown = own.shown(answers, loaded)
    assert [sample["answer"] for sample in shown] == texts[:5]
    scores = own.metrics(np.vstack([answers] * 15)[:len(held_out)], loaded)
    assert list(scores) == list(own.scores) and own.main == "rouge_l"


def test_texts_are_scored_against_the_targets(make):
    """Answers that are the targets get full marks; the commonest target is the guess to compare with."""
    own, loaded, _ = make("t5", "text")
    answers, held_out = loaded.held_out.answers, loaded.held_out
    rows = np.full((len(held_out), 1 + 6), -100.0)
    rows[:, 0] = 0.25
    for row, start, length in zip(rows, answers.offsets, answers.lengths):
        row[1 : 1 + length] = answers.ids[start : start + length]
    assert own.metrics(rows, loaded) == {"rouge_l": 1, "exact_match": 1, "loss": 0.25}
    assert [sample["target"] for sample in own.shown(rows, loaded)] == [
        sample["answer"] for sample in own.shown(rows, loaded)]
    rows[0, 1:] = -100
    one = 1 / len(held_out)
    assert own.metrics(rows, loaded) == pytest.approx({"rouge_l": 1 - one, "exact_match": 1 - one, "loss": 0.25})
    guess = own.baseline(loaded)
    assert 0 < guess["rouge_l"] < 1 and guess["exact_match"] < 1 and guess["loss"] > 1


def test_gradient_checkpointing_changes_no_gradient(make):
    def gradients(on):
        own, loaded, model = make("bert", "classification", train__gradient_checkpointing=on)
        assert model.is_gradient_checkpointing == on
        model.train()
        model.apply(lambda module: setattr(module, "p", 0.0) if isinstance(module, torch.nn.Dropout) else None)
        own.losses(model, Collator(loaded.tokenizer, 8, None, False)(loaded.train, np.arange(8))).mean().backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    pairs = list(zip(gradients(True), gradients(False)))
    assert len(pairs) > 20 and all(torch.allclose(a, b, atol=1e-6) for a, b in pairs)


@pytest.mark.parametrize(("kind", "task"), PAIRS[:3] + PAIRS[5:8])
def test_a_saved_model_is_loaded_in_fp32_and_trained_on(make, bench, kind, task):
    own, loaded, model = make(kind, task)
    folder = bench.folder / "saved"
    model.half().save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    own_again, again, second = make(kind, task, model=str(folder))
    assert second.dtype == torch.float32 and again.digest == loaded.digest
    assert second.config.vocab_size == len(again.tokenizer)
    if again.labels:
        assert list(second.config.id2label.values()) == again.labels


def test_gpt2s_own_tokenizer_pads_with_its_end_and_no_empty_text_is_lost(make, bench):
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    folder = bench.folder / "gpt2"
    pieces = ByteLevelBPETokenizer()
    pieces.train_from_iterator((bench.folder / "rows.csv").read_text().splitlines(), vocab_size=300,
                               special_tokens=["<|endoftext|>"], show_progress=False)
    own = PreTrainedTokenizerFast(tokenizer_object=pieces._tokenizer, eos_token="<|endoftext|>",
                                  bos_token="<|endoftext|>", model_input_names=["input_ids", "attention_mask"])
    _, _, model = make("gpt2", "causal-lm")
    model.resize_token_embeddings(len(own))
    model.save_pretrained(folder)
    own.save_pretrained(folder)
    (bench.folder / "rows.csv").write_text("text,label\n" + "cat,animal\n,tool\nsaw,tool\n" * 20)
    own, loaded, model = make("gpt2", "classification", model=str(folder))
    assert model.config.pad_token_id == loaded.tokenizer.eos_token_id
    assert len(loaded.tokenizer) == model.config.vocab_size
    assert loaded.train.lengths.min() >= 1
    batch = Collator(loaded.tokenizer, 8, None, False)(loaded.train, np.arange(12))
    with torch.no_grad():
        assert own.losses(model, batch).tolist() == pytest.approx([own_loss(model, loaded, batch, i)
                                                                   for i in range(12)], rel=1e-4)


def test_what_a_model_cannot_do_is_named(make, bench):
    with pytest.raises(UserError, match="bert models cannot do the task text-to-text"):
        make("bert", "text-to-text")
    own, loaded, model = make("bert", "classification", model={**SMALL["bert"], "max_position_embeddings": 32})
    model.save_pretrained(bench.folder / "short")
    loaded.tokenizer.save_pretrained(bench.folder / "short")
    with pytest.raises(InputError, match="data.max_length: 33 tokens are more than the model's 32 positions"):
        make("bert", "classification", model=str(bench.folder / "short"), data__max_length=33)


@pytest.mark.parametrize(("changes", "key"), [
    ({"task": "causal-lm", "train__metric": "f1"}, "train.metric"),
    ({"task": "regression", "train__metric": "matthews"}, "train.metric"),
    ({"task": "causal-lm", "data__text": ["text", "label"]}, "data.text"),
    ({"data__prefix": ["a", "b"]}, "data.prefix"), ({"data__text": ["label"]}, "data.text"),
    ({"task": "regression", "data__dataset": "debian-sections"}, "task"), ({"task": "text-to-text"}, "model.type"),
    ({"task": "causal-lm", "model": SMALL["t5"]}, "model.type"), ({}, None),
    ({"data__answers": "text"}, "data.answers"), ({**WRITING, "train__metric": "accuracy"}, "train.metric"),
    ({**WRITING, "data__answers": "classes", "train__metric": "rouge_l"}, "train.metric"),
    ({**WRITING, "train__metric": "rouge_l"}, None)])
def test_a_job_that_its_task_does_not_go_with_is_refused(bench, changes, key):
    assert [p.key for p in tasks.problems(plan_of(bench, **changes).job, "job.yml")] == ([key] if key else [])


class Sides:
    """Just enough of prepared data to be scored against."""

    def __init__(self, train, held_out, classes):
        self.labels = [str(c) for c in range(classes)]
        self.train, self.held_out = (type("Side", (), {"labels": np.array(labels)}) for labels in (train, held_out))


def test_scores_of_classes():
    """By hand: of three found ones two are right, of four real ones two were found; 2x2 table 2 1 / 2 3."""
    sides = Sides([1, 1, 0], [1, 1, 1, 1, 0, 0, 0, 0], 2)
    answers = np.array([[0.5, a] for a in (1, 1, 0, 0, 1, 0, 0, 0)])
    scores = tasks.Classification("auto").metrics(answers, sides)
    assert scores == pytest.approx({"accuracy": 5 / 8, "f1": 2 * (2 / 3) * (1 / 2) / (2 / 3 + 1 / 2),
                                    "matthews": (2 * 3 - 1 * 2) / np.sqrt(3 * 4 * 4 * 5), "loss": 0.5})
    guess = tasks.Classification("auto").baseline(sides)
    assert (guess["accuracy"], guess["matthews"]) == (0.5, 0)
    assert guess["loss"] == pytest.approx(-(4 * np.log(3 / 5) + 4 * np.log(2 / 5)) / 8)


def test_scores_of_values():
    sides = Sides([1.0, 3.0], [1.0, 2.0, 3.0, 4.0], 1)
    task = tasks.Regression("auto")
    scores = task.metrics(np.array([[1, 1], [1, 4], [1, 9], [1, 16.0]]), sides)
    assert scores["spearman"] == pytest.approx(1) and 0.9 < scores["pearson"] < 1
    assert task.metrics(np.array([[1, 2.0]] * 4), sides) == {"pearson": 0, "spearman": 0, "loss": 1}
    assert task.baseline(sides)["loss"] == pytest.approx((1 + 0 + 1 + 4) / 4)
    assert task.higher_is_better(task.main) and not task.higher_is_better("loss")


def test_a_language_model_is_measured_against_counting(make):
    own, loaded, model = make("gpt2", "causal-lm")
    assert len(loaded.labels) == len(loaded.train.labels) == 0 and set(loaded.train.lengths) == {24}
    size, ids = len(loaded.tokenizer), loaded.train.ids.tolist()
    chance = np.array([(ids.count(i) + 1) / (len(ids) + size) for i in range(size)])
    guess = own.baseline(loaded)
    assert guess["loss"] == pytest.approx(-np.log(chance[loaded.held_out.ids]).mean())
    with torch.no_grad():
        batch = Collator(loaded.tokenizer, 8, None, False)(loaded.held_out, np.arange(len(loaded.held_out)))
        scores = own.metrics(own.answers(model, batch), loaded)
    assert scores["perplexity"] == pytest.approx(np.exp(scores["loss"])) and scores["perplexity"] > guess["perplexity"]
    assert set(scores) == {"loss", "perplexity"} and own.main == "loss"


@pytest.mark.parametrize(("kind", "task"), [("bert", "classification"), ("t5", "text-to-text"), ("bert", "regression"),
                                             ("t5", "text")])
def test_three_ranks_evaluate_as_one(make, bench, kind, task, monkeypatch):
    """Each rank in turn in this process, rank 0 last: its answers are kept until that one gathers and counts them
    all."""
    own, loaded, model = make(kind, task)
    samples = Samples(own, loaded, Collator(loaded.tokenizer, 8, None, False), per_epoch=1, steps=1)

    class NotTheLastError(Exception):
        pass

    def scored(ranks):
        shares, beats = [], [0] * ranks

        def gather(indices, rows, count):
            shares.append((indices, rows))
            if len(shares) < ranks:
                raise NotTheLastError
            order = np.argsort(np.concatenate([indices for indices, _ in shares]))
            assert len(order) == count
            return np.concatenate([rows for _, rows in shares])[order]

        def beat():
            beats[len(shares)] += 1

        def context():
            own = ranks - 1 - len(shares)
            return SimpleNamespace(rank=own, place=Place(own, 0, 0), device=torch.device("cpu"),
                                   resolved=SimpleNamespace(batch=SimpleNamespace(ranks=ranks, micro=4)))

        monkeypatch.setattr(exchange, "gather_rows", gather)
        monkeypatch.setattr(exchange, "broadcast", lambda scores: scores)
        for _ in range(ranks - 1):
            with pytest.raises(NotTheLastError):
                evaluate(model, samples, context(), beat)
        return evaluate(model, samples, context(), beat).scores, beats

    (alone, _), (together, beats) = scored(1), scored(3)
    # The answers of a new model are nearly constant, so their correlation shows the rounding of another batch.
    assert alone == pytest.approx(together, rel=1e-4) and "loss" in alone
    assert beats == [-(-34 // 8)] * 3, "ZeRO-3 needs as many forward passes on each rank"
