"""Rows to tokens on disk to padded batches: nothing is lost, doubled, or read in another order."""
import json
import subprocess
import sys
import timeit
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import JOB, SOURCE, plan_of, prepared

from debzero.base.errors import InputError, UserError
from debzero.check.data import data_found
from debzero.data import tokens
from debzero.data.collator import Collator
from debzero.data.store import Chunk
from debzero.job.local_files import hub_name
from debzero.job.schema import Job
from debzero.train import prepare

PAD = SimpleNamespace(pad_token_id=9)


def rows_of(samples):
    return [samples.ids[start : start + length].tolist() for start, length in zip(samples.offsets, samples.lengths)]


def written(folder, samples, kinds):
    """Samples (lists of token ids) as Tokens, through the disk, in pieces of three."""
    start, pieces = 0, []
    for first in range(0, len(samples), 3):
        some = samples[first : first + 3]
        lengths = np.array([len(ids) for ids in some], np.int32)
        flat = np.array([i for ids in some for i in ids], np.uint16)
        pieces.append({"ids": flat, "offsets": start + np.cumsum(lengths, dtype=np.int64) - lengths, "lengths": lengths,
                       "labels": np.array(kinds[first : first + 3], np.int32), "types": (flat % 2).astype(np.uint8)})
        start += len(flat)
    tokens.write(folder, pieces)
    return tokens.read(folder, limit=30)


samples_and_picks = st.lists(st.lists(st.integers(0, 999), min_size=1, max_size=30), min_size=1, max_size=20).flatmap(
    lambda samples: st.tuples(st.just(samples), st.lists(st.integers(0, len(samples) - 1), max_size=12)))


