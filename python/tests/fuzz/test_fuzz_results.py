"""results.json and tune.json: rendered, compared and continued, or refused. What is rendered holds no markup, no
formula and no command of a terminal that came from the file."""
from __future__ import annotations

import csv
import io
import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from bench_results import HOST, run, sample
from fuzzing import JSON_TOKENS, MARKUP, Figures, as_json, command, damaged, fuzz, limits, spoilt
from hypothesis import strategies as st
from support import JOB

from debzero.base.errors import InputError
from debzero.job.schema import Job
from debzero.resolve.sharding import Sharding
from debzero.tune.search import Way
from debzero.tune.trials import Settings, TrialRun, TuneResults, read_trials

RESULTS = sample().as_json()
TUNE = TuneResults("identity", "debzero tune", "job.yml", Settings(2, 20, 10, 30), HOST, {"torch": "1"}, 9, (
    TrialRun.of(Way(Sharding(2), False, (1, 2), 1), Job.model_validate(JOB), 1, run()),)).as_json("2030")


def inputs() -> st.SearchStrategy:
    bases = [(True, RESULTS), (True, {**RESULTS, "configurations": RESULTS["configurations"][:1]}), (False, TUNE)]
    return st.one_of([st.tuples(st.just(bench), content) for bench, base in bases for content in (
        damaged(base).map(as_json), spoilt(json.dumps(base).encode(), [*JSON_TOKENS, MARKUP.encode(), b"=1"]))])


def check(folder: Path, given: tuple[bool, bytes]) -> int:
    is_bench, content = given
    file = folder / ("results.json" if is_bench else "tune.json")
    file.write_bytes(content)
    if not is_bench:
        try:
            for trial in read_trials(file):
                assert trial.key and trial.samples_per_second != 0
        except InputError as error:
            assert all(line.isprintable() for line in error.text().split("\n"))
            return 2
        return 0
    code = command("bench", "--render", file)[0]
    compared = command("bench", "--compare", file, folder / "good.json", "-o", folder / "comparison.html")[0]
    assert compared == code, "what can be rendered can be compared"
    if code == 0:
        for page in ("results.html", "comparison.html"):
            _check_page((folder / page).read_text())
        for row in csv.reader(io.StringIO((folder / "results.csv").read_text())):
            assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for cell in row)
        markdown = (folder / "results.md").read_text()
        plain = re.sub(r"`[^`]*`", "", re.sub(r"\\.", "", markdown))  # without what is escaped, and without code
        assert "<" not in plain and "](" not in plain
        assert all(c.isprintable() for c in markdown if c != "\n")
    return code


def _check_page(text: str) -> None:
    page = ElementTree.fromstring(text.partition("\n")[2])
    tags = {element.tag for element in page.iter()}
    assert not tags & {"img", "script", "iframe", "a", "link", "object"}, tags
    assert all(c.isprintable() for c in text if c != "\n")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "good.json").write_text(json.dumps(RESULTS))
    return tmp_path


def test_no_results_crash_bench_or_tune(folder: Path, cases: int, fuzzed: Any) -> None:
    fuzz(fuzzed("results"), cases, inputs(), lambda given: check(folder, given))


def _changed(path: str, value: Any) -> bytes:
    """The results with another value at a dotted path."""
    values = json.loads(json.dumps(RESULTS))
    *above, last = [int(part) if part.isdecimal() else part for part in path.split(".")]
    inner = values
    for part in above:
        inner = inner[part]
    inner[last] = value
    return as_json(values)


# Each ended in a traceback, or reached the page, the table or the terminal as it was.
FOUND = [(_changed("configurations.0.stage", True), 2), (_changed("configurations.0.stage", MARKUP), 2),
         (_changed("configurations.0.runs.0.memory_bytes", [0, 0]), 2),
         (_changed("host.name", "\x1b[2J"), 0), (_changed("model", MARKUP), 0), (_changed("job", {"=1": "\ud800"}), 0),
         (_changed("command", MARKUP + "`" + MARKUP), 0)]


@pytest.mark.parametrize(("content", "code"), FOUND, ids=range(len(FOUND)))
def test_what_was_found(folder: Path, content: bytes, code: int) -> None:
    with limits(Figures("results")):
        assert check(folder, (True, content)) == code
