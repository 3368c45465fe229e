"""A name that is not beside the job file: the hub is asked, or check says that it could not."""
import json

import pytest
from fake_hub import COMMIT, serving

from debzero.cli import main
from debzero.job.local_files import near_names

REPOSITORIES = {"datasets/me/rows": {"train.csv": b"", "validation.csv": b""},
                "models/me/bert": {"config.json": b'{"model_type": "bert"}'}, "models/me/empty": {"README.md": b""}}


@pytest.fixture(scope="module")
def address():
    with serving(REPOSITORIES) as answering:
        yield answering


@pytest.fixture
def hub(address, tmp_path, monkeypatch):
    """`hub(False)`: no hub answers. Without a token, and with caches of its own."""
    import datasets
    from huggingface_hub import constants
    from huggingface_hub.utils import _http

    for name, value in (("HF_HUB_OFFLINE", False), ("HF_HUB_CACHE", str(tmp_path / "cache")),
                        ("HF_TOKEN_PATH", str(tmp_path / "token"))):
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "sets")
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    _http.reset_sessions()

    def choose(answers=True):
        monkeypatch.setattr(constants, "ENDPOINT", address if answers else "http://127.0.0.1:9")

    choose()
    yield choose
    _http.reset_sessions()


def checked(bench, capsys, *options, **changes):
    code = main(["check", str(bench.job(**changes)), *options])
    printed = capsys.readouterr()
    return code, " ".join((printed.out + printed.err).split())


SETS = {"data__dataset": "me/rows", "data__held_out": None}


def test_what_the_hub_has_is_ok(bench, capsys, hub):
    code, text = checked(bench, capsys, **SETS, model="me/bert")
    assert code == 0 and "job.yml: OK" in text
    code, text = checked(bench, capsys, "--json", **SETS)
    assert json.loads(text)["verified"] is True


@pytest.mark.parametrize(("changes", "key", "words"), [
    ({"data__dataset": "revews"}, "data.dataset", "did you mean reviews, beside the job file?"),
    ({"data__dataset": "./revews"}, "data.dataset", "did you mean"),
    ({"data__dataset": "row.csv"}, "data.dataset", "rows.csv?"),
    ({"data__dataset": "me/nowhere"}, "data.dataset", ""), ({"data__dataset": "nowhere"}, "data.dataset", "HF_TOKEN"),
    ({"model": "my-brt"}, "model", "did you mean my-bert, beside the job file?"),
    ({"model": "./my-brt"}, "model", "did you mean"), ({"model": "me/empty"}, "model", "has no config.json"),
    ({"model": "me/bert", "revision": "nope"}, "model", "has no revision 'nope'")])
def test_what_it_does_not_have_is_a_mistake(bench, capsys, hub, changes, key, words):
    (bench.folder / "reviews").mkdir()
    (bench.folder / "reviews" / "train.csv").write_text("text,label\n")
    (bench.folder / "my-bert").mkdir()
    (bench.folder / "my-bert" / "config.json").write_text("{}")
    code, text = checked(bench, capsys, **changes)
    hidden = changes.get("data__dataset") == "me/nowhere"  # perhaps somebody's own, which the hub hides without a token
    assert code == (0 if hidden else 2) and f" {key} " in text and words in text
    assert ("not verified (data.dataset)" in text) == hidden and ": OK" not in text
    if hidden:
        assert "shows private ones only to their owners" in text


def test_a_token_tells_private_from_missing(bench, capsys, hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    assert checked(bench, capsys, data__dataset="me/nowhere")[0] == 2


def test_where_the_hub_cannot_be_asked_nothing_is_called_ok(bench, capsys, hub, tmp_path):
    hub(False)
    code, text = checked(bench, capsys, **SETS, model="me/bert")
    assert code == 0 and "job.yml: not verified (data.dataset, model)" in text and "the hub cannot be asked" in text
    assert checked(bench, capsys, "--strict", **SETS)[0] == 2
    printed = json.loads(checked(bench, capsys, "--json", **SETS)[1])
    assert printed["ok"] is True and printed["verified"] is False
    assert [problem["key"] for problem in printed["problems"]] == ["data.dataset"]
    # What the caches have will do.
    (tmp_path / "cache" / "datasets--me--rows").mkdir(parents=True)
    snapshot = tmp_path / "cache" / "models--me--bert" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text('{"model_type": "bert"}')
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text(COMMIT)
    code, text = checked(bench, capsys, **SETS, model="me/bert")
    assert code == 0 and "job.yml: OK" in text


def test_names_are_near_beside_the_job_alone(tmp_path):
    for name in ("reviews", "reviews2", "other", ".reviews"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.csv").touch()
    (tmp_path / "empty-reviews").mkdir()
    (tmp_path / "Reviews.jsonl").touch()
    assert near_names("revews", tmp_path, model=False) == ["Reviews.jsonl", "reviews", "reviews2"]
    assert near_names("glue/mrpc", tmp_path, model=False) == near_names("revews", tmp_path, model=True) == []
    assert near_names("reviews.json", tmp_path, model=False)[0] == "Reviews.jsonl"
    for number in range(30):  # nearer, and no data
        (tmp_path / f"revews{number}").touch()
    for name in ("REVIEWS.csv", "rEviews.csv", "reViews.csv"):
        (tmp_path / name).touch()
    assert len(near_names("reviews", tmp_path, model=False)) == 3
    assert near_names("nowhere/reviews", tmp_path, model=False) == near_names("a\0b", tmp_path, model=True) == []


def test_what_lies_beside_the_job_has_no_say_in_the_verdict(bench, capsys, hub, monkeypatch):
    (bench.folder / "me" / "nowheres").mkdir(parents=True)
    (bench.folder / "me" / "nowheres" / "train.csv").touch()
    code, text = checked(bench, capsys, data__dataset="me/nowhere")
    assert code == 0 and "not verified (data.dataset)" in text and "did you mean me/nowheres, beside" in text
    monkeypatch.setattr("debzero.check.hub_names.near_names", None)
    assert checked(bench, capsys, **SETS)[0] == 0, "the folder was listed for a name that the hub has"
