"""debzero-bundle unpack: the old folder or the new one, whatever happens meanwhile, and nothing of anybody else's."""
from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from bundles import FILES, PROGRAM, run


def test_it_writes_only_where_nobody_else_may(bundle, keys, tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    os.chmod(shared, 0o1777)
    done = run("unpack", bundle, shared / "out", "--key", keys / "right.gpg")
    assert done.returncode == 2 and "others may write to this folder" in done.stderr
    assert list(shared.iterdir()) == []


def test_it_replaces_only_what_is_a_bundle(tool, bundle, keys, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    (tmp_path / "link").symlink_to(home)
    assert tool.unpack(bundle, tmp_path / "link", keys / "right.gpg", []) == len(FILES)  # empty, and where it leads
    assert (tmp_path / "link").is_symlink() and (home / "sbom.cdx.json").exists()
    (home / "manifest.json.sig").unlink()  # somebody's folder from now on
    (tmp_path / "file").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    for name in ("home", "link", "file", ".", "/"):
        with pytest.raises(tool.RefusedError, match="is no unpacked bundle"):
            tool.unpack(bundle, tmp_path / name, keys / "right.gpg", [])
    assert sorted(tmp_path.rglob("*")) == before


def test_a_part_that_it_lacks_is_a_mistake(tool, bundle, keys, tmp_path):
    with pytest.raises(tool.RefusedError, match="nothing in modles"):
        tool.unpack(bundle, tmp_path / "out", keys / "right.gpg", ["modles"])
    assert list(tmp_path.iterdir()) == []
    assert tool.unpack(bundle, tmp_path / "out", keys / "right.gpg", ["models/"]) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a folder to another user")
def test_nobody_else_can_move_what_is_above(bundle, keys, tmp_path):
    (tmp_path / "theirs/root").mkdir(parents=True)
    os.chown(tmp_path / "theirs", 65534, 65534)
    done = run("unpack", bundle, tmp_path / "theirs/root/out", "--key", keys / "right.gpg")
    assert done.returncode == 2 and f"{tmp_path}/theirs: others may write" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_what_was_there(tool, bundle, keys, tmp_path, number):
    assert tool.unpack(bundle, tmp_path / "out", keys / "right.gpg", []) == len(FILES)
    before = sorted(tmp_path.rglob("*"))
    process = subprocess.Popen([sys.executable, PROGRAM, "unpack", "/dev/stdin", tmp_path / "out", "--key",
                                keys / "right.gpg"], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=False)
    process.stdin.write(bundle.read_bytes()[:-10240 - 1])  # then it waits for the rest
    process.stdin.flush()
    while len(list(tmp_path.iterdir())) < 2:
        assert process.poll() is None
    process.send_signal(number)
    _, told = process.communicate()
    assert process.returncode == 128 + number and b"Traceback" not in told and told.count(b"\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_signal_while_it_makes_its_folder_leaves_none(tool, bundle, keys, tmp_path, monkeypatch):
    lock = tool.lock
    monkeypatch.setattr(tool, "lock", lambda folder: signal.raise_signal(signal.SIGTERM) or lock(folder))
    there = list(tmp_path.iterdir())
    before = {number: signal.signal(number, tool.stop) for number in tool.SIGNALS}
    try:
        with pytest.raises(KeyboardInterrupt):
            tool.unpack(bundle, tmp_path / "out", keys / "right.gpg", [])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert list(tmp_path.iterdir()) == there


def test_a_rename_that_fails_gives_the_old_one_back(tool, tmp_path):
    (tmp_path / "old").mkdir()
    with pytest.raises(OSError, match="missing"):
        tool.replace(tmp_path / "missing", tmp_path / "old")
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def killed(bundle: Path, keys: Path, folder: Path) -> Path:
    """What a process leaves that is killed while it unpacks into the folder."""
    before = set(folder.parent.iterdir())
    process = waiting(bundle, keys, folder)
    process.kill()
    process.communicate()
    (left,) = set(folder.parent.iterdir()) - before
    return left


def waiting(bundle: Path, keys: Path, folder: Path) -> subprocess.Popen:
    """A process that unpacks, and waits for the end of the bundle."""
    before = set(folder.parent.iterdir())
    process = subprocess.Popen([sys.executable, PROGRAM, "unpack", "/dev/stdin", folder, "--key", keys / "right.gpg"],
                               stdin=subprocess.PIPE, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=False)
    process.stdin.write(bundle.read_bytes()[:-10240 - 1])
    process.stdin.flush()
    while not set(folder.parent.iterdir()) - before:
        assert process.poll() is None
    return process


def test_what_a_killed_process_left_goes_with_the_next(tool, bundle, keys, tmp_path):
    out = tmp_path / "out"
    running = waiting(bundle, keys, out)
    (used,) = tmp_path.iterdir()
    left = killed(bundle, keys, out)
    others = [tmp_path / ".out.mine", tmp_path / ".out.abcdefgh", tmp_path / ".other.abcdefgh"]
    for path in others[::2]:
        path.mkdir()
    others[1].touch()  # a file, and no folder
    assert set(tmp_path.iterdir()) == {left, used, *others}
    assert tool.unpack(bundle, out, keys / "right.gpg", []) == len(FILES)
    assert set(tmp_path.iterdir()) == {out, used, *others}
    _, told = running.communicate(bundle.read_bytes()[-10240 - 1:])
    assert running.returncode == 0, told
    assert set(tmp_path.iterdir()) == {out, *others}


def test_a_process_that_is_killed_between_its_two_renames_loses_nothing(tool, bundle, keys, tmp_path):
    out = tmp_path / "out"
    assert tool.unpack(bundle, out, keys / "right.gpg", []) == len(FILES)
    left = killed(bundle, keys, out)
    out.rename(left.with_name(f"{left.name}.old"))
    with pytest.raises(tool.RefusedError):
        tool.unpack(bundle, out, keys / "other.gpg", [])
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and (out / "sbom.cdx.json").exists()
