"""A job under its unit is stopped, killed and rebooted in its middle, and ends like one that nobody disturbed.

`make test-long` sets DEBZERO_LONG: then it is killed in every way, and a rank hangs.
"""

import json
import os
import subprocess
import time

UNIT = "debzero@disturbed"
OUTPUT = "/var/lib/debzero/disturbed"
RANKS = "pgrep '^debzero rank'"
RESUMED = "resuming from step"
KILLS = [f"kill -9 $({RANKS} | tail -1)"]  # one rank: the launcher must end the others
if os.environ.get("DEBZERO_LONG"):
    KILLS += [f"systemctl kill --kill-who={who} --signal=KILL {UNIT}" for who in ("main", "all")]
WATCHDOG = """[Service]
WatchdogSec=20s
[Unit]
StartLimitIntervalSec=0
"""


def status(host, job="disturbed"):
    return json.loads(host.run(f"debzero status {job} --json").stdout or "{}")


def journal(host):
    return host.check_output(f"journalctl --unit {UNIT} --no-pager")


def wait_for(host, condition, what, seconds=400):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"waited in vain for {what}\n{journal(host)[-6000:]}"
        time.sleep(0.5)  # each question starts some processes, which take from what trains


def trains_beyond(host, step):
    wait_for(host, lambda: status(host).get("state") == "training" and status(host)["step"] > step,
             f"a step after {step}")
    return status(host)["step"]


def checkpoints(host):
    names = host.check_output(f"ls {OUTPUT}/checkpoints").split()
    return sorted(int(name.split("-")[1]) for name in names if name.startswith("step-"))


def ranks(host):
    return host.check_output(RANKS).split()


def resumed(host):
    return journal(host).count(RESUMED)


def hang(host, number):
    """A rank hangs: the others wait in a collective, no step is finished, and the watchdog ends it."""
    host.check_output(f"kill -STOP $({RANKS} | tail -1)")
    wait_for(host, lambda: resumed(host) == number, "the watchdog")
    assert "watchdog" in journal(host).lower()


def test_the_disturbed_job_ends_like_the_calm_one(host):
    host.check_output("systemctl start debzero@calm")
    assert host.run("timeout 900 debzero status calm --watch").rc == 0, status(host, "calm")

    host.run(f"mkdir -p /etc/systemd/system/{UNIT}.service.d")
    dropin = f"/etc/systemd/system/{UNIT}.service.d/test.conf"
    host.check_output("printf %s > %s && systemctl daemon-reload", WATCHDOG, dropin)
    host.check_output(f"systemctl enable --now {UNIT}")

    # Stopped: not a step is lost, and the status says so.
    trains_beyond(host, 20)
    host.check_output("debzero stop disturbed")
    stopped = status(host)
    assert stopped["state"] == "stopped" and host.run(f"systemctl is-active {UNIT}").stdout.strip() == "inactive"
    last = checkpoints(host)[-1]
    assert last >= stopped["step"], "the stop was to wait for a checkpoint of its own"
    host.check_output(f"systemctl start {UNIT}")
    step = trains_beyond(host, last)
    assert resumed(host) == 1

    # Processes are killed: the unit starts again by itself.
    for number, kill in enumerate(KILLS, 2):
        before = set(ranks(host))
        host.check_output(kill)
        wait_for(host, lambda: resumed(host) == number, f"resumption {number}")  # noqa: B023 - called at once
        assert not before & set(ranks(host)), "a rank of the killed run is still there"
        step = trains_beyond(host, step)

    if os.environ.get("DEBZERO_LONG"):
        hang(host, len(KILLS) + 2)
        step = trains_beyond(host, step)

    # The host goes down in order, and comes back.
    name = host.backend.name
    subprocess.run(["podman", "stop", "--time", "120", name], check=True, capture_output=True)
    subprocess.run(["podman", "start", name], check=True, capture_output=True)
    wait_for(host, lambda: host.run("systemctl is-system-running").stdout.strip() in ("running", "degraded"),
             "the boot")
    wait_for(host, lambda: resumed(host) == 1, "resumption after the boot")  # the container's journal began anew
    words = [line for line in journal(host).splitlines() if RESUMED in line][-1]
    assert int(words.rsplit(" ", 1)[1]) >= step, f"the shutdown was to wait for a checkpoint of its own: {words}"

    assert host.run("timeout 900 debzero status disturbed --watch").rc == 0, journal(host)[-6000:]
    models = [f"/var/lib/debzero/{job}/model/model.safetensors" for job in ("calm", "disturbed")]
    sums = host.check_output("sha256sum %s %s", *models)
    assert len({line.split()[0] for line in sums.splitlines()}) == 1, sums
    assert status(host)["report"]["resumed"] >= 1


def test_a_job_that_fails_alike_is_given_up_by_its_unit(host):
    host.run("systemctl start debzero@hopeless")
    until = time.monotonic() + 400
    while "given_up" not in status(host, "hopeless"):
        assert time.monotonic() < until, host.check_output("journalctl --unit debzero@hopeless --no-pager | tail -40")
        time.sleep(1)
    time.sleep(15)  # longer than RestartSec
    assert host.run("systemctl is-active debzero@hopeless").stdout.strip() == "failed"
    assert "giving up" in host.check_output("journalctl --unit debzero@hopeless --no-pager")
