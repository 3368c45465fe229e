"""A folder of files to answer: what hostile uploads cannot do to it, and what a newcomer may do wrong."""
import json
import os
import socket

import pytest
from others import OTHER, as_other, give, public_folder
from predicting import answers, saved
from spooling import listed, put, rows, settle, watcher
from warm import server

from debzero.base.errors import InputError
from debzero.cli import main, parser
from debzero.predict import spool as module
from debzero.predict.spool import Spool
from debzero.predict.watch import Watcher


def test_each_format_comes_back_under_its_name(spooled, spool, capsys):
    watching = watcher(spooled, spool, "--keep", "number")
    put(spool, "a.csv", "number,text\n1,cat\n2,\n")
    put(spool, "b.jsonl", rows(2))
    put(spool, "c.json", json.dumps([{"number": 7, "text": "saw"}]))
    settle(watching)
    assert listed(spool) == {"in": [], "out": ["a.csv", "b.jsonl", "c.json.jsonl"], "failed": []}
    assert (spool / "out/a.csv").read_text().startswith("number,text,answer,probability\n1,cat,")
    assert [row["number"] for row in answers((spool / "out/b.jsonl").read_text())] == ["0", "1"]
    assert listed(spool, "work/taken", "work/input", "work/answers") == {
        "work/taken": [], "work/input": [], "work/answers": []}
    assert "answered: " in capsys.readouterr().out


def test_what_is_wrong_is_put_aside_with_one_sentence(spooled, spool):
    watching = watcher(spooled, spool)
    put(spool, "a.csv", "text\na\nb,c\n")
    put(spool, "b.txt", "a\n")
    put(spool, "c.jsonl", '{"body": "a"}\n')
    put(spool, "d.jsonl", rows(1))
    settle(watching)
    assert listed(spool) == {"in": [], "out": ["d.jsonl"], "failed": [
        "a.csv", "a.csv.txt", "b.txt", "b.txt.txt", "c.jsonl", "c.jsonl.txt"]}
    said = {name: (spool / "failed" / f"{name}.txt").read_text() for name in ("a.csv", "b.txt", "c.jsonl")}
    assert "line 3 has 2 fields, and the header names 1 column" in said["a.csv"]
    assert "has no name of a file of texts" in said["b.txt"] and "it has no column 'text'" in said["c.jsonl"]
    assert all(text.count("\n") == 1 for text in said.values())
    assert (spool / "failed/a.csv").read_text() == "text\na\nb,c\n"


def test_nothing_takes_the_place_of_another_s(spooled, spool):
    watching = watcher(spooled, spool)
    for content in (rows(1), rows(1, 5), "no"):
        put(spool, "a.jsonl", content)
        settle(watching)
    put(spool, "a.jsonl.txt", "its name is that of a sentence")
    put(spool, "a.jsonl", "no, too")
    settle(watching)
    assert listed(spool, "out") == {"out": ["a.2.jsonl", "a.jsonl"]}
    contents = {(spool / "failed" / name).read_text() for name in os.listdir(spool / "failed")}
    assert {"no", "no, too", "its name is that of a sentence"} < contents
    assert len(os.listdir(spool / "failed")) == 6


def test_what_is_still_written_is_left_alone(spooled, spool):
    watching = watcher(spooled, spool)
    (spool / "in/.a.jsonl").write_text(rows(1))
    with open(spool / "in/b.jsonl", "w") as file:
        for number in range(4):
            file.write(rows(1, number))
            file.flush()
            watching.look()
    assert listed(spool) == {"in": [".a.jsonl", "b.jsonl"], "out": [], "failed": []}
    settle(watching)
    assert listed(spool) == {"in": [".a.jsonl"], "out": ["b.jsonl"], "failed": []}
    assert len(answers((spool / "out/b.jsonl").read_text())) == 4


def test_another_model_is_taken_up_for_the_next_file(spooled, trained, spool):
    other = saved(trained, "spooled-other", "bert", "regression")
    current = spool.parent / "current"
    current.symlink_to(spooled.folder)
    options = parser().parse_args(["predict", str(current), "--spool", str(spool)])
    watching = Watcher(options, current)
    put(spool, "a.jsonl", rows(1))
    settle(watching)
    (spool.parent / "next").symlink_to(other.folder)
    os.replace(spool.parent / "next", current)
    put(spool, "b.jsonl", rows(1))
    settle(watching)
    first, second = (answers((spool / f"out/{name}.jsonl").read_text())[0] for name in "ab")
    assert isinstance(first["answer"], str) and isinstance(second["answer"], float)


SECRET = '{"text": "a secret of the service\'s"}\n'


