"""Data files in all shapes that people write: each is refused, naming the line, or trained on exactly the rows that
Python's own csv and json find in it."""
from __future__ import annotations

import csv
import io
import itertools
import json
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any, Optional

import pytest
from fuzzing import Figures, fuzz, limits
from hypothesis import strategies as st
from support import Bench, plan_of
from test_fuzz_data import Tokenizer, folder  # noqa: F401 - the fixture

from debzero.base.errors import as_text
from debzero.check.data import data_found
from debzero.data import csv_file, dataset, json_file
from debzero.data.sources import local_parts
from debzero.data.survey import Wanted
from debzero.train import prepare

WORDS = ["NA", "None", "null", "nan", "n/a", "true", "0", "1", "1.0", "-3", "a, b", "a;b", "a\tb", "a|b",
         'say "x"', '"', "'", "two\nlines", "two\r\nlines", "a\rb", "日本", "😀", " a ", "  ", "", "\ufeffx", "\u2028",
         "=1+1", "#no", "\\", "long " * 40]
TEXT = st.sampled_from(WORDS) | st.text(max_size=12)
CLASS = st.sampled_from(["x", "y", "x", "y", "NA", "x ", "X", "1", "0", "é", "a,b"])
LABEL = st.sampled_from([CLASS] * 20 + [st.just("")]).flatmap(lambda kind: kind)
ENCODINGS = ["utf-8"] * 12 + ["utf-8-sig"] * 2 + ["latin-1", "cp1252", "utf-16", "utf-16-le"]


@st.composite
def csv_files(draw: Any) -> tuple[str, bytes]:
    """With every separator, line end, encoding and way of quoting; now and then with fields too many or too few."""
    separator, end = draw(st.sampled_from(",,;\t|")), draw(st.sampled_from(["\n", "\n", "\r\n", "\r"]))
    clean = draw(st.integers(0, 2))
    header = draw(st.sampled_from([["text", "label"], ["label", "text"], ["id", "text", "label"]] * 3 + [["text"]]))
    kinds = {"text": TEXT, "label": CLASS if clean else LABEL, "id": st.sampled_from("123")}
    rows = draw(st.lists(st.fixed_dictionaries(kinds), min_size=3 if clean else 0, max_size=24))
    out = io.StringIO(newline="")
    if draw(st.integers(0, 3)):
        quoting = draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]))
        writer = csv.writer(out, delimiter=separator, lineterminator=end, quoting=quoting)
        writer.writerow(header)
        for row in rows:
            cells = [row[name] for name in header]
            writer.writerow(cells if clean else draw(st.sampled_from(
                [cells] * 40 + [cells[:-1], [*cells, ""], [*cells, "more"], []])))
    else:  # by hand, as people do
        by_hand = [header, *([row[name] for name in header] for row in rows)]
        out.write(end.join(separator.join(cells) for cells in by_hand))
    content = out.getvalue()
    return ".csv", content.encode(draw(st.sampled_from(ENCODINGS)), "replace")


OTHERS = [None, 3, 0.5, True, float("nan"), ["a"], {"a": 1}, 1e999, "\ud800"]
CELL = st.one_of(*[TEXT] * 3, st.sampled_from(OTHERS))
JSON_LABEL = st.one_of(*[LABEL] * 6, st.sampled_from([0, 1, 2, None, True, ["x"], 1.0, float("nan")]))


@st.composite
def json_files(draw: Any) -> tuple[str, bytes]:
    """Lines, lists, objects over several lines, columns; now and then a row of another kind."""
    clean = draw(st.integers(0, 2))
    rows: list[Any] = draw(st.lists(st.fixed_dictionaries(
        {"text": TEXT, "label": CLASS | st.integers(0, 3)} if clean else {"text": CELL, "label": JSON_LABEL}),
        min_size=3 if clean else 0, max_size=24))
    if not clean and rows and draw(st.integers(0, 3)) == 0:
        rows[draw(st.integers(0, len(rows) - 1))] = draw(st.sampled_from([None, 1, [], "a", {}, {"text": "a"}]))
    indent, ascii_only = draw(st.sampled_from([None, None, 1])), draw(st.booleans())

    def dump(value: Any) -> str:
        return json.dumps(value, indent=indent, ensure_ascii=ascii_only)

    shape = draw(st.sampled_from(["lines"] * 5 + ["list"] * 5 + ["nested", "columns"]))
    if shape == "lines":
        content = draw(st.sampled_from(["\n", "\n\n", "\r\n"])).join(map(dump, rows))
    elif shape == "columns":
        content = dump({name: {str(i): row.get(name) for i, row in enumerate(rows) if isinstance(row, dict)}
                        for name in ("text", "label")})
    else:
        content = dump({"data": rows} if shape == "nested" else rows)
    return ".json", content.encode(draw(st.sampled_from(ENCODINGS)), "replace")


