"""One job over two hosts, under their units: it ends like the same job on one host, whatever happens to it on the way.

Each fault comes once, at a random moment, mostly to a random host; the log says what was heard of it, after how long.
"""

import contextlib
import json
import logging
import os
import random
import re
import subprocess
import time
from pathlib import Path

import pytest
import testinfra

PROJECT = Path(__file__).resolve().parents[3]
OUTPUT, UNIT = "/var/lib/debzero/pair", "debzero@pair"
CLUSTER = "/etc/debzero/cluster/pair.yml"
RANKS = "pgrep '^debzero rank'"
PATIENCE = 60   # seconds in which what happened must be said
DISK = 32       # MiB: of the second host, until it gets a larger one
MOMENT = 1.5    # seconds within which a fault comes; the job takes 50 where nothing disturbs it
LOG = logging.getLogger("cluster")


@pytest.fixture(scope="module")
def hosts(request):
    """By their names in the inventory, in the order of their ranks."""
    name = request.config.option.hosts.rsplit("/", 1)[-1]
    return {"demo": testinfra.get_host(f"podman://{name}"), "second": testinfra.get_host(f"podman://{name}-second")}


def other(victim):
    return "second" if victim == "demo" else "demo"


def play(hosts, name, *options):
    done = subprocess.run(
        ["ansible-playbook", "-i", "inventory/demo", "-i", "inventory/cluster", f"playbooks/{name}.yml",
         *(word for option in options for word in ("-e", option))], cwd=PROJECT, text=True, capture_output=True,
        env={**os.environ, "ANSIBLE_NOCOLOR": "1", "DEBZERO_CONTAINER": hosts["demo"].backend.name})
    return done.returncode, re.sub(r"\n +(?!-)", " ", done.stdout + done.stderr)  # messages in one line


def podman(*words):
    subprocess.run(["podman", *words[:-1], words[-1].backend.name], check=True, capture_output=True)


def status(host):
    """From the file: the command would take its share of the processor from what trains."""
    with contextlib.suppress(ValueError):
        return json.loads(host.run(f"cat {OUTPUT}/status.json").stdout or "{}")
    return {}


def journal(host, *options):
    text = host.check_output(f"journalctl --unit {UNIT} --no-pager --output=cat {' '.join(options)}")
    return re.sub(r"\s+", " ", text)


def wait_for(condition, what, hosts, seconds=400.0):
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, f"waited in vain for {what}\n" + "\n---\n".join(
            journal(host, "--lines=40") for host in hosts.values())
        time.sleep(1)  # each look takes its share of the processor from what trains


def waits_to_hear(hosts, moment):
    """A function that waits until the unit of a host has said something since a moment, and logs how long it took."""
    def heard(name, pattern, seconds=PATIENCE):
        wait_for(lambda: re.search(pattern, journal(hosts[name], f"--since=@{moment}")), pattern, hosts, seconds)
        found = re.search(pattern, journal(hosts[name], f"--since=@{moment}"))
        LOG.info("%s, after %.0f s: %s", name, time.time() - moment, found[0][:200])
    return heard


def now(hosts):
    return int(hosts["demo"].check_output("date +%s"))


def trains_beyond(step, hosts):
    wait_for(lambda: all(status(host).get("state") == "training" and status(host)["step"] > step
                         for host in hosts.values()), f"a step after {step}", hosts)
    return status(hosts["demo"])["step"]


def newest(host):
    """The step of its newest checkpoint."""
    return max(map(int, re.findall(r"^step-(\d+)$", host.run(f"ls {OUTPUT}/checkpoints").stdout, re.MULTILINE)))


def sums(host, *jobs):
    listed = host.check_output("sha256sum " + " ".join(f"/var/lib/debzero/{job}/model/model.safetensors"
                                                       for job in jobs))
    return [line.split()[0] for line in listed.splitlines()]