def links(spool):
    """What a hostile user may put into `in`, by name; none of it may be followed or hold anything up."""
    secret = spool.parent / "secret.jsonl"
    secret.write_text(SECRET)
    (spool / "in/link.jsonl").symlink_to(secret)
    (spool / "in/folder-link.jsonl").symlink_to(spool.parent)
    os.link(secret, spool / "in/hard.jsonl")
    os.mkfifo(spool / "in/fifo.jsonl")
    with socket.socket(socket.AF_UNIX) as listening:
        os.chdir(spool / "in")
        listening.bind("socket.jsonl")
        os.chdir(spool)
    (spool / "in/folder.jsonl").mkdir()
    (spool / "in/folder.jsonl/inner.jsonl").write_text(rows(1))
    if os.geteuid() == 0:
        os.mknod(spool / "in/zero.jsonl", 0o666 | 0o020000, os.makedev(1, 5))
    for name in (b"line\nbreak.jsonl", b"esc\x1b[31m.jsonl", b"byte\xff.jsonl", b"n" * 240 + b".jsonl", b"-rf.jsonl"):
        with open(os.path.join(os.fsencode(spool / "in"), name), "wb") as file:
            file.write(rows(1).encode())
    with open(spool / "in/huge.jsonl", "wb") as file:
        file.truncate(module.LARGEST + 1)
    with open(spool / "in/long-line.jsonl", "wb") as file:
        file.write(b'{"text": "' + b"a" * 2**26 + b'"}\n')


def test_nothing_hostile_is_followed(spooled, spool, capfd, monkeypatch):
    monkeypatch.setattr(module, "LARGEST", 2**27)  # the machine of the tests need not copy 4 GiB
    watching = watcher(spooled, spool)
    links(spool)
    settle(watching)
    found = listed(spool)
    assert found["in"] == [] and found["out"] == ["-rf.jsonl"]
    for name, reason in {"link": "is a link, which is not followed", "folder-link": "is a link",
                         "fifo": "is no regular file",
                         "socket": "is no regular file", "hard": "has a second name", "folder": "is no regular file",
                         "huge": "has more than", "long-line": ""}.items():
        assert reason in (spool / "failed" / f"{name}.jsonl.txt").read_text(), name
    for name in ("link", "folder-link", "fifo", "socket", "zero"):
        assert not os.path.lexists(spool / "failed" / f"{name}.jsonl"), name
    assert (spool.parent / "secret.jsonl").read_text() == SECRET
    said = capfd.readouterr().out
    assert "line\\nbreak.jsonl has a name with characters" in said and "\x1b" not in said
    assert all(name.isprintable() and len(os.fsencode(name)) < 200 for name in found["failed"])
    assert SECRET not in "".join(path.read_text(errors="replace") for folder in ("out", "failed")
                                 for path in (spool / folder).rglob("*.txt"))


def test_a_folder_that_was_swapped_for_a_link_is_not_followed(spooled, spool, tmp_path):
    watching = watcher(spooled, spool)
    elsewhere = tmp_path / "elsewhere"
    for name in ("in", "out", "failed", "work/taken", "work/input", "work/answers"):
        (elsewhere / name).mkdir(parents=True)
    put(spool, "a.jsonl", rows(1))
    spool.rename(tmp_path / "moved")
    spool.symlink_to(elsewhere)
    put(spool, "b.jsonl", rows(1))
    settle(watching)
    assert listed(tmp_path / "moved") == {"in": [], "out": ["a.jsonl"], "failed": []}
    assert listed(elsewhere) == {"in": ["b.jsonl"], "out": [], "failed": []}


def test_a_folder_that_takes_a_name_at_the_last_moment_stops_nothing(spooled, spool, monkeypatch):
    watching, rename, raced = watcher(spooled, spool), os.rename, []

    def racing(source, target):
        if str(target).startswith(("out/", "failed/")) and not {"2", str(target)} & {*str(target).split("."), *raced}:
            raced.append(str(target))
            os.mkdir(target)
        rename(source, target)

    put(spool, "a.txt", "no")
    put(spool, "b.jsonl", rows(1))
    put(spool, "c.jsonl", "no")
    monkeypatch.setattr(os, "rename", racing)
    settle(watching)
    assert sorted(raced) == ["failed/a.txt", "failed/c.jsonl", "out/b.jsonl"]
    assert listed(spool) == {"in": [], "out": ["b.2.jsonl", "b.jsonl"], "failed": [
        "a.2.txt", "a.2.txt.txt", "a.txt", "c.2.jsonl", "c.2.jsonl.txt", "c.jsonl"]}


@pytest.mark.parametrize("make", [
    pytest.param(lambda path: path.touch(), id="a file"),
    pytest.param(lambda path: (path / "inner").mkdir(parents=True), id="a full folder"),
])
def test_a_folder_that_is_put_aside_takes_another_name_too(spool, monkeypatch, make):
    here, rename = Spool(spool), os.rename

    def racing(source, target):
        if str(target) == "failed/a.jsonl" and not os.path.exists(target):
            make(spool / target)
        rename(source, target)

    (spool / "work/taken/a.jsonl/inner").mkdir(parents=True)
    monkeypatch.setattr(os, "rename", racing)
    assert "is no regular file" in here.begun()[1][0]
    assert listed(spool, "failed", "work/taken") == {
        "failed": ["a.2.jsonl", "a.2.jsonl.txt", "a.jsonl"], "work/taken": []}
    assert here.begun() == (None, [])


