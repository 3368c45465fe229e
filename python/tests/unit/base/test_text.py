"""Numbers as people write and read them."""
from __future__ import annotations

import pytest

from debzero.base import text


@pytest.mark.parametrize(("written", "expected"),
                         [("40G", 40 * 2**30), ("1.5T", 1.5 * 2**40), ("512MiB", 2**29), ("100", 100),
                          (" 2 kb ", 2048)])
def test_a_size_is_read_as_bytes(written, expected):
    assert text.parse_bytes(written) == expected


@pytest.mark.parametrize("written", ["", "G", "-1G", "40 gallons", "9" * 400, "40\u212a", "٤٠G"])
def test_what_is_no_size_is_refused(written):
    with pytest.raises(ValueError, match="must be a size"):
        text.parse_bytes(written)


@pytest.mark.parametrize(("value", "expected"), [
    (None, "-"), (484 * 2**20, "484 MiB"), (7.351 * 2**30, "7.35 GiB"), (31.24 * 2**30, "31.2 GiB"), (0, "0 MiB")])
def test_bytes_for_people(value, expected):
    assert text.bytes_text(value) == expected


@pytest.mark.parametrize(("value", "expected"), [(1218.4, "1218"), (74.61, "74.6"), (3.214, "3.21"),
                                                 (0.0351, "0.0351")])
def test_a_rate_for_people(value, expected):
    assert text.rate_text(value) == expected


@pytest.mark.parametrize(("seconds", "expected"), [(None, "-"), (5, "0:05"), (61.4, "1:01"), (3661, "1:01:01"),
                                                   (59.7, "1:00")])
def test_a_duration_for_people(seconds, expected):
    assert text.duration_text(seconds) == expected


@pytest.mark.parametrize(("tflops", "share", "expected"), [
    (12.34, 0.396, "12.3 TFLOP/s (40% of peak)"), (0.0123, None, "12.3 GFLOP/s")])
def test_computing_for_people(tflops, share, expected):
    assert text.computing_text(tflops, share) == expected


@pytest.mark.parametrize(("ranks", "expected"), [([2**30, 2**30], "1.00 GiB"), ([2**30, 2**31], "1.00-2.00 GiB")])
def test_memory_of_the_ranks_for_people(ranks, expected):
    assert text.memory_text(ranks) == expected


@pytest.mark.parametrize(("value", "expected"), [(3.0, "3"), (2.5, "2.5"), (8 / 3, "2.67"), (1 / 256, "0.0039"),
                                                 (400 / 3, "133.33")])
def test_a_ratio_for_people(value, expected):
    assert text.ratio_text(value) == expected


@pytest.mark.parametrize(("value", "expected"), [("a", "text"), (["a"], "a list"), ({}, "a mapping"), (3, "a number"),
                                                 (1.5, "a number"), (True, "true or false"), (None, "nothing")])
def test_a_type_for_people(value, expected):
    assert text.type_text(value) == expected


def test_a_near_miss_gets_a_suggestion_and_anything_else_the_choices():
    assert text.did_you_mean("tran", ["train", "check"]) == "did you mean train?"
    assert text.did_you_mean(42, ["train", "check"]) == "use one of: train, check"


@pytest.mark.parametrize("seconds", [None, float("nan"), float("inf")])
def test_an_unknown_duration_is_a_dash(seconds):
    assert text.duration_text(seconds) == "-"


@pytest.mark.parametrize(("given", "shown"), [
    ("plain – é 😀", "plain – é 😀"), ("\x1b[2J", "\\x1b[2J"), ("a\nb\tc\x9b", "a\\nb\\tc\\x9b"),
    ("\u202eevil", "\\u202eevil"), ("\ud800 \udcff", "\\ud800 \\udcff"), ("a\u2028b\xa0c", "a\\u2028b\\xa0c")])
def test_what_a_terminal_would_obey_is_shown(given, shown):
    assert text.printable(given) == shown == text.printable(shown)
    shown.encode()


def test_no_later_line_looks_like_one_of_debzeros_own():
    assert text.printable_lines("no\nFinished: x\n  -> fix\n\x1b") == "no\n  Finished: x\n  -> fix\n  \\x1b"


def test_no_text_is_markup_or_a_formula():
    assert text.html_text('<b a="x">\x1b') == "&lt;b a=&quot;x&quot;&gt;\\x1b"
    assert text.markdown_text("[x](y) <b> | `c`\n") == r"\[x\](y) \<b> \| \`c\`\\n"
    assert text.markdown_text("https://a WWW.b ~~c~~ _d_ e_f __g__") == (
        r"https\://a WWW\.b \~\~c\~\~ \_d\_ e_f \__g_\_")
    cells = ["=1", "@x", "\t1", "a=1", -1, None]
    assert list(map(text.csv_cell, cells)) == ["'=1", "'@x", "'\t1", "a=1", -1, None]
