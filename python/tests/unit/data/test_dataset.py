"""Data files of the kinds that people bring: each is refused with the line in it, or read as it is."""
import json
import random

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from debzero.data import csv_file, dataset, forms, json_file, split
from debzero.data.faults import DataError
from debzero.data.sources import local_parts
from debzero.data.survey import Wanted
from debzero.job.schema import Data


def read(path, kind="class", most_rows=None, **data):
    settings = Data.model_validate({"dataset": str(path), "held_out": 0.2, **data})
    wanted, rows = Wanted.by(settings, kind), []

    def keep(piece):
        rows.extend(zip(*(column.to_pylist() for column in piece.columns)))

    try:
        found = dataset.read(settings, local_parts(settings, wanted), wanted, 42,
                             dataset.Pass([keep], most_rows))
        return found, rows, found.faults()
    except DataError as error:
        return None, rows, list(error.faults)


def lines(*rows):
    return "\n".join(json.dumps(row) for row in rows) + "\n"


def table(**columns):
    def write(path):
        pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return write


GOOD = "a,x\nb,y\n" * 5
FILES = {
    "one comma more": ("r.csv", "text,label\na,x\nb, c,y\nd,x\n", "line 3 has 3 fields, and the header names 2"),
    "a comma at the end of each line": ("r.csv", "text,label\na,x,\nb,y,\n", "remove the ',' at the end"),
    "quotation marks after a backslash": ("r.csv", 'text,label\n"a \\"b, c\\" d",x\n', 'write "" for a quotation mark'),
    "a field less": ("r.csv", "text,label\na,x\n\nb\n", "line 4 has 1 field, and the header names 2"),
    "a field less, and its fix": ("r.csv", "text,label\na\n", "give the row a value for each column"),
    "a field less below Excel's line": ("r.csv", "sep=;\ntext;label\na;x\nb\n", "line 4 has 1 field"),
    "a value of 17 MiB": ("r.csv", "text,label\na,x\n" + "a" * 17 * 2**20 + ",y\n",
        "line 3 has a value of more than 16"),
    "an Excel workbook": ("r.csv", b"PK\x03\x04\x14\0\xff", "is a zip archive or an Excel workbook"),
    "gzip": ("r.jsonl", b"\x1f\x8b\x08\0", "is compressed by gzip"),
    "parquet by another name": ("r.csv", b"PAR1\x15\xc8", "name it r.parquet"),
    "Git's large files": ("r.parquet", "version https://git-lfs.github.com/spec/v1\noid", "is a pointer of Git LFS"),
    "pandas' split": ("r.json", json.dumps({"columns": ["text", "label"], "data": [["a", 1], ["b", 0]]}),
        "orient='split'"),
    "pandas' index": ("r.json", json.dumps({"0": {"text": "a", "label": 1}, "1": {"text": "b", "label": 0}}),
        "each of its 2 rows under a key of its own"),
    "no text in parquet": ("r.parquet", table(text=pyarrow.Array.from_buffers(pyarrow.string(), 2, pyarrow.array(
        [b"a", b"\xff"]).buffers()), label=[1, 2]), "row 2: the text is no UTF-8 text"),
    "a line break in a value": ("r.csv", 'text,label\n"a\nb",x\nc\n', "line 4 has 1 field"),
    "an open quotation mark": ("r.csv", f'text,label\n{GOOD}"a,x\nb,y\n', "line 12: a quotation mark opens"),
    "no such column": ("r.csv", f"text,kind\n{GOOD}", "has no column 'label'"),
    "a blank before a column": ("r.csv", f"text, label\n{GOOD}", "it is called ' label' there"),
    "a column in capitals": ("r.csv", f"Text,label\n{GOOD}", "it is called 'Text' there"),
    "a column twice": ("r.csv", "text,label,label\na,x,y\n", "names the column 'label' twice"),
    "another separator and other columns": ("r.csv", "words;kind\na;x\n", "use one of: words, kind"),
    "Latin-1": ("r.csv", "text,label\na,x\ncafé,y\n".encode("latin-1"), "line 3, column 4: byte 0xe9 is no UTF-8"),
    "Latin-1 in JSON": ("r.jsonl", '{"text": "a", "label": "x"}\n{"text": "é"}'.encode("latin-1"),
        "line 2, column 11"),
    "UTF-16": ("r.csv", f"text,label\n{GOOD}".encode("utf-16"), "is UTF-16 text"),
    "UTF-16 without a mark": ("r.csv", f"text,label\n{GOOD}".encode("utf-16-le"), "line 1 holds a zero byte"),
    "a zero byte": ("r.csv", f"text,label\n{GOOD}a\0,x\n", "line 12 holds a zero byte"),
    "nothing": ("r.csv", "", "line 1 names no columns"),
    "a blank first line": ("r.csv", f"\ntext,label\n{GOOD}", "line 1 names no columns"),
    "blanks alone": ("r.csv", "   \n\n", "line 1 names no columns"),
    "a header alone": ("r.csv", "text,label\n", "has 0 rows"),
    "one row": ("r.csv", "text,label\na,x\n", "has 1 "),
    "a row of each class": ("r.csv", "text,label\na,x\nb,y\n", "too few to keep 0.2 of them"),
    "texts for labels": ("r.csv", "text,label\na,x\nb,y\nc,z\n", "each row of r.csv has another label ('x', 'y', 'z'"),
    "numbers that are all different": ("r.csv", "text,label\na,1.5\nb,2\nc,3\n", "holds numbers"),
    "a label missing": ("r.csv", f"text,label\n{GOOD}a,\nb,\n", "line 12 and 1 other row have no label"),
    "a blank label": ("r.csv", f"text,label\n{GOOD}a, \n", "line 12 has no label"),
    "one class": ("r.csv", "text,label\n" + "a,x\n" * 9, "has 1 class, 'x'"),
    "numbers for classes": ("r.csv", "text,label\n" + "a,1.5\nb,2\n" * 5, "holds numbers"),
    "texts missing": ("r.csv", "text,label\n" + ",x\n ,y\n" * 5, "text of r.csv is empty in all"),
    "a null label": ("r.jsonl", lines({"text": "a", "label": "x"}, {"text": "b", "label": None}),
        "line 2 has no label"),
    "a NaN label": ("r.jsonl", lines({"text": "a", "label": 1.0}, {"text": "b", "label": float("nan")}),
        "line 2 has no"),
    "no label at all": ("r.jsonl", lines({"text": "a", "label": "x"}, {"text": "b"}),
        "line 2: the row has no column"),
    "lists of labels": ("r.jsonl", lines({"text": "a", "label": ["x"]}), "line 1: the column label holds lists"),
    "mappings": ("r.jsonl", lines({"text": {"en": "a"}, "label": "x"}), "line 1: the column text holds mappings"),
    "column by column": ("r.json", json.dumps({"text": {"0": "a", "1": "b"}, "label": {"0": 1, "1": 0}}),
                         "column by column, 2 rows"),
    "columns of lists": ("r.json", json.dumps({"text": ["a", "b"], "label": [1, 0]}), "column by column, 2 rows"),
    "nested": ("r.json", json.dumps({"v": 1, "data": [{"text": "a", "label": 1}] * 9}, indent=1),
        "lie under 'data', 9"),
    "null first": ("r.jsonl", "null\n" + lines({"text": "a", "label": "x"}), "line 1: a row is not an object"),
    "null later": ("r.jsonl", lines(*[{"text": "a", "label": "x"}] * 9) + "null\n",
        "line 10: a row is not an object"),
    "numbers": ("r.json", "[1, 2]", "line 1: a row is not an object with columns, but 1"),
    "a word": ("r.json", '"text label"', "not an object with columns, but 'text label'"),
    "a list that is cut off": ("r.json", '[{"text": "a", "label": 1},\n{"text": "b", "la',
        "line 2, column 15 is not JSON"),
    "a comma too many": ("r.json", '[{"text": "a", "label": 1},\n]', "line 2, column 1 is not JSON"),
    "no comma": ("r.json", '[{"text": "a", "label": 1}\n{"text": "b"}]',
        "line 2, column 1 is not JSON: a comma or ]"),
    "more after the list": ("r.json", '[{"text": "a", "label": 1}]\n\nx',
        "line 3, column 1 is not JSON: something"),
    "commas between lines": ("r.jsonl", ",\n".join(json.dumps({"text": "a", "label": 1}) for _ in range(3)),
        "line 1, column 27 is not JSON: a comma follows a row -> remove the commas"),
    "cut off within a text": ("r.jsonl", lines({"text": "a", "label": "x"}) + '{"text": "b',
        "line 2, column 10 is not JSON: Unterminated string starting at -> the file ends within this row"),
    "cut off between texts": ("r.jsonl", lines({"text": "a", "label": "x"}) + '{"text": ',
        "line 2, column 10 is not JSON: Expecting value -> the file ends within this row"),
    "splits": ("r.json", json.dumps({name: [{"text": "a", "label": 1}] for name in ("train", "test")}),
        "holds 2 splits (train, test) -> give each a file in a folder"),
    "mappings of labels": ("r.jsonl", lines({"text": "a", "label": {"name": "x"}}),
        "holds mappings -> give each row the class itself"),
    "a separator of two characters": ("r.csv", "text::label\na::x\n", "separate its columns by a comma"),
    "deep": ("r.json", "[" * 100_000, "nested too deeply"),
    "half a character": ("r.jsonl", lines({"text": "\ud800", "label": 1}),
        "line 1: the text '\\ud800' holds half a"),
    "a long number": ("r.jsonl", '{"text": "a", "label": %s}' % ("9" * 99),
        "line 1 holds a whole number of 99 digits"),
    "an empty JSON file": ("r.json", "[]", "has 0 rows"),
    "bytes": ("r.parquet", table(text=[b"a", b"b"], label=[1, 2]), "the column text holds bytes"),
    "lists in parquet": ("r.parquet", table(text=["a", "b"], label=[[1], [2]]), "the column label holds lists"),
    "dates": ("r.parquet", table(text=["a"], label=pyarrow.array([1], pyarrow.date32())),
        "values of the type date32[day] -> write it as texts or numbers"),
    "no columns": ("r.parquet", table(), "has no columns"),
    "NaN in parquet": ("r.parquet", table(text=["a", "b"], label=[1.0, float("nan")]), "row 2 has no label"),
    "no parquet": ("r.parquet", "PAR1", "is no parquet file"),
}


