"""Hosts whose GPUs or drivers have trouble: what doctor must say first, and what the role nvidia_driver makes of them.

Exit codes and messages are those of nvidia-smi's manual page, of NVIDIA's kernel modules and of public reports. ROW0
and ROW1 are a healthy GPU's lines.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from fake_host import DRIVER, GPUS, Machine

ROW0, ROW1 = (f"{index}, NVIDIA A100-PCIE-40GB, {DRIVER}, 0000{address.upper()}, 40536, Enabled, 0"
              for index, address in enumerate(GPUS))
NAMED = "NVRM: The NVIDIA GPU 0000:3b:00.0 (PCI ID: 10de:2330)"
FAILED = ["NVRM: GPU 0000:3b:00.0: RmInitAdapter failed! (0x22:0x56:884)",
          "NVRM: GPU 0000:3b:00.0: rm_init_adapter failed, device minor number 0"]
COULD_NOT = ("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that the latest "
             "NVIDIA driver is installed and running.")
NO_DEVICES = "No devices were found"
REPLACE = "replace the card"


class State(NamedTuple):
    """`check` is the first that fails or, where none does, that warns; `without`: what its advice must not hold."""

    breaks: Callable[[Machine], object]
    check: str
    status: str
    found: str
    advice: str
    works: bool = False  # the role finds a driver that works, and leaves it alone
    helps: str = ""
    without: str = "\0"


def smi(*lines: str, code: int = 0, dmesg: tuple[str, ...] | list[str] = ()) -> Callable[[Machine], None]:
    def breaks(machine: Machine) -> None:
        machine.command("nvidia-smi", "\n".join(lines), code)
        machine.dmesg(*dmesg)
    return breaks


def brackets(value: str, second: str = ROW0) -> Callable[[Machine], None]:
    return smi(second, f"1, NVIDIA A100-PCIE-40GB, {DRIVER}, 0000{GPUS[1].upper()}, {value}, {value}, {value}")


def xid(*reports: str) -> Callable[[Machine], None]:
    return lambda machine: machine.dmesg(*(f"NVRM: Xid (PCI:0000:af:00): {report}" for report in reports))


def held(driver: str, *addresses: str, lines: tuple[str, ...] = (COULD_NOT,), code: int = 9):
    def breaks(machine: Machine) -> None:
        machine.hold(driver, *addresses)
        machine.command("nvidia-smi", "\n".join(lines), code)
    return breaks


def not_loaded(*dmesg: str) -> Callable[[Machine], None]:
    def breaks(machine: Machine) -> None:
        machine.not_loaded()
        machine.dmesg(*dmesg)
    return breaks


def on_kernel(release: str, candidate: bool = True, driver: bool = True) -> Callable[[Machine], None]:
    def breaks(machine: Machine) -> None:
        machine.kernel(release)
        if not driver:
            machine.driver_gone()
        if not candidate:
            machine.command("apt-cache", "")
    return breaks


def in_container(answer: str, code: int) -> Callable[[Machine], None]:
    def breaks(machine: Machine) -> None:
        machine.write("run/systemd/container", "docker")
        machine.command("nvidia-smi", answer, code)
    return breaks


INFOROM = "WARNING: infoROM is corrupted at gpu 0000:3B:00.0"
WARN, FAIL, SMI = "warn", "fail", "nvidia-smi"
STATES = {
    # Judged by the rows, not by the exit code.
    "infoROM, after the rows": State(smi(ROW0, ROW1, INFOROM, code=14), SMI, WARN, "infoROM", "vendor", True),
    "infoROM, before the rows": State(smi(INFOROM, ROW0, ROW1, code=14), SMI, WARN, "infoROM", "vendor", True),
    "infoROM, exit code 0": State(smi(ROW0, INFOROM, ROW1), SMI, WARN, "the GPUs work", "vendor", True),
    "infoROM, in silence": State(smi(ROW0, ROW1, code=14), SMI, WARN, "infoROM", "vendor", True),
    "infoROM, and a lost GPU": State(smi(ROW0, INFOROM, code=14), SMI, FAIL, "lost: 0000:af:00.0", "cold boot", True),
    "rows and an unknown exit code": State(smi(ROW0, ROW1, code=255), SMI, WARN, "exit code 255", "journalctl", True),
    "rows and an unknown note": State(smi("NOTE: something", ROW0, ROW1), SMI, WARN, "NOTE: something", "journalctl",
                                      True),
    # Values in brackets.
    "requires reset": State(brackets("[GPU requires reset]"), SMI, FAIL, "GPU 1 must be reset",
                            "--gpu-reset -i 1", True, without=REPLACE),
    "lost in brackets": State(brackets("[GPU is lost]"), SMI, FAIL, "GPU 1 is lost", "cold boot", True),
    "unknown error in brackets": State(brackets("[Unknown Error]"), SMI, FAIL, "GPU 1 answers with an unknown error",
                                       "journalctl", True),
    "no rights in brackets": State(brackets("[Insufficient Permissions]"), SMI, FAIL, "/dev/nvidia*", "usermod", True,
                                   without=REPLACE),
    "anything else in brackets": State(brackets("[Gremlins]"), SMI, FAIL, "[Gremlins]", "journalctl", True),
    "ERR!": State(brackets("ERR!"), SMI, FAIL, "GPU 1 answers with an error", "journalctl", True),
    "both GPUs in brackets": State(
        brackets("[Unknown Error]", f"0, [Unknown Error], [Unknown Error], 0000{GPUS[0].upper()}, [N/A], [N/A], [N/A]"),
        SMI, FAIL, "GPU 0 answers with an unknown error", "journalctl", True),
    "all of both GPUs in brackets": State(
        smi(*(f"{index}, [Unknown Error], [Unknown Error], 0000{address.upper()}, [N/A], [N/A], [N/A]"
              for index, address in enumerate(GPUS))),
        SMI, FAIL, "GPU 0 answers with an unknown error", "journalctl", helps="none"),
    # No row: NVML's error.
    "no rights": State(smi("Failed to initialize NVML: Insufficient Permissions", code=4), SMI, FAIL,
                       "the rights on /dev/nvidia*", "video", helps="none", without=REPLACE),
    "no rights, by the code alone": State(smi("", code=4), SMI, FAIL, "the rights on /dev/nvidia*", "video",
                                          helps="none", without=REPLACE),
    "blocked": State(smi("Failed to initialize NVML: GPU access blocked by the operating system", code=17), SMI, FAIL,
                     "cgroup", "DeviceAllow", helps="none", without=REPLACE),
    "a container that lost its devices": State(in_container("Failed to initialize NVML: Unknown Error", 255), SMI, FAIL,
                                               "cgroup", "daemon-reload", helps="none", without=REPLACE),
    "a container without a GPU": State(in_container("No devices were found", 6), SMI, FAIL, "given no GPU",
                                       "--gpus all", helps="none"),
    "another library": State(smi("Failed to initialize NVML: Driver/library version mismatch",
                                 "NVML library version: 535.309", code=18), SMI, FAIL, "different versions", "libcuda1",
                             helps="same", without=REPLACE),
    "no library": State(smi("NVIDIA-SMI couldn't find libnvidia-ml.so library in your system.", code=12), SMI, FAIL,
                        "libnvidia-ml", "apt install libnvidia-ml1", helps="same", without=REPLACE),
    "a power cable": State(smi("", code=8), SMI, FAIL, "exit code 8", "power cables", helps="none"),
    "no interrupts": State(smi("", code=10), SMI, FAIL, "exit code 10", "firmware", helps="none"),
    "lost, no rows": State(smi("Unable to determine the device handle for GPU0000:AF:00.0: GPU is lost.", code=15), SMI,
                           FAIL, "GPU is lost", "cold boot", helps="none"),
    "an unknown error": State(smi("Unable to determine the device handle for GPU0000:AF:00.0: Unknown Error", code=255),
                              SMI, FAIL, "Unknown Error", "journalctl", helps="none"),
    "an unknown error of one GPU": State(
        smi(ROW0, "Unable to determine the device handle for GPU0000:AF:00.0: Unknown Error", code=255), SMI, FAIL,
        "Unable to determine", "cold boot", True),
    "something new": State(smi("Segmentation fault", code=139), SMI, FAIL, "Segmentation fault", "journalctl",
                           helps="same"),
    # No row: the kernel's lines.
    "an older driver": State(smi(NO_DEVICES, code=6, dmesg=[
        NAMED, "NVRM: installed in this system is not supported by the", f"NVRM: NVIDIA {DRIVER} driver release.",
        "NVRM: Please see 'Appendix A - Supported NVIDIA GPU Products'", *FAILED]), SMI, FAIL,
        f"Driver {DRIVER} does not know GPU 0000:3b:00.0 (10de:2330)", "newer branch", helps="other", without=REPLACE),
    "a driver that is too new": State(smi(NO_DEVICES, code=6, dmesg=[
        "NVRM: The NVIDIA Tesla K40m GPU installed in this system is",
        "NVRM:  supported through the NVIDIA 390.xx Legacy drivers. Please",
        "NVRM:  visit http://www.nvidia.com/object/unix.html for more",
        f"NVRM:  information.  The {DRIVER} NVIDIA driver will ignore", "NVRM:  this GPU.  Continuing probe..."]), SMI,
        FAIL, "too new for the Tesla K40m", 'nvidia_driver_branch to "390"', helps="other", without=REPLACE),
    "open modules needed": State(smi(NO_DEVICES, code=6, dmesg=[
        NAMED + "\n               NVRM: installed in this system requires use of the NVIDIA open kernel modules.",
        *FAILED]), SMI, FAIL, "only with NVIDIA's open kernel modules", "nvidia-kernel-open-dkms", helps="other",
        without=REPLACE),
    "proprietary modules needed": State(smi(NO_DEVICES, code=6, dmesg=[
        NAMED, "NVRM: installed in this system is not supported by open", "NVRM: nvidia.ko because it does not include "
        "the required GPU"]), SMI, FAIL, "does not work with NVIDIA's open", "nvidia-kernel-dkms", helps="other"),
    "no address space": State(smi(NO_DEVICES, code=6, dmesg=[
        "NVRM: This PCI I/O region assigned to your NVIDIA device is invalid:",
        "NVRM: BAR1 is 0M @ 0x0 (PCI:0000:3b:00.0)", "NVRM: The NVIDIA probe routine failed for 1 device(s)."]), SMI,
        FAIL, "GPU 0000:3b:00.0 too little PCI address space (BAR1: 0M)", "Above 4G", helps="none", without=REPLACE),
    "a GPU that does not start": State(smi(NO_DEVICES, code=6, dmesg=FAILED), SMI, FAIL,
                                       "RmInitAdapter failed, 0x22:0x56:884", "seat", helps="none"),
    "firmware of the GPU": State(smi(NO_DEVICES, code=6, dmesg=[
        "NVRM: RmInitAdapter: Cannot initialize GSP firmware RM", "NVRM: kgspInitRm_IMPL: cannot start",
        *FAILED]), SMI, FAIL, "GSP", "firmware-nvidia-gsp", helps="same"),
    "off the bus at boot": State(smi(NO_DEVICES, code=6, dmesg=[
        "NVRM: The NVIDIA GPU 0000:3b:00.0", "NVRM: (PCI ID: 10de:26b5) installed in this system has",
        "NVRM: fallen off the bus and is not responding to commands."]), SMI, FAIL, "has fallen off the bus",
        "cold boot", helps="none"),
    "no power at boot": State(smi(NO_DEVICES, code=6, dmesg=[
        "NVRM: GPU 0000:3b:00.0: GPU does not have the necessary power cables connected.", *FAILED]), SMI, FAIL,
        "lacks a power cable", "power cables", helps="none"),
    "no devices, and a silent kernel": State(smi(NO_DEVICES, code=6), SMI, FAIL, "starts no GPU", "journalctl",
                                             helps="none", without=REPLACE),
    "what an earlier driver said": State(smi(NO_DEVICES, code=6, dmesg=[
        NAMED, "NVRM: installed in this system is not supported by the", "NVRM: NVIDIA 460.32.03 driver release."]),
        SMI, FAIL, "starts no GPU", "journalctl", helps="none"),
    "one GPU that does not start": State(smi(ROW1, dmesg=FAILED), SMI, FAIL,
                                         "lost: 0000:3b:00.0: The driver cannot start GPU 0000:3b:00.0", "seat", True),
    "one GPU that the driver does not know": State(smi(ROW1, dmesg=[
        NAMED, "NVRM: installed in this system is not supported by the", f"NVRM: NVIDIA {DRIVER} driver release."]),
        SMI, FAIL, "does not know GPU 0000:3b:00.0", "newer branch", True),
    "a module that does not stay": State(not_loaded(
        NAMED, "NVRM: installed in this system is not supported by the", f"NVRM: NVIDIA {DRIVER} driver release.",
        "NVRM: None of the NVIDIA devices were initialized."), "versions", FAIL,
        "not loaded: Driver 470.256.02 does not know", "newer branch", helps="other"),
    # Other drivers.
    "nvidiafb": State(held("nvidiafb", *GPUS), "nouveau", FAIL, "nvidiafb holds 0000:3b:00.0, 0000:af:00.0",
                      "blacklist nvidiafb", helps="same"),
    "nouveau has one": State(held("nouveau", GPUS[1], lines=(ROW0,), code=0), "nouveau", FAIL, "nouveau holds 0000:af",
                             "blacklist nouveau", True),
    "vfio-pci has both": State(held("vfio-pci", *GPUS, lines=(NO_DEVICES,), code=6), "gpu", FAIL,
                               "vfio-pci keeps 0000:3b:00.0, 0000:af:00.0", "vfio-pci.ids", helps="none"),
    "vfio-pci has one": State(held("vfio-pci", GPUS[1], lines=(ROW0,), code=0), "gpu", FAIL, "1 of 2 GPUs left",
                              "vfio-pci.ids", True),
    # Kernels without headers.
    "a cloud's kernel": State(on_kernel("5.10.0-24-cloud-amd64"), "headers", FAIL,
                              "linux-headers-5.10.0-24-cloud-amd64 is not", "linux-headers-cloud-amd64", True),
    "a cloud's kernel that apt has dropped": State(
        on_kernel("5.10.0-24-cloud-amd64", candidate=False, driver=False), "headers", FAIL,
        "apt has no linux-headers-5", "apt install linux-image-cloud-amd64 linux-headers-cloud-amd64", helps="same"),
    "a real-time kernel": State(on_kernel("5.10.0-24-rt-amd64", candidate=False), "headers", FAIL, "5.10.0-24-rt-amd64",
                                "linux-headers-rt-amd64", True),
    "a vendor's kernel": State(on_kernel("5.15.158-2-pve", candidate=False), "headers", FAIL, "not Debian's",
                               "from where the kernel came from", True),
    # Xids.
    "a program's exception": State(xid("13, pid=7, Graphics Exception: ESR 0x504648=0x1000e"), "errors", WARN, ": 13",
                                   "that job's log", True, without=REPLACE),
    "a program's wild pointer": State(xid("31, pid=7, name=python, Ch 00000008, MMU Fault"), "errors", WARN, ": 31",
                                      "that job's log", True, without=REPLACE),
    "a program that was stopped": State(xid("43, pid=7, Ch 00000010", "45, pid=7, Ch 00000011"), "errors", WARN, ": 45",
                                        "that job's log", True, without=REPLACE),
    "memory, and what it did to a program": State(
        xid("48, pid=7, An uncorrectable double bit error (DBE) has been detected", "45, pid=7, Ch 00000010"), "errors",
        WARN, ": 48", REPLACE, True),
    "NVLink": State(xid("74, pid=7, NVLink: fatal error detected on link 6"), "errors", WARN, ": 74", "nvlink", True),
    "the GPU's own firmware": State(xid("119, pid=7, Timeout after 6s of waiting for RPC response"), "errors", WARN,
                                    ": 119", "--gpu-reset", True),
    "an Xid of tomorrow": State(xid("999, pid=7, Something"), "errors", WARN, ": 999", "catalog", True,
                                without=REPLACE),
}
