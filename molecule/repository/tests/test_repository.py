"""A bare host with nothing but the repository: installed, upgraded, gone back, removed and purged by apt alone.

The tests are one story: each begins where the one before ended. It goes on in test_upgrade.py, with Ansible.
"""

import base64
import json
import os
import re
import subprocess
import time
from pathlib import Path

import pytest
import testinfra
import yaml

PROJECT = Path(__file__).resolve().parents[3]
STACK = yaml.safe_load((PROJECT / "stack.yml").read_text())["stack"]
LATER = PROJECT / ".cache/repository"  # files/make_later.sh says what is there
VENV, HOME = STACK["venv"], "/usr/lib/debzero/runtime"
KEYRING = "/usr/share/keyrings/debzero-archive-keyring.gpg"
APT = "DEBIAN_FRONTEND=noninteractive apt-get --yes --quiet"
RANKS = "pgrep --list-full '^debzero rank'"
PARTS = ("debzero-runtime", *(f"debzero-runtime-{part}" for part in ("ops", "torch", "nvidia")))
SECONDS = 240  # from a bare host to the trained demo
# Long enough to be upgraded meanwhile.
JOB = """model: {type: bert, vocab_size: 2000, hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2,
        intermediate_size: 64}
data: {dataset: debian-sections, max_length: 32}
train: {epochs: 60, max_steps: 5000, global_batch: 16, learning_rate: 1e-3, log_every: 50, evaluate_every: 1000}
checkpoint: {steps: 250}
zero: {stage: 2}
ranks: 2
output: /var/lib/debzero/NAME
"""


@pytest.fixture(scope="module")
def bare(host):
    """The host with nothing on it; `host` serves the repository. (pytest keeps the order of tests that use `host`.)"""
    found = testinfra.get_host(f"podman://{host.backend.name}-second")
    # Purge removes what lies there, and a bare host has none: not the downloads of the machine that runs the tests.
    found.run("umount /var/cache/debzero/uv")
    assert found.run("mountpoint --quiet /var/cache/debzero/uv").rc != 0
    return found


def version(package):
    """The one in dist/ that the hosts begin with."""
    (deb,) = (PROJECT / "dist").glob(f"{package}_*.deb")
    return subprocess.run(["dpkg-deb", "--field", deb, "Version"], check=True, capture_output=True,
                          text=True).stdout.strip()


def first_versions(*packages):
    return " ".join(f"{package}={version(package)}" for package in packages)


def status(host, job):
    return json.loads(host.run(f"cat /var/lib/debzero/{job}/status.json").stdout or "{}")


def wait_for(host, job, condition, what, seconds=400):
    until = time.monotonic() + seconds
    while not condition():
        log = host.run(f"journalctl --unit debzero@{job} --no-pager --lines=60").stdout
        assert time.monotonic() < until, f"waited in vain for {what}\n{log}"
        time.sleep(0.5)


def trains_beyond(host, job, step):
    wait_for(host, job, lambda: status(host, job).get("state") == "training" and status(host, job)["step"] > step,
             f"a step after {step}")


def finishes(host, job):
    assert host.run(f"timeout 900 debzero status {job} --watch").rc == 0, status(host, job)


def environment(host):
    return host.check_output(f"readlink {VENV}")


def operators(host):
    """The line by which make_later.sh marks a later build of them."""
    return host.check_output(f"tail -n 1 {VENV}/lib/python3.*/site-packages/deepspeed/git_version_info.py")


def environments(host):
    return host.run(f"ls -d {HOME}/env/*").stdout.split()


def run_from(host, tree):
    """Whether all ranks that run do so from this environment."""
    ranks = host.check_output(RANKS).splitlines()
    return len(ranks) == 2 and all(f" {tree}/bin/python " in rank for rank in ranks)


def write_job(host, name):
    host.check_output(f"echo '{JOB.replace('NAME', name)}' >/etc/debzero/jobs/{name}.yml")


def weights(host, job):
    return host.check_output(f"sha256sum </var/lib/debzero/{job}/model/model.safetensors")


def publish(host, **variables):
    """playbooks/repository.yml on the host that serves it: (exit code, what it said)."""
    done = subprocess.run(
        ["ansible-playbook", "-i", "inventory/demo", "playbooks/repository.yml", "-e", json.dumps(variables)],
        cwd=PROJECT, text=True, capture_output=True,
        env={**os.environ, "ANSIBLE_NOCOLOR": "1", "DEBZERO_CONTAINER": host.backend.name})
    return done.returncode, re.sub(r"\n +(?!-)", " ", done.stdout + done.stderr)


