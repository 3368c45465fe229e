"""Each code's example has its fault alone, its correction has none, and --fix writes that correction."""
import json

import pytest

from debzero.deepspeed_json import lint
from debzero.deepspeed_json.codes import CODES
from debzero.deepspeed_json.reader import parse_config
from debzero.deepspeed_json.reference import PINNED


def found_in(text: str, releases=PINNED) -> list:
    """(code, severity) of everything that check says about a file with this text, on 2 ranks that share a GPU."""
    config, wrong = parse_config(text, "ds.json")
    assert config is not None
    found = lint.lint(config, "ds.json", 2, 1, None, releases)
    return [(p.code, p.severity) for p in [*wrong, *(finding.problem for finding in found)]]


@pytest.mark.parametrize("code", CODES.values(), ids=list(CODES))
def test_the_example_of_a_code_has_this_fault_alone_and_its_correction_none(code):
    assert code.title and code.explanation.endswith(".")
    assert found_in(code.example, code.releases or PINNED) == [(code.code, code.severity)]
    assert found_in(code.fixed) == []


def test_the_correction_of_an_unknown_schedule_is_the_one_that_the_fix_names():
    (finding,) = lint.lint(json.loads(CODES["DZ144"].example), "")
    assert finding.problem.fix == f"did you mean {json.loads(CODES['DZ144'].fixed)['scheduler']['type']}?"


def edited(code) -> bool:
    config, _ = parse_config(code.example, "")
    return any(finding.edit for finding in lint.lint(config, "", 2, 1))


@pytest.mark.parametrize("code", [code for code in CODES.values() if edited(code)], ids=lambda code: code.code)
def test_fix_makes_of_a_codes_example_its_correction(bench, code):
    from debzero.cli import main

    path = bench.folder / "ds.json"
    path.write_text(code.example)
    assert main(["check", "--fix", "--strict", str(path)]) == 0
    assert json.loads(path.read_text()) == json.loads(code.fixed)
