"""Two hosts of which one fails: the other one is finished, and the end names the first with its cause.

After test_cluster.py in the same containers: both hosts have everything. Then an upgrade of both.
"""

import json
import os
import re
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import testinfra

PROJECT = Path(__file__).resolve().parents[3]
TINY = {"model": {"type": "bert", "vocab_size": 2000, "hidden_size": 32, "num_hidden_layers": 1,
                  "num_attention_heads": 2, "intermediate_size": 64},
        "data": {"dataset": "debian-sections", "max_length": 32}, "zero": {"stage": 2}, "ranks": 1}

SPACE = {"/opt": 1, "/var": 1}  # they have all of it already


def job(name, **train):
    values = {"epochs": 500, "global_batch": 16, "learning_rate": 1e-3, "log_every": 5, **train}
    return {**TINY, "train": values, "output": f"/var/lib/debzero/{name}"}


def jobs(name, **train):
    return {"trainer_jobs": {name: job(name, **train)}, "trainer_start": [name]}


@pytest.fixture(scope="module")
def second(request):
    name = request.config.option.hosts.rsplit("/", 1)[-1]
    return testinfra.get_host(f"podman://{name}-second")


def play(host, playbook, *options, **variables):
    """The exit code, and the output with each message in one line."""
    done = subprocess.run(
        ["ansible-playbook", "-i", "inventory/demo", "-i", "inventory/cluster", playbook, *options,
         "-e", json.dumps(variables)], cwd=PROJECT, text=True, capture_output=True,
        env={**os.environ, "ANSIBLE_NOCOLOR": "1", "DEBZERO_CONTAINER": host.backend.name})
    return done.returncode, " ".join((done.stdout + done.stderr).split())


def left_out(text):
    return re.search(r"HOSTS THAT WERE LEFT OUT \**(.*?)(TASKS RECAP|$)", text)[1]


def status(host, name):
    return json.loads(host.run(f"debzero status {name} --json").stdout or "{}")


@contextmanager
def frozen(host):
    """While an SSH connection to it is open, which the play has made before."""
    subprocess.run(["podman", "pause", host.backend.name], check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["podman", "unpause", host.backend.name], check=True, capture_output=True)


@contextmanager
def read_only(host):
    host.check_output("mount -o remount,ro /")
    try:
        yield
    finally:
        host.check_output("mount -o remount,rw /")


@pytest.mark.parametrize(("fault", "cause"), [
    (frozen, r"second could not be reached: "),
    (read_only, r"second is not ready, and nothing was changed on it: - .*/opt.* cannot be written \(Read-only file "
                r"system\): find the cause")])
def test_the_healthy_host_is_trained_and_the_other_one_is_named(host, second, fault, cause):
    name = fault.__name__
    with fault(second):
        code, text = play(host, "site.yml", **jobs(name, max_steps=20), preflight_min_free_mb=SPACE)
    assert code and re.search(cause, left_out(text)), text[-6000:]
    assert "1 of 2 hosts succeeded: demo second" in left_out(text), left_out(text)
    assert "--limit second" in left_out(text)
    assert host.run(f"timeout 300 debzero status {name} --watch").rc == 0
    assert not second.file(f"/etc/debzero/jobs/{name}.yml").exists


def test_a_frozen_host_does_not_hold_an_open_connection(host, second):
    code, text = play(host, "playbooks/doctor.yml", doctor_fast=True)
    assert code == 0, text
    began = time.monotonic()
    with frozen(second):  # the connection of the play before is still open
        code, text = play(host, "playbooks/doctor.yml", doctor_fast=True)
    assert code and re.search("demo +ok .*second +unreachable ", text), text
    assert time.monotonic() - began < 300


def test_a_job_that_is_not_there_is_refused_in_the_words_of_its_unit(host):
    code, text = play(host, "playbooks/training.yml", "--limit", "demo", trainer_start=["nosuch"])
    assert code and re.search(r"debzero@nosuch does not train: .*nosuch\.yml", left_out(text)), text[-3000:]


