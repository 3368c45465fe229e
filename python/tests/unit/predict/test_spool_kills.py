"""A folder of files to answer: kills, stops and a full disk lose no row and double none."""
import os
import random
import signal
import time
from pathlib import Path

import pytest
from others import end_at, in_child
from predicting import answers
from spooling import ROWS, listed, put, rows, settle, watcher
from warm import server

from debzero.base.errors import HostError, OutOfMemory
from debzero.predict.output import OutputFile
from debzero.predict.spool import MOST_DEATHS


def test_a_full_disk_is_waited_for(spooled, spool, monkeypatch, capsys):
    """Whatever it is that does not fit any more."""
    put(spool, "a.jsonl", rows(5))
    put(spool, "b.txt", "no")
    watching, sync, calls, full = watcher(spooled, spool), os.fsync, [], []

    def fails(handle):
        calls.append(handle)
        if full and len(calls) == full[-1]:
            raise OSError(28, "No space left on device")
        sync(handle)

    def rest(seconds):
        if seconds > 1:
            full.append(full[-1] + 1)
        calls.clear()
        watching.signal = signal.SIGTERM if os.listdir(spool / "out") and len(os.listdir(spool / "failed")) == 2 else 0

    monkeypatch.setattr(os, "fsync", fails)
    monkeypatch.setattr(watching, "rest", rest)
    full.append(1)
    assert watching.run() == 128 + signal.SIGTERM
    assert len(full) > 5 and "the disk is full" in capsys.readouterr().out
    assert len(answers((spool / "out/a.jsonl").read_text())) == 5
    assert listed(spool, "in", "out", "failed") == {"in": [], "out": ["a.jsonl"], "failed": ["b.txt", "b.txt.txt"]}


def test_a_disk_that_stays_full_is_no_death(spooled, spool, monkeypatch):
    put(spool, "a.jsonl", rows(5))
    watching, note, tries = watcher(spooled, spool), OutputFile._note, []

    def fails(made, count, size):
        tries.append(count)
        if len(tries) <= 2 * MOST_DEATHS:
            raise OSError(28, "No space left on device")
        note(made, count, size)

    def rest(seconds):
        watching.signal = signal.SIGTERM if any(os.listdir(spool / name) for name in ("out", "failed")) else 0

    monkeypatch.setattr(OutputFile, "_note", fails)
    monkeypatch.setattr(watching, "rest", rest)
    watching.run()
    assert listed(spool) == {"in": [], "out": ["a.jsonl"], "failed": []} and len(tries) > 2 * MOST_DEATHS


def test_a_file_that_ends_the_process_again_and_again_is_put_aside(spooled, spool, monkeypatch):
    put(spool, "a.jsonl", rows(5))
    put(spool, "b.jsonl", rows(5))
    first = watcher(spooled, spool)
    monkeypatch.setattr("debzero.predict.watch.File.count",
                        lambda file: os._exit(9) if file.path.name == "a.jsonl" else 5)
    os.close(first.spool._lock)

    def die():
        again = watcher(spooled, spool)
        settle(again)
    for _ in range(MOST_DEATHS):
        assert in_child(die) == "" and listed(spool, "failed") == {"failed": []}
    assert in_child(die) == "None"
    assert listed(spool) == {"in": [], "out": ["b.jsonl"], "failed": ["a.jsonl", "a.jsonl.txt"]}
    assert f"ended this process {MOST_DEATHS} times" in (spool / "failed/a.jsonl.txt").read_text()


@pytest.mark.parametrize("kind", [HostError, OutOfMemory])
def test_what_the_host_fails_at_ends_the_process_and_no_file_until_it_has_ended_it_often(
        spooled, spool, monkeypatch, kind):
    """systemd starts it again: with a process for TensorRT, or with the memory that another had."""
    def fails(session, piece, first, done):
        raise kind("it is gone", "start it again")

    put(spool, "a.jsonl", rows(5))
    put(spool, "b.jsonl", rows(5))
    watching = watcher(spooled, spool)
    with monkeypatch.context() as broken:
        broken.setattr("debzero.predict.ask.Session.rows", fails)
        watching.look()
        for _ in range(MOST_DEATHS):
            with pytest.raises(kind):
                watching.look()
    assert listed(spool) == {"in": ["b.jsonl"], "out": [], "failed": []}
    settle(watching)
    assert listed(spool) == {"in": [], "out": ["b.jsonl"], "failed": ["a.jsonl", "a.jsonl.txt"]}


