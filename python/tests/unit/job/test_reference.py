"""The schema of a job is its documentation: complete, the same in every form, and what debzero really accepts."""
import copy
import functools
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import example as tried
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import ValidationError
from support import changed

from debzero.job import reference
from debzero.job.schema import Job, Section

ROOT = Path(__file__).resolve().parents[4]
SCHEMA = reference.job_schema()
VALIDATOR = Draft202012Validator(SCHEMA)
MINIMAL = {"model": "bert-base-cased", "data": {"dataset": "glue/mrpc"}, "output": "out"}


def fields(section=Job, prefix=""):
    """(path, field) of every key, sections included."""
    for name, field in section.model_fields.items():
        yield prefix + name, field
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from fields(field.annotation, f"{prefix}{name}.")


PATHS = [path for path, _ in fields()]
SECTIONS = [path for path, field in fields() if isinstance(field.annotation, type)
            and issubclass(field.annotation, Section)]


def with_value(path, value):
    """The smallest job with a value at `path`, which may be None."""
    job = copy.deepcopy(MINIMAL)
    inner, *key = job, *path.split(".")
    for part in key[:-1]:
        inner = inner.setdefault(part, {})
    inner[key[-1]] = value
    return job


def accepts(job):
    """Whether debzero takes it."""
    try:
        Job.model_validate(job)
    except ValidationError:
        return False
    return True


@pytest.mark.parametrize(("path", "field"), list(fields()), ids=PATHS)
def test_every_key_has_a_description_and_examples_that_are_accepted(path, field):
    assert field.description and re.fullmatch(r"[A-Z`].+\.", field.description)
    assert field.examples
    for example in field.examples:
        job = with_value(path, yaml.safe_load(example))
        if path == "data":
            job["data"].setdefault("dataset", "glue/mrpc")
        assert accepts(job) and VALIDATOR.is_valid(job), example


def test_the_test_above_sees_all_models():
    assert SECTIONS == ["data", "train", "zero", "parallel", "checkpoint"] and len(PATHS) > 35
    assert [key.path for key in reference.keys(SCHEMA)] == PATHS


def test_it_is_a_json_schema_with_descriptions_defaults_and_examples():
    Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema" and "$defs" not in SCHEMA
    for path, field in fields():
        node = SCHEMA
        for part in path.split("."):
            node = node["properties"][part]
        assert node["description"] == field.description and len(node["examples"]) == len(field.examples)
        if not field.is_required() and path not in SECTIONS:
            assert node["default"] == field.default


def each(*values):
    """Examples that hypothesis tries every time."""
    return lambda test: functools.reduce(lambda found, value: tried(value=value)(found), values, test)


