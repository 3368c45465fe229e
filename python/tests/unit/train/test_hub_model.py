"""A model of the hub, by its name, from the hub's cache: also where a folder of that name lies in the way."""
import json

import pytest
import transformers
from fake_hub import COMMIT

from debzero.job.local_files import is_path
from debzero.job.reader import parse
from debzero.model.tokenizer import load_tokenizer


@pytest.fixture
def cached(bench):
    """T5-base in the hub's cache; in truth a small BERT."""
    repository = bench.folder / "home" / "hub" / "models--t5-base"
    snapshot = repository / "snapshots" / COMMIT
    config = transformers.BertConfig(vocab_size=200, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
                                     intermediate_size=64)
    transformers.BertForSequenceClassification(config).save_pretrained(snapshot)
    load_tokenizer({"type": "bert", "vocab_size": 200}, lambda: ["cat saw hammer"] * 9, 16).save_pretrained(snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    return repository


def test_a_job_whose_output_has_its_models_name_trains_and_names_the_commit(bench, cached):
    """As the packaged t5-base does: the output folder lies in the current folder, and here beside the job file, too."""
    job = bench.job(model="t5-base", output="t5-base", ranks=1, train__epochs=1, train__precision="fp32")
    (bench.folder / "t5-base").mkdir()
    (bench.folder / "t5-base" / ".lock").touch(mode=0o600)
    done = bench.run("train", job, HF_HOME=str(bench.folder / "home"))
    assert done.returncode == 0, done.stdout + done.stderr
    output = bench.folder / "t5-base"
    assert json.loads((output / "report.json").read_text())["revisions"] == {"model": COMMIT}
    assert f"Fine-tuned from t5-base (commit {COMMIT})" in (output / "model" / "README.md").read_text()
    assert not [path for path in (output / "model").glob("*.json") if str(bench.folder) in path.read_text()]
    assert parse(job)[0].model == "t5-base"


def test_what_is_a_path_is_decided_beside_the_job_file_alone(tmp_path, monkeypatch):
    for folder, name in (("jobs", "mine"), ("current", "t5-base"), ("jobs", "gpt2-medium")):
        (tmp_path / folder / name).mkdir(parents=True)
    (tmp_path / "jobs" / "gpt2-medium" / "status.json").touch()
    monkeypatch.chdir(tmp_path / "current")
    names = ("mine", "t5-base", "gpt2-medium", "./gpt2-medium", "../current/t5-base", "~/t5-base", "glue/mrpc", "a.csv")
    assert [name for name in names if is_path(name, tmp_path / "jobs")] == [
        "mine", "./gpt2-medium", "../current/t5-base", "~/t5-base", "a.csv"]