@pytest.mark.parametrize("name", FILES)
def test_what_cannot_be_trained_on_is_refused_with_its_line(tmp_path, name):
    file, content, reason = FILES[name]
    path = tmp_path / file
    if callable(content):
        content(path)
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    _, _, faults = read(path)
    errors = [f"{fault.reason} -> {fault.fix}" for fault in faults if fault.severity == "error"]
    assert errors and all(reason in each for each in errors), errors


WARNED = {
    "labels that differ in case": ("a,x\nb,y\n" * 5 + "c,X \n", "line 12: the labels 'X ' and 'x' count as two"),
    "numbers written in two ways": ("a,1\nb,0\n" * 5 + "c,1.0\n", "line 12: the labels '1.0' and '1'"),
    "a text that is missing": ("a,x\nb,y\n" * 5 + ",x\n  ,y\n", "line 12 and 1 other row have an empty text"),
}


@pytest.mark.parametrize("name", WARNED)
def test_what_is_odd_is_a_warning_with_its_line(tmp_path, name):
    content, reason = WARNED[name]
    (tmp_path / "r.csv").write_text("text,label\n" + content)
    found, _, faults = read(tmp_path / "r.csv")
    assert found and any(fault.severity == "warning" and reason in fault.reason for fault in faults), faults


ROWS = [("NA", "None"), ("null", "nan"), ("a, b", "None"), ('say "x"', "nan"), ("two\nlines", "n/a"), (" é ", "n/a")]
SAME = {
    "commas": ("r.csv", lambda: _csv(",")), "semicolons": ("r.csv", lambda: _csv(";")),
    "tabs": ("r.csv", lambda: _csv("\t")), "bars": ("r.csv", lambda: _csv("|")),
    "a byte order mark": ("r.csv", lambda: "\ufeff" + _csv(",")),
    "Excel's separator line": ("r.csv", lambda: "\ufeffsep=;\r\n" + _csv(";").replace('"\n', '"\r\n')),
    "line breaks of Windows": ("r.csv", lambda: _csv(",").replace('"\n', '"\r\n')),
    "a column more": ("r.csv", lambda: _csv(",", "id,text,label", '"7",')),
    "JSON lines": ("r.jsonl", lambda: lines(*_objects())),
    "JSON lines with a byte order mark": ("r.jsonl", lambda: "\ufeff" + lines(*_objects())),
    "JSON lines without the last break": ("r.jsonl", lambda: lines(*_objects()).rstrip()),
    "a JSON list": ("r.json", lambda: json.dumps(_objects())),
    "a JSON list with a byte order mark": ("r.json", lambda: "\ufeff" + json.dumps(_objects())),
    "JSON over several lines": ("r.json", lambda: json.dumps(_objects(), indent=2)),
    "objects over several lines": ("r.jsonl", lambda: "\n".join(json.dumps(row, indent=2) for row in _objects())),
}


