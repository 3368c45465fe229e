"""What is read from files that anybody may have written: never a hang, never a crash, one clear error."""
import json
import os
import stat
import time

import pytest

from debzero.base import files, reading, yaml_reading
from debzero.base.reading import ContentError
from debzero.deepspeed_json.reader import parse_config


def test_only_a_regular_file_is_read(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    os.mknod(tmp_path / "socket", stat.S_IFSOCK | 0o600)
    (tmp_path / "secret").write_text('{"state": "training"}')
    (tmp_path / "link").symlink_to("secret")
    for name in ("fifo", "socket", "/dev/zero", "/dev/tty", ".", "none"):
        with pytest.raises(OSError, match="."):
            reading.read_bytes(tmp_path / name, 9)
        assert files.read_json(tmp_path / name) == {} and files.read_lines(tmp_path / name) == []
    assert files.read_json(tmp_path / "link") and not files.read_json(tmp_path / "link", own=True)
    assert files.read_lines(tmp_path / "link") == [], "debzero's own files are never links"


def test_no_more_than_the_limit_is_read(tmp_path):
    with open(tmp_path / "zeros", "wb") as file:
        file.truncate(2**43)
    with pytest.raises(ContentError, match="is larger than 1 MiB"):
        reading.read_text(tmp_path / "zeros", reading.CONFIG)
    assert files.read_json(tmp_path / "zeros") == {} and files.read_lines(tmp_path / "zeros") == []


@pytest.mark.parametrize(("content", "reason"), [
    (b"a: 1\nb: \xff", "is no UTF-8 text: byte 0xff on line 2"), (b"[" * 100_000, "is nested too deeply"),
    (b"[" * 99 + b"]" * 99, "is nested too deeply"), (b'{"a": ' + b"9" * 4300 + b"}", "of 4300 digits"),
    (b"{", "is not JSON")])
def test_each_reason_is_a_sentence(tmp_path, content, reason):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ContentError) as found:
        reading.parse_json(reading.read_text(tmp_path / "file", reading.STATE))
    assert reason in reading.why(found.value)


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi"))
MERGES = "a: &a {x: 1}\n" + "".join(
    f"{name}: &{name} {{<<: [{', '.join([f'*{before}'] * 9)}], {name}: 1}}\n" for before, name in
    zip("abcdefgh", "bcdefghi"))


@pytest.mark.parametrize(("text", "place", "reason"), [
    ("!!bool maybe", "line 1, column 1", "'maybe' is no !!bool value"),
    ("a:\n  !!float x", "line 2, column 3", "'x' is no"),
    ("!!timestamp x", "line 1, column 1", "could not determine a constructor"),
    ("!!int ''", "line 1, column 1", "'' is no !!int value"),
    ("a: 0x" + "f" * 4300, "line 1, column 4", "no !!int value"),
    ("a: " + "1:" * 400 + "1.0", "line 1, column 4", "no !!float value"), ("a: " + "9" * 4300, "line 1", "no !!int"),
    ("!!set {a}", "line 1", "could not determine"), ("!!python/name:os.system x", "line 1", "could not determine"),
    ("!!map x", "line 1", "expected a mapping node"),
    ("? [a]\n: x", "line 1", "a key must be a text"),
    ("a: &a [*a]", "line 1", "a value contains itself"), ("<<: 3", "line 1", "expected a mapping"),
    (BOMB, "line", "stands for more than 20000 values"), (MERGES, "line", "stands for more than 20000 values"),
    ("[" * 100_000, "line 1, column 65", "64 levels of nesting are the most"),
    ("a: &a " + "[" * 40 + "x" + "]" * 40 + "\nb: " + "[" * 30 + "*a" + "]" * 30, "file", "is nested too deeply"),
    ("a: \"\\ud800\"", "a", "a character that is none"), ("a: {b: [\"\\0\"]}", "a.b.0", "a character that is none"),
    ("a: \"\\U00110000\"", "file", "is not YAML"), ("a: \0", "file", "is not YAML")])
def test_yaml_that_is_none_has_a_place_and_a_reason(text, place, reason):
    began = time.monotonic()
    with pytest.raises(ContentError) as found:
        yaml_reading.load(text)
    assert reason in str(found.value) and found.value.place.startswith(place), (str(found.value), found.value.place)
    assert time.monotonic() - began < 2


def test_yaml_is_read_into_what_json_holds():
    text = "a: &a {date: 2024-01-01, n: 0x10, f: 1.5, t: yes, nothing: , list: [1, ~]}\nb: {<<: *a, n: 2, n: 3}"
    values, repeated = yaml_reading.load(text)
    a = {"date": "2024-01-01", "n": 16, "f": 1.5, "t": True, "nothing": None, "list": [1, None]}
    assert json.loads(json.dumps(values)) == values == {"a": a, "b": {**a, "n": 3}}
    assert repeated == [("b.n", 2)]


def test_deepspeeds_json_is_held_to_the_same(tmp_path):
    for text, reason in (('{"a": "\\ud800"}', "a character that is none"), ("[" * 99, "not JSON"),
                         ('{"a":' * 70 + "1" + "}" * 70, "nested too deeply")):
        values, problems = parse_config(text, "ds.json")
        assert values is None and reason in problems[0].reason
