"""What `make demo` reports, with programs in the place of Ansible and podman."""
import os
import re
import shutil
import subprocess

import pytest
from background import ROOT

RECAP = "demo                : ok=9    changed={}    unreachable=0    failed={}    skipped=0    rescued=0    ignored=0"


@pytest.fixture
def demo(tmp_path):
    """Runs the script where ansible-playbook prints these lines and ends with this exit code."""
    def program(name: str, script: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def run(*lines: str, code: int = 0) -> subprocess.CompletedProcess:
        (tmp_path / "printed").write_text("".join(f"{line}\n" for line in lines))
        program(".cache/controller/bin/ansible-playbook", f"cat {tmp_path}/printed; exit {code}")
        return subprocess.run([tmp_path / "ansible/demo"], capture_output=True, text=True,
                              env={**os.environ, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"})

    program("ansible/bootstrap", "true")
    program("bin/podman", "echo the job is done")
    program("bin/id", "echo 0")
    for script in ("demo", "container"):
        shutil.copy(ROOT / "ansible" / script, tmp_path / "ansible" / script)
    return run


def test_a_first_run_says_what_next_with_the_name_of_its_own_container(demo, tmp_path, monkeypatch):
    monkeypatch.delenv("DEBZERO_CONTAINER", raising=False)
    name = subprocess.run([tmp_path / "ansible/container", "demo"], capture_output=True, text=True).stdout.strip()
    done = demo(RECAP.format(2, 0), RECAP.format(40, 0))
    assert done.returncode == 0 and "What next" in done.stdout and "Nothing changed" not in done.stdout
    assert re.fullmatch("debzero-demo-[0-9a-f]{6}", name)
    assert f'podman exec {name} debzero predict demo "GNU compiler for C++"' in done.stdout


def test_a_second_run_says_that_nothing_changed(demo):
    done = demo(RECAP.format(0, 0), RECAP.format(0, 0))
    assert done.returncode == 0 and "Nothing changed" in done.stdout


@pytest.mark.parametrize("changed", [(0, 3), (3, 0)])
def test_one_change_is_not_nothing(demo, changed):
    """The container was there, and its provisioning continues; or the reverse. Each playbook has a recap of its own."""
    done = demo(*(RECAP.format(number, 0) for number in changed))
    assert done.returncode == 0 and "Nothing changed" not in done.stdout


@pytest.mark.parametrize("end", [RECAP.format(0, 1), "ERROR! a broken file"])
def test_a_failure_ends_it(demo, end):
    done = demo(RECAP.format(0, 0), end, code=2)
    assert done.returncode == 2 and "the job is done" not in done.stdout
