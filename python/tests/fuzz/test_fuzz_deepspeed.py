"""DeepSpeed's own JSON: `debzero check` on anything, with --fix."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import hjson
import pytest
from fuzzing import JSON_TOKENS, Figures, as_json, command, damaged, fuzz, limits, spoilt
from hypothesis import strategies as st

from debzero.deepspeed_json import keys
from debzero.deepspeed_json.codes import CODES

BASES = [*(json.loads(text) for code in CODES.values() for text in (code.example, code.fixed)), {
    "train_batch_size": 64, "train_micro_batch_size_per_gpu": 8, "gradient_accumulation_steps": 4,
    "zero_optimization": {"stage": 3, "offload_param": {"device": "nvme", "nvme_path": "/nvme"}, "overlap_comm": True},
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-4, "betas": [0.9, 0.999]}},
    "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 10}}, "bf16": {"enabled": True}}]


def _values(kind: keys.Kind) -> st.SearchStrategy:
    """Values of its kind, and some texts."""
    if kind.choices:
        return st.sampled_from(kind.choices)
    return {"section": st.just({}), "mapping": st.just({}), "bool": st.booleans(), "number": st.floats(),
            "whole": st.integers(-1, 10**7), "list": st.lists(st.integers(), max_size=3)}.get(
                kind.name, st.sampled_from(["auto", "1e-5", "true"]))


# Each key that DeepSpeed knows.
KNOWN = {key.path: _values(key.kind) for section in keys.table().values() for key in section.keys.values()}


def inputs() -> st.SearchStrategy:
    base = st.sampled_from(BASES)
    return st.one_of(base.flatmap(lambda values: damaged(values, KNOWN)).map(as_json),
                     base.flatmap(lambda values: spoilt(json.dumps(values, indent=2).encode(), JSON_TOKENS)))


def check(folder: Path, content: bytes) -> int:
    """As it is, within a job, and with --fix, after which it is fixed."""
    file = folder / "ds.json"
    file.write_bytes(content)
    code = command("check", file, "--ranks", "2")[0]
    command("check", folder / "job.yml")
    if command("check", file, "--fix")[1] and file.read_bytes() != content:
        assert isinstance(loads(content)(file.read_bytes()), dict), "--fix writes the language that it has read"
    return code


def loads(content: bytes) -> Any:
    """The reader of the language that this is in."""
    try:
        json.loads(content)
    except ValueError:
        return hjson.loads
    return json.loads


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "job.yml").write_text("{model: x/y, data: {dataset: glue/mrpc}, deepspeed: ds.json, output: out}")
    return tmp_path


def test_no_json_crashes_check(folder: Path, cases: int, fuzzed: Any) -> None:
    fuzz(fuzzed("DeepSpeed"), cases, inputs(), lambda content: check(folder, content))


# Each ended in a traceback or a hang.
FOUND: list[bytes] = [b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}", b'{"\\ud800": 1}',
                      b'{"train_batch_size": "\\ud800"}',
                      b'{"zero_optimization": {"cpu_offload": true}, "\\udcff": null}']


@pytest.mark.parametrize("content", FOUND)
def test_what_was_found(folder: Path, content: bytes) -> None:
    with limits(Figures("DeepSpeed")):
        assert check(folder, content) == 2


def test_a_fix_keeps_the_comments_of_hjson(folder: Path) -> None:
    assert check(folder, b'{"zero_optimization": {\n#stage": 2\n},\n"pipeline": {"stages": 2}\n}') == 0
    assert b'#stage": 2' in (folder / "ds.json").read_bytes()