def _csv(separator, header="text,label", before=""):
    def cell(text):
        return '"' + text.replace('"', '""') + '"'

    return header.replace(",", separator) + "\n" + "".join(
        before.replace(",", separator) + separator.join(map(cell, row)) + "\n" for row in ROWS)


def _objects():
    return [{"text": text, "label": label} for text, label in ROWS]


@pytest.mark.parametrize("block", [16, 64, 2**20])
@pytest.mark.parametrize("name", SAME)
def test_the_same_rows_in_any_shape_are_the_same_rows(tmp_path, monkeypatch, name, block):
    monkeypatch.setattr(csv_file, "BLOCK", block)
    monkeypatch.setattr(json_file, "BLOCK", block)
    file, content = SAME[name]
    (tmp_path / file).write_text(content(), newline="")
    found, rows, faults = read(tmp_path / file)
    assert rows == ROWS and not [fault for fault in faults if fault.severity == "error"], faults
    assert found.counts() == {"None": 2, "n/a": 2, "nan": 2}


def test_a_parquet_file_of_datasets_keeps_the_names_of_its_classes(tmp_path):
    import datasets

    features = datasets.Features(text=datasets.Value("string"), label=datasets.ClassLabel(names=["no", "yes"]))
    rows = datasets.Dataset.from_dict({"text": list("abcd"), "label": [1, 0, 1, 0]}, features)
    rows.to_parquet(tmp_path / "r.parquet")
    found, rows, _ = read(tmp_path / "r.parquet")
    assert found.labels == ["no", "yes"] and rows == [("a", "yes"), ("b", "no"), ("c", "yes"), ("d", "no")]


