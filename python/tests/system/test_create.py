"""`make demo` again must find its container as it left it, whichever arguments podman needs on this machine."""
import json
import os
import re
import subprocess

import pytest
import yaml
from background import IMAGE, ROOT, container

CONTAINER = container("again")
CHOICES = yaml.safe_load((ROOT / "molecule/shared/vars.yml").read_text())["engine_choices"]
PLANTED = "/var/lib/planted"

pytestmark = [pytest.mark.container, pytest.mark.job(IMAGE)]


def podman(*words: str) -> str:
    return subprocess.run(["podman", *words], check=True, capture_output=True, text=True).stdout.strip()


def play(name: str, *options: str) -> subprocess.CompletedProcess:
    return subprocess.run(["ansible-playbook", "-i", "inventory/demo", *options, f"molecule/shared/{name}.yml"],
                          cwd=ROOT, text=True, capture_output=True,
                          env={**os.environ, "ANSIBLE_NOCOLOR": "1", "DEBZERO_CONTAINER": CONTAINER})


def create(*choices: dict) -> int:
    """Create the container as `make demo` does. Returns the number of changes that Ansible reports.

    `choices`: what the engine may be tried with; by default those of molecule/shared/vars.yml.
    """
    forced = ["--extra-vars", json.dumps({"engine_choices": choices})] if choices else []
    done = play("create", *forced)
    assert done.returncode == 0, done.stdout + done.stderr
    return int(re.findall(r"^demo .* changed=(\d+) ", done.stdout, re.MULTILINE)[-1])


def identity() -> str:
    return podman("container", "inspect", "--format", "{{.Id}}", CONTAINER)


@pytest.fixture(autouse=True)
def clean(jobs):
    """The image, and no container of an earlier run."""
    def destroy():
        assert play("destroy").returncode == 0

    jobs.succeed(IMAGE)
    destroy()
    yield
    destroy()


# The last choice has everything: it stands for the machine whose engine's defaults do not work.
@pytest.mark.parametrize("choices", [pytest.param([], id="detected"), pytest.param(CHOICES[-1:], id="fall-back")])
def test_the_container_is_kept(choices):
    assert create(*choices) > 0
    before = identity()
    podman("exec", CONTAINER, "touch", PLANTED)

    assert create(*choices) == 0
    assert identity() == before
    podman("exec", CONTAINER, "test", "-e", PLANTED)

    # After the machine was rebooted the container is there, and does not run.
    podman("stop", CONTAINER)
    assert create(*choices) == 1
    assert identity() == before
    podman("exec", CONTAINER, "test", "-e", PLANTED)


def test_the_engine_is_tried_only_for_a_new_container():
    create()
    before = identity()
    assert create({"ulimits": [], "arguments": ["--no-such-option"]}) == 0
    assert identity() == before


def test_a_machine_without_a_working_engine_is_refused():
    with pytest.raises(AssertionError, match="podman cannot run a systemd container on this machine: .*no-such-option"):
        create({"ulimits": [], "arguments": ["--no-such-option"]})
