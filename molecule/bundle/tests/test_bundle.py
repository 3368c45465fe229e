"""A host that no packet may leave: a bundle that is not whole changes nothing on it, and a whole one trains the demo.

The tests are one story: each begins where the one before ended.
"""

import json
import os
import re
import subprocess
import tarfile
from pathlib import Path

import pytest
import testinfra
import yaml

PROJECT = Path(__file__).resolve().parents[3]
STACK = yaml.safe_load((PROJECT / "stack.yml").read_text())["stack"]
SERIES = STACK["cuda"].replace(".", "-")
DIST = PROJECT / "dist"
PROGRAM = PROJECT / "roles/bundle/files/debzero-bundle"
KEYRING = DIST / "debzero-bundle-keyring.gpg"
# All that roles change lies here; Ansible's own files do not.
# preflight makes a file where the roles write, and removes it: that changes a folder's time.
# Without the two files that apt makes from its lists whenever root asks it something.
STATE = ("find /etc /opt /usr /var/cache /var/lib /srv -xdev -name '*pkgcache.bin' -o -type d -printf '%p %m %U\\n' "
         "-o -printf '%p %s %m %U %T@\\n'")


@pytest.fixture(scope="module")
def bundle():
    (file,) = DIST.glob("debzero-bundle_*.tar")
    return file


@pytest.fixture(scope="module")
def offline(host):
    """The host without a way out. (pytest keeps the order of tests that use `host`.)"""
    return testinfra.get_host(f"podman://{host.backend.name}-second")


def play(host, *options):
    """site.yml on that host alone: (exit code, what it said)."""
    done = subprocess.run(
        ["ansible-playbook", "-i", "inventory/demo", "-i", "inventory/cluster", "site.yml", "--limit", "second",
         *map(str, options)], cwd=PROJECT, text=True, capture_output=True,
        env={**os.environ, "ANSIBLE_NOCOLOR": "1", "DEBZERO_CONTAINER": host.backend.name})
    return done.returncode, re.sub(r"\n +(?!-)", " ", done.stdout + done.stderr)


def dropped(host):
    """Packets that wanted to leave it."""
    process = subprocess.run(["podman", "inspect", "--format", "{{.State.Pid}}", f"{host.backend.name}-second"],
                             check=True, capture_output=True, text=True).stdout.strip()
    rules = subprocess.run(["nsenter", "--net", "--target", process, "nft", "list", "table", "inet", "egress"],
                           check=True, capture_output=True, text=True).stdout
    return int(re.search(r"counter packets (\d+) bytes \d+ drop", rules)[1])


def state(offline):
    return set(offline.check_output(STATE).splitlines())


def refused(host, offline, file, *said, key=KEYRING):
    before = state(offline)
    code, text = play(host, "-e", f"bundle={file}", "-e", f"bundle_keyring={key}")
    assert code != 0
    for words in (*said, "nothing was changed on any host"):
        assert words in text, text
    assert not state(offline) ^ before


def damaged(bundle, folder):
    """Hard to see: the bundle with one bit of one package flipped. Returns (path, member)."""
    with tarfile.open(bundle) as archive:
        member = next(info for info in archive if "/debzero-runtime-ops_" in info.name)
    made = folder / "flipped.tar"
    subprocess.run(["cp", "--reflink=auto", bundle, made], check=True)
    with made.open("r+b") as stream:
        stream.seek(member.offset_data + member.size // 2)
        byte = stream.read(1)
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([byte[0] ^ 1]))
    return made, member.name


def test_the_bundle_says_what_is_in_it(host, bundle):
    done = subprocess.run([PROGRAM, "verify", bundle, "--json", "--key", KEYRING], check=True, capture_output=True)
    assert json.loads(done.stdout)["problems"] == []
    with tarfile.open(bundle) as archive:
        manifest = json.load(archive.extractfile("manifest.json"))
        bill = json.load(archive.extractfile("sbom.cdx.json"))
    rows = {row["path"]: row for row in manifest["files"]}
    assert all(row["source"] and row["licence"] and len(row["sha256"]) == 64 for row in rows.values())
    assert {path.split("/")[0] for path in rows} == {"apt", "controller", "datasets", "downloads", "keys", "models",
                                                     "sbom.cdx.json"}
    assert {source["suite"] for source in manifest["apt"]} >= {"bullseye", "bullseye-security"}
    assert bill["bomFormat"] == "CycloneDX"
    named = {component["name"] for component in bill["components"]}
    assert {"torch", "cmake", "debzero-runtime-nvidia", "ansible-core", "cudnn", "tiny", "opinions"} <= named
    assert rows["models/tiny/config.json"]["licence"] == "apache-2.0"
    # Of NVIDIA's archive what the role names, and none of the traps beside it.
    theirs = {row["source"].split("@")[0]: row["licence"] for row in rows.values() if "/nvidia/" in row["source"]}
    assert f"pkg:deb/nvidia/cuda-nvcc-{SERIES}" in theirs
    assert set(theirs.values()) == {"LicenseRef-NVIDIA-Proprietary"}
    assert all(re.search(f"-{SERIES}$|-config-common$", name) for name in theirs), theirs


def test_a_flipped_byte_is_refused_before_anything_changes(host, offline, bundle, tmp_path):
    assert dropped(host) == 0
    file, member = damaged(bundle, tmp_path)
    refused(host, offline, file, f"{member}: it is damaged")
    file.unlink()


def test_a_missing_file_is_refused_before_anything_changes(host, offline, bundle, tmp_path):
    with tarfile.open(bundle) as archive:
        names = [info.name for info in archive]
    lost = next(name for name in names if "/cmake_" in name)
    file = tmp_path / "missing.tar"
    subprocess.run(["cp", "--reflink=auto", bundle, file], check=True)
    subprocess.run(["tar", "--delete", f"--file={file}", lost], check=True)
    refused(host, offline, file, f"{lost}: it is missing")
    file.unlink()