def test_check_mode_shows_how_an_environment_differs_from_the_lock(host, second):
    check = ["--limit", "second", "--tags", "torch_venv"]
    second.check_output("/opt/debzero/installer/bin/uv pip uninstall --python /opt/debzero/venv/bin/python six")
    code, text = play(host, "playbooks/runtime.yml", *check, "--check")
    assert code == 0 and "Would install 1 package" in text and "+ six==" in text, text[-3000:]
    assert second.run("/opt/debzero/venv/bin/python -c 'import six'").rc
    assert play(host, "playbooks/runtime.yml", *check)[0] == 0
    second.check_output("/opt/debzero/venv/bin/python -c 'import six'")


def rebuilt(folder, version, damage=""):
    """The package as a later release, whose training fails where `damage` is a statement that does."""
    stored = max(PROJECT.glob("dist/debzero_*_all.deb"), key=os.path.getmtime)
    subprocess.run(["dpkg-deb", "--raw-extract", stored, folder / version], check=True)
    control = folder / version / "DEBIAN/control"
    control.write_text(re.sub("(?m)^Version: .*", f"Version: {version}", control.read_text()))
    loop = folder / version / "usr/share/debzero/debzero/train/loop.py"
    future = "from __future__ import annotations\n"
    loop.write_text(loop.read_text().replace(future, f"{future}{damage}\n", 1))
    built = folder / f"debzero_{version}_all.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "-Zgzip", "-z1", "--build", folder / version, built], check=True,
                   capture_output=True)
    return str(built)


def version(host):
    return host.check_output("dpkg-query --show --showformat='${Version}' debzero")


def trains_on(host, name):
    """Its step, once it has taken one."""
    until = time.monotonic() + 600
    while status(host, name).get("state") != "training":
        assert time.monotonic() < until, host.check_output(f"journalctl --unit debzero@{name} --lines=30")
        time.sleep(2)
    return status(host, name)["step"]


def test_an_upgrade_takes_the_jobs_with_it_and_returns_where_it_fails(host, second, tmp_path):
    before = version(host)
    code, text = play(host, "playbooks/training.yml", **jobs("steady", max_steps=1000000))
    assert code == 0, text[-3000:]
    step = trains_on(host, "steady")

    # Another play leaves what the job runs from alone.
    newer = rebuilt(tmp_path, "99.1")
    code, text = play(host, "playbooks/training.yml", "--limit", "demo", trainer_deb=newer)
    assert code and "debzero@steady.service trains and uses the trainer's code, which would change" in text
    assert version(host) == before

    # A release that cannot train: the first host returns to what it had, and the second one is not touched.
    broken = rebuilt(tmp_path, "99.0", "raise RuntimeError('planted')")
    code, text = play(host, "playbooks/upgrade.yml", trainer_deb=broken, upgrade_fast=True, upgrade_wait=300)
    said = left_out(text)
    assert code and "demo failed" in said and "this host has again what it had before" in said, text[-6000:]
    assert "debzero@steady does not train: " in said and "planted" in said
    assert "0 of 2 hosts succeeded" in said and "not begun: second" in said
    assert "Its jobs train again: steady" in said and (version(host), version(second)) == (before, before)
    assert trains_on(host, "steady") >= step
    assert not host.file("/opt/debzero.before").exists and not host.file("/opt/debzero/jobs").exists

    # One that can: both hosts have it, and the job has gone on from its checkpoint.
    code, text = play(host, "playbooks/upgrade.yml", trainer_deb=newer, upgrade_fast=True)
    assert code == 0 and "LEFT OUT" not in text, text[-6000:]
    for one in (host, second):
        assert version(one) == "99.1" and not one.file("/opt/debzero.before").exists
        assert "resuming from step" in one.check_output("journalctl --unit debzero@steady --output=cat --no-pager")
        trains_on(one, "steady")
    code, text = play(host, "playbooks/upgrade.yml", trainer_deb=newer, upgrade_fast=True)
    assert code == 0 and text.count("has all of this already") >= 2, text[-3000:]

    # The checkout is older now, and says what to do; then it goes back.
    for one in (host, second):
        one.check_output("debzero stop steady")
    code, text = play(host, "playbooks/training.yml", "--limit", "demo", trainer_start=[])
    assert code and f"has debzero 99.1, and debzero_{before}_all.deb is older: update this checkout" in text
    code, text = play(host, "playbooks/training.yml", trainer_version=before, trainer_start=[])
    assert code == 0 and (version(host), version(second)) == (before, before), text[-3000:]