def test_a_folder_that_its_owner_closes_once_it_is_taken_stops_nothing():
    """Only who may write to a folder can give it another parent."""
    with public_folder() as folder:
        spool = folder / "spool"
        for name in ("work/taken/a.jsonl", "work/input", "work/answers", "in", "out", "failed"):
            (spool / name).mkdir(parents=True)
        give(spool)
        for path in (spool, spool / "work"):
            path.chmod(0o755)
        os.chown(spool / "work/taken/a.jsonl", 0, 0)

        def look():
            here = Spool(spool)
            return [here.begun(), here.begun()]

        said = as_other(look)
        assert "is no regular file" in said and said.endswith("(None, [])]"), said
        assert listed(spool, "failed", "work/taken", "work") == {
            "failed": ["a.jsonl.txt"], "work/taken": [".left"],
            "work": ["answers", "input", "lock", "taken"]}


@pytest.mark.parametrize(("damage", "said"), [
    (lambda spool: spool.chmod(0o770), "others may write to it"),
    (lambda spool: give(spool), "belongs to somebody else"),
    (lambda spool: (spool / "work").mkdir(mode=0o777) or (spool / "work").chmod(0o777), "may be written to by other"),
    (lambda spool: (spool / "work").symlink_to(spool / "out"), "work in it is no folder"),
    (lambda spool: (spool / "in").rmdir() or (spool / "in").symlink_to(spool / "out"), "in in it is no folder"),
    (lambda spool: spool.rename(spool.parent / "x") and spool.symlink_to(spool.parent / "x"), "cannot be used"),
])
def test_a_folder_in_which_others_could_swap_things_is_refused(spool, damage, said):
    damage(spool)
    with pytest.raises(InputError) as error:
        Spool(spool)
    assert said in error.value.text().replace("\n", " ").replace("     ", "")


def test_two_do_not_work_in_one_folder(spooled, spool, capsys):
    watching = watcher(spooled, spool)
    assert main(["predict", str(spooled.folder), "--spool", str(spool)]) == 2
    assert f"process {os.getpid()} works in it already" in " ".join(capsys.readouterr().err.split())
    assert watching.spool.begun() == (None, [])


def test_what_does_not_go_together_is_refused(spooled, spool, capsys):
    for more in (["a text"], ["--input", "a.csv"], ["--json"]):
        assert main(["predict", str(spooled.folder), "--spool", str(spool), *more]) == 2
        said = capsys.readouterr()
        assert "takes the files that are put into a folder" in " ".join((said.out + said.err).split())


def test_another_user_s_files_are_taken_and_answers_are_the_group_s(spooled):
    """The service's user answers what a member of the group has put there, who cannot swap what is in the folder."""
    with public_folder() as folder:
        for name, mode in {"spool": 0o755, "spool/in": 0o3770, "spool/out": 0o2770, "spool/failed": 0o2770,
                           "spool/work": 0o2700}.items():
            (folder / name).mkdir()
            os.chown(folder / name, 0, OTHER.pw_gid)
            (folder / name).chmod(mode)
        spool = folder / "spool"

        def upload():
            os.umask(0o007)
            put_as = spool / "in/.a.jsonl"
            put_as.write_text(rows(3))
            put_as.rename(spool / "in/a.jsonl")
            (spool / "in/private.jsonl").write_text(rows(1))
            (spool / "in/private.jsonl").chmod(0o600)
            (spool / "in/folder.jsonl").mkdir(mode=0o700)
            tried = []
            for change in (lambda: (spool / "in").rename(spool / "x"), lambda: os.listdir(spool / "work"),
                           lambda: (spool / "work").rmdir()):
                try:
                    change()
                except PermissionError:
                    tried.append("refused")
            return tried

        assert as_other(upload) == "['refused', 'refused', 'refused']"
        with_umask = os.umask(0o027)
        here = os.getcwd()
        try:
            watching = watcher(spooled, spool)
            settle(watching)
        finally:
            os.umask(with_umask)
            os.chdir(here)
        made = (spool / "out/a.jsonl").stat()
        assert (made.st_gid, made.st_mode & 0o777) == (OTHER.pw_gid, 0o640)

        def collect():
            text = (spool / "out/a.jsonl").read_text()
            (spool / "out/a.jsonl").unlink()
            return len(answers(text))

        assert as_other(collect) == "3"


def test_root_does_not_watch_a_folder_to_which_others_write(spooled):
    with public_folder() as folder:
        (folder / "spool/in").mkdir(parents=True)
        (folder / "spool").chmod(0o755)
        os.chown(folder / "spool/in", 0, OTHER.pw_gid)
        (folder / "spool/in").chmod(0o2770)
        done = server().run(["predict", str(spooled.folder), "--spool", "spool"], folder)
        assert done.returncode == 1 and "root does not work with what others may have put there" in done.stdout