def test_a_wrong_key_is_refused_before_anything_changes(host, offline, bundle, tmp_path):
    home = tmp_path / "gnupg"
    home.mkdir(mode=0o700)
    gpg = ["gpg", "--homedir", str(home), "--batch", "--quiet", "--passphrase", ""]
    subprocess.run([*gpg, "--quick-gen-key", "somebody", "ed25519", "sign", "never"], check=True)
    subprocess.run([*gpg, "--output", str(tmp_path / "other.gpg"), "--export"], check=True)
    subprocess.run(["gpgconf", "--homedir", str(home), "--kill", "all"], check=True)
    refused(host, offline, bundle, "manifest.json.sig: the key", "signed it", key=tmp_path / "other.gpg")
    refused(host, offline, bundle, "the keyring is not there", key=tmp_path / "none.gpg")
    refused(host, offline, tmp_path / "none.tar", "No such file", key=KEYRING)


def test_a_bare_host_can_be_checked_first(host, offline, bundle):
    before = state(offline)
    code, text = play(host, "--check", "-e", f"bundle={bundle}")
    assert code == 0, text
    changed = state(offline) ^ before
    assert not changed


def test_the_host_is_provisioned_and_trains(host, offline, bundle):
    code, text = play(host, "-e", f"bundle={bundle}")
    assert code == 0, text
    assert offline.run("timeout 900 debzero status demo --watch").rc == 0
    assert json.loads(offline.check_output("debzero status demo --json"))["state"] == "finished"
    assert json.loads(offline.check_output(f"cat {STACK['state']}/demo/report.json"))["steps"] > 0
    answer = offline.run("debzero predict demo 'GNU compiler for C++'")
    assert answer.rc == 0 and "devel" in answer.stdout, answer.stdout + answer.stderr
    assert offline.file(STACK["venv"]).is_symlink
    assert offline.run(f"find {STACK['cache']}/bundle \\( -perm /022 -o ! -user root \\) ! -type l | grep .").rc == 1
    environment = offline.check_output("systemctl show --property=Environment debzero@demo")
    assert "HF_HUB_OFFLINE=1" in environment


def test_again_nothing_changes(host, offline, bundle):
    for options in ((), ("--check",)):
        code, text = play(host, *options, "-e", f"bundle={bundle}")
        assert code == 0, text
        assert re.search(r"second +: ok=\d+ +changed=0 ", text), text


def test_a_job_names_what_the_bundle_brought(host, offline):
    folder = f"{STACK['cache']}/bundle"
    job = {"model": f"{folder}/models/tiny", "data": {"dataset": f"{folder}/datasets/opinions", "max_length": 8},
           "train": {"max_steps": 2, "global_batch": 8}, "ranks": 1, "output": f"{STACK['state']}/opinions"}
    offline.check_output("echo %s >/etc/debzero/jobs/opinions.yml", json.dumps(job))
    offline.check_output("systemctl start debzero@opinions")
    assert offline.run("timeout 300 debzero status opinions --watch").rc == 0
    assert json.loads(offline.check_output("debzero status opinions --json"))["state"] == "finished"


def test_nvidia_s_packages_come_from_the_bundle(host, offline, bundle):
    """With neither their keyring nor their source; and a part of the run is enough, as the host has the bundle."""
    digest = host.check_output(f"sha256sum /srv/cudnn-linux-x86_64-{STACK['cudnn']}_*").split()[0]
    options = ("--tags", "cuda", "-e", f"bundle={bundle}", "-e", "cuda_source=nvidia",
               "-e", f"cuda_cudnn_sha256={digest}")
    code, text = play(host, *options)
    assert code == 0, text
    assert f"release {STACK['cuda']}," in offline.check_output(f"{STACK['cuda_home']}/bin/nvcc --version")
    assert offline.package("libcudnn8").version.startswith(STACK["cudnn"])
    for package in ("libcuda1", "nvidia-smi", "cuda", "cuda-nvcc-11-8"):
        assert "Candidate: (none)" in offline.check_output(f"apt-cache policy {package}")
    assert "Candidate: 1:99" not in offline.check_output("apt-cache policy zlib1g")
    assert offline.check_output("find /etc/apt/sources.list.d /usr/share/keyrings -name '*cuda*'") == ""
    code, text = play(host, *options)
    assert code == 0 and re.search(r"second +: ok=\d+ +changed=0 ", text), text


def test_no_packet_wanted_to_leave_the_host(host):
    assert dropped(host) == 0


def test_a_controller_without_internet_is_made_from_the_bundle(host, bundle, tmp_path):
    unpacked, checkout = tmp_path / "unpacked", tmp_path / "debzero"
    subprocess.run([PROGRAM, "unpack", bundle, unpacked, "--only", "controller", "--key", KEYRING], check=True)
    subprocess.run(["tar", "--extract", f"--file={unpacked}/controller/debzero.tar", f"--directory={tmp_path}"],
                   check=True)
    made = subprocess.run(
        ["unshare", "--net", "ansible/bootstrap"], cwd=checkout, text=True, capture_output=True,
        env={**os.environ, "DEBZERO_WHEELS": f"{unpacked}/controller/wheels", "UV_CACHE_DIR": f"{tmp_path}/uv"})
    assert made.returncode == 0, made.stdout + made.stderr
    subprocess.run([checkout / ".cache/controller/bin/ansible-playbook", "--syntax-check", "-i", "inventory/demo",
                    "site.yml"], cwd=checkout, check=True)
