"""The same host with Ansible: installed from the repository, upgraded while its job trains, and gone back.

After test_repository.py, whose last state is a host without debzero, and a repository with all that was published.
"""

import json
import os
import re
import subprocess

import pytest
import testinfra
from test_repository import LATER, PROJECT, operators, publish, status, trains_beyond, version

TINY = {"model": {"type": "bert", "vocab_size": 2000, "hidden_size": 32, "num_hidden_layers": 1,
                  "num_attention_heads": 2, "intermediate_size": 64},
        "data": {"dataset": "debian-sections", "max_length": 32}, "zero": {"stage": 2}, "ranks": 1,
        "train": {"epochs": 500, "max_steps": 1000000, "global_batch": 16, "learning_rate": 1e-3, "log_every": 5},
        "output": "/var/lib/debzero/steady"}


@pytest.fixture(scope="module")
def site(host):
    """The second host, and what the inventory says of it: everything comes from the repository of the first."""
    address = re.search(r"inet ([\d.]+)", host.check_output("ip -4 -o address show eth1"))[1]
    return testinfra.get_host(f"podman://{host.backend.name}-second"), {
        "debzero_repository": f"http://{address}:8000", "torch_venv_source": "apt",
        "trainer_jobs": {"steady": TINY}, "trainer_start": ["steady"]}


def play(host, variables, *playbooks, **more):
    """The exit code, and the output with each message in one line."""
    done = subprocess.run(
        ["ansible-playbook", "-i", "inventory/demo", "-i", "inventory/cluster", "--limit", "second", *playbooks,
         "-e", json.dumps({**variables, **more})], cwd=PROJECT, text=True, capture_output=True,
        env={**os.environ, "ANSIBLE_NOCOLOR": "1", "DEBZERO_CONTAINER": host.backend.name})
    return done.returncode, " ".join((done.stdout + done.stderr).split())


def upgrade(host, variables, **more):
    return play(host, variables, "playbooks/upgrade.yml", **more)


def packages(second):
    return second.check_output("dpkg-query --show --showformat='${Package}=${Version}\\n' debzero 'debzero-runtime*'")


def started(second):
    return second.check_output("systemctl show --property=ActiveEnterTimestampMonotonic debzero@steady")


def test_ansible_installs_this_checkout_s_versions_and_the_second_time_changes_nothing(host, site):
    second, variables = site
    stages = [f"playbooks/{name}.yml" for name in ("base", "runtime", "training")]
    code, text = play(host, variables, *stages)
    assert code == 0, text[-6000:]
    found = dict(line.split("=", 1) for line in packages(second).splitlines())
    assert found == {package: version(package) for package in found} and len(found) == 5
    code, text = play(host, variables, *stages)
    assert code == 0 and re.search(r"second : ok=\d+ changed=0 ", text), text[-3000:]
    trains_beyond(second, "steady", 5)
    code, text = upgrade(host, variables)
    assert code == 0 and "second has all of this already" in text, text[-3000:]


def test_a_release_across_pytorch_comes_with_all_its_parts_and_the_job_resumes(host, site):
    second, variables = site
    step = status(second, "steady")["step"]
    code, text = upgrade(host, variables, trainer_version="9.0", upgrade_fast=True)
    assert code == 0, text[-6000:]
    found = packages(second)
    assert "debzero=9.0" in found and re.search(r"^debzero-runtime-torch=\S+-2$", found, re.MULTILINE)
    assert operators(second) == "# rebuilt" and not second.file("/opt/debzero.before").exists
    assert "resuming from step" in second.check_output("journalctl --unit debzero@steady --output=cat --no-pager")
    assert status(second, "steady")["state"] == "training" and status(second, "steady")["step"] >= step


def test_operators_that_fail_the_doctor_are_taken_back_and_the_job_trains_again(host, site):
    second, variables = site
    code, text = publish(host, repository_packages=[str(deb) for deb in LATER.glob("broken/*.deb")])
    assert code == 0, text
    before, step = packages(second), status(second, "steady")["step"]
    code, text = upgrade(host, variables, trainer_version="9.0")
    assert code and "The upgrade failed, and this host has again what it had before" in text, text[-6000:]
    assert "Require that it can train: " in text and "planted" in text and "Its jobs train again: steady" in text
    assert packages(second) == before and operators(second) == "# rebuilt"
    trains_beyond(second, "steady", step)
    assert not second.file("/opt/debzero.before").exists and not second.file("/opt/debzero/debs").exists


def test_where_nothing_could_go_back_nothing_is_stopped(host, site):
    second, variables = site
    snapshots = host.check_output("aptly -config=/srv/debzero-repository/aptly/aptly.conf snapshot list -raw "
                                  "-sort=time").split()
    assert publish(host, repository_snapshot=snapshots[0])[0] == 0
    before, begun = packages(second), started(second)
    code, text = upgrade(host, variables, trainer_version=version("debzero"))
    assert code and "the package debzero=9.0, which this host would go back to, is neither" in text, text[-3000:]
    code, text = upgrade(host, variables, trainer_version="9.1")
    assert code and "no archive of the host has debzero 9.1" in text, text[-3000:]
    assert (packages(second), started(second)) == (before, begun)
    assert status(second, "steady")["state"] == "training" and not second.file("/opt/debzero.before").exists
    assert publish(host)[0] == 0


def test_an_older_release_brings_its_older_pytorch(host, site):
    second, variables = site
    code, text = upgrade(host, variables, trainer_version=version("debzero"), upgrade_fast=True)
    assert code == 0, text[-6000:]
    found = dict(line.split("=", 1) for line in packages(second).splitlines())
    assert found == {package: version(package) for package in found}
    assert status(second, "steady")["state"] == "training"
    second.check_output("debzero stop steady")