def test_two_commands_and_a_start_end_in_the_trained_demo(host, bare):
    address = re.search(r"inet ([\d.]+)", host.check_output("ip -4 -o address show eth1"))[1]
    key = base64.b64encode((PROJECT / "dist/debzero-archive-keyring.gpg").read_bytes()).decode()
    bare.check_output(f"echo {key} | base64 -d >{KEYRING}")
    bare.check_output(f"echo 'deb [signed-by={KEYRING}] http://{address}:8000 bullseye main' "
                      ">/etc/apt/sources.list.d/debzero.list")
    started = time.monotonic()
    bare.check_output("apt-get --quiet update")
    bare.check_output(f"{APT} install debzero")
    installed = time.monotonic()
    bare.check_output("systemctl start debzero@demo")
    finishes(bare, "demo")
    ended = time.monotonic()
    print(f"installed in {installed - started:.0f} s, trained in {ended - installed:.0f} s")
    assert ended - started < SECONDS


def test_the_environment_is_whole_and_root_s(bare):
    assert environment(bare) in environments(bare)
    assert bare.check_output(f"find -L {VENV} {HOME} \\( -perm -o+w -o ! -user root \\) ! -type l | head") == ""
    assert bare.run(f"cd / && {VENV}/bin/python -I -c 'import torch, transformers, deepspeed'").rc == 0
    for package in PARTS:
        assert len(bare.file(f"/usr/share/doc/{package}/copyright").content_string) > 2000
    assert "NVIDIA" in bare.file("/usr/share/doc/debzero-runtime-nvidia/copyright").content_string
    # Hard links take no space, and every file of the environment is one of a package's.
    alone = bare.check_output(f"find {environment(bare)}/ -type f -links 1 | head")
    assert alone == ""


def test_a_damaged_file_is_repaired_by_installing_again(bare):
    name = bare.check_output(f"find {VENV}/lib/ -name 'async_io_op*.so'")
    whole = bare.check_output(f"sha256sum <{name}")
    bare.check_output(f"echo broken >>{name}")
    assert bare.check_output(f"sha256sum <{name}") != whole
    bare.check_output(f"{APT} install --reinstall debzero-runtime-ops")
    assert bare.check_output(f"sha256sum <{name}") == whole
    assert environments(bare) == [environment(bare)]


def test_a_job_finishes_in_the_environment_that_it_started_with(host, bare):
    code, said = publish(host, repository_packages=[str(deb) for deb in LATER.glob("release/*.deb")])
    assert code == 0, said
    before = environment(bare)
    bare.check_output("printf 'OMP_NUM_THREADS=1\\n' >/etc/default/debzero")
    write_job(bare, "calm")
    bare.check_output("systemctl start debzero@calm")
    trains_beyond(bare, "calm", 10)
    bare.check_output("apt-get --quiet update")
    bare.check_output(f"{APT} upgrade")
    assert bare.package("debzero-runtime").version == "2+later-1" and bare.package("debzero").version == "9.0"
    assert bare.package("debzero-runtime-torch").version.endswith("-2") and operators(bare) == "# later"
    assert status(bare, "calm")["state"] == "training", "it must be longer than the upgrade"
    assert run_from(bare, before) and environment(bare) != before
    assert sorted(environments(bare)) == sorted([before, environment(bare)])
    finishes(bare, "calm")


def test_the_next_start_takes_the_new_one_and_a_rollback_resumes_to_the_same_weights(host, bare):
    code, said = publish(host, repository_packages=[str(deb) for deb in LATER.glob("rebuilt/*.deb")])
    assert code == 0, said
    write_job(bare, "disturbed")
    bare.check_output("systemctl start debzero@disturbed")
    trains_beyond(bare, "disturbed", 400)
    after = environment(bare)
    assert run_from(bare, after)
    # Operators that were built again for the same release: apt takes the newer ones, and a running job keeps its own.
    bare.check_output(f"apt-get --quiet update && {APT} upgrade")
    assert operators(bare) == "# rebuilt" and run_from(bare, after)
    bare.check_output("debzero stop disturbed")
    assert status(bare, "disturbed")["step"] < 5000
    # Across PyTorch: with all parts that change.
    bare.check_output(f"{APT} install --allow-downgrades {first_versions('debzero', *PARTS)}")
    assert bare.package("debzero-runtime-torch").version.endswith("-1") and not operators(bare).startswith("#")
    assert environments(bare) == [environment(bare)], "what no job uses is gone"
    bare.check_output("systemctl start debzero@disturbed")
    finishes(bare, "disturbed")
    assert "resuming from step" in bare.check_output("journalctl --unit debzero@disturbed --no-pager")
    assert weights(bare, "disturbed") == weights(bare, "calm")


