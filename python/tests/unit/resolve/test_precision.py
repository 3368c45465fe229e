"""Which models overflow in fp16 is for their own type to say, not for the name of their folder."""
import json

import pytest
from support import JOB

from debzero.base.errors import InputError
from debzero.job.schema import Job
from debzero.resolve.host import HostGpus
from debzero.resolve.resolve import resolve

VOLTA = HostGpus(1, bf16=False)  # a GPU without bf16: fp16 is what `auto` would like


def precision(model, wanted="auto", host=VOLTA):
    job = Job.model_validate({**JOB, "model": model, "train": {**JOB["train"], "precision": wanted}})
    return resolve(job, host, 1, "job.yml", None).precision


def folder(path, model_type):
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"model_type": model_type}))
    return str(path)


def test_a_bert_in_a_folder_named_like_a_t5_trains_in_fp16(tmp_path):
    bert = folder(tmp_path / "bert512", "bert")
    assert precision(bert, "fp16") == precision(bert) == "fp16"


@pytest.mark.parametrize("kind", ["t5", "mt5", "umt5", "longt5"])
def test_a_t5_in_a_folder_of_any_name_does_not(tmp_path, kind):
    model = folder(tmp_path / "summaries", kind)
    assert precision(model) == "fp32"
    with pytest.raises(InputError, match="overflow in fp16"):
        precision(model, "fp16")


def test_a_model_from_scratch_is_what_its_type_says():
    assert precision({"type": "t5", "vocab_size": 200}) == "fp32"
    assert precision({"type": "bert", "vocab_size": 200, "name_or_path": "t5-base"}) == "fp16"


@pytest.mark.parametrize(("name", "expected"), [
    ("t5-base", "fp32"), ("google-t5/t5-large", "fp32"), ("google/t5-v1_1-xl", "fp32"),
    ("google/flan-t5-small", "fp32"), ("google/mt5-base", "fp32"), ("google/long-t5-local-base", "fp32"),
    ("someone/t5_of_mine", "fp32"),
    ("bert-large-uncased", "fp16"), ("someone/bert512", "fp16"), ("someone/part5", "fp16"), ("t5team/bert", "fp16")])
def test_a_model_of_the_hub_that_is_not_cached_is_judged_by_its_name(name, expected):
    assert precision(name) == expected


@pytest.mark.parametrize(("kind", "expected"), [("bert", "fp16"), ("t5", "fp32")])
def test_a_model_of_the_hub_that_is_cached_is_what_its_config_says(tmp_path, monkeypatch, kind, expected):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--someone--t5-or-not"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0123abc")
    (repository / "snapshots").mkdir()
    folder(repository / "snapshots" / "0123abc", kind)
    assert precision("someone/t5-or-not") == expected


def test_a_folder_whose_config_cannot_be_read_is_judged_elsewhere(tmp_path):
    assert precision(str(tmp_path / "t5")) == "fp16"


def test_a_gpu_with_bf16_takes_it_for_any_model():
    assert precision("t5-base", host=HostGpus(1, bf16=True)) == "bf16"
