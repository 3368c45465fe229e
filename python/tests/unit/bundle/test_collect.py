"""What a bundle is made of: the lists of an archive as it signed them, the wheels of a lock, an SBOM of all of it."""
from __future__ import annotations

import hashlib
import zipfile
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

FILES = Path(__file__).resolve().parents[4] / "roles/bundle/files"


def module(name: str) -> ModuleType:
    spec = spec_from_file_location(name, FILES / f"{name}.py")
    made = module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


@pytest.mark.parametrize(("offered", "taken"), [([".gz", ".xz", ""], ".xz"), ([".bz2", ""], ".bz2"), ([""], "")])
def test_the_list_that_apt_will_ask_for_is_taken(tmp_path, offered, taken):
    archive, suite, name = tmp_path / "archive", tmp_path / "suite", "main/binary-amd64/Packages"
    rows = []
    for ending in offered:
        file = archive / (name + ending)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"list{ending}")
        rows.append(f" {hashlib.sha256(file.read_bytes()).hexdigest()} {file.stat().st_size} {name}{ending}")
    suite.mkdir()
    (suite / "InRelease").write_text("SHA256:\n" + "\n".join(rows) + "\n")
    module("collect").copy_index(f"file:{archive}/{name}", name, suite)
    assert [path.name for path in (suite / name).parent.iterdir()] == [f"Packages{taken}"]


def test_each_python_gets_the_pins_that_are_its_own():
    lock = ("a==1 ; python_full_version < '3.11' \\\n    --hash=sha256:aa \\\n    --hash=sha256:bb\n"
            "a==2 ; python_full_version >= '3.11' \\\n    --hash=sha256:cc\n"
            "# a comment\nb==1 ; sys_platform == 'win32' \\\n    --hash=sha256:dd\nc==3 \\\n    --hash=sha256:ee\n")
    pins = module("wheels").pins
    assert pins(lock, "3.10") == ["a==1 --hash=sha256:aa --hash=sha256:bb", "c==3 --hash=sha256:ee"]
    assert pins(lock, "3.11") == ["a==2 --hash=sha256:cc", "c==3 --hash=sha256:ee"]


def test_files_have_a_source_and_a_licence(tmp_path):
    collect = module("collect")
    wheel, card = tmp_path / "controller/a_b-1.0-py3-none-any.whl", tmp_path / "models/tiny/README.md"
    for path in (wheel, card):
        path.parent.mkdir(parents=True)
    with zipfile.ZipFile(wheel, "w") as made:
        made.writestr("a_b-1.0.dist-info/METADATA", "Name: a-b\nLicense-Expression: MIT\n\nText")
    card.write_text("---\nlanguage: en\nlicense: apache-2.0\n---\n")
    config = card.with_name("config.json")
    config.write_text("{}")
    rows = [collect.described(tmp_path, path) for path in (wheel, config)]
    assert [(row["source"], row["licence"]) for row in rows] == [("pkg:pypi/a-b@1.0", "MIT"),
                                                                 ("models: tiny", "apache-2.0")]
    bill = collect.bill({"metadata": {"component": {}}, "components": []}, rows, "2.0-1")
    assert bill["metadata"]["component"]["version"] == "2.0-1"
    assert [(one["type"], one["name"], one.get("purl")) for one in bill["components"]] == [
        ("library", "a-b", "pkg:pypi/a-b@1.0"), ("machine-learning-model", "tiny", None)]