def test_a_class_that_only_the_held_out_part_has_is_named_with_its_line(tmp_path):
    (tmp_path / "train.csv").write_text("text,label\n" + GOOD)
    (tmp_path / "validation.csv").write_text("text,label\na,x\n\nb,z\n")
    _, _, faults = read(tmp_path)
    assert [fault.reason for fault in faults] == [
        "validation.csv line 4 has the label 'z', which no training row has"]
    (tmp_path / "validation.csv").write_text("text,label\na,x\nb,Y \n")
    assert read(tmp_path)[2][0].fix == "write it as the training rows do: 'y'"


@pytest.mark.parametrize("seed", range(3))
def test_a_split_gives_each_class_its_share_and_keeps_the_rare_ones(seed):
    dice = random.Random(seed)
    codes = np.asarray(dice.choices(range(8), [500, 300, 100, 50, 20, 10, 2, 1], k=1000), np.int32)
    mask = split.held_out(1000, 0.1, seed, codes)
    assert mask.sum() == 100
    assert (mask == split.held_out(1000, 0.1, seed, codes)).all()
    assert (mask != split.held_out(1000, 0.1, seed + 1, codes)).any()
    for number in range(8):
        of_class = codes == number
        kept, size = mask[of_class].sum(), of_class.sum()
        assert abs(kept - 0.1 * size) < 1.001 and (size == 0 or kept < size)