JOBS = {path.stem: path.read_text() for path in (ROOT / "debian/jobs").glob("*.yml")}
JOBS["README"] = re.search(r"```yaml\n(model:.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]


@pytest.mark.parametrize("name", JOBS)
def test_the_packaged_jobs_and_the_readmes_are_valid(name):
    assert len(JOBS) >= 5
    assert [error.message for error in VALIDATOR.iter_errors(yaml.safe_load(JOBS[name]))] == []
    if name != "README":
        assert JOBS[name].startswith("# yaml-language-server: $schema=/usr/share/debzero/job.schema.json\n")


@pytest.mark.parametrize("path", PATHS)
def test_a_misspelling_of_any_key_is_refused(path):
    example = yaml.safe_load(dict(fields())[path].examples[0])
    job = with_value(path, example)
    if path == "data":
        job["data"]["dataset"] = "glue/mrpc"
    assert VALIDATOR.is_valid(job)
    section, _, name = path.rpartition(".")
    inner = job[section] if section else job
    for wrong in (f"{name}s", name[:-1], name.upper()):
        misspelled = {**inner, wrong: inner[name]}
        assert not VALIDATOR.is_valid({**job, section: misspelled} if section else misspelled), wrong


def test_what_belongs_to_others_stays_open():
    model = {"type": "bert", "vocab_size": 8000, "hidden_size": 128}
    assert VALIDATOR.is_valid({**MINIMAL, "model": model, "deepspeed": {"anything": {"at": "all"}}})
    assert not VALIDATOR.is_valid({**MINIMAL, "model": {"type": "bert"}})


VALUES = [None, True, False, 0, 1, 2, 3, 4, 7, 64, 64.0, 0.1, 0.5, 1.5, -1, -0.5, 2**31, 2**45, "", "auto", "none",
          "cpu", "nvme", "text", "3e-5", "-3e-5", "1e5", "3", "0.1", "yes", "bf16", "longest", "max_length", "best",
          "f1", "never", "shuffled", "regression", [], ["a"], ["a", "b"], ["a", "b", "c"], [1], {}, {"a": 1},
          {"type": "bert", "vocab_size": 10}, {"type": "bert", "vocab_size": 0}, {"type": 3, "vocab_size": 10}]

VALUES += [math.inf, -math.inf, 10**30, 10**400, 2**40, 2**40 - 1, 1e300, 1.0, 8, "2", "on", "oFF", "T", "y", "1", "0",
           "1e400", "5e0", "0e5", "1e-400", "1.2.3e4", "0.99999999999999999999", "10E-1", ".5", "5.", "9" * 13, "٣",
           "8", "7", {"type": "", "vocab_size": 10}, {"type": "bert", "vocab_size": 2**40},
           {"type": "bert", "vocab_size": "10"}, {"type": "bert", "vocab_size": 10.0}]
NUMBERS = st.one_of(st.integers(-3, 70), st.integers(), st.floats(allow_nan=False), st.floats(0, 2))
ANY = st.one_of(
    st.sampled_from(VALUES), NUMBERS, st.text(max_size=8).map(str.strip),
    st.from_regex(r"[0-9]{0,14}\.?[0-9]{0,17}([eE][-+]?[0-9]{1,3})?", fullmatch=True), NUMBERS.map(str),
    st.lists(st.sampled_from(["a", "", 1, None]), max_size=3),
    st.dictionaries(st.text(max_size=3), st.none(), max_size=2),
    st.builds(lambda size: {"type": "bert", "vocab_size": size}, NUMBERS | st.sampled_from(VALUES)))


USUAL = r"0|[1-9][0-9]{0,8}|0\.[0-9]{0,4}[1-9]|[1-9](\.[0-9]{1,5})?[eE]-?[1-9]"


def unusual(value):
    """Whether it is a number as text, in a form that the schema's patterns do not know: 007, 1_000, 3.0, 1e200."""
    try:
        return isinstance(value, str) and not re.fullmatch(USUAL, value) and math.isfinite(float(value))
    except ValueError:
        return False


@given(value=ANY)
@settings(max_examples=50)
@each(*VALUES)
def test_the_schema_accepts_what_debzero_accepts(value):
    for path in PATHS:
        job = with_value(path, value)
        taken, valid = accepts(job), VALIDATOR.is_valid(job)
        form = value.get("vocab_size") if path == "model" and isinstance(value, dict) else value
        assert taken == valid or (taken and unusual(form)), (path, taken, valid)


def test_check_prints_it(bench):
    done = bench.quick_apart("check", "--schema")
    assert done.returncode == 0 and json.loads(done.stdout) == SCHEMA and not done.stderr
    refused = bench.quick_apart("check")
    assert refused.returncode == 2 and "FILE" in refused.stderr


@pytest.mark.parametrize("name", ["debian/job.schema.json", "docs/reference/job.md", "docs/reference/codes.md"])
def test_make_docs_has_written_what_is_tracked(name, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "python")
    import reference_docs

    texts = {str(path.relative_to(ROOT)): text for path, text in reference_docs.pages().items()}
    assert (ROOT / name).read_text() == texts[name], f"{name} is stale: run `make docs`"


def test_a_stale_page_is_named_and_written_anew(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / "python")
    import reference_docs

    page = tmp_path / "reference" / "job.md"
    monkeypatch.setattr(reference_docs, "ROOT", tmp_path)
    monkeypatch.setattr(reference_docs, "pages", lambda: {page: "new\n"})
    monkeypatch.setattr(sys, "argv", ["reference_docs.py", "--check"])
    assert reference_docs.main() == 1 and "reference/job.md is stale" in capsys.readouterr().err and not page.exists()
    monkeypatch.setattr(sys, "argv", ["reference_docs.py"])
    assert reference_docs.main() == 0 and page.read_text() == "new\n"


def test_the_page_explains_every_key():
    page = (ROOT / "docs/reference/job.md").read_text()
    for path, field in fields():
        row = next(line for line in page.splitlines() if line.startswith(f"| `{path}` |"))
        assert row.endswith(f" | {field.description} |")


def test_an_error_shows_the_schemas_examples(bench, capsys):
    from debzero.cli import main

    assert main(["check", str(bench.job(train__learning_rate=-1))]) == 2
    text = " ".join(capsys.readouterr().err.split())
    assert "must be greater than 0, not -1 -> for example `learning_rate: 3e-5`" in text
    path = bench.job()
    path.write_text(json.dumps(changed(yaml.safe_load(path.read_text()), {"model": None})))
    assert main(["check", str(path)]) == 2
    assert "for example `model: bert-large-uncased` or `model: {type: bert, vocab_size: 8000}`" in " ".join(
        capsys.readouterr().err.split())


def test_the_manual_is_made_without_pydantic():
    """As on Bullseye, from the tracked schema."""
    program = "import runpy, sys; sys.modules['pydantic'] = None; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0])"
    arguments = ["debian/manual", "debian/job.schema.json", "debian/jobs/demo.yml"]
    done = subprocess.run([sys.executable, "-c", program, *arguments], cwd=ROOT, capture_output=True, text=True,
                          env={"PYTHONPATH": str(ROOT / "python/src")})
    assert done.returncode == 0, done.stderr
    for key in reference.keys(SCHEMA):
        assert (f".TP\n\\fB{key.path}\\fR\n" in done.stdout) == (key.path not in SECTIONS)
    assert "Default: 3e\\-5.\n.br\n\\&The peak learning rate of AdamW." in done.stdout
