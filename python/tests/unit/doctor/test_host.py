"""Broken hosts, each a healthy one with two GPUs and one thing wrong: the first line that is not well names the cause and the fix."""
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from debzero.doctor import host as module
from debzero.doctor.host import Asked, Host, examine

OLDER, KERNEL, NEWER, DRIVER = "5.10.0-30-amd64", "5.10.0-32-amd64", "5.10.0-33-amd64", "470.256.02"
GPUS = ("0000:3b:00.0", "0000:af:00.0")


class Machine:
    """A file tree for Host's root, and a folder of commands for PATH."""

    def __init__(self, folder: Path) -> None:
        self.root, self.bin = folder / "root", folder / "bin"
        self.bin.mkdir()
        self.asked = {"gpus": 2, "memory_mb": 64000, "offload_parameters": 335_000_000, "free_mb": {"/opt": 1, "/var": 1}, "shm_mb": 1}

    def write(self, name: str, text: str = "") -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def remove(self, *names: str) -> None:
        for name in names:
            path = self.root / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def command(self, name: str, text: str, code: int = 0) -> None:
        path = self.bin / name
        path.write_text(f"#!/bin/sh\necho {shlex.quote(text)}\nexit {code}\n")
        path.chmod(0o755)

    def ask(self, **values: object) -> None:
        self.asked.update(values)

    def smi(self, *addresses: str, version: str = DRIVER, persistence: str = "Enabled", worn: str = "0") -> None:
        self.command("nvidia-smi", "\n".join(
            f"{index}, NVIDIA A100-PCIE-40GB, {version}, 0000{address.upper()}, 40536, {persistence}, {worn}"
            for index, address in enumerate(addresses)))

    def uname(self, architecture: str = "x86_64") -> None:
        self.command("uname", "")
        (self.bin / "uname").write_text(f"#!/bin/sh\n[ $1 = -m ] && echo {architecture} || echo {KERNEL}\n")

    def driver_gone(self) -> None:
        self.command("modinfo", "modinfo: ERROR: Module nvidia not found.", 1)
        self.command("nvidia-smi", "sh: nvidia-smi: not found", 127)
        self.remove("proc/driver", "usr/lib/x86_64-linux-gnu")
        self.write(f"lib/modules/{KERNEL}/modules.dep")

    def not_loaded(self) -> None:
        self.remove("proc/driver")
        self.command("nvidia-smi", "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.", 9)

    def findings(self, **changes: object) -> list:
        return examine(Host(self.root), Asked(**{**self.asked, **changes}))


