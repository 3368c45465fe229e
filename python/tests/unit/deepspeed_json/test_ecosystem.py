"""Files in the shapes that people bring get the right verdict: ecosystem.yml holds them."""
from pathlib import Path

import pytest
import yaml

from debzero.deepspeed_json import lint
from debzero.deepspeed_json.reader import parse_config
from debzero.deepspeed_json.reference import PINNED
from debzero.job import others

FILES = yaml.safe_load(Path(__file__).with_name("ecosystem.yml").read_text())


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_this_shape_gets_the_right_verdict(name):
    text = FILES[name]["text"]
    if "program" in FILES[name]:
        assert others.program_of(yaml.safe_load(text)) == FILES[name]["program"]
        return
    config, wrong = parse_config(text, "ds.json")
    assert config is not None and others.program_of(config) is None, wrong
    found = [*wrong, *(finding.problem for finding in lint.lint(config, "ds.json", releases=PINNED))]
    assert sorted(f"{p.code} {p.severity[0]} {p.key}" for p in found) == sorted(FILES[name]["finds"])


def test_there_are_sixty_of_them():
    assert len(FILES) >= 60
