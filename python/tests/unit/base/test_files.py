"""Files are whole or not there, and what people made keeps its owner, mode and links."""
from __future__ import annotations

import os
import subprocess
import sys

import pytest
from support import POWERLESS, SOURCE

from debzero.base import files


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    files.write_json(path, {"step": 1})

    def fail(handle):
        raise OSError("no disk")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no disk"):
        files.write_json(path, {"step": 2})
    assert files.read_json(path) == {"step": 1} and list(tmp_path.iterdir()) == [path]


def test_a_rewritten_file_keeps_its_mode_owner_and_link(tmp_path):
    real, link = tmp_path / "real.yml", tmp_path / "link.yml"
    real.write_text("old")
    real.chmod(0o640)
    os.chown(real, 1234, 1235)
    link.symlink_to(real)
    files.rewrite_text(link, "new")
    state = real.stat()
    assert link.is_symlink() and real.read_text() == "new"
    assert (state.st_uid, state.st_gid, state.st_mode & 0o777) == (1234, 1235, 0o640)


@pytest.mark.parametrize("exchange", [True, False])
def test_a_folder_is_replaced_whole(tmp_path, monkeypatch, exchange):
    if not exchange:  # as on NFS

        class Libc:
            renameat2 = staticmethod(lambda *_: -1)

        monkeypatch.setattr(files, "LIBC", Libc)
    old, new = tmp_path / "model", tmp_path / "model.new"
    for folder in (old, new):
        folder.mkdir()
        (folder / folder.name).write_text("")
    files.replace_folder(new, old)
    assert [path.name for path in old.iterdir()] == ["model.new"] and list(tmp_path.iterdir()) == [old]


def test_a_new_folder_appears_when_it_is_whole_and_not_before(tmp_path):
    final, calls = tmp_path / "model", []
    with files.new_folder(final, lambda: calls.append(1)) as folder:
        (folder / "weights").write_bytes(b"x")
        assert not final.exists()
    assert (final / "weights").read_bytes() == b"x" and calls


@pytest.mark.parametrize("content", ["file", "folder", "link to a file", "link to a folder", "dangling link"])
def test_what_is_in_a_folders_place_is_replaced_and_a_link_is_not_followed(tmp_path, content):
    final, target = tmp_path / "model", tmp_path / "target"
    target.mkdir()
    (target / "kept").touch()
    {"file": final.touch, "folder": final.mkdir, "link to a file": lambda: final.symlink_to(target / "kept"),
     "link to a folder": lambda: final.symlink_to(target), "dangling link": lambda: final.symlink_to("none")}[content]()
    with files.new_folder(final) as folder:
        (folder / "weights").touch()
    assert [path.name for path in final.iterdir()] == ["weights"] and not final.is_symlink()
    assert (target / "kept").exists() and set(tmp_path.iterdir()) == {final, target}


def test_temporary_names_cannot_be_guessed_and_links_in_their_place_are_not_followed(tmp_path, monkeypatch):
    path, precious = tmp_path / "status.json", tmp_path / "precious"
    precious.write_text("root's")
    assert len({files.temporary_name(path) for _ in range(100)}) == 100
    monkeypatch.setattr(files.secrets, "token_hex", lambda _: "0123456789abcdef")  # the worst case
    files.temporary_name(path).symlink_to(precious)
    files.temporary_name(tmp_path / "model").symlink_to(tmp_path)
    with pytest.raises(FileExistsError):
        files.write_text(path, "mine")
    with files.new_folder(tmp_path / "model") as folder:
        assert not folder.is_symlink()
    assert precious.read_text() == "root's"


def test_what_a_killed_process_left_goes_and_what_only_looks_like_it_stays(tmp_path):
    left, kept = tmp_path / ".model.0123456789abcdef.new", tmp_path / ".model.mine.new"
    for folder in (left, kept):
        (folder / "below").mkdir(parents=True)
    (tmp_path / ".a.json.0123456789abcdef.new").symlink_to(kept)
    files.remove_leftovers(tmp_path, "data")
    assert left.exists()
    with files.new_folder(tmp_path / "model"):
        assert not left.exists()
    files.remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"model", kept.name} and (kept / "below").exists()


def test_a_public_file_is_readable_whatever_the_umask(tmp_path):
    before = os.umask(0o077)
    try:
        files.write_public(tmp_path / "a.prom", b"1")
    finally:
        os.umask(before)
    assert (tmp_path / "a.prom").stat().st_mode & 0o777 == 0o644 and len(list(tmp_path.iterdir())) == 1


def fill_and_fail(final):
    with files.new_folder(final) as folder:
        (folder / "weights").write_bytes(b"x")
        raise RuntimeError("halfway")


def test_a_new_folder_that_fails_vanishes(tmp_path):
    with pytest.raises(RuntimeError, match="halfway"):
        fill_and_fail(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("content", "expected"), [("{\"a\": 1}", {"a": 1}), ("[1]", {}), ("{\"a\"", {}), (None, {})])
def test_json_that_is_not_whole_is_empty(tmp_path, content, expected):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_text(content)
    assert files.read_json(path) == expected


def test_lines_that_are_not_whole_are_left_out(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n[2]\n\n{"a": 3}\n{"a": ')
    assert files.read_lines(path) == [{"a": 1}, {"a": 3}] and files.read_lines(tmp_path / "none") == []


def test_the_nearest_folder_that_is_there(tmp_path):
    assert files.nearest(tmp_path / "a/b") == tmp_path and files.nearest(tmp_path) == tmp_path


def test_why_a_path_cannot_be_read(tmp_path):
    closed, secret = tmp_path / "closed", tmp_path / "secret"
    closed.mkdir(mode=0o000)
    secret.write_text("")
    secret.chmod(0o000)
    (tmp_path / "loop").symlink_to("loop")
    script = ("import sys\nfrom pathlib import Path\nfrom debzero.base.files import unreadable\n"
              "for path in sys.argv[1:]:\n    print(unreadable(Path(path)))")
    paths = [tmp_path, tmp_path / "nothing", closed / "x", secret, tmp_path / "loop"]
    done = subprocess.run([*POWERLESS, sys.executable, "-c", script, *map(str, paths)], text=True, check=True,
                          capture_output=True, env={"PYTHONPATH": str(SOURCE)})
    assert done.stdout.splitlines() == [
        "", "", "lies in a folder that this user may not enter", "may not be read by this user",
        "cannot be read: Too many levels of symbolic links"]


@pytest.mark.parametrize("text", ["", "{", "[]", "null", pytest.param("[" * 100000, id="deep list"),
                                  pytest.param('{"a":' * 100000, id="deep object"),
                                  pytest.param("9" * 5000, id="digits")])
def test_json_that_is_no_object_is_read_as_nothing(tmp_path, text):
    path = tmp_path / "status.json"
    path.write_text(text)
    assert files.read_json(path) == {}
    path.write_text(f'{text}\n{{"step": 1}}\n')
    assert files.read_lines(path) == [{"step": 1}]


def test_a_file_name_that_is_not_utf_8_is_written_and_read_back(tmp_path):
    name = os.fsdecode(b"b\xffd.yml")
    files.write_json(tmp_path / "status.json", {"job": name})
    assert files.read_json(tmp_path / "status.json") == {"job": name}