def independent(suffix: str, content: bytes) -> Optional[list[tuple[Any, Any]]]:
    """The texts and labels of the rows, by Python's own modules. None for what is no clean file."""
    try:
        text = content.decode("utf-8-sig")
        if "\0" in text:
            return None
        if suffix == ".csv":
            for separator in ",;\t|":
                header, *rows = [*csv.reader(io.StringIO(text, newline=""), delimiter=separator)] or [[]]
                if {"text", "label"} <= {*header}:
                    break
            rows = [row for row in rows if row]
            if never_closed(text, separator):
                return None
            if any(len(row) != len(header) for row in rows):
                return None
            return [(row[header.index("text")], row[header.index("label")]) for row in rows]
        if text.lstrip().startswith("["):
            found = json.loads(text)
        else:
            found, decoder, text = [], json.JSONDecoder(), text.strip()
            while text:
                value, end = decoder.raw_decode(text)
                found.append(value)
                text = text[end:].strip()
        pairs = [(row["text"], row["label"]) for row in found]
        scalars = all(not isinstance(cell, (list, dict)) for pair in pairs for cell in pair)
        return pairs if scalars and all("\ud800" not in str(pair) for pair in map(list, pairs)) else None
    except (ValueError, KeyError, TypeError, csv.Error):
        return None


def never_closed(text: str, separator: str) -> bool:
    try:
        return not [*csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)]
    except csv.Error as error:
        return "unexpected end of data" in str(error)


def as_text_of(cell: Any) -> str:
    return "" if cell is None or cell != cell else str(cell)


WHOLE_FILE = ("has no column", "has 0 rows", "names no columns", "UTF-16", "column by column", "lie under", "1 class",
              "numbers", "too few", "in all", "is not an object", "so these are no classes")


HALF = re.compile("[\ud800-\udfff]")  # of a character: Python reads it from JSON, and no file of text can hold it


def check(folder: Path, given: tuple[int, tuple[str, bytes]]) -> int:  # noqa: F811
    block, (suffix, content) = given
    file = folder / f"rows{suffix}"
    file.write_bytes(content)
    csv_file.BLOCK, json_file.BLOCK = block, block
    bench = Bench.__new__(Bench)
    bench.folder = folder
    plan = plan_of(bench, data__dataset=str(file))
    found = data_found(plan.job, "job.yml", "rows")
    errors = [p for p in found.problems if p.severity == "error"]
    expected = independent(suffix, content)
    rows = None if expected is None else [(as_text_of(text), as_text_of(label)) for text, label in expected]
    if errors:
        assert all(line.isprintable() for line in as_text(found.problems).split("\n"))
        lines = len(re.findall(rb"\r\n|\r|\n", content)) + 1
        for error in errors:
            at = re.search(r"line (\d+)", error.reason)
            assert at or any(kind in error.reason for kind in WHOLE_FILE), error.reason
            assert not at or 1 <= int(at[1]) <= lines, (error.reason, lines)
        if rows:
            classes = Counter(label for _, label in rows)
            fine = all(label.strip() for label in classes) and len(classes) > 1 and max(classes.values()) > 1 and any(
                text.strip() for text, _ in rows) and not HALF.search("".join(itertools.chain(*rows)))
            assert not fine or "numbers" in errors[0].reason, (errors, rows)
        return 2
    assert rows, "accepted, though there is nothing in it"
    wanted, read = Wanted.by(plan.job.data, "class"), []
    dataset.read(plan.job.data, local_parts(plan.job.data, wanted), wanted, 42, dataset.Pass(
        [lambda piece: read.extend(zip(*(piece.column(name).to_pylist() for name in ("text", "label"))))]))
    assert [(text or "", label) for text, label in read] == rows
    try:
        made = prepare.prepare(plan, folder / "cache")
        ids = [(tuple(Tokenizer()(text or " ")["input_ids"]), label) for text, label in rows]
        assert trained_on(made) == Counter(ids)
        facts = json.loads((made / "data.json").read_text())["facts"]
        assert {key: facts[key] for key in found.facts} == found.facts, "check and training differ"
    finally:
        shutil.rmtree(folder / "cache", ignore_errors=True)
    return 0


