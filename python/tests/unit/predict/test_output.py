"""Files in, files out: every form of input, and an output that no kill harms."""
import csv
import json
import os
import random
import signal
import subprocess
import time

import pyarrow.parquet
import pytest
from others import OTHER, end_at, give, in_child, public_folder
from predicting import answers, saved
from support import Bench
from warm import server

from debzero import cli
from debzero.base.files import read_json
from debzero.predict import output
from debzero.predict.output import OutputFile
from debzero.predict.rows import of_lines

ROWS = 3000  # three pieces


@pytest.fixture(scope="module")
def place(trained):
    """A bench with a model, and the same rows in every format."""
    model = saved(trained, "asked", "bert", "classification")
    rows = [{"number": number, "text": f"{model.texts[number % 500]} {number}", "more": "a, \"b\""}
            for number in range(ROWS)]
    folder = trained.folder / "files"
    folder.mkdir()
    with open(folder / "rows.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    (folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (folder / "rows.json").write_text(json.dumps(rows))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "rows.parquet")
    return folder, model


def ask(folder, model, *arguments, code=0):
    os.chdir(folder)
    assert cli.main(["predict", str(model.folder), *map(str, arguments)]) == code


def test_every_format_gives_the_same_answers(place, capsys):
    folder, model = place
    made = {}
    for suffix in ("csv", "jsonl", "json", "parquet"):
        ask(folder, model, "--input", f"rows.{suffix}", "--output", f"of-{suffix}.jsonl", "--keep", "number,more")
        made[suffix] = answers((folder / f"of-{suffix}.jsonl").read_text())
    assert made["csv"] == made["jsonl"] == made["json"] == made["parquet"]
    assert [row["number"] for row in made["csv"]] == list(map(str, range(ROWS)))
    assert made["csv"][7]["more"] == "a, \"b\"" and list(made["csv"][7])[:3] == ["number", "more", "text"]
    ask(folder, model, "--input", "rows.csv", "--output", "of.csv", "--keep", "number,more")
    ask(folder, model, "--input", "rows.csv", "--output", "of.parquet", "--keep", "number,more")
    with open(folder / "of.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["answer"] for row in rows] == [row["answer"] for row in made["csv"]]
    assert rows[7] == {key: str(value) for key, value in made["csv"][7].items() if key != "probabilities"}
    table = pyarrow.parquet.read_table(folder / "of.parquet").to_pylist()
    assert table == [{key: value for key, value in row.items() if key != "probabilities"} for row in made["csv"]]
    assert not list(folder.glob(".*.predict"))
    capsys.readouterr()
    ask(folder, model, "--input", "rows.csv", "--json", "--top", 1)
    assert [row["probabilities"] for row in answers(capsys.readouterr().out)] == [
        {row["answer"]: row["probability"]} for row in made["csv"]]


def test_a_line_break_of_any_kind_within_a_text_makes_no_row(place):
    """Older releases of Python write a carriage return alone without quotation marks, and end a row at it."""
    folder, model = place
    texts = ["the\rold cat", "red\r\ndog", "a\nsaw", "\r", "", 'a "file"']
    (folder / "breaks.jsonl").write_text("".join(f"{json.dumps({'text': text})}\n" for text in texts))
    ask(folder, model, "--input", "breaks.jsonl", "--output", "breaks.csv")
    with open(folder / "breaks.csv", newline="") as file:
        assert [row["text"] for row in csv.DictReader(file)] == texts
    ask(folder, model, "--input", "breaks.csv", "--output", "again.jsonl")
    assert [row["text"] for row in answers((folder / "again.jsonl").read_text())] == texts


def test_copied_columns_never_share_a_name(place, capsys):
    folder, model = place
    (folder / "names.jsonl").write_text('{"text": "cat", "answer": 1, "input_answer": 2, "probability": 3}\n')
    ask(folder, model, "--input", "names.jsonl", "--keep", "answer,input_answer,probability", "--json")
    (row,) = answers(capsys.readouterr().out)
    assert list(row.items())[:4] == [("input_input_answer", "1"), ("input_answer", "2"), ("input_probability", "3"),
                                     ("text", "cat")]


def test_lines_of_standard_input_are_answered_as_they_come(place):
    folder, model = place
    process = subprocess.Popen([*python(), str(model.folder), "--json"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    for text in ("the old dog", "", "cat"):
        process.stdin.write(f"{text}\n")
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["text"] == text
    assert process.communicate("no line break")[0].startswith('{"text": "no line break", "answer"')
    assert process.returncode == 0


def test_a_byte_order_mark_before_the_lines_is_no_part_of_a_text(tmp_path):
    (tmp_path / "lines.txt").write_text("a\n\ufeffb\n", encoding="utf-8-sig")
    with open(tmp_path / "lines.txt", "rb") as file:
        assert [piece.texts for piece in of_lines(file.fileno(), 1, 10)] == [[["a", "\ufeffb"]]]


def python():
    import sys

    from support import SOURCE

    return [sys.executable, "-I", str(SOURCE / "command.py"), "predict"]


def test_an_empty_file_gives_an_empty_file(place):
    folder, model = place
    (folder / "none.csv").write_text("text\n")
    for suffix in ("csv", "jsonl", "parquet"):
        ask(folder, model, "--input", "none.csv", "--output", f"none-of.{suffix}")
    assert (folder / "none-of.csv").read_text() == "text,answer,probability\n"
    assert (folder / "none-of.jsonl").read_text() == ""
    assert pyarrow.parquet.read_table(folder / "none-of.parquet").num_rows == 0


@pytest.mark.parametrize(("file", "content", "said"), [
    ("bad.csv", "text\na\nb,c\n", "bad.csv line 3 has 2 fields, and the header names 1 column"),
    ("bad.csv", "body\na\n", "it has no column 'text' -> name its columns of texts with --text; it has body"),
    ("bad.jsonl", '{"text": "a"}\n{"text": ["b"]}\n', "bad.jsonl line 2: the column text holds lists"),
    ("bad.txt", "a\n", "is no csv, json, jsonl or parquet file"),
    ("gone.csv", None, "does not exist"),
])
def test_a_bad_input_is_one_sentence_before_anything_is_answered(place, capsys, file, content, said):
    folder, model = place
    if content is not None:
        (folder / file).write_text(content)
    ask(folder, model, "--input", file, "--output", "never.csv", code=2)
    error = " ".join(capsys.readouterr().err.split())
    assert said in error and "1 problem" in error and not list(folder.glob("*never*"))


@pytest.mark.parametrize(("arguments", "said"), [
    (["x", "--input", "rows.csv"], "texts as arguments, and a file"), (["--output", "a.csv"], "belongs to --input"),
    (["--input", "rows.csv", "--output", "a.txt"], "neither .csv"), (["x", "--beams", "2"], "--beams is for models"),
    (["--input", "rows.csv", "--output", "rows.csv"], "is the input itself"), (["x", "--seed", "1"], "add --sample"),
    (["x", "--precision", "fp16"], "needs a GPU"), (["x", "--device", "cuda:3"], "is not there"),
    (["--input", "rows.csv", "--text", "text,more"], "2 columns cannot take the place"),
    (["--input", "rows.csv", "--keep", "nothing"], "it has no column 'nothing'"),
    (["--input", "rows.csv", "--output", "no/a.csv"], "cannot be written: No such file"),
    (["a\udcff"], "is no UTF-8 text")])
def test_what_cannot_be_asked_is_refused(place, capsys, arguments, said):
    ask(*place, *arguments, code=2)
    assert said in " ".join(capsys.readouterr().err.split())


def complete(folder, name):
    return [row["number"] for row in answers((folder / name).read_text())] == list(map(str, range(ROWS)))


def killed(folder, model, kills, dice):
    """Start predictions again and again and kill each one at a random moment, until there were so many kills. How many
    files became complete meanwhile, and how often a start continued."""
    files = continued = 0
    command = ["predict", str(model.folder), "--input", "rows.jsonl", "--keep", "number", "--output"]
    while kills:
        process = server().start([*command, f"killed-{files}.jsonl"], folder)
        time.sleep(dice.uniform(0, 2.5))
        done = process.poll() is not None
        if not done:
            os.killpg(process.pid, signal.SIGKILL)
            kills -= 1
        said, _ = process.communicate(60)
        continued += "continuing after row" in said
        if done:
            assert process.returncode == 0, said
            assert complete(folder, f"killed-{files}.jsonl")
            files += 1
    process = server().start([*command, f"killed-{files}.jsonl"], folder)
    said, _ = process.communicate(60)
    assert process.returncode == 0 and complete(folder, f"killed-{files}.jsonl"), said
    first = (folder / "killed-0.jsonl").read_bytes()
    assert all((folder / f"killed-{number}.jsonl").read_bytes() == first for number in range(files + 1))
    assert not list(folder.glob(".*.predict"))
    return files + 1, continued


def test_no_kill_loses_or_doubles_a_row(place):
    killed(*place, 4, random.Random(3))


@pytest.mark.long
def test_fifty_kills_at_random_moments(place):
    files, continued = killed(*place, 50, random.Random())
    print(f"50 kills, {files} files, {continued} starts continued")
    assert continued


@pytest.mark.parametrize(("suffix", "rows"), [(".csv", 7), (".csv", 0),
                                              pytest.param(".parquet", 7, marks=pytest.mark.slow)])
def test_a_kill_before_any_call_that_changes_the_disk_harms_nothing(tmp_path, suffix, rows):
    """Each in a child that ends at that call; the next start completes the file."""
    calls = [(os, "fsync"), (os, "replace"), (os, "mkdir"), (os, "unlink"), (os, "rmdir"), (os, "ftruncate")]

    def write(name, ends_at):
        end_at(ends_at, calls)
        made = OutputFile(tmp_path / name, ["text", "answer"], False, {"a": 1})
        made.begin(rows)
        for first in range(made.rows, rows, 3):
            made.add([{"text": f"{row}", "answer": "a"} for row in range(first, min(first + 3, rows))])
        made.finish()

    assert in_child(lambda: write(f"whole{suffix}", 0)) == "None"
    whole, number, deaths = (tmp_path / f"whole{suffix}").read_bytes(), 0, 0
    while deaths == number:
        number += 1
        said = [in_child(lambda number=number, end=end: write(f"{number}{suffix}", end)) for end in (number, 0)]
        assert said[1] == "None"
        deaths += said[0] == ""
        assert (tmp_path / f"{number}{suffix}").read_bytes() == whole
        assert not (tmp_path / f".{number}{suffix}.predict").exists()
    assert deaths > (15 if rows else 5)


def test_a_long_parquet_file_keeps_the_watchdog_calm(tmp_path, monkeypatch):
    monkeypatch.setattr(output, "GROUP", 2)
    made, beats = OutputFile(tmp_path / "a.parquet", ["text", "answer"], False, {}), []
    made.begin(5)
    made.add([{"text": f"{row}", "answer": "a"} for row in range(5)])
    made.finish(lambda: beats.append(made.path.exists()))
    assert beats == [False] * 3 and pyarrow.parquet.read_table(made.path).num_rows == 5


def interrupted(folder, model, name):
    """A file of which some rows are there."""
    process = server().start(["predict", str(model.folder), "--input", "rows.csv", "--output", name], folder)
    while not read_json(folder / f".{name}.predict" / "journal.json").get("rows"):
        assert process.poll() is None
        time.sleep(0.005)
    process.kill()
    process.communicate(60)


def test_another_input_or_model_starts_anew(place, capsys):
    folder, model = place
    interrupted(folder, model, "anew.csv")
    os.utime(folder / "rows.csv")
    ask(folder, model, "--input", "rows.csv", "--output", "anew.csv")
    assert "have changed: starting anew" in capsys.readouterr().err
    assert len((folder / "anew.csv").read_text().splitlines()) == 1 + ROWS


def test_rows_after_the_last_that_counts_are_cut_off(place, capsys):
    folder, model = place
    ask(folder, model, "--input", "rows.csv", "--output", "whole.csv")
    interrupted(folder, model, "cut.csv")
    with open(folder / ".cut.csv.predict" / "rows", "ab") as file:
        file.write(b"half a ro")
    ask(folder, model, "--input", "rows.csv", "--output", "cut.csv")
    assert "continuing after row" in capsys.readouterr().err
    assert (folder / "cut.csv").read_bytes() == (folder / "whole.csv").read_bytes()


def test_two_do_not_write_one_file(place, capsys):
    folder, model = place
    first = server().start(["predict", str(model.folder), "--input", "rows.csv", "--output", "one.csv"], folder)
    while not (folder / ".one.csv.predict" / "journal.json").exists():
        time.sleep(0.005)
    os.kill(first.pid, signal.SIGSTOP)
    try:
        ask(folder, model, "--input", "rows.csv", "--output", "one.csv", code=2)
    finally:
        os.kill(first.pid, signal.SIGCONT)
    assert f"process {first.pid} is writing it" in capsys.readouterr().err
    first.communicate(60)
    assert first.returncode == 0 and (folder / "one.csv").exists()


def test_another_users_folder_in_the_place_of_the_work_is_refused(place, capsys):
    folder, model = place
    (folder / ".other.csv.predict").mkdir()
    give(folder / ".other.csv.predict")
    ask(folder, model, "--input", "rows.csv", "--output", "other.csv", code=2)
    assert "belongs to the user nobody" in " ".join(capsys.readouterr().err.split())
    (folder / ".other.csv.predict").rmdir()


def test_root_asks_as_the_owner_of_the_run(place):
    _, model = place
    with public_folder() as folder:
        bench = Bench(folder)
        (folder / "others").mkdir()
        for path in model.folder.iterdir():
            (folder / "others" / path.name).write_bytes(path.read_bytes())
        give(folder / "others")
        (folder / "rows.csv").chmod(0o644)
        done = server().run(["predict", "others", "--input", "rows.csv", "--output", "others/of.csv"], bench.folder)
        assert done.returncode == 0, done.stdout
        assert (folder / "others" / "of.csv").stat().st_uid == OTHER.pw_uid
        done = server().run(["predict", "others", "--input", "rows.csv", "--output", "of.csv"], bench.folder)
        assert done.returncode == 2 and "cannot be written: Permission denied" in done.stdout, done.stdout
