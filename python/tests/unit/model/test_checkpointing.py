"""Gradient checkpointing where a model cannot do it is an error before anything starts."""
import pytest
import transformers
from support import JOB, changed

from debzero.base.errors import InputError
from debzero.check.checks import check
from debzero.job.schema import Job
from debzero.model.checkpointing import checkpointing_problems
from debzero.model.tokenizer import load_tokenizer


def job(task, wanted=True):
    return Job.model_validate(changed(JOB, {"task": task, "train.gradient_checkpointing": wanted}))


@pytest.mark.parametrize(("kind", "task", "reason"), [
    ("bert", "classification", ""), ("t5", "text-to-text", ""), ("mt5", "text-to-text", ""),
    ("albert", "classification", "albert models cannot do it"), ("xlnet", "classification", "cannot do it"),
    ("openai-gpt", "causal-lm", "cannot do it"), ("umt5", "text-to-text", "they would not learn")])
def test_a_model_checkpoints_its_layers_or_that_is_said(monkeypatch, kind, task, reason):
    monkeypatch.setattr(transformers, "__version__", "4.46.9")
    config = transformers.CONFIG_MAPPING[kind]()
    found = checkpointing_problems(job(task), "job.yml", config)
    assert [p.key for p in found] == ["train.gradient_checkpointing"] * bool(reason)
    assert all(reason in p.reason for p in found)
    assert checkpointing_problems(job(task, False), "job.yml", config) == []


def test_a_release_that_is_right_is_used(monkeypatch):
    monkeypatch.setattr(transformers, "__version__", "5.17.0")
    assert checkpointing_problems(job("text-to-text"), "job.yml", transformers.CONFIG_MAPPING["umt5"]()) == []


def test_check_opens_the_configuration_of_a_folder(bench):
    config = transformers.AlbertConfig(vocab_size=30, hidden_size=8, embedding_size=8, num_attention_heads=2,
                                       intermediate_size=8)
    transformers.AlbertModel(config).save_pretrained(bench.folder / "albert")
    load_tokenizer({"type": "albert", "vocab_size": 30}, list, 16).save_pretrained(bench.folder / "albert")
    with pytest.raises(InputError) as caught:
        check(bench.job(model="albert", train__gradient_checkpointing=True))
    assert [p.key for p in caught.value.problems] == ["train.gradient_checkpointing"]
