"""What playbooks refuse of bundles before they ask any host: one that nobody would get, or that cannot serve."""
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.long  # each test starts Ansible

ROOT = Path(__file__).resolve().parents[4]
PATH = os.pathsep.join([str(ROOT / ".cache/controller/bin"), os.environ["PATH"]])
# NVIDIA's archive is no reason to refuse. A run that is not refused reaches nobody.
HOSTS = "{ansible_host: gpu.invalid, cuda_source: nvidia, nvidia_driver_source: nvidia}"


def refusal(folder: Path, *options: str, name: str = "bundle") -> str:
    playbook = shutil.which("ansible-playbook", path=PATH)
    if playbook is None:
        pytest.fail("ansible-playbook is not installed: run `ansible/bootstrap tests` and try again", pytrace=False)
    inventory = folder / "hosts.yml"
    inventory.write_text(f"gpu_servers: {{hosts: {{one: {HOSTS}, two: {HOSTS}}}}}\n")
    words = ["-i", inventory, f"playbooks/{name}.yml", "-e", f"bundle_store={folder}", *options]
    done = subprocess.run([playbook, *words], cwd=ROOT, text=True, capture_output=True, stdin=subprocess.DEVNULL,
                          env={**os.environ, "PATH": PATH, "ANSIBLE_NOCOLOR": "1"})
    text = done.stdout + done.stderr
    assert done.returncode == 2 and "UNREACHABLE" not in text, text
    return re.sub(r"\s+", " ", text)


@pytest.mark.parametrize("options", [["-e", "bundle_builder=nosuch"], ["--limit", "two"]])
def test_a_builder_that_the_run_does_not_reach(tmp_path, options):
    builder = "nosuch" if "nosuch" in options[1] else "one"
    assert f"The builder {builder} is not in the inventory, or --limit leaves it out" in refusal(tmp_path, *options)


def test_tensorrt_on_one_host_refuses_all(tmp_path):
    (tmp_path / "host_vars").mkdir()
    (tmp_path / "host_vars/two.yml").write_text("tensorrt_install: true\n")
    assert "two: a bundle has Debian's packages, NVIDIA's and debzero's own, and neither" in refusal(tmp_path)


def test_operators_without_gpus_for_hosts_with_some(tmp_path):
    (tmp_path / "debzero-runtime-ops_1+cpu.2-1_amd64.deb").touch()
    assert "one has GPUs, and the packages in" in refusal(tmp_path)


def test_hosts_of_a_bundle_have_nothing_to_go_back_to(tmp_path):
    release = re.search(r"\((.+?)\)", (ROOT / "debian/changelog").read_text())[1]
    whole = {"bundle": "next.tar", "bundle_found": {"problems": [], "debzero": release}}
    assert "one gets all from the bundle next.tar, which has one release" in refusal(
        tmp_path, "-e", json.dumps(whole), name="upgrade")
