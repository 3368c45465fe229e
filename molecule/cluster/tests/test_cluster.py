"""One job over two hosts, under their units: it ends like the same job on one host, whatever happens to it on the way.

DEBZERO_LONG lets more happen, each at a random moment.
"""

import json
import os
import re
import subprocess
import time
from pathlib import Path

import pytest
import testinfra

PROJECT = Path(__file__).resolve().parents[3]
OUTPUT, UNIT = "/var/lib/debzero/pair", "debzero@pair"
MODEL = "model/model.safetensors"
RANKS = "pgrep --full 'train[.]py --job /etc/debzero/jobs/pair.yml'"  # not the shell that runs it
LOST = 60  # seconds in which the other host has to say what happened


@pytest.fixture(scope="module")
def second(request):
    """The other host; `host` is the first."""
    name = request.config.option.hosts.rsplit("/", 1)[-1]
    return testinfra.get_host(f"podman://{name}-second")


def play(host, name, *options):
    done = subprocess.run(
        ["ansible-playbook", "-i", "inventory/demo", "-i", "inventory/cluster", f"playbooks/{name}.yml",
         *(word for option in options for word in ("-e", option))], cwd=PROJECT, text=True, capture_output=True,
        env={**os.environ, "ANSIBLE_NOCOLOR": "1", "DEBZERO_CONTAINER": host.backend.name})
    return done.returncode, re.sub(r"\n +(?!-)", " ", done.stdout + done.stderr)  # messages in one line


def status(host):
    """From the file: the command would take its share of the processor from what trains."""
    return json.loads(host.run(f"cat {OUTPUT}/status.json").stdout or "{}")


def journal(host, lines=40):
    return host.check_output(f"journalctl --unit {UNIT} --no-pager --output=cat --lines={lines}")


def wait_for(condition, what, *hosts, seconds=400):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"waited in vain for {what}\n" + "\n---\n".join(map(journal, hosts))
        time.sleep(0.3)


def trains_beyond(step, host, second):
    wait_for(lambda: status(host).get("state") == "training" and status(host)["step"] > step, f"a step after {step}",
             host, second)
    return status(host)["step"]


def said_since(host, moment):
    return host.check_output(f"journalctl --unit {UNIT} --no-pager --output=cat --since=@{moment}")


def sums(host, *jobs):
    listed = host.check_output("sha256sum " + " ".join(f"/var/lib/debzero/{job}/{MODEL}" for job in jobs))
    return [line.split()[0] for line in listed.splitlines()]


def test_both_have_the_same_job_and_key_and_nobody_else_reads_it(host, second):
    for file in ("jobs/pair.yml", "cluster/pair.key"):
        assert host.file(f"/etc/debzero/{file}").sha256sum == second.file(f"/etc/debzero/{file}").sha256sum
    for one in (host, second):
        assert one.check_output("stat --format '%U %G %a' /etc/debzero/cluster/pair.key") == "root debzero 640"
        assert one.run("runuser -u nobody -- cat /etc/debzero/cluster/pair.key").rc != 0
        assert one.check_output(f"systemctl show --property=StartLimitBurst --value {UNIT}") == "10"


def test_bad_values_of_the_playbook_are_one_sentence_each(host):
    code, text = play(host, "job", "job=../pair")
    assert code and "job must be the name of a file in /etc/debzero/jobs, without .yml (-e job=NAME)" in text
    code, text = play(host, "job", "job=pair", "state=running")
    assert code and "state must be started, stopped or status (-e state=status), not running" in text


def test_a_host_alone_waits_and_says_for_whom(host, second):
    """The role has started the job on the second host alone, and did not wait."""
    wait_for(lambda: "waiting for demo" in journal(second), "the second host to wait", second)
    code, text = play(host, "job", "job=pair")
    assert code and "waiting for demo" in text and "demo: its unit is inactive (dead), its run not started" in text


def kill_a_rank(host, second, heard):
    second.check_output(f"kill -KILL $({RANKS} | tail -1)")
    heard(host, "second: rank 1 was killed by SIGKILL")


def cut_the_link(host, second, heard):
    second.check_output("ip link set eth1 down")
    try:
        heard(host, "second has not been heard of")
        heard(second, "demo has not been heard of")
    finally:
        second.check_output("ip link set eth1 up")


def freeze(host, second, heard):
    podman("pause", second)
    try:
        heard(host, "second has not been heard of")
    finally:
        podman("unpause", second)


FAULTS = [kill_a_rank, cut_the_link, *([freeze] if os.environ.get("DEBZERO_LONG") else [])]


def podman(*words):
    subprocess.run(["podman", *words[:-1], words[-1].backend.name], check=True, capture_output=True)


def test_it_ends_like_the_same_job_on_one_host_whatever_happens(host, second):
    assert host.run("timeout 900 debzero status alone --watch").rc == 0, journal(host)
    code, text = play(host, "job", "job=pair", "state=started", "job_wait=300")
    assert code == 0 and text.count("active (running)") >= 2, text

    step = 0
    for fault in FAULTS:
        step = trains_beyond(step + 50, host, second)
        moment = int(host.check_output("date +%s"))

        def heard(where, text):
            wait_for(lambda: text in said_since(where, moment), text, host, second, seconds=LOST)  # noqa: B023

        fault(host, second, heard)
        wait_for(lambda: "resuming from step" in said_since(host, moment), "the resumption", host, second)  # noqa: B023

    # One host's stop is everybody's, with a checkpoint; and the playbook starts all of them again.
    trains_beyond(step + 50, host, second)
    second.check_output("debzero stop pair")
    wait_for(lambda: status(host).get("state") == "stopped", "the stop", host, second, seconds=LOST)
    code, text = play(host, "job", "job=pair", "state=started", "job_wait=300")
    assert code == 0, text
    for one in (host, second):
        assert one.run("timeout 900 debzero status pair --watch").rc == 0, journal(one)
    alone, pair = sums(host, "alone", "pair")
    assert alone == pair == sums(second, "pair")[0]


def test_the_way_between_the_hosts_is_examined(host):
    code, text = play(host, "doctor", "job=pair")
    assert code == 0 and len(re.findall(r"^ +- (demo|second) +ok ", text, re.MULTILINE)) == 2, text