@given(samples_and_picks, st.sampled_from([1, 8]), st.sampled_from([None, 32]))
def test_a_batch_holds_its_samples_padded_on_the_right(tmp_path_factory, drawn, pad_to, width):
    samples, picks = drawn
    stored = written(tmp_path_factory.mktemp("t") / "s", samples, list(range(len(samples))))
    batch = Collator(PAD, pad_to, width, False)(stored, np.array(picks, np.int64))
    picks = picks or [0]
    longest = max(len(samples[i]) for i in picks)
    wide = width or min(-(-longest // pad_to) * pad_to, 30)
    assert {name: str(tensor.dtype) for name, tensor in batch.items()} == dict.fromkeys(
        ("input_ids", "attention_mask", "token_type_ids", "labels"), "torch.int64")
    for row, i in enumerate(picks):
        missing = wide - len(samples[i])
        assert batch["input_ids"][row].tolist() == samples[i] + [9] * missing
        assert batch["attention_mask"][row].tolist() == [1] * len(samples[i]) + [0] * missing
        assert batch["token_type_ids"][row].tolist() == [t % 2 for t in samples[i]] + [0] * missing
    assert batch["labels"].tolist() == picks


def test_a_batch_is_made_well_under_a_millisecond(tmp_path):
    dice = np.random.default_rng(0)
    stored = written(tmp_path / "s", [dice.integers(0, 999, n).tolist() for n in dice.integers(20, 31, 4000)],
                     [0] * 4000)
    collate, order = Collator(PAD, 8, 128, False), dice.permutation(4000)[:64]
    assert min(timeit.repeat(lambda: collate(stored, order), number=10, repeat=20)) / 10 < 1e-3


def test_the_stored_tokens_are_what_the_tokenizer_says(bench):
    made = prepared(bench)
    raw = {line.rpartition(",")[0]: line.rpartition(",")[2]
           for line in (bench.folder / "rows.csv").read_text().splitlines()[1:]}
    expected = sorted((made.tokenizer(text, truncation=True, max_length=16)["input_ids"], made.labels.index(label))
                      for text, label in raw.items())
    found = [(ids, int(label)) for side in (made.train, made.held_out) for ids, label in zip(rows_of(side),
                                                                                             side.labels)]
    assert sorted(map(str, {str(pair): pair
                            for pair in found}.values())) == sorted(map(str, {str(p): p for p in expected}.values()))
    assert (len(made.train), len(made.held_out)) == (400, 100)
    assert not made.train.ids.flags.owndata and not made.train.labels.flags.writeable, "mapped, not read"


def test_the_digest_and_the_tokens_do_not_depend_on_the_process(bench):
    script = ("import sys; sys.path[:0] = [{tests!r}, {source!r}]\n"
              "from pathlib import Path; import support\n"
              "print(support.prepared(support.Bench(Path(sys.argv[1]))).digest)")
    digests = set()
    for seed in ("1", "2"):
        folder = bench.folder / seed
        folder.mkdir()
        done = subprocess.run([sys.executable, "-c",
                               script.format(tests=str(SOURCE.parent / "tests/unit"), source=str(SOURCE)), folder],
                              capture_output=True, text=True, check=True,
                              env={"PYTHONHASHSEED": seed, "PATH": "/usr/bin:/bin"})
        digests.add(done.stdout.strip())
    assert digests == {prepared(bench).digest}


def test_prepared_data_is_reused_until_something_it_depends_on_changes(bench):
    cache = bench.folder / "cache"
    folder = prepare.prepare(plan_of(bench), cache)
    before = folder.stat().st_ino
    for same in ({"train__learning_rate": 1e-4}, {"data__batching": "shuffled"}, {"data__padding": "max_length"},
                 {"train__metric": "f1"}):
        assert prepare.prepare(plan_of(bench, **same), cache).stat().st_ino == before
    other = prepare.prepare(plan_of(bench, data__max_length=8), cache)
    assert other != folder and not folder.exists()


def test_links_and_files_in_the_place_of_prepared_data_go_and_what_they_name_stays(bench):
    cache, others = bench.folder / "cache", bench.folder / "others"
    (others / "kept").mkdir(parents=True)
    cache.mkdir()
    (cache / "tokenised-link").symlink_to(others)
    (cache / "tokenised-file").touch()
    (cache / "raw").symlink_to(others)
    folder = prepare.prepare(plan_of(bench), cache)
    assert list(cache.iterdir()) == [folder] and [path.name for path in others.iterdir()] == ["kept"]


def test_a_training_sees_the_rows_that_check_prints(bench):
    job = plan_of(bench).job
    checked = data_found(job, "job.yml", "lengths").facts
    assert {"rows", "classes", "lengths"} <= {*checked}
    assert prepared(bench).facts == checked


def test_a_local_model_that_changes_is_another(bench):
    folder = bench.folder / "lm"
    folder.mkdir()
    (folder / "tokenizer.json").write_text("a b c")

    def facts():
        resolved = plan_of(bench, model=str(folder))
        return resolved.fingerprint, prepare._facts(resolved.job, bench.folder)

    before = facts()
    assert facts() == before
    (folder / "tokenizer.json").write_text("c b a")
    assert all(now != then for now, then in zip(facts(), before))


@given(st.lists(st.text("ab ", max_size=12), min_size=1, max_size=20), st.integers(2, 9))
def test_blocks_are_the_texts_one_after_the_other(texts, size):
    """A tokenizer of letters; nothing but what does not fill the last block is left out."""
    def letters(texts, **_):
        return {"input_ids": [[ord(letter) for letter in text] for text in texts]}

    class Tokenizer:
        eos_token_id = 0
        __call__ = staticmethod(letters)

        def get_vocab(self):
            return {"z": 255}

        def __len__(self):
            return 256

    class Texts:
        def chunks(self, size):
            return [Chunk(first, [texts[first : first + size]]) for first in range(0, len(texts), size)]

    whole = [i for text in texts if text for i in [*map(ord, text), 0]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "CHUNK", 3)
        pieces = list(prepare._blocks(Texts(),
                                      Job.model_validate(JOB).data.model_copy(update={"max_length": size}),
                                      Tokenizer()))
    flat = [i for piece in pieces for i in piece["ids"].tolist()]
    lengths = [n for piece in pieces for n in piece["lengths"].tolist()]
    assert [o for piece in pieces for o in piece["offsets"].tolist()] == np.cumsum([0, *lengths])[:-1].tolist()
    if len(whole) >= size:
        assert set(lengths) == {size} and flat == whole[: len(whole) // size * size]
    else:
        assert flat == (whole if len(whole) > 1 else [])


@pytest.mark.parametrize(("name", "expected"), [
    ("glue/mrpc", ("glue", "mrpc")), ("wikitext/wikitext-2-raw-v1", ("wikitext", "wikitext-2-raw-v1")),
    ("imdb", ("imdb", None)), ("someone/something", ("someone/something", None)),
    ("someone/something/part", ("someone/something", "part"))])
def test_a_hub_data_set_has_a_name_and_perhaps_a_configuration(name, expected):
    assert hub_name(name) == expected


T5 = {"task": "text-to-text", "model": {"type": "t5", "vocab_size": 100}}
MISTAKES = [
    ("text,label\n" + "a,x\n" * 9, {}, "has 1 class, 'x'"),
    ("text,label\n" + "a,1.5\nb,2.5\n" * 9, {}, "set task: regression"),
    ("text,label\n" + "a,x\nb,y\n" * 9 + "c,\n", {}, "line 20 has no label"),
    ("text,label\n" + "a,x\nb,y\n" * 9, {"task": "regression"}, "line 2 and 17 other rows have 'x'"),
    ("text,label\n" + "a,1\nb,\n" * 9, {"task": "regression"}, "line 3 and 8 other rows have no label"),
    ("text,label\n" + ",x\n" * 9, {"task": "causal-lm"}, "name the column of texts"),
    ("text\na\nb\n", {}, "has no column 'label'"),
    ("text,label\n" + "a,é\nb,É\n" * 9, {"task": "text-to-text", "model": {"type": "t5", "vocab_size": 100}},
     "names that differ"),
    ("text,label\n" + "".join(f"a b c {i},c b {i}\n" for i in range(40)), T5, "`answers: text` under data"),
    ("text,label\n" + "a,x\nb,\n" * 9, {**T5, "data__answers": "text"}, "fill it in"),
]


@pytest.mark.parametrize(("content", "changes", "fix"), MISTAKES, ids=[fix for _, _, fix in MISTAKES])
def test_rows_that_cannot_be_used_are_named(bench, content, changes, fix):
    (bench.folder / "rows.csv").write_text(content)
    with pytest.raises((InputError, UserError)) as found:
        prepared(bench, **changes)
    assert fix in (found.value.text() if isinstance(found.value, InputError) else str(found.value))
    assert not list((bench.folder / "cache").glob("tokenised-*")) or changes.get("task") == "text-to-text"


def test_texts_to_answer_with_are_stored_as_the_tokenizer_reads_them(bench):
    """Each is cut off at max_answer_length, and ends."""
    pairs = {f"text {i}": " ".join(["saw", "drill", "file"][: 1 + i % 3] * (1 + i % 2)) for i in range(40)}
    (bench.folder / "rows.csv").write_text("".join(f"{text},{answer}\n" for text, answer in
                                                   {"text": "label", **pairs}.items()))
    made = prepared(bench, **T5, data__answers="text", data__max_answer_length=6)
    assert made.labels == [] and len(made.held_out) == 8
    for side in (made.train, made.held_out):
        for ids, answer in zip(rows_of(side), rows_of(side.answers)):
            own = pairs[made.tokenizer.decode(ids, skip_special_tokens=True)]
            assert answer == made.tokenizer(own, truncation=True, max_length=6)["input_ids"]
            assert answer[-1] == made.tokenizer.eos_token_id
    batch = Collator(made.tokenizer, 8, None, False)(made.train, np.arange(5))
    assert batch["labels"].shape == (5, 6) and batch["input_ids"].shape == (5, 8)
    assert [row[row != -100].tolist() for row in batch["labels"]] == rows_of(made.train.answers)[:5]
    wide = Collator(made.tokenizer, 8, 16, False)(made.train, np.arange(1))
    assert (wide["labels"].shape, wide["input_ids"].shape) == ((1, 6), (1, 16))


def test_a_tokenizer_that_marks_no_end_gets_one(bench):
    class Letters:
        eos_token_id = 0
        __call__ = staticmethod(lambda text_target, **_: {"input_ids": [[ord(letter) for letter in text][:3]
                                                                        for text in text_target]})

        def get_vocab(self):
            return {chr(number): number for number in range(256)}

    pieces = prepare._answers(Letters(), 3)
    assert pieces(["a", "abc"])["answer_ids"].tolist() == [97, 0, 97, 98, 0]
    assert pieces(["b"])["answer_offsets"].tolist() == [5]


def test_prefixes_and_columns_make_one_text(bench):
    lines = [json.dumps({"a": f"cat number {i}", "b": "saw", "label": i % 2}) for i in range(40)]
    (bench.folder / "rows.jsonl").write_text("\n".join(lines))
    made = prepared(bench, data__dataset=str(bench.folder / "rows.jsonl"), data__text=["a", "b"],
                    data__prefix=["first: ", " second: "], data__max_length=64)
    texts = {made.tokenizer.decode(ids, skip_special_tokens=True)
             for ids in [*rows_of(made.train), *rows_of(made.held_out)]}
    assert "first : cat number 1 second : saw" in texts
    assert all(t.max() == 0 for t in [made.train.types]), "one segment"