def test_both_have_the_same_job_and_key_and_nobody_else_reads_it(hosts):
    for file in ("jobs/pair.yml", "cluster/pair.key"):
        assert len({one.file(f"/etc/debzero/{file}").sha256sum for one in hosts.values()}) == 1
    for one in hosts.values():
        assert one.check_output("stat --format '%U %G %a' /etc/debzero/cluster/pair.key") == "root debzero 640"
        assert one.run("runuser -u nobody -- cat /etc/debzero/cluster/pair.key").rc != 0
        assert one.check_output(f"systemctl show --property=StartLimitBurst --value {UNIT}") == "10"


def test_bad_values_of_the_playbook_are_one_sentence_each(hosts):
    code, text = play(hosts, "job", "job=../pair")
    assert code and "and must be the name of a file in /etc/debzero/jobs, without .yml: -e job=NAME" in text
    code, text = play(hosts, "job", "job=pair", "state=running")
    assert code and "state must be started, stopped or status (-e state=status), not running" in text


def test_a_host_alone_waits_and_says_for_whom(hosts):
    """The role has started the job on the second host alone, and did not wait."""
    wait_for(lambda: "waiting for demo" in journal(hosts["second"]), "the second host to wait", hosts)
    code, text = play(hosts, "job", "job=pair")
    assert code and "waiting for demo" in text and "demo: its unit is inactive (dead), its run not started" in text


# What is other on the second host: how to bring it about, how to undo it, and what both hosts say.
OTHERS = {
    "a wrong interface": (
        f"sed -i.bak 's/eth1/eth0/' {CLUSTER}", f"mv {CLUSTER}.bak {CLUSTER}",
        r"eth0 of second has not 10[.0-9]+, where the other hosts reach it: eth1 has"),
    "another version": (
        "cd /usr/share/debzero/debzero && cp -p _version /srv && echo 99 >_version",
        "mv /srv/_version /usr/share/debzero/debzero/",
        r"debzero differs between the hosts: '[^']+' on demo, '99' on second"),
    "other data": (
        "echo one more cat,animal >>/srv/rows.csv", "sed -i '$d' /srv/rows.csv",
        r"data: train differs between the hosts: '\w+' on demo, '\w+' on second"),
}


@pytest.mark.parametrize("what", OTHERS)
def test_what_is_other_on_one_host_ends_both_with_a_sentence(hosts, what):
    change, undo, sentence = OTHERS[what]
    for host in hosts.values():
        host.check_output(f"systemctl stop {UNIT}; systemctl reset-failed {UNIT} || true")
    hosts["second"].check_output(change)
    try:
        moment = now(hosts)
        hosts["demo"].check_output(f"systemctl start --no-block {UNIT}")
        wait_for(lambda: "waiting for second" in journal(hosts["demo"], f"--since=@{moment}"), "the first", hosts)
        heard = waits_to_hear(hosts, now(hosts))
        hosts["second"].check_output(f"systemctl start --no-block {UNIT}")
        for name in hosts:
            heard(name, sentence)
        wait_for(lambda: all(host.run(f"systemctl is-failed {UNIT}").rc == 0 for host in hosts.values()),
                 "the units to fail", hosts, PATIENCE)
        assert [host.check_output(f"systemctl show --property=ExecMainStatus --value {UNIT}")
                for host in hosts.values()] == ["2", "2"]
    finally:
        hosts["second"].check_output(undo)


def kill_a_rank(hosts, victim, heard):
    hosts[victim].check_output(f"kill -KILL $({RANKS} | tail -1)")
    heard(other(victim), rf"{victim}: rank \d was killed by SIGKILL")


def cut_the_link(hosts, victim, heard):
    hosts[victim].check_output("ip link set eth1 down")
    try:
        for name in hosts:
            heard(name, f"{other(name)} has not been heard of")
    finally:
        hosts[victim].check_output("ip link set eth1 up")


def freeze(hosts, victim, heard):
    podman("pause", hosts[victim])
    try:
        heard(other(victim), f"{victim} has not been heard of")
    finally:
        podman("unpause", hosts[victim])


def kill_the_container(hosts, victim, heard):
    podman("kill", hosts[victim])
    heard(other(victim), f"{victim} (closed the connection|has not been heard of|cannot be reached)[^.]*")
    podman("start", hosts[victim])


