"""Tokenised samples are used again only as they were written."""
import pytest
from support import plan_of

from debzero.data import seal
from debzero.train import prepare


def test_damaged_samples_are_made_again(bench):
    """A run maps the files as they are, and would train on what is in them."""
    resolved, cache = plan_of(bench), bench.folder / "cache"
    folder = prepare.prepare(resolved, cache)
    whole = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    before = folder.stat().st_mtime_ns
    assert prepare.prepare(resolved, cache) == folder and folder.stat().st_mtime_ns == before
    for path, content in whole.items():
        if content:
            path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
            assert not seal.is_intact(folder), path
            path.write_bytes(content)
    assert seal.is_intact(folder)
    next((folder / "train").glob("ids.*")).write_bytes(b"")
    prepare.prepare(resolved, cache)
    assert {path: path.read_bytes() for path in whole} == whole and seal.is_intact(folder)


@pytest.mark.parametrize("damage", [
    lambda folder: (folder / "more").write_bytes(b""), lambda folder: (folder / "file").unlink(),
    lambda folder: (folder / "file").chmod(0o666), lambda folder: (folder / "link").symlink_to("file"),
    lambda folder: (folder / seal.SEAL).unlink(), lambda folder: (folder / seal.SEAL).write_text("[" * 100_000)])
def test_what_another_hand_left_is_noticed(tmp_path, damage):
    (tmp_path / "file").write_bytes(b"samples")
    seal.seal(tmp_path)
    assert seal.is_intact(tmp_path)
    damage(tmp_path)
    assert not seal.is_intact(tmp_path)
