"""What playbooks refuse of bundles before they ask any host: one that nobody would get, or that cannot serve."""
import json
import re
from pathlib import Path

import pytest
from controller import ROOT, play

pytestmark = pytest.mark.long  # each test starts Ansible

# NVIDIA's archive is no reason to refuse. A run that is not refused reaches nobody.
HOSTS = "{ansible_host: gpu.invalid, cuda_source: nvidia, nvidia_driver_source: nvidia}"


WHOLE = {"problems": [], "debzero": re.search(r"\((.+?)\)", (ROOT / "debian/changelog").read_text())[1],
         "manifest_sha256": "0" * 64, "bytes": 1}
# This machine as a host, of which a check changes nothing.
HERE = "{ansible_connection: local, ansible_become: false, ansible_python_interpreter: /usr/bin/python3}"


def refusal(folder: Path, *options: str, name: str = "bundle", host: str = HOSTS) -> str:
    inventory = folder / "hosts.yml"
    inventory.write_text(f"gpu_servers: {{hosts: {{one: {host}, two: {host}}}}}\n")
    file = "site.yml" if name == "site" else f"playbooks/{name}.yml"
    done = play("-i", inventory, file, "-e", f"bundle_store={folder}", *options)
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
    whole = {"bundle": "next.tar", "bundle_found": WHOLE}
    assert "one gets all from the bundle next.tar, which has one release" in refusal(
        tmp_path, "-e", json.dumps(whole), name="upgrade")


def test_hosts_that_live_from_a_bundle_are_known_without_it(tmp_path):
    """It has one release, and their apt reads nothing else."""
    (tmp_path / "apt.conf").touch()
    said = refusal(tmp_path, "-e", f"__bundle_apt={tmp_path}/apt.conf", "--check", name="upgrade", host=HERE)
    assert "one lives from a bundle" in said and "-e bundle=FILE" in said


@pytest.mark.parametrize("given", [["a.tar"], {"file": "a.tar"}, True, 7])
def test_a_bundle_that_is_no_path(tmp_path, given):
    said = refusal(tmp_path, "-e", json.dumps({"bundle": given}), name="site")
    assert f"bundle is {json.dumps(given)}, and must be the path of a file" in said


@pytest.mark.parametrize("tags", [["--tags", "base"], ["--tags", "preflight,cuda"], ["--skip-tags", "bundle"]])
def test_a_part_of_the_run_that_leaves_the_bundle_out(tmp_path, tags):
    """The roles would look for packages that nobody has brought to the host."""
    whole = json.dumps({"bundle": "next.tar", "bundle_found": WHOLE})
    said = refusal(tmp_path, "-e", whole, *tags, "--check", name="site", host=HERE)
    assert "one does not have the bundle next.tar yet, and these tags leave out what brings it" in said
    assert "add bundle to --tags" in said
