"""Models come from a folder or from the hub at one commit, as data alone: nothing of them is run."""
import json
import os
import pickle
import shutil
import subprocess
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest
import yaml
from huggingface_hub.utils import filter_repo_objects
from safetensors.numpy import load_file, save_file

from debzero.base.errors import InputError, UserError
from debzero.check import checks
from debzero.job.schema import Job
from debzero.model import build, source
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


def tensors(file, program):
    save_file({"a": np.zeros(2, np.float32)}, file, {"format": program})


def indexed(saved, shards):
    """An index as the only way to the weights: transformers prefers model.safetensors to it."""
    (saved / "model.safetensors").rename(saved / "1.safetensors")
    (saved / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))


def configured(path, name="config.json", **settings):
    known = json.loads((path / name).read_text()) if (path / name).exists() else {}
    (path / name).parent.mkdir(exist_ok=True)
    (path / name).write_text(json.dumps({**known, **settings}))


def without_weights(path, name):
    (path / "model.safetensors").rename(path / name)


CODE = {"AutoModel": "mine.Model"}
CASES = {
    "pickle": (lambda path: pickled(path, path.parent / "ran"), "pytorch_model.bin alone: loading such a file can run"),
    "index of pickles": (lambda path: without_weights(path, "pytorch_model.bin.index.json"),
                         "pytorch_model.bin.index.json alone"),
    "torchscript": (lambda path: without_weights(path, "model.pt"), "model.pt alone"),
    "keras": (lambda path: without_weights(path, "tf_model.h5"), "tf_model.h5 alone"),
    "flax": (lambda path: without_weights(path, "flax_model.msgpack"), "flax_model.msgpack alone"),
    "no weights": (lambda path: (path / "model.safetensors").unlink(), "has no weights"),
    "code": (lambda path: configured(path, model_type="mine", auto_map=CODE), "names code of its own (auto_map)"),
    "code within": (lambda path: configured(path, encoder={"auto_map": CODE}), "names code of its own (auto_map)"),
    "code of a part": (lambda path: configured(path, "part/tokenizer_config.json", auto_map=CODE), "its part/"),
    "unread": (lambda path: (path / "tokenizer_config.json").write_text("[" + "7" * 50 + "]"), "50 digits"),
    "kernel": (lambda path: configured(path, _attn_implementation="some/kernel"), "names code on the hub"),
    "own weights": (lambda path: configured(path, transformers_weights="../x.bin"), "names the file of its weights"),
    "adapter": (lambda path: (path / "adapter_config.json").write_text("{}"), "an adapter"),
    "shard elsewhere": (lambda path: indexed(path, {"a": "../other/model.safetensors"}), "no safetensors file of the"),
    "shard of a pickle": (lambda path: indexed(path, {"a": "pytorch_model.bin"}), "no safetensors file of the folder"),
    "lost shard": (lambda path: indexed(path, {"a": "1.safetensors", "b": "2.safetensors"}), "2.safetensors, "),
    "empty index": (lambda path: indexed(path, {}), "has no weight_map"),
    "pointer": (lambda path: (path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n"),
                "Git LFS pointer"),
    "cut off": (lambda path: os.truncate(path / "model.safetensors", 3000), "no whole safetensors file"),
    "long header": (lambda path: (path / "model.safetensors").write_bytes(b"\xff" * 64), "no whole safetensors file"),
    "of another program": (lambda path: tensors(path / "model.safetensors", "tf"), "not written by PyTorch"),
    "fifo": (lambda path: ((path / "model.safetensors").unlink(), os.mkfifo(path / "model.safetensors")), "is no file"),
    "device": (lambda path: (path / "merges.txt").symlink_to("/dev/zero"), "leads out of the folder"),
    "link": (lambda path: (path / "vocab.txt").symlink_to("/etc/passwd"), "its vocab.txt is a link that leads out"),
    "linked folder": (lambda path: (path / "more").symlink_to("/etc"), "its more is a link that leads out"),
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
    indexed(saved, dict.fromkeys(load_file(saved / "model.safetensors"), "1.safetensors"))
    assert checks.check(bench.job(model=str(saved)))


def test_code_that_a_model_does_not_need_is_not_run_and_not_passed_on(bench, saved):
    """Falcon and others came with code before transformers knew them."""
    configured(saved, auto_map=CODE)
    configured(saved, "tokenizer_config.json", auto_map={"AutoTokenizer": ["mine.Tokens", None]})
    (saved / "mine.py").write_text(f"open({str(saved.parent / 'ran')!r}, 'w')")
    assert checks.check(bench.job(model=str(saved)))
    tokens = load_tokenizer(str(saved), list, 16)
    settings = build.config(str(saved), ["a", "b"], tokens)
    tokens.save_pretrained(saved.parent / "again")
    settings.save_pretrained(saved.parent / "again")
    assert not (saved.parent / "ran").exists()
    assert not any("auto_map" in path.read_text() for path in (saved.parent / "again").iterdir())


def test_a_loader_within_a_loader_does_not_ask_whether_to_run_code(tmp_path, monkeypatch):
    """RagTokenizer loads its parts without trust_remote_code=False: `yes y |` ran their code."""
    import transformers

    parts = {"question_encoder": {"model_type": "resnet"}, "generator": {"model_type": "bert"}}
    configured(tmp_path, **transformers.RagConfig(**parts).to_dict())
    configured(tmp_path, "tokenizer_config.json", tokenizer_class="RagTokenizer")
    configured(tmp_path, "question_encoder_tokenizer/tokenizer_config.json",
               auto_map={"AutoTokenizer": ["mine.Tokens", None]})
    (tmp_path / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(UserError, match="never runs"):
        load_tokenizer(str(tmp_path), list, 16)
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def sandbox(tmp_path, monkeypatch):
    """A `systemd-run` that notes its settings and runs the program without them; for other users, a `sudo` before."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "sudo").write_text('#!/bin/bash\nexec "$@"\n')
    (folder / "systemd-run").write_text(f"""#!/bin/bash
while [[ $1 == -* ]]; do if [[ $1 == --property=* ]]; then echo "${{1#*=}}" >> {tmp_path}/settings; fi; shift; done
exec "$@"
""")
    for script in folder.iterdir():
        script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return tmp_path / "settings"


def converted(bench, saved):
    """What came of the command that check names."""
    with pytest.raises(InputError) as error:
        checks.check(bench.job(model=str(saved)))
    command = error.value.problems[0].fix.partition("sandbox: ")[2]
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True)


def test_the_command_that_check_names_converts_weights_in_shards(bench, saved, tmp_path, sandbox):
    import torch
    from safetensors.torch import load_file

    saved = saved.rename(tmp_path / "it's mine")
    before = load_file(saved / "model.safetensors")
    (saved / "model.safetensors").unlink()
    head = before["classifier.bias"]
    torch.save(before, saved / "pytorch_model-00001-of-00002.bin")
    torch.save({"tied": head, "again": head}, saved / "pytorch_model-00002-of-00002.bin")
    done = converted(bench, saved)
    assert done.returncode == 0, done.stderr
    after = load_file(saved / "model.safetensors")
    assert after.keys() == {*before, "tied", "again"}
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert checks.check(bench.job(model=str(saved)))
    unit = tmp_path / "convert.service"
    unit.write_text("[Service]\nExecStart=/bin/true\n" + sandbox.read_text())
    seen = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True).stderr
    assert not [line for line in seen.splitlines() if unit.name in line]


def test_a_conversion_that_fails_leaves_no_weights(bench, saved, sandbox):
    pickled(saved, saved.parent / "ran")
    done = converted(bench, saved)
    assert done.returncode == 1 and "could not be converted" in done.stderr
    assert not list(saved.glob("model.safetensors*")) and not (saved.parent / "ran").exists()


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
    with pytest.raises(UserError, match="t5-base at revision 'other'"):
        source.local(job(revision="other"))


def test_one_that_was_found_before_is_not_asked_for_again(hub):
    (hub.parents[1] / "refs" / "main").write_text("f" * 40)
    assert source.local(job(), COMMIT) == str(hub)


@pytest.mark.parametrize("revision", ["../../x", "a/../../b", "/etc", "", "a b", "-\n", "main/"])
def test_a_revision_is_a_name(revision):
    with pytest.raises(ValueError, match="revision"):
        job(revision=revision)


def test_a_folder_has_no_revisions(bench, saved):
    with pytest.raises(InputError) as error:
        checks.check(bench.job(model=str(saved), revision="v1", data__revision="v1"))
    assert [problem.key for problem in error.value.problems] == ["data.revision", "revision"]


def test_a_link_of_the_hubs_cache_stays_in_it(hub):
    blobs = hub.parents[1] / "blobs"
    blobs.mkdir()
    (hub / "model.safetensors").rename(blobs / "1")
    (hub / "model.safetensors").symlink_to("../../blobs/1")
    assert source.local(job()) == str(hub)
    (hub / "vocab.txt").symlink_to("/etc/passwd")
    with pytest.raises(UserError, match="vocab.txt is a link"):
        source.local(job())


@pytest.fixture
def online(hub, monkeypatch):
    """The hub itself: what is brought into the cache, where there is nothing yet."""
    repository = hub.rename(hub.parents[3] / "repository")

    def download(name, revision, allow_patterns, ignore_patterns):
        hub.mkdir(exist_ok=True)
        names = [str(file.relative_to(repository)) for file in repository.rglob("*") if file.is_file()]
        for each in filter_repo_objects(names, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns):
            shutil.copy(repository / each, hub / each)
        return str(hub)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.setattr("huggingface_hub.list_repo_files", lambda name, revision: os.listdir(repository))
    return repository


def test_no_more_than_the_weights_that_are_loaded_is_fetched(online, hub):
    for name in ("pytorch_model.bin", "model.fp16.safetensors", "mine.py", "part/tokenizer_config.json"):
        (online / name).parent.mkdir(exist_ok=True)
        (online / name).write_text("{}")
    assert source.local(job()) == str(hub)
    names = {path.name for path in hub.iterdir()}
    assert {"config.json", "tokenizer.json", "model.safetensors"} <= names
    assert not {"pytorch_model.bin", "model.fp16.safetensors", "mine.py", "part"} & names


def test_a_pickle_from_the_hub_is_refused_and_not_fetched(online, hub, tmp_path):
    pickled(online, tmp_path / "ran")
    with pytest.raises(UserError, match=r"t5-base has its weights as pytorch_model.bin alone(.|\n)*huggingface-cli"):
        source.local(job())
    assert not (hub / "pytorch_model.bin").exists() and not (tmp_path / "ran").exists()


def test_code_from_the_hub_is_refused_before_the_weights_are_fetched(online, hub):
    configured(online, model_type="mine", auto_map=CODE)
    with pytest.raises(UserError, match="names code of its own"):
        source.local(job())
    assert not (hub / "model.safetensors").exists()


def test_every_file_that_a_tokenizer_reads_is_fetched():
    """But what Transformer-XL's would unpickle."""
    import transformers
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

    names = set()
    for kinds in TOKENIZER_MAPPING_NAMES.values():
        for kind in kinds if isinstance(kinds, tuple) else [kinds]:
            names |= set((getattr(getattr(transformers, kind or "", None), "vocab_files_names", None) or {}).values())
    assert len(names) > 10
    missed = {name for name in names if not any(fnmatch(name, pattern) for pattern in source.FILES)}
    assert missed <= {"vocab.pkl", "vocab.bin"}