def start(spooled, spool):
    return server().start(["predict", str(spooled.folder), "--keep", "number", "--spool", str(spool)], spool.parent)


def wait(condition, seconds=60):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_stop_lets_the_rows_that_are_computed_be_written(spooled, spool, number):
    put(spool, "a.jsonl", rows())
    process = start(spooled, spool)
    wait(lambda: (spool / "work/answers/.a.jsonl.predict/journal.json").exists())
    process.send_signal(number)
    said, _ = process.communicate(60)
    assert process.returncode == 128 + number and "stopped, after 0 files" in said, said
    assert "Traceback" not in said and not (spool / "work/begun.json").exists()


def whole(path, first):
    return [row["number"] for row in answers(path.read_text())] == list(map(str, range(first, first + ROWS)))


def killed(spooled, spool, kills, dice):
    """Kill the service again and again at random moments, while files come in. The files that were answered."""
    files = 0
    while kills:
        if not os.listdir(spool / "in"):
            put(spool, f"{files}.jsonl", rows(first=files))
            put(spool, f"{files}-bad.jsonl", f'{{"number": "{files}", "text": ["a list"]}}\n')
            files += 1
        process = start(spooled, spool)
        time.sleep(dice.uniform(0, 3))
        assert process.poll() is None
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(60)
        kills -= 1
    process = start(spooled, spool)
    wait(lambda: len(os.listdir(spool / "out")) == files and len(os.listdir(spool / "failed")) == 2 * files)
    process.terminate()
    process.communicate(60)
    for number in range(files):
        assert whole(spool / f"out/{number}.jsonl", number), number
        assert "lists" in (spool / f"failed/{number}-bad.jsonl.txt").read_text()
    found = listed(spool, "in", "work/taken", "work/input", "work/answers")
    assert not any(found.values()), found
    return files


def test_no_kill_loses_or_doubles_a_row(spooled, spool):
    killed(spooled, spool, 2, random.Random(5))


@pytest.mark.long
def test_fifty_kills_at_random_moments(spooled, spool):
    print(f"50 kills, {killed(spooled, spool, 50, random.Random())} files")


@pytest.mark.slow
def test_a_kill_before_any_call_that_changes_the_disk_harms_nothing(spooled, spool, monkeypatch):
    """Each in a child that ends at that call; the next one completes what it left."""
    monkeypatch.setattr("debzero.predict.watch.Session", Double)
    calls = [(os, "fsync"), (os, "replace"), (os, "rename"), (os, "mkdir"), (os, "unlink"), (os, "rmdir")]

    def work(ends_at):
        watching = watcher(spooled, spool)
        end_at(ends_at, calls)
        settle(watching)

    number = deaths = 0
    while deaths == number:
        number += 1
        put(spool, f"{number}.jsonl", rows(3, number))
        put(spool, f"{number}.txt", "no")
        ended = [in_child(lambda end=end: work(end)) for end in (number, 0)]
        assert ended[1] == "None"
        deaths += ended[0] == ""
        assert [row["number"] for row in answers((spool / f"out/{number}.jsonl").read_text())] == [
            str(row) for row in range(number, number + 3)]
        assert {name: names for name, names in listed(
            spool, "in", "work/taken", "work/input", "work/answers").items() if names} == {}
        assert os.listdir(spool / "out") == [f"{number}.jsonl"]
        assert sorted(os.listdir(spool / "failed")) == [f"{number}.txt", f"{number}.txt.txt"]
        for folder in ("out", "failed"):
            for path in Path(spool, folder).iterdir():
                path.unlink()
    assert deaths > 25


class Double:
    """In place of a session: its answers are the texts."""

    def __init__(self, options, folder):
        self.texts, self.most = ["number", "text"], 2

    def load(self):
        return self

    def rows(self, piece, first, done):
        return [{"number": number, "answer": text} for number, text in zip(*piece.texts)]

    def output(self, file, path):
        return OutputFile(path, ["number", "answer"], False, {})
