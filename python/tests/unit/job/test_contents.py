"""The content of a job's files decides what is the same run; what only looks changed is not."""
import os
import time

import pytest
from support import plan_of

from debzero.job import contents


@pytest.fixture
def reads(monkeypatch):
    """Which files were read."""
    read, sha = [], contents._sha256
    monkeypatch.setattr(contents, "_sha256", lambda file: read.append(file) or sha(file))
    monkeypatch.setattr(contents, "SETTLED_SECONDS", -1)
    contents._remembered.cache_clear()
    return read


def fingerprint(bench):
    contents._remembered.cache_clear()  # as a new process
    return plan_of(bench).fingerprint


def test_a_file_is_read_once_and_again_when_it_looks_changed(bench, reads):
    first = fingerprint(bench)
    fingerprint(bench)
    assert len(reads) == 2, "without a run there is no folder to keep the digest in"
    (bench.folder / "out").mkdir()
    assert [fingerprint(bench) for _ in range(3)] == [first] * 3 and len(reads) == 3
    os.utime(bench.folder / "rows.csv", (1, 1))
    assert fingerprint(bench) == first and len(reads) == 4
    assert fingerprint(bench) == first and len(reads) == 4


def test_what_files_are_called_and_what_no_run_reads_does_not_matter(bench):
    first, rows = plan_of(bench).fingerprint, bench.folder / "rows.csv"
    named = bench.folder / "other.csv"
    rows.rename(named)
    assert plan_of(bench, data__dataset=str(named)).fingerprint == first
    folder = bench.folder / "set"
    folder.mkdir()
    named.rename(folder / "train.csv")
    for name in ("README.md", "notes.txt", "test.csv"):
        (folder / name).write_text(name)
        assert plan_of(bench, data__dataset=str(folder)).fingerprint == first, name
    (folder / "validation.csv").write_text("text,label\na,tool\n")
    assert plan_of(bench, data__dataset=str(folder)).fingerprint != first
    model = bench.folder / "model"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "bert"}')
    of_model = plan_of(bench, data__dataset=str(folder), model=str(model)).fingerprint
    for name in ("README.md", ".gitattributes"):
        (model / name).write_text(name)
    assert plan_of(bench, data__dataset=str(folder), model=str(model)).fingerprint == of_model
    (model / "config.json").write_text("{}")
    assert plan_of(bench, data__dataset=str(folder), model=str(model)).fingerprint != of_model


def test_other_content_is_seen_although_size_and_time_are_the_same(bench, reads):
    (bench.folder / "out").mkdir()
    rows, before = bench.folder / "rows.csv", fingerprint(bench)
    info, content = rows.stat(), rows.read_text()
    time.sleep(0.02)  # the clock of files is coarse
    rows.write_text(content.replace("cat", "dog"))
    os.utime(rows, ns=(info.st_atime_ns, info.st_mtime_ns))
    assert rows.stat().st_size == info.st_size and rows.stat().st_mtime_ns == info.st_mtime_ns
    assert fingerprint(bench) != before
    rows.write_text(content)
    assert fingerprint(bench) == before, "and back"


def test_what_has_changed_just_now_is_not_relied_on(bench, reads, monkeypatch):
    monkeypatch.setattr(contents, "SETTLED_SECONDS", 60)
    (bench.folder / "out").mkdir()
    plans = [plan_of(bench) for _ in range(2)]
    assert plans[0].fingerprint == plans[1].fingerprint and len(reads) == 2
    assert not (bench.folder / "out" / contents.KEPT).exists()


def test_a_damaged_keeper_is_not_believed(bench, reads):
    (bench.folder / "out").mkdir()
    first, keeper = fingerprint(bench), bench.folder / "out" / contents.KEPT
    content = keeper.read_bytes()
    for place in range(0, len(content), 3):
        keeper.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert fingerprint(bench) == first
    for odd in (b"[]", b"{", b'{"files": 1, "sha256": 2}', b"[" * 100_000):
        keeper.write_bytes(odd)
        assert fingerprint(bench) == first
    keeper.unlink()
    os.mkfifo(keeper)
    assert fingerprint(bench) == first


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can look at a folder that is another's")
def test_nothing_is_left_in_anothers_folder(bench, reads):
    (bench.folder / "out").mkdir()
    os.chown(bench.folder / "out", 65534, -1)
    fingerprint(bench)
    assert not list((bench.folder / "out").iterdir())
