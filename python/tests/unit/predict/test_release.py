"""A release is a verified export that takes its place at once; root follows nothing of another user's on the way."""
import os
import shutil
from types import SimpleNamespace

import pytest
from exported_runs import run_of
from others import OTHER, give, public_folder
from support import Bench
from warm import server

from debzero.base.files import read_json, write_json
from debzero.cli import main


@pytest.fixture(scope="module")
def export(trained):
    """An export, and a folder for models."""
    run = run_of(trained, "released")
    assert main(["export", str(run.folder), "--to", "onnx"]) == 0
    return SimpleNamespace(folder=run.folder / "export/onnx-fp32", bench=trained)


def release(export, to, name="asked"):
    return main(["release", name, "--from", str(export), "--to", str(to)])


def test_a_release_is_whole_before_it_is_the_current_one(export, tmp_path, capsys):
    assert release(export.folder, tmp_path) == 0
    assert capsys.readouterr().out.startswith("released: ")
    [first] = {path.name for path in (tmp_path / "asked").iterdir()} - {"current"}
    assert os.readlink(tmp_path / "asked/current") == first
    assert {path.name for path in (tmp_path / "asked/current").iterdir()} == {
        path.name for path in export.folder.iterdir()}
    assert release(export.folder, tmp_path) == 0 and capsys.readouterr().out.startswith("current already: ")
    assert main(["predict", str(tmp_path / "asked/current"), "the old cat", "--engine", "onnx"]) == 0
    assert capsys.readouterr().out.startswith("animal")

    other = tmp_path / "other"
    shutil.copytree(export.folder, other)
    write_json(other / "export.json", {**read_json(other / "export.json"), "more": 1})
    assert release(other, tmp_path) == 0
    assert len(list((tmp_path / "asked").iterdir())) == 3 and os.readlink(tmp_path / "asked/current") != first


@pytest.mark.parametrize(("damage", "code", "said"), [
    (lambda folder: (folder / "export.json").unlink(), 2, "it is no export"),
    (lambda folder: (folder / "model.onnx").write_bytes(b"x"), 1, "is not the graph that was verified"),
    (lambda folder: (folder / "model.onnx").unlink(), 1, "model.onnx does not exist"),
    (lambda folder: (folder / "config.json").write_text("{}"), 1, "is not the file that was verified"),
    (lambda folder: write_json(folder / "export.json", {**read_json(folder / "export.json"), "files": {}}), 1,
     "model.onnx was not verified"),
    (lambda folder: (folder / "vocab.txt").symlink_to("/etc/shadow"), 2, "cannot be read"),
    (lambda folder: os.mkfifo(folder / "vocab.txt"), 2, "no regular file"),
    (lambda folder: (folder / "inner").mkdir(), 2, "it is a folder"),
])
def test_what_is_no_verified_export_leaves_the_former_one(export, tmp_path, capsys, damage, code, said):
    assert release(export.folder, tmp_path) == 0
    before = os.readlink(tmp_path / "asked/current")
    other = tmp_path / "other"
    shutil.copytree(export.folder, other)
    write_json(other / "export.json", {**read_json(other / "export.json"), "more": 1})
    damage(other)
    assert release(other, tmp_path) == code
    assert said in " ".join(capsys.readouterr().err.split())
    assert os.readlink(tmp_path / "asked/current") == before
    assert sorted(path.name for path in (tmp_path / "asked").iterdir()) == sorted([before, "current"])


def test_the_service_can_read_it_whatever_root_s_umask(export, tmp_path):
    before = os.umask(0o077)
    try:
        assert release(export.folder, tmp_path) == 0
    finally:
        os.umask(before)
    made = [tmp_path / "asked", *(tmp_path / "asked").rglob("*")]
    assert {path.stat().st_mode & 0o777 for path in made if path.is_dir()} == {0o750}
    assert {path.stat().st_mode & 0o777 for path in made if path.is_file()} == {0o640}


def test_an_export_of_earlier_weights_is_refused(export, tmp_path, monkeypatch, capsys):
    run = export.folder.parents[1]
    facts = read_json(run / "model/debzero.json")
    monkeypatch.chdir(run.parent)
    try:
        assert main(["release", run.name, "--to", str(tmp_path)]) == 0
        write_json(run / "model/debzero.json", {**facts, "step": facts["step"] + 1})
        assert main(["release", run.name, "--to", str(tmp_path)]) == 1
    finally:
        write_json(run / "model/debzero.json", facts)
    assert f"of the weights after step {facts['step']}, and" in " ".join(capsys.readouterr().err.split())


def test_the_precision_that_is_asked_for_is_that_of_the_export(export, tmp_path, capsys):
    arguments = ["release", "asked", "--from", str(export.folder), "--to", str(tmp_path), "--precision"]
    assert main([*arguments, "int8"]) == 2
    assert "is an export in fp32" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "asked").exists()
    assert main([*arguments, "fp32"]) == 0


def test_names_and_places_that_cannot_be(export, tmp_path, capsys):
    for name in ("../x", "a/b", "-", "a b", ".."):
        assert main(["release", f"--from={export.folder}", f"--to={tmp_path}", "--", name]) == 2
    for place, said in ((tmp_path / "nowhere", "is not there"), ("/proc", "cannot be made")):
        assert release(export.folder, place) == 2
        assert said in capsys.readouterr().err


def test_root_opens_another_user_s_export_as_that_user(export):
    """What only root may read does not become part of a release."""
    with public_folder() as folder:
        bench = Bench(folder)
        shutil.copytree(export.folder, folder / "theirs")
        secret = folder / "secret"
        secret.write_text("root's")
        secret.chmod(0o600)
        os.link(secret, folder / "theirs/vocab.txt")
        give(folder / "theirs")
        os.chown(secret, 0, 0)
        (folder / "models").mkdir(mode=0o755)
        done = server().run(["release", "asked", "--from", "theirs", "--to", "models"], bench.folder)
        assert done.returncode == 2 and "Permission denied" in done.stdout, done.stdout
        (folder / "theirs/vocab.txt").unlink()
        done = server().run(["release", "asked", "--from", "theirs", "--to", "models"], bench.folder)
        assert done.returncode == 0, done.stdout
        assert {path.stat().st_uid for path in (folder / "models/asked").rglob("*")} == {0}
        give(folder / "models")
        done = server().run(["release", "asked", "--from", "theirs", "--to", "models"], bench.folder)
        assert done.returncode == 1 and f"is the user {OTHER.pw_name}'s" in done.stdout, done.stdout