@pytest.fixture
def machine(tmp_path, monkeypatch):
    made = Machine(tmp_path)
    monkeypatch.setenv("PATH", str(made.bin))
    for name, text in {
        "etc/os-release": 'PRETTY_NAME="Debian GNU/Linux 11 (bullseye)"\nNAME="Debian GNU/Linux"\nVERSION_ID="11"\nID=debian\n',
        "etc/debian_version": "11.11\n",
        "etc/apt/sources.list": "# deb http://mirror.example.org/debian buster main\ndeb http://mirror.example.org/debian bullseye main\n",
        "etc/modprobe.d/nvidia-blacklists-nouveau.conf": "blacklist nouveau\n",
        "proc/1/comm": "systemd\n", "proc/meminfo": "MemTotal:       263856000 kB\n", "proc/cmdline": "root=/dev/sda1 iommu=pt",
        "proc/modules": "nvidia 35323904 2 nvidia_uvm, Live 0x0 (POE)\n",
        "proc/driver/nvidia/version": f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  {DRIVER}  Thu May  2 14:37:44 UTC 2024\n"
                                      "GCC version:  gcc version 10.2.1 20210110 (Debian 10.2.1-6)\n",
        f"lib/modules/{KERNEL}/modules.dep": "updates/dkms/nvidia-current-drm.ko: updates/dkms/nvidia-current.ko\n"
                                            "updates/dkms/nvidia-current.ko:\n",
        f"lib/modules/{KERNEL}/build/Makefile": "", f"boot/vmlinuz-{KERNEL}": "",
        f"usr/lib/x86_64-linux-gnu/nvidia/current/libcuda.so.{DRIVER}": "", "usr/lib/x86_64-linux-gnu/libcuda.so.1": "",
        "sys/firmware/efi/efivars/SecureBoot-8be4df61": "\x06\0\0\0\0", "sys/kernel/iommu_groups/0/type": "identity",
        "sys/devices/system/node/node0/x": "", "sys/devices/system/node/node1/x": "",
        "sys/bus/pci/devices/0000:00:1f.2/vendor": "0x8086\n", "sys/bus/pci/devices/0000:00:1f.2/class": "0x010601\n",
    }.items():
        made.write(name, text)
    for node, address in enumerate(GPUS):
        for name, text in {"vendor": "0x10de", "class": "0x030200", "device": "0x20f1", "numa_node": str(node)}.items():
            made.write(f"sys/bus/pci/devices/{address}/{name}", f"{text}\n")
    for folder in ("run/systemd/system", "dev/shm", "opt", "var"):
        (made.root / folder).mkdir(parents=True)
    made.command("lspci", "\n".join(f"{address} 3D controller: NVIDIA Corporation GA100 [A100 PCIe 40GB] (rev a1)" for address in GPUS))
    made.uname()
    (made.bin / "modinfo").write_text(f"#!/bin/sh\n[ $3 = nvidia-current ] || exit 1\n[ $2 = signer ] || echo {DRIVER}\n")
    (made.bin / "modinfo").chmod(0o755)
    made.command("dmesg", "[    1.0] NVRM: loading NVIDIA UNIX x86_64 Kernel Module")
    made.command("timedatectl", "yes")
    made.command("apt-cache", "linux-headers:\n  Installed: (none)\n  Candidate: 5.10.223-1")
    made.smi(*GPUS)
    return made


def first(findings: list) -> tuple:
    """The first that fails; where none does, the first warning."""
    return next((one for status in ("fail", "warn") for one in findings if one.status == status), None)


def test_a_healthy_host_with_two_gpus_has_nothing_to_complain_about(machine):
    findings = machine.findings()
    assert [one for one in findings if one.status != "ok"] == []
    shown = {one.check: one.found for one in findings}
    assert "GA100 [A100 PCIe 40GB] at 0000:3b:00.0" in shown["gpu"]
    assert "0000:af:00.0 near 1" in shown["numa"]
    assert "minor-version" in shown["driver"]
    assert [one.check for one in machine.findings(stage="preflight", driver_managed=True) if one.status != "ok"] == []


def upgraded(machine):
    machine.command("modinfo", "535.309.01")


def new_kernel(machine):
    machine.driver_gone()
    machine.write("usr/lib/x86_64-linux-gnu/libcuda.so.470.256.02")
    machine.write(f"lib/modules/{KERNEL}/modules.dep", "kernel/drivers/video/fbdev/nvidia/nvidiafb.ko:\n")
    machine.write(f"lib/modules/{OLDER}/modules.dep", "updates/dkms/nvidia-current.ko:\n")


def without_gpus(machine):
    machine.remove("sys/bus/pci")
    machine.command("nvidia-smi", "No devices were found", 6)


def without_headers(machine):
    machine.driver_gone()
    machine.remove(f"lib/modules/{KERNEL}")
    machine.command("apt-cache", "")


def other_library(machine):
    machine.remove("usr/lib/x86_64-linux-gnu")
    machine.write("usr/lib/x86_64-linux-gnu/libcuda.so.535.309.01")


def unsigned(machine):
    machine.not_loaded()
    machine.write("sys/firmware/efi/efivars/SecureBoot-8be4df61", "\x06\0\0\0\1")


def fallen(machine):
    machine.command("nvidia-smi", "Unable to determine the device handle for GPU 0000:AF:00.0: GPU is lost.", 15)
    machine.command("dmesg", "[9.1] NVRM: GPU at PCI:0000:af:00\n[9.2] NVRM: Xid (PCI:0000:af:00): 79, GPU has fallen off the bus.\n"
                             "[9.3] usb 1-1: new device")


def with_nouveau(machine):
    machine.not_loaded()
    machine.write("proc/modules", "nouveau 2433024 0 - Live 0x0\nttm 114688 1 nouveau, Live 0x0\n")