def trained_on(made: Path) -> Counter:
    from debzero.data import tokens

    names, seen = json.loads((made / "data.json").read_text())["labels"], Counter()
    for side in ("train", "held_out"):
        samples = tokens.read(made / side, 128)
        for start, length, label in zip(samples.offsets, samples.lengths, samples.labels):
            seen[tuple(samples.ids[start : start + length].tolist()), names[label]] += 1
    return seen


def inputs() -> st.SearchStrategy:
    return st.tuples(st.sampled_from([37, 256, 2**20]), csv_files() | json_files())


def test_rows_are_refused_by_line_or_trained_on_as_they_are(folder: Path, cases: int, fuzzed: Any) -> None:  # noqa: F811
    before = csv_file.BLOCK, json_file.BLOCK
    try:
        fuzz(fuzzed("rows"), cases, inputs(), lambda given: check(folder, given))
    finally:
        csv_file.BLOCK, json_file.BLOCK = before


# What a reader in blocks may read otherwise than Python's own modules: where the first quotation mark comes late, what
# was read before it must not be lost or read twice, whatever it holds.
FOUND: list[tuple[int, tuple[str, bytes]]] = [
    (37, (".csv", b"text,label\n" + b"plain words,x\nmore words,y\n" * 9 + b'"two\nlines, ""quoted""",x\n')),
    (37, (".csv", b"text;label\r\n" + b"plain words;x\r\nmore words;y\r\n" * 9 + b'"a\r\nb";y\r\nlast;x')),
    (37, (".csv", b"text,label\n" + b"plain words,x\nmore words,y\n" * 9 + b'say "x" here,y\n')),
    (37, (".csv", b"text,label\n" + b"plain words,x\nmore words,y\n" * 9 + b'"never closed,y\nword,x\n')),
    (37, (".csv", b"text,label\n" + b"plain words,x\nmore words\n" * 9 + b'"late",y\n')),
    # A block of pyarrow's that begins with a line feed, behind one that ends with a carriage return.
    *((block, (".csv", '"label","text"\n"x","NA"\n"NA","None"\n"x","nan"\n"x","日本"\n'
               '"x","000\x80\x80\x80\U00010000"\n"NA","two\r\nlines"\n"y","a\rb"\n"z","c\nd\r\n\r\ne"\r\n'.encode()))
      for block in (15, 19)),
    (37, (".csv", b"label,text\nx,NA\nx,%s\ny,\"" % (b"long " * 9))),
    (37, (".csv", b"label,text\n" + b"x,word\ny,word\n" * 9 + b'y,"swallows\n' + b"x,word\ny,word\n" * 9)),
    (37, (".csv", b"text,label\n\xef\xbb\xbfx,y\nNA,x\nNA,x")),
    (37, (".csv", b'text,label\n\xef\xbb\xbfx,y\nNA "a",x\nNA,x')),
    (37, (".json", json.dumps([{"text": "NA", "label": 0}, *[{"text": "NA", "label": "x"}] * 9,
                               {"text": "\ud800", "label": "x"}]).encode())),
]


@pytest.mark.parametrize("given", FOUND, ids=range(len(FOUND)))
def test_what_was_found(folder: Path, given: tuple[int, tuple[str, bytes]]) -> None:  # noqa: F811
    with limits(Figures("rows")):
        check(folder, given)
