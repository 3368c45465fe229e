"""Broken hosts: each is a healthy one with two GPUs and one defect, and the first bad line names its cause and fix."""
import time

import pytest
from fake_host import DRIVER, GPUS, KERNEL, NEWER, OLDER, healthy

from debzero.doctor.host import HOST_CHECKS

CHAIN = [check.name for check in HOST_CHECKS]


@pytest.fixture
def machine(tmp_path, monkeypatch):
    return healthy(tmp_path, monkeypatch)


def first(results: list) -> tuple:
    """The first that fails; where none does, the first warning."""
    return next((one for status in ("fail", "warn") for one in results if one.status == status), None)


def test_a_healthy_host_with_two_gpus_has_nothing_to_complain_about(machine):
    results = machine.results()
    assert [one for one in results if one.status != "ok"] == []
    shown = {one.check: one.found for one in results}
    assert "GA100 [A100 PCIe 40GB] at 0000:3b:00.0" in shown["gpu"]
    assert "0000:af:00.0 near 1" in shown["numa"]
    assert "minor-version" in shown["driver"]
    assert [one.check for one in machine.results(stage="preflight", driver_managed=True) if one.status != "ok"] == []


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
    machine.command("dmesg",
                    "[9.1] NVRM: GPU at PCI:0000:af:00\n"
                    "[9.2] NVRM: Xid (PCI:0000:af:00): 79, GPU has fallen off the bus.\n"
                             "[9.3] usb 1-1: new device")


def for_virtual_machines(machine):
    (machine.root / "sys/bus/pci/devices" / GPUS[1] / "driver").symlink_to("/sys/bus/pci/drivers/vfio-pci")
    machine.smi(GPUS[0])