@pytest.mark.parametrize(("count", "share", "expected"), [(500, 0.2, 100), (2, 0.01, 1), (2, 0.9, 1), (1, 0.5, 0),
                                                         (0, 0.5, 0), (30, 0.1, 3)])
def test_a_split_spares_what_it_can(count, share, expected):
    assert split.held_out(count, share, 1).sum() == expected


def test_a_sample_is_every_nth_row_whatever_the_pieces_are(tmp_path, monkeypatch):
    monkeypatch.setattr(csv_file, "BLOCK", 300)
    monkeypatch.setattr("debzero.data.survey.WHOLE_ROWS", 100)
    monkeypatch.setattr("debzero.data.survey.SAMPLED_ROWS", 50)
    path = tmp_path / "rows.csv"
    path.write_text("text,label\n" + "".join(f"text {i},{i % 2}\n" for i in range(2000)))
    survey = read(path)[0].surveys[0]
    assert survey.stride == 64 and survey.sample() == [[f"text {i}" for i in range(0, 2000, 64)]]
    some = np.arange(2000) % 128 == 0
    assert survey.sample(some) == [[f"text {i}" for i in range(0, 2000, 128)]]


def test_a_check_of_a_large_file_ends_at_its_limit_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(csv_file, "BLOCK", 2**10)
    (tmp_path / "r.csv").write_text("text,label\n" + GOOD * 1000)
    found, rows, faults = read(tmp_path / "r.csv", most_rows=1000)
    assert 1000 <= len(rows) < 2000 and found.facts()["rows"].startswith("the first ") and not faults


NAMES = {
    "d.tsv": "name it d.csv: the separator", "d.CSV": "name it d.csv", "d.ndjson": "name it d.jsonl",
    "d.xlsx": "save the sheet as CSV", "d.csv.gz": "unpack it", "d.txt": "name a table .csv",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_file_of_another_name_gets_the_fix_that_belongs_to_it(tmp_path, name):
    assert NAMES[name] in forms.fix_of_name(tmp_path / name)


@pytest.mark.parametrize(("files", "expected"), [
    (["train.tsv"], "train.tsv: name it train.csv"), (["Train.csv"], "name it train.csv"), (["a.csv"], "rows train"),
    (["train-0.csv", "train-1.csv"], "into one file"), (["train.csv", "train.json"], "holds train.csv and train.json"),
    (["train.csv", "val.csv"], "but val.csv -> name it validation.csv"), (["train.csv"], "no validation split")])
def test_a_folder_of_other_names_gets_the_fix_that_belongs_to_it(tmp_path, files, expected):
    for name in files:
        (tmp_path / name).write_text("text,label\na,x\n")
    if "train.csv" not in files:
        assert expected in forms.fix_of_folder(tmp_path)
        return
    settings = Data(dataset=str(tmp_path))
    with pytest.raises(DataError) as caught:
        local_parts(settings, Wanted.by(settings, "class"))
    assert expected in " -> ".join([caught.value.faults[0].reason, caught.value.faults[0].fix])


def test_a_path_that_is_not_there_gets_the_fix_that_belongs_to_it(tmp_path):
    (tmp_path / "link.csv").symlink_to("gone.csv")
    places = {"link.csv": "a link to gone.csv", "https:/example.org/r.csv": "download", "a\\r.csv": "with /",
              "*.csv": "one file"}
    for name, expected in places.items():
        assert expected in forms.fix_of_path(tmp_path / name)
    assert not forms.fix_of_path(tmp_path / "r.csv")
