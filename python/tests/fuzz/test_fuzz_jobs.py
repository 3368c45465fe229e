"""Job files, and DeepSpeed's JSON within them: `debzero check` on anything."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from fuzzing import NUMBERS, Figures, as_json, command, damaged, fuzz, limits, spoilt
from hypothesis import strategies as st
from support import JOB, changed

from debzero.job.schema import Job

BASES = [
    changed(JOB, {"output": "out", "data.dataset": "rows.csv"}),
    changed(JOB, {"model": "bert-base-uncased", "data.dataset": "glue/mrpc", "data.text": ["sentence1", "sentence2"],
                  "zero": {"stage": 3, "offload_optimizer": "cpu", "offload_param": "cpu"}, "checkpoint": {"keep": 3}}),
    changed(JOB, {"task": "causal-lm", "model": {"type": "gpt2", "vocab_size": 200, "n_layer": 1, "n_embd": 8,
                                                 "n_head": 2},
                  "deepspeed": {"zero_optimization": {"stage": 2},
                                "optimizer": {"type": "AdamW", "params": {"lr": 1e-4}}, "fp16": {"enabled": "auto"}}})]
TOKENS = [b"!!bool maybe", b"!!int ''", b"!!float x", b"!!timestamp x", b"!!binary \xff", b"!!set {a}",
          b"!!python/name:os.system", b"!x y", b"&a ", b"*a", b"<<: *a\n", b"<<: 3\n", b"? [a]\n: b\n",
          b"zero[stage]: 2\n", b"1: 2\n", b"? ", b"- ", b": ", b"\n", b"\t", b"\0", b"\xff", b"{", b"[" * 500, b"}",
          b"'", b'"\\ud800"', b'"\\U00110000"', b"%YAML 9.9\n---\n", b"---\n", b"...\n", b"|\n", b">\n", b"#",
          b"9" * 5000, b"0x" + b"f" * 5000, b"1:" * 500 + b"1", b".inf", b"2024-13-01", b"yes", b"~", b"=",
          b"\x1b[2J", b"\xe2\x80\xae", b"\xef\xbb\xbf", b"a: &a [x, x, x]\nb: &b [*a, *a, *a]\n"]


def _valid(schema: dict[str, Any], whole: dict[str, Any]) -> st.SearchStrategy:
    """Values that a part of the JSON Schema allows, or nearly so."""
    schema = {**whole["$defs"][schema["$ref"].rpartition("/")[2]], **schema} if "$ref" in schema else schema
    if "anyOf" in schema:
        return st.one_of([_valid(part, whole) for part in schema["anyOf"]])
    if "enum" in schema or "const" in schema:
        return st.sampled_from(schema.get("enum") or [schema["const"]])
    kind = schema.get("type")
    if kind == "integer":
        return st.integers(schema.get("minimum", 0) - 1, 2**41) | st.integers(1, 64)
    if kind == "number":
        return st.floats(0, 1) | st.sampled_from(NUMBERS)
    texts = st.sampled_from(["rows.csv", "out", "text", "label", "auto", "x/y", "/nowhere"])
    return {"boolean": st.booleans(), "null": st.none(), "array": st.lists(texts, max_size=3),
            "object": st.just({})}.get(str(kind), texts)


def _known(schema: dict[str, Any], whole: dict[str, Any], above: tuple = ()) -> dict[tuple, st.SearchStrategy]:
    """Each key of the job file's schema with values for it."""
    found = {}
    for key, part in schema.get("properties", {}).items():
        found[(*above, key)] = _valid(part, whole)
        if "$ref" in part:
            found.update(_known(whole["$defs"][part["$ref"].rpartition("/")[2]], whole, (*above, key)))
    return found


SCHEMA = Job.model_json_schema()
KNOWN = _known(SCHEMA, SCHEMA)


def _as_yaml(values: dict[str, Any]) -> bytes:
    return yaml.safe_dump(values, allow_unicode=True).encode("utf-8", "surrogatepass")


def inputs() -> st.SearchStrategy:
    structured = st.one_of([damaged(base, KNOWN) for base in BASES])
    return st.one_of(structured.map(_as_yaml), structured.map(as_json),
                     *[spoilt(_as_yaml(base), TOKENS) for base in BASES])


def check(folder: Path, content: bytes) -> int:
    (folder / "job.yml").write_bytes(content)
    return command("check", folder / "job.yml")[0]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.csv").write_text("text,label\na cat,animal\na saw,tool\n" * 50)
    return tmp_path


def test_no_job_file_crashes_check(folder: Path, cases: int, fuzzed: Any) -> None:
    fuzz(fuzzed("jobs"), cases, inputs(), lambda content: check(folder, content))


# Each ended in a traceback or a hang.
FOUND: list[bytes] = [
    b"zero[stage]: 2\n", b"train: !!bool maybe\n", b"train: {epochs: !!int ''}\n", b"? [a]\n: b\n",
    b'output: "\\ud800"\n', b"1: 2\n", b"output: !!timestamp x\n", b'"\\uDCFF": null\n',
]


@pytest.mark.parametrize("content", FOUND)
def test_what_was_found(folder: Path, content: bytes) -> None:
    with limits(Figures("jobs")):
        assert check(folder, content) == 2