def for_virtual_machines(machine):
    (machine.root / "sys/bus/pci/devices" / GPUS[1] / "driver").symlink_to("/sys/bus/pci/drivers/vfio-pci")
    machine.smi(GPUS[0])


# What is done to the host, the check that must speak first, words of what it found, and words of the fix.
BROKEN = {
    "another system": (lambda m: m.write("etc/os-release", 'ID=ubuntu\nNAME="Ubuntu"\nVERSION_ID="22.04"'),
                       "system", "Ubuntu 22.04", "Debian 11"),
    "another architecture": (lambda m: m.uname("aarch64"), "system", "aarch64", "amd64"),
    "no systemd": (lambda m: m.remove("run/systemd"), "system", "not systemd", "boot the host with systemd"),
    "little memory": (lambda m: m.ask(memory_mb=300000), "memory", "257671 MB of memory, and 300000 MB", "preflight_min_memory_mb"),
    "little memory to offload to": (lambda m: m.ask(offload_parameters=20_000_000_000),
                                    "memory", "343322 MB are what the offloaded optimizer of 20 billion", "preflight_offload_parameters"),
    "full disk": (lambda m: m.ask(free_mb={"/opt": 10**9}), "disk", "1000000000 MB are asked for", "larger disk"),
    "one disk for two": (lambda m: m.ask(free_mb={"/opt": 7, "/var/lib": 10**9}),
                         "disk", "/opt and /var/lib (one file system)", "larger disk"),
    "little shared memory": (lambda m: m.ask(shm_mb=10**9), "shm", "need 1000000000 MB", "remount,size="),
    "clock behind": (lambda m: m.ask(epoch=time.time() + 7200), "clock", "7200 s behind", "set-ntp true"),
    "clock without a server": (lambda m: m.command("timedatectl", "no"), "clock", "no time server", "systemd-timesyncd"),
    "archive at its end": (lambda m: m.write("etc/apt/sources.list.d/old.list", "deb http://mirror.example.org/debian buster main"),
                           "archives", "buster in old.list", "remove"),
    "no GPU": (without_gpus, "gpu", "no NVIDIA GPU, and 2", "seat, power"),
    "one GPU of two": (lambda m: m.remove(f"sys/bus/pci/devices/{GPUS[1]}"), "gpu", "shows 1 NVIDIA GPU, and 2", "seat, power"),
    "a GPU for virtual machines": (for_virtual_machines, "gpu", "vfio-pci keeps 0000:af:00.0", "vfio-pci.ids"),
    "a GPU near no node": (lambda m: m.write(f"sys/bus/pci/devices/{GPUS[0]}/numa_node", "-1"),
                           "numa", "2 NUMA nodes is near 0000:3b", "firmware"),
    "translated traffic": (lambda m: m.write("proc/cmdline", "root=/dev/sda1"), "iommu", "IOMMU", "iommu=pt"),
    "redirected traffic": (lambda m: m.command("lspci", "\tACSCtl:\tSrcValid+ TransBlk-"), "iommu", "ACS", "firmware"),
    "Secure Boot, unsigned module": (unsigned, "secureboot", "which is not signed", "mokutil --import"),
    "nouveau": (with_nouveau, "nouveau", "nouveau drives the GPU", "update-initramfs"),
    "nouveau not blacklisted": (lambda m: m.remove("etc/modprobe.d"), "nouveau", "next boot", "blacklist nouveau"),
    "no headers": (without_headers, "headers", f"apt has no linux-headers-{KERNEL}", "linux-image-amd64"),
    "driver missing": (lambda m: m.driver_gone(), "module", "No NVIDIA driver", "nvidia_driver_manage: true"),
    "no module for the kernel": (new_kernel, "module", f"built for {OLDER}, but there is no module for the running kernel {KERNEL}",
                                 f"dkms autoinstall -k {KERNEL}"),
    "module never built": (lambda m: m.driver_gone() or m.write("var/lib/dkms/nvidia-current/470.256.02/build/make.log"),
                           "module", "registered with DKMS (470.256.02)", "make.log"),
    "no module for the next kernel": (lambda m: m.write(f"boot/vmlinuz-{NEWER}") or m.write(f"lib/modules/{NEWER}/modules.dep"),
                                      "module", f"not for {NEWER}", f"linux-headers-{NEWER}"),
    "module not loaded": (lambda m: m.not_loaded(), "versions", "not loaded", "modprobe nvidia"),
    "stale module after an upgrade": (upgraded, "versions", "stale: the kernel runs 470.256.02, and 535.309.01", "reboot"),
    "library of another version": (other_library, "versions", "user-space library is 535.309.01", "libcuda1 and nvidia-smi 470.256.02"),
    "no library": (lambda m: m.remove("usr/lib/x86_64-linux-gnu") or m.command("nvidia-smi", "", 12),
                   "versions", "libcuda", "apt install libcuda1"),
    "no nvidia-smi": (lambda m: (m.bin / "nvidia-smi").unlink(),
                      "nvidia-smi", "not installed", "apt install nvidia-smi, version 470.256.02"),
    "GPU off the bus": (fallen, "nvidia-smi", "GPU is lost.; the kernel says: Xid (PCI:0000:af:00): 79, GPU has fallen", "cold boot"),
    "GPU lost in silence": (lambda m: m.smi(GPUS[0]), "nvidia-smi", "2 GPUs and nvidia-smi 1: 0000:af:00.0 is lost", "cold boot"),
    "driver too old": (lambda m: m.smi(*GPUS, version="440.118.02"), "driver", "440.118.02 is too old for CUDA 11", "newer"),
    "persistence mode off": (lambda m: m.smi(*GPUS, persistence="Disabled"), "persistence", "GPU 0, 1", "nvidia-persistenced"),
    "worn memory": (lambda m: m.smi(*GPUS, worn="3"), "errors", "GPU 0: 3 uncorrected", "replace the card"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_the_first_line_of_a_broken_host_is_the_cause(machine, name):
    breaks, check, found, fix = BROKEN[name]
    breaks(machine)
    findings = machine.findings()
    cause = first(findings)
    assert cause is not None and cause.check == check, findings
    assert found in cause.found and fix in cause.advice
    assert [one.check for one in findings] == list(module.CHAIN)
    assert [one for one in findings if one.status in ("warn", "fail") and not one.advice] == []
    if cause.status == "fail":  # what follows from it is not reported as well
        assert [one.check for one in findings if one.status == "fail"] == [check]


def test_nothing_is_judged_twice_for_one_cause(machine):
    machine.driver_gone()
    skipped = {one.check: one.found for one in machine.findings() if one.status == "skip"}
    assert set(skipped) == {"versions", "nvidia-smi", "driver", "persistence", "errors"}
    assert set(skipped.values()) == {"because of module"}


def test_a_missing_gpu_does_not_hide_what_ails_the_other(machine):
    machine.remove(f"sys/bus/pci/devices/{GPUS[1]}")
    upgraded(machine)
    assert [one.check for one in machine.findings() if one.status == "fail"] == ["gpu", "versions"]


def test_before_provisioning_a_missing_driver_is_no_obstacle_and_another_system_is(machine):
    machine.driver_gone()
    before = machine.findings(stage="preflight", driver_managed=True)
    assert first(before).check == "module" and first(before).status == "warn"
    assert "nothing to do" in first(before).advice
    machine.remove(f"lib/modules/{KERNEL}/build")
    headers = {one.check: one for one in machine.findings(stage="preflight", driver_managed=True)}["headers"]
    assert headers.status == "ok" and headers.data == {"package": f"linux-headers-{KERNEL}"}  # the role asks apt for it
    machine.write("etc/debian_version", "12.1")
    machine.write("etc/os-release", 'ID=debian\nVERSION_ID="12"\n')
    assert first(machine.findings(stage="preflight", driver_managed=True)).found.startswith("The system is Debian 12.1")
    assert next(one for one in machine.findings() if one.check == "system").status == "warn"


def test_a_host_without_gpus_is_sound_where_none_are_asked_for(machine):
    machine.remove("sys/bus/pci")
    machine.driver_gone()
    findings = machine.findings(gpus=0)
    assert {one.status for one in findings} == {"ok", "skip"}
    assert [one.check for one in findings if one.status == "skip"] == list(module.CHAIN)[list(module.CHAIN).index("gpu"):]


def test_a_container_is_judged_by_the_gpus_it_was_given(machine):
    machine.write("run/systemd/container", "podman")
    machine.smi(GPUS[0])
    assert first(machine.findings(gpus=1)) is None
    assert first(machine.findings(gpus=2)).check == "nvidia-smi"


def test_a_container_without_gpus_does_not_answer_for_its_machine_s(machine):
    machine.write("run/systemd/container", "podman")
    machine.remove("usr/lib/x86_64-linux-gnu")
    (machine.bin / "nvidia-smi").unlink()
    for stage in ("preflight", "doctor"):
        findings = machine.findings(gpus=0, shm_mb=0, stage=stage)
        assert {one.check: one.status for one in findings}["gpu"] == "skip"
        assert [one for one in findings if one.status in ("warn", "fail") and one.check != "shm"] == []
    assert first(machine.findings(gpus=2)).check == "versions"


def test_a_signed_module_that_is_not_loaded_is_no_proof_of_a_wrong_key(machine):
    unsigned(machine)
    (machine.bin / "modinfo").write_text(f"#!/bin/sh\n[ $2 = signer ] && echo DKMS || echo {DRIVER}\n")
    found = {one.check: one for one in machine.findings()}
    assert found["secureboot"].status == "warn" and "the key of DKMS" in found["secureboot"].found
    assert first(machine.findings()).check == "versions"
    machine.write("proc/modules", "nouveau 2433024 0 - Live 0x0\n")
    assert first(machine.findings()).check == "nouveau"


def test_only_the_driver_s_own_modules_count(machine):
    names = ("nvidia", "nvidia-current", "nvidia-tesla-470", "nvidia-legacy-390xx", "nvidia-drm", "nvidia-current-uvm",
             "nvidia-wmi-ec-backlight", "nvidiafb")
    machine.write(f"lib/modules/{KERNEL}/modules.dep", "".join(f"updates/{name}.ko.xz:\n" for name in names))
    assert Host(machine.root).modules(KERNEL) == list(names[:4])


def test_a_command_that_cannot_be_killed_is_left_behind(machine, monkeypatch):
    machine.command("nvidia-smi", "")
    (machine.bin / "nvidia-smi").write_text("#!/bin/sh\nexec /bin/sleep 3\n")
    monkeypatch.setattr(subprocess.Popen, "kill", lambda process: None)
    monkeypatch.setattr(module, "KILL_SECONDS", 0.1)
    start = time.monotonic()
    assert Host(machine.root).run("nvidia-smi", timeout=0.1)[0] == 124
    assert time.monotonic() - start < 2


def test_a_command_that_hangs_is_a_finding(machine):
    (machine.bin / "nvidia-smi").write_text("#!/bin/sh\nwhile :; do :; done\n")
    assert Host(machine.root).run("nvidia-smi", timeout=0.2) == (124, "nvidia-smi did not answer within 0 s")


def script(*arguments: str) -> subprocess.CompletedProcess:
    """As preflight runs it: the one file, with nothing of this package importable."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run([sys.executable, "-I", module.__file__, *arguments], capture_output=True, text=True, env=environment)


def test_the_file_runs_alone(tmp_path):
    done = script("--json", json.dumps({"free_mb": {str(tmp_path): 10**9}}))
    assert done.returncode == 1
    findings = {one["check"]: one for one in json.loads(done.stdout)}
    assert list(findings) == list(module.CHAIN)
    assert findings["disk"]["status"] == "fail"
    assert "-> free some" in script(json.dumps({"free_mb": {str(tmp_path): 10**9}})).stdout


@pytest.mark.parametrize("text", ["{", "[]", "5", '{"gpu": 1}', '{"free_mb": {"/opt": "7 GB"}}'])
def test_a_wrong_request_is_explained_in_one_sentence(text):
    done = script(text)
    assert done.returncode == 2
    assert "offload_parameters" in done.stderr and "Traceback" not in done.stderr
