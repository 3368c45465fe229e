"""Models come from a folder or from the hub at one commit, as data alone: nothing of them is run."""
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from debzero.base.errors import InputError, UserError
from debzero.check import checks
from debzero.job.schema import Job
from debzero.model import folder, source
from debzero.model.tokenizer import load_tokenizer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def saved(tmp_path, bench):
    """A folder with a small model and its tokenizer."""
    import transformers

    path = tmp_path / "saved"
    config = transformers.BertConfig(vocab_size=200, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
                                     intermediate_size=64)
    transformers.BertForSequenceClassification(config).save_pretrained(path)
    load_tokenizer({"type": "bert", "vocab_size": 200}, lambda: ["a cat", "the saw"] * 9, 16).save_pretrained(path)
    return path


def pickled(saved, mark):
    (saved / "model.safetensors").unlink()
    (saved / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(mark)))


def indexed(saved, shards):
    (saved / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))


CASES = {
    "pickle": (lambda path: pickled(path, path.parent / "ran"), "pytorch_model.bin alone: loading such a file runs"),
    "torchscript": (lambda path: (path / "model.safetensors").rename(path / "model.pt"), "model.pt alone"),
    "no weights": (lambda path: (path / "model.safetensors").unlink(), "has no weights"),
    "code": (lambda path: (path / "config.json").write_text(json.dumps({
        **json.loads((path / "config.json").read_text()), "auto_map": {"AutoModel": "mine.Model"}})), "auto_map"),
    "adapter": (lambda path: (path / "adapter_config.json").write_text("{}"), "an adapter"),
    "shard elsewhere": (lambda path: indexed(path, {"a": "../other/model.safetensors"}), "no safetensors file of the"),
    "shard of a pickle": (lambda path: indexed(path, {"a": "pytorch_model.bin"}), "no safetensors file of the folder"),
    "lost shard": (lambda path: indexed(path, {"a": "model.safetensors", "b": "2.safetensors"}), "2.safetensors, "),
    "empty index": (lambda path: indexed(path, {}), "has no weight_map"),
    "pointer": (lambda path: (path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n"),
                "Git LFS pointer"),
    "cut off": (lambda path: os.truncate(path / "model.safetensors", 3000), "no whole safetensors file"),
    "long header": (lambda path: (path / "model.safetensors").write_bytes(b"\xff" * 64), "no whole safetensors file"),
    "fifo": (lambda path: ((path / "model.safetensors").unlink(), os.mkfifo(path / "model.safetensors")), "is no file"),
}


@pytest.mark.parametrize("case", list(CASES))
def test_what_is_not_data_is_refused_before_anything_is_loaded(bench, saved, case):
    damage, reason = CASES[case]
    damage(saved)
    with pytest.raises(InputError) as error:
        checks.check(bench.job(model=str(saved)))
    [problem] = error.value.problems
    assert problem.key == "model" and reason in problem.reason and problem.fix
    assert not (saved.parent / "ran").exists()


def test_a_whole_model_and_one_in_shards_pass(bench, saved):
    assert checks.check(bench.job(model=str(saved)))
    (saved / "model.safetensors").rename(saved / "model-1.safetensors")
    indexed(saved, {"a": "model-1.safetensors"})
    assert checks.check(bench.job(model=str(saved)))


def test_the_command_that_check_names_converts_a_pickle_of_weights(bench, saved, tmp_path):
    import torch
    from safetensors.torch import load_file

    before = load_file(saved / "model.safetensors")
    (saved / "model.safetensors").unlink()
    torch.save({**before, "tied": before["classifier.bias"]}, saved / "pytorch_model.bin")
    result = tmp_path / "result"
    result.mkdir()
    command = folder.conversion(saved)
    assert "PrivateNetwork=yes" in command and command.endswith(f"/var/lib/debzero-{saved.name}")
    program = [sys.executable, "-I", str(folder.CONVERT), str(saved)]
    assert " ".join(program) in command
    done = subprocess.run([*program, str(result)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    after = load_file(result / "model.safetensors")
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert checks.check(bench.job(model=str(result)))
    pickled_again = tmp_path / "hostile"
    pickled_again.mkdir()
    (pickled_again / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    assert subprocess.run([*program[:-1], str(pickled_again), str(result)], capture_output=True).returncode
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def hub(tmp_path, monkeypatch, saved):
    """The hub's cache with the model t5-base (in truth a small BERT), and no network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    cached = tmp_path / "hub" / "models--t5-base"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text(COMMIT)
    (cached / "snapshots").mkdir()
    saved.rename(cached / "snapshots" / COMMIT)
    return cached / "snapshots" / COMMIT


def job(**changes):
    return Job.model_validate(yaml.safe_load("{model: t5-base, data: {dataset: a.csv}, output: out}") | changes)


def test_a_folder_of_that_name_is_not_the_hubs_model(hub, tmp_path, monkeypatch):
    (tmp_path / "t5-base").mkdir()
    monkeypatch.chdir(tmp_path)
    found = source.local(job())
    assert Path(found) == hub and source.revisions(found) == {"model": COMMIT}
    assert source.local(job(model="/srv/model")) == "/srv/model" and source.revisions("/srv/model") == {}


def test_a_revision_that_is_not_there_is_named(hub):
    assert source.local(job(revision=COMMIT)) == str(hub)
    with pytest.raises(Exception, match="revision|snapshot"):
        source.local(job(revision="other"))


def test_a_pickle_from_the_hub_is_refused(hub, tmp_path):
    pickled(hub, tmp_path / "ran")
    with pytest.raises(UserError, match="t5-base cannot be used: has its weights as pytorch_model.bin alone"):
        source.local(job())
    assert not (tmp_path / "ran").exists()
