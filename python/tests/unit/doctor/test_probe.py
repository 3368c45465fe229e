"""The probe of a host: what it finds, in doctor as in the archive that the roles send to bare hosts."""
import json
import subprocess
import sys
import time

import pytest
from fake_host import DRIVER, GPUS, KERNEL, healthy
from support import SOURCE

from debzero.doctor import probe
from debzero.doctor.host import HOST_CHECKS
from debzero.doctor.probe import HostProbe
from debzero.doctor.smi import driver_facts

PLUGIN = SOURCE.parents[1] / "ansible/plugins/lookup/host_probe.py"


@pytest.fixture
def machine(tmp_path, monkeypatch):
    return healthy(tmp_path, monkeypatch)


def test_only_the_driver_s_own_modules_count(machine):
    names = ("nvidia", "nvidia-current", "nvidia-tesla-470", "nvidia-legacy-390xx", "nvidia-drm", "nvidia-current-uvm",
             "nvidia-wmi-ec-backlight", "nvidiafb")
    machine.write(f"lib/modules/{KERNEL}/modules.dep", "".join(f"updates/{name}.ko.xz:\n" for name in names))
    assert HostProbe(machine.root).modules_for(KERNEL) == list(names[:4])


def test_a_command_that_cannot_be_killed_is_left_behind(machine, monkeypatch):
    machine.command("nvidia-smi", "")
    (machine.bin / "nvidia-smi").write_text("#!/bin/sh\nexec /bin/sleep 3\n")
    monkeypatch.setattr(subprocess.Popen, "kill", lambda process: None)
    monkeypatch.setattr(probe, "KILL_SECONDS", 0.1)
    start = time.monotonic()
    assert HostProbe(machine.root).run("nvidia-smi", timeout=0.1)[0] == 124
    assert time.monotonic() - start < 2


def test_a_command_that_hangs_is_a_finding(machine):
    (machine.bin / "nvidia-smi").write_text("#!/bin/sh\nwhile :; do :; done\n")
    assert HostProbe(machine.root).run("nvidia-smi", timeout=0.2) == (124, "nvidia-smi did not answer within 0 s")


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """What the roles send to a host."""
    path = tmp_path_factory.mktemp("archive") / "host_probe.pyz"
    subprocess.run([sys.executable, PLUGIN, path], check=True)
    return path


@pytest.fixture
def script(archive, tmp_path):
    """Runs the archive as on a bare host: with the standard library alone."""
    def run(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, "-I", "-S", archive, *arguments], capture_output=True, text=True,
                              cwd=tmp_path)
    return run


def test_the_archive_runs_alone(script, tmp_path):
    lacking = json.dumps({"free_mb": {str(tmp_path): 10**9}})
    done = script("--json", lacking)
    assert done.returncode == 1, done.stderr
    results = {one["check"]: one for one in json.loads(done.stdout)}
    assert list(results) == [check.name for check in HOST_CHECKS]
    assert results["disk"]["status"] == "fail"
    assert "-> free some space" in script(lacking).stdout


@pytest.mark.parametrize("text", ["{", "[]", "5", '{"gpu": 1}', '{"free_mb": {"/opt": "7 GB"}}'])
def test_a_wrong_request_is_explained_in_one_sentence(script, text):
    done = script(text)
    assert done.returncode == 2
    assert "offload_parameters" in done.stderr and "Traceback" not in done.stderr


def facts(machine) -> dict:
    return driver_facts(HostProbe(machine.root))


def test_the_same_probe_answers_the_role_nvidia_driver(machine, script):
    machine.write("proc/sys/kernel/random/boot_id", "1-2-3\n")
    machine.write("sys/bus/pci/devices/0000:C1:00.0/vendor", "0x10de")
    machine.write("sys/bus/pci/devices/0000:C1:00.0/class", "0x068000")
    found = facts(machine)
    assert found.pop("smi").count("A100") == 2
    assert found == {"gpus": list(GPUS), "switches": ["0000:c1:00.0"], "nouveau": False, "held_by": [],
                     "loaded": DRIVER, "works": True, "answering": 2, "running": DRIVER, "boot_id": "1-2-3",
                     "cause": "", "advice": "", "helps": ""}
    assert json.loads(script("--facts").stdout).keys() == {*found, "smi"}


@pytest.mark.parametrize(("answer", "code"), [
    ("NVIDIA-SMI has failed", 9), ("No devices were found", 0), ("", 0),
    ("0, [Unknown Error], [Unknown Error], 0000:3b:00.0, [N/A], [N/A], [N/A]", 0)])
def test_a_driver_that_lists_no_gpu_does_not_work(machine, answer, code):
    machine.command("nvidia-smi", answer, code)
    assert (facts(machine)["works"], facts(machine)["running"], facts(machine)["smi"]) == (False, "", answer)


def test_facts_of_a_host_with_nouveau_and_no_driver(machine):
    machine.nouveau_loaded()
    (machine.bin / "nvidia-smi").unlink()
    found = facts(machine)
    assert (found["nouveau"], found["loaded"], found["works"], found["smi"]) == (True, "", False,
                                                                                 "nvidia-smi is not installed")
