"""playbooks/bench.yml measures in the jobs' sandbox, and nothing that the jobs' user plants reaches the controller."""

import json
import os
import subprocess
from pathlib import Path

import yaml

PROJECT = Path(__file__).resolve().parents[3]
# What `systemctl edit debzero@hostile` may have written; in place of a model that plants a link, and looks around.
EDIT = """[Service]
ExecStartPost=/bin/sh -c 'grep -E "^(NoNewPrivs|Seccomp|CapBnd):" /proc/self/status >/var/lib/debzero/hostile-status'
ExecStopPost=/bin/ln --symbolic --force /etc/shadow /var/lib/debzero/hostile-bench/results.json
"""
SANDBOX = "User,UMask,ProtectSystem,ProtectHome,PrivateUsers,NoNewPrivileges,CapabilityBoundingSet,DevicePolicy"


def measure(host, folder, job):
    words = ["ansible-playbook", "-i", "inventory/demo", "playbooks/bench.yml", "-e", f"bench_job={job}", "-e",
             f"bench_results={folder}", "-e", "bench_poll=1", "-e",
             json.dumps({"bench_options": "--stages none --offload none --repeats 1 --warmup 1 --steps 2"})]
    return subprocess.run(words, cwd=PROJECT, text=True, capture_output=True, stdin=subprocess.DEVNULL,
                          env={**os.environ, "ANSIBLE_NOCOLOR": "1", "DEBZERO_CONTAINER": host.backend.name})


def test_a_bench_is_an_instance_of_the_jobs_unit(host, tmp_path):
    done = measure(host, tmp_path, "tiny")
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path.name for path in (tmp_path / "demo").iterdir()} == {
        "results.json", "results.html", "results.csv", "results.md"}
    results = json.loads((tmp_path / "demo/results.json").read_text())
    assert results["configurations"][0]["runs"][0]["segments"], results
    assert host.check_output("find /var/lib/debzero/tiny-bench ! -user debzero | head") == ""
    job, bench = (host.check_output(f"systemctl show {unit} --property {SANDBOX}")
                  for unit in ("debzero@tiny", "debzero@bench:tiny"))
    assert job == bench
    assert host.run("ls /run/systemd/system/debzero@*").rc != 0, "settings of the bench are left behind"


def test_no_link_brings_a_file_of_root_to_the_controller(host, tmp_path):
    job = yaml.safe_load(host.check_output("cat /etc/debzero/jobs/tiny.yml"))
    host.check_output("printf %s >/etc/debzero/jobs/hostile.yml", yaml.safe_dump(
        {**job, "output": "/var/lib/debzero/hostile"}))
    host.check_output("mkdir -p /etc/systemd/system/debzero@hostile.service.d && "
                      "printf %s >/etc/systemd/system/debzero@hostile.service.d/planted.conf", EDIT)
    done = measure(host, tmp_path, "hostile")
    assert host.check_output("readlink /var/lib/debzero/hostile-bench/results.json") == "/etc/shadow"
    assert done.returncode and "results.json is not a plain file with results" in done.stdout, done.stdout + done.stderr
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    seen = dict(line.split(":") for line in host.check_output("cat /var/lib/debzero/hostile-status").splitlines())
    assert {name: value.strip() for name, value in seen.items()} == {
        "NoNewPrivs": "1", "Seccomp": "2", "CapBnd": "0" * 16}