def test_removal_loses_nothing_that_runs_and_purge_leaves_models_alone(bare):
    bare.check_output("rm -r /var/lib/debzero/disturbed && systemctl stop debzero@disturbed")
    bare.check_output("systemctl start debzero@disturbed")
    trains_beyond(bare, "disturbed", 10)
    before = environment(bare)
    bare.check_output(f"{APT} remove {' '.join(PARTS)}")
    assert run_from(bare, before) and not bare.file(VENV).exists
    missing = bare.run("debzero train /etc/debzero/jobs/demo.yml")
    assert missing.rc == 2 and "is missing, the Python environment" in missing.stderr
    assert "-> apt install debzero-runtime" in missing.stderr and "ansible" not in missing.stderr
    assert len(missing.stderr.splitlines()) <= 4
    bare.check_output("systemctl stop debzero@disturbed")
    assert status(bare, "disturbed")["state"] == "stopped"

    bare.check_output(f"{APT} install {first_versions(*PARTS)}")
    assert environments(bare) == [environment(bare)]
    bare.check_output(f"{APT} purge debzero {' '.join(PARTS)}")
    left = bare.check_output("find / -xdev -path '*debzero*' -not -path '/var/cache/apt/*' -not -path '/var/lib/apt/*' "
                             "-not -path '/proc/*' -not -path '/sys/*' -not -path '/var/log/*'").splitlines()
    kept = ("/var/lib/debzero", KEYRING, "/etc/apt/sources.list.d/debzero.list")
    assert [path for path in left if not path.startswith(kept)] == []
    assert bare.file("/var/lib/debzero/calm/model/model.safetensors").exists


def test_an_earlier_snapshot_is_published_again(host, bare):
    snapshots = host.check_output("aptly -config=/srv/debzero-repository/aptly/aptly.conf snapshot list -raw "
                                  "-sort=time").split()
    code, said = publish(host, repository_snapshot=snapshots[0])
    assert code == 0, said
    bare.check_output("apt-get --quiet update")
    offered = bare.check_output("apt-cache madison debzero-runtime")
    assert version("debzero-runtime") in offered and "later" not in offered
    assert publish(host)[0] == 0
    bare.check_output("apt-get --quiet update")
    assert "later" in bare.check_output("apt-cache madison debzero-runtime")
    code, said = publish(host, repository_snapshot="nosuch")
    assert code != 0 and f"There is no snapshot nosuch; there are: {snapshots[0]}" in said


def test_other_bytes_under_a_published_version_are_refused(host, tmp_path):
    (deb,) = (PROJECT / "dist").glob("debzero_*.deb")
    changed = tmp_path / deb.name
    changed.write_bytes(deb.read_bytes() + b"\n")
    code, said = publish(host, repository_packages=[str(changed)])
    assert code != 0 and f"{deb.stem}: published already, and this file is another one" in said


def test_nothing_that_was_changed_after_signing_is_installed(host, bare):
    (index,) = host.check_output("ls /srv/debzero-repository/public/dists/bullseye/InRelease").split()
    host.check_output(f"cp -p {index} /srv/kept && sed -i 's/^Codename: bullseye/Codename: bullseyf/' {index}")
    try:
        assert "BADSIG" in bare.run("apt-get update").stdout + bare.run("apt-get update").stderr
    finally:
        host.check_output(f"cp -p /srv/kept {index}")


def test_lintian_accepts_the_packages(host):
    host.check_output(f"{APT} install --no-install-recommends lintian")
    built = [deb.name for deb in (PROJECT / "dist").glob("debzero*.deb")]
    pool = host.check_output("find /srv/debzero-repository/public/pool -name '*.deb'").split()
    judged = host.run("lintian --fail-on=error --fail-on=warning --tag-display-limit=0 "
                      + " ".join(path for path in pool if os.path.basename(path) in built))
    assert {os.path.basename(path) for path in pool} >= {*built} and len(built) > len(PARTS)
    assert judged.rc == 0, judged.stdout[-4000:]