# What is done to the host, the check that must speak first, words of what it found, and words of the fix.
BROKEN = {
    "another system": (lambda m: m.write("etc/os-release", 'ID=ubuntu\nNAME="Ubuntu"\nVERSION_ID="22.04"'),
                       "system", "Ubuntu 22.04", "Debian 11"),
    "another architecture": (lambda m: m.uname("aarch64"), "system", "aarch64", "amd64"),
    "no systemd": (lambda m: m.remove("run/systemd"), "system", "not systemd", "boot the host with systemd"),
    "little memory": (lambda m: m.require(memory_mb=300000), "memory",
                      "257671 MB of memory, but 300000 MB are required", "preflight_min_memory_mb"),
    "little memory to offload to": (lambda m: m.require(offload_parameters=20_000_000_000),
                                    "memory", "the offloaded optimizer of 20 billion parameters takes 343322 MB",
                                    "preflight_offload_parameters"),
    "full disk": (lambda m: m.require(free_mb={"/opt": 10**9}), "disk", "1000000000 MB are required", "larger disk"),
    "one disk for two": (lambda m: m.require(free_mb={"/opt": 7, "/var/lib": 10**9}),
                         "disk", "/opt and /var/lib (one file system)", "larger disk"),
    "little shared memory": (lambda m: m.require(shm_mb=10**9), "shm", "need 1000000000 MB", "remount,size="),
    "clock behind": (lambda m: m.require(epoch=time.time() + 7200), "clock", "7200 s behind", "set-ntp true"),
    "clock without a server": (lambda m: m.command("timedatectl", "no"), "clock", "not synchronized with a time server",
                               "systemd-timesyncd"),
    "archive at its end": (lambda m: m.write("etc/apt/sources.list.d/old.list",
                                             "deb http://mirror.example.org/debian buster main"),
                           "archives", "buster in old.list", "remove"),
    "no security archive": (lambda m: m.write("etc/apt/sources.list", "deb http://mirror.example.org/debian-security "
                                                                      "bullseye main\n# bullseye-security"),
                            "updates", "no security archive", "base_apt_security_mirror"),
    "a held kernel": (lambda m: m.command("dpkg-query", "install linux-image-rt\nhold linux-image-amd64"),
                      "updates", "the kernel is held: linux-image-amd64", "apt-mark unhold linux-image-amd64"),
    "a kernel that is left out": (lambda m: m.write("etc/apt/apt.conf.d/52x",
                                                    'Unattended-Upgrade::Package-Blacklist {\n  "linux-image-";\n};'),
                                  "updates", "leaves the kernel out", "Package-Blacklist"),
    "no GPU": (without_gpus, "gpu", "Expected 2 NVIDIA GPUs, found none on the PCI bus", "seat, power"),
    "one GPU of two": (lambda m: m.remove(f"sys/bus/pci/devices/{GPUS[1]}"), "gpu",
                       "Expected 2 NVIDIA GPUs, found 1 on the PCI bus", "seat, power"),
    "a GPU for virtual machines": (for_virtual_machines, "gpu", "vfio-pci keeps 0000:af:00.0", "vfio-pci.ids"),
    "a GPU near no node": (lambda m: m.write(f"sys/bus/pci/devices/{GPUS[0]}/numa_node", "-1"),
                           "numa", "2 NUMA nodes is near 0000:3b", "firmware"),
    "translated traffic": (lambda m: m.write("proc/cmdline", "root=/dev/sda1"), "iommu", "IOMMU", "iommu=pt"),
    "redirected traffic": (lambda m: m.command("lspci", "\tACSCtl:\tSrcValid+ TransBlk-"), "iommu", "ACS", "firmware"),
    "Secure Boot, unsigned module": (unsigned, "secureboot", "which is not signed", "mokutil --import"),
    "nouveau": (lambda m: m.nouveau_loaded(), "nouveau", "nouveau drives the GPU", "update-initramfs"),
    "nouveau not blacklisted": (lambda m: m.remove("etc/modprobe.d"), "nouveau", "next boot", "blacklist nouveau"),
    "no headers": (without_headers, "headers", f"apt has no linux-headers-{KERNEL}", "linux-image-amd64"),
    "driver missing": (lambda m: m.driver_gone(), "module", "No NVIDIA driver", "nvidia_driver_manage: true"),
    "no module for the kernel": (new_kernel, "module",
                                 f"built for {OLDER}, but there is no module for the running kernel {KERNEL}",
                                 f"dkms autoinstall -k {KERNEL}"),
    "module never built": (lambda m: m.driver_gone()
                           or m.write("var/lib/dkms/nvidia-current/470.256.02/build/make.log"),
                           "module", "registered with DKMS (470.256.02)", "make.log"),
    "no module for the next kernel": (lambda m: m.write(f"boot/vmlinuz-{NEWER}")
                                      or m.write(f"lib/modules/{NEWER}/modules.dep"),
                                      "module", f"not for {NEWER}", f"linux-headers-{NEWER}"),
    "module not loaded": (lambda m: m.not_loaded(), "versions", "not loaded", "modprobe nvidia"),
    "stale module after an upgrade": (upgraded, "versions", "stale: the kernel runs 470.256.02, and 535.309.01",
                                      "reboot"),
    "library of another version": (other_library, "versions", "user-space library is 535.309.01",
                                   "libcuda1 and nvidia-smi 470.256.02"),
    "no library": (lambda m: m.remove("usr/lib/x86_64-linux-gnu") or m.command("nvidia-smi", "", 12),
                   "versions", "libcuda", "apt install libcuda1"),
    "no nvidia-smi": (lambda m: (m.bin / "nvidia-smi").unlink(),
                      "nvidia-smi", "not installed", "apt install nvidia-smi, version 470.256.02"),
    "GPU off the bus": (fallen, "nvidia-smi", "GPU is lost.; the kernel says: Xid (PCI:0000:af:00): 79, GPU has fallen",
                        "cold boot"),
    "GPU lost in silence": (lambda m: m.smi(GPUS[0]), "nvidia-smi", "2 GPUs and nvidia-smi 1; lost: 0000:af:00.0",
                            "cold boot"),
    "driver too old": (lambda m: m.smi(*GPUS, version="440.118.02"), "driver", "440.118.02 is too old for CUDA 11",
                       "newer"),
    "persistence mode off": (lambda m: m.smi(*GPUS, persistence="Disabled"), "persistence", "GPU 0, 1",
                             "nvidia-persistenced"),
    "worn memory": (lambda m: m.smi(*GPUS, worn="3"), "errors", "GPU 0: uncorrected memory errors: 3",
                    "replace the card"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_the_first_line_of_a_broken_host_is_the_cause(machine, name):
    breaks, check, found, fix = BROKEN[name]
    breaks(machine)
    results = machine.results()
    cause = first(results)
    assert cause is not None and cause.check == check, results
    assert found in cause.found and fix in cause.advice
    assert [one.check for one in results] == CHAIN
    assert [one for one in results if one.status in ("warn", "fail") and not one.advice] == []
    if cause.status == "fail":  # what follows from it is not reported as well
        assert [one.check for one in results if one.status == "fail"] == [check]


def test_nothing_is_judged_twice_for_one_cause(machine):
    machine.driver_gone()
    skipped = {one.check: one.found for one in machine.results() if one.status == "skip"}
    assert set(skipped) == {"versions", "nvidia-smi", "driver", "persistence", "errors"}
    assert set(skipped.values()) == {"because of module"}


def test_a_missing_gpu_does_not_hide_what_ails_the_other(machine):
    machine.remove(f"sys/bus/pci/devices/{GPUS[1]}")
    upgraded(machine)
    assert [one.check for one in machine.results() if one.status == "fail"] == ["gpu", "versions"]


def test_before_provisioning_a_missing_driver_is_no_obstacle_and_another_system_is(machine):
    machine.driver_gone()
    before = machine.results(stage="preflight", driver_managed=True)
    assert first(before).check == "module" and first(before).status == "warn"
    assert "nothing to do" in first(before).advice
    machine.remove(f"lib/modules/{KERNEL}/build")
    headers = {one.check: one for one in machine.results(stage="preflight", driver_managed=True)}["headers"]
    assert headers.status == "ok" and headers.data == {"package": f"linux-headers-{KERNEL}"}  # the role asks apt for it
    machine.write("etc/debian_version", "12.1")
    machine.write("etc/os-release", 'ID=debian\nVERSION_ID="12"\n')
    assert first(machine.results(stage="preflight", driver_managed=True)).found.startswith("The system is Debian 12.1")
    assert next(one for one in machine.results() if one.check == "system").status == "warn"


@pytest.mark.parametrize(("release", "ended"), [("11", True), ("12", False)])
def test_the_end_of_bullseye_concerns_bullseye_alone(machine, release, ended):
    machine.write("etc/os-release", f'ID=debian\nVERSION_ID="{release}"\n')
    (found,) = [one.found for one in machine.results() if one.check == "archives"]
    assert ("August 2026" in found) == ended and found.startswith("none older than Bullseye")


def test_a_host_without_gpus_is_sound_where_none_are_asked_for(machine):
    machine.remove("sys/bus/pci")
    machine.driver_gone()
    results = machine.results(gpus=0)
    assert {one.status for one in results} == {"ok", "skip"}
    assert [one.check for one in results if one.status == "skip"] == CHAIN[CHAIN.index("gpu"):]


def test_a_container_is_judged_by_the_gpus_it_was_given(machine):
    machine.write("run/systemd/container", "podman")
    machine.smi(GPUS[0])
    assert first(machine.results(gpus=1)) is None
    assert first(machine.results(gpus=2)).check == "nvidia-smi"


def test_a_container_without_gpus_does_not_answer_for_its_machine_s(machine):
    machine.write("run/systemd/container", "podman")
    machine.remove("usr/lib/x86_64-linux-gnu")
    (machine.bin / "nvidia-smi").unlink()
    for stage in ("preflight", "doctor"):
        results = machine.results(gpus=0, shm_mb=0, stage=stage)
        assert {one.check: one.status for one in results}["gpu"] == "skip"
        assert [one for one in results if one.status in ("warn", "fail") and one.check != "shm"] == []
    assert first(machine.results(gpus=2)).check == "versions"


def test_a_signed_module_that_is_not_loaded_is_no_proof_of_a_wrong_key(machine):
    unsigned(machine)
    (machine.bin / "modinfo").write_text(f"#!/bin/sh\n[ $2 = signer ] && echo DKMS || echo {DRIVER}\n")
    found = {one.check: one for one in machine.results()}
    assert found["secureboot"].status == "warn" and "the key of DKMS" in found["secureboot"].found
    assert first(machine.results()).check == "versions"
    machine.write("proc/modules", "nouveau 2433024 0 - Live 0x0\n")
    assert first(machine.results()).check == "nouveau"
