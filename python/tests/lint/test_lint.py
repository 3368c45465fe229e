"""Every linter, with its output where it complains. One that is not installed fails: nothing was checked."""
from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from background import LINTERS

ROOT = Path(__file__).resolve().parents[3]
CONTROLLER = ROOT / ".cache/controller/bin"
PATH = os.pathsep.join([str(CONTROLLER), str(Path(sys.executable).parent), os.environ["PATH"]])


def tracked() -> list[Path]:
    """Every file that is tracked, or would be with `git add`."""
    listed = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
                            cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [path for name in sorted(set(listed.split("\0")) - {""}) if (path := ROOT / name).is_file()]


def shell_scripts(paths: list[Path]) -> list[str]:
    """Those that a shell runs, by the first line or by the ending. A template is none before it is rendered."""
    return [str(path.relative_to(ROOT)) for path in paths if path.suffix == ".sh" or path.suffix != ".j2"
            and re.match(rb"#!\s*/bin/(ba)?sh\b", path.read_bytes())]


def lint(*command: str, folder: str = ".") -> None:
    """Run a linter in a folder of the checkout; fail with what it prints."""
    tool = shutil.which(command[0], path=PATH)
    if not tool:
        pytest.fail(f"{command[0]} is not installed: run `ansible/bootstrap tests` and try again", pytrace=False)
    environment = {**os.environ, "PATH": PATH, "PYTHONPATH": str(ROOT / folder / "src"), "NO_COLOR": "1",
                   "ANSIBLE_NOCOLOR": "1"}
    done = subprocess.run([tool, *command[1:]], cwd=ROOT / folder, env=environment, text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT)
    if done.returncode:
        pytest.fail(f"{' '.join(command)} found:\n{done.stdout}", pytrace=False)


def test_a_missing_linter_and_a_finding_both_fail():
    with pytest.raises(pytest.fail.Exception, match="no-such-linter is not installed"):
        lint("no-such-linter")
    with pytest.raises(pytest.fail.Exception, match="false found:"):
        lint("false")


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.job(name)) for name in LINTERS])
def test_the_slow_ones(jobs, name):
    jobs.succeed(name)


def test_no_ansible_rule_is_skipped():
    config = (ROOT / ".ansible-lint").read_text()
    assert not [word for word in ("skip_list", "warn_list", "enable_list", "mock_") if word in config]
    assert not (ROOT / ".ansible-lint-ignore").exists()


def test_yamllint():
    lint("yamllint", "--strict", ".")


def test_syntax_of_the_playbooks():
    for playbook in ("site.yml", *sorted(f"playbooks/{path.name}" for path in (ROOT / "playbooks").glob("*.yml"))):
        lint("ansible-playbook", "--inventory", "inventory/hosts.yml", "--syntax-check", playbook)


def test_ruff():
    check = ("ruff", "check", "--no-cache", "--output-format=concise")
    lint(*check, ".", folder="python")
    scripts = [path for path in tracked()
               if path.suffix == ".py" or path.read_bytes().startswith(b"#!/usr/bin/python3")]
    names = [str(path.relative_to(ROOT)) for path in scripts]
    lint(*check, "--config=python/pyproject.toml", *(name for name in names if not name.startswith("python/")))


def test_shellcheck():
    scripts = shell_scripts(tracked())
    assert {"ansible/bootstrap", "roles/preflight/files/fetch_indexes.sh"} <= set(scripts)
    lint("shellcheck", *scripts)


def test_imports_run_downward_only():
    lint("lint-imports", "pyproject.toml", folder="python")


def test_the_import_linter_sees_an_import_that_goes_up(tmp_path):
    """A package that imports one above it breaks the contract of this very file."""
    shutil.copytree(ROOT / "python/src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "src/debzero/base/text.py").open("a") as file:
        file.write("\nimport debzero.train.loop\n")
    shutil.copy(ROOT / "python/pyproject.toml", tmp_path)
    with pytest.raises(pytest.fail.Exception, match="debzero.base is not allowed to import debzero.train"):
        lint("lint-imports", "pyproject.toml", folder=str(tmp_path))