def fill_the_disk(hosts, _, heard):
    """Of the second host. Nobody ends: the checkpoints come when there is room again."""
    second = hosts["second"]
    second.run(f"dd if=/dev/zero of={OUTPUT}/filler bs=64k")
    for name in hosts:
        heard(name, "second: no room for a checkpoint")
    step = trains_beyond(status(hosts["demo"])["step"] + 50, {"demo": hosts["demo"]})  # the second writes nothing down
    second.check_output(f"rm {OUTPUT}/filler")
    wait_for(lambda: all(newest(host) > step for host in hosts.values()), "a checkpoint", hosts)
    LOG.info("a checkpoint of step %d; there was no room until step %d", newest(second), step)


def stop(hosts, victim, heard):
    """One host's stop is everybody's, with a checkpoint. Meanwhile the second host gets a larger disk."""
    hosts[victim].check_output("debzero stop pair")
    heard(other(victim), f"{victim} was asked to stop|stopped; `debzero train` resumes from the newest checkpoint")
    wait_for(lambda: all(status(host).get("state") == "stopped" for host in hosts.values()), "the stop", hosts)
    second = hosts["second"]
    second.check_output(f"cp --archive {OUTPUT} /srv/pair && umount {OUTPUT}")
    second.check_output(f"cp --archive /srv/pair/. {OUTPUT} && rm --recursive /srv/pair")
    code, text = play(hosts, "job", "job=pair", "state=started", "job_wait=300")
    assert code == 0, text


@pytest.fixture
def small_disk(hosts):
    """The second host's output folder on a disk of its own, which does not outlive the host."""
    second = hosts["second"]
    second.check_output(f"systemctl stop {UNIT}; systemctl reset-failed {UNIT} || true")
    second.run(f"umount {OUTPUT}")  # which an earlier test may have left
    second.check_output(f"rm --recursive --force {OUTPUT} && install -d -o debzero -g debzero -m 750 {OUTPUT}")
    second.check_output(f"mount -t tmpfs -o size={DISK}m,uid=debzero,gid=debzero,mode=750 tmpfs {OUTPUT}")
    yield
    second.run(f"umount {OUTPUT}")


@pytest.mark.usefixtures("small_disk")
def test_it_ends_like_the_same_job_on_one_host_whatever_happens(hosts):
    assert hosts["demo"].run("timeout 900 debzero status alone --watch").rc == 0, journal(hosts["demo"])
    hosts["demo"].check_output(f"systemctl enable {UNIT}")  # as on the second: it comes back from a loss of power
    code, text = play(hosts, "job", "job=pair", "state=started", "job_wait=300")
    assert code == 0 and text.count("active (running)") >= 2, text

    faults = [(fault, random.choice([*hosts])) for fault in (kill_a_rank, cut_the_link, freeze, fill_the_disk)]
    powers = [(kill_the_container, name) for name in hosts]
    step = 0
    for fault, victim in [*random.sample(faults, 4), (stop, random.choice([*hosts])), *random.sample(powers, 2)]:
        step = trains_beyond(step + 50, hosts)
        time.sleep(random.uniform(0, MOMENT))
        moment = now(hosts)
        LOG.info("%s: %s, after step %d", fault.__name__, victim, status(hosts["demo"])["step"])
        heard = waits_to_hear(hosts, moment)
        fault(hosts, victim, heard)
        if fault is not fill_the_disk:
            heard("second", r"resuming from step \d+", 400)
    for host in hosts.values():
        assert host.run("timeout 900 debzero status pair --watch").rc == 0, journal(host)
    alone, pair = sums(hosts["demo"], "alone", "pair")
    assert alone == pair == sums(hosts["second"], "pair")[0]


def test_the_way_between_the_hosts_is_examined(hosts):
    code, text = play(hosts, "doctor", "job=pair")
    assert code == 0 and len(re.findall(r"- (?:demo|second) +ok\b", text)) == 2, text
