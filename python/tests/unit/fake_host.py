"""A healthy host with two GPUs, as a folder that the probe takes for the root, and commands: tests break one thing."""
from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest

from debzero.doctor.host import examine
from debzero.doctor.host_check import Requirements
from debzero.doctor.probe import HostProbe

OLDER, KERNEL, NEWER, DRIVER = "5.10.0-30-amd64", "5.10.0-32-amd64", "5.10.0-33-amd64", "470.256.02"
GPUS = ("0000:3b:00.0", "0000:af:00.0")


class Machine:
    """A file tree for the probe's root, and a folder of commands for PATH."""

    def __init__(self, folder: Path) -> None:
        self.root, self.bin = folder / "root", folder / "bin"
        self.bin.mkdir()
        self.required = {"gpus": 2, "memory_mb": 64000, "offload_parameters": 335_000_000,
                         "free_mb": {"/opt": 1, "/var": 1}, "shm_mb": 1}

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

    def require(self, **values: object) -> None:
        self.required.update(values)

    def smi(self, *addresses: str, version: str = DRIVER, persistence: str = "Enabled", worn: str = "0") -> None:
        self.command("nvidia-smi", "\n".join(
            f"{index}, NVIDIA A100-PCIE-40GB, {version}, 0000{address.upper()}, 40536, {persistence}, {worn}"
            for index, address in enumerate(addresses)))

    def uname(self, architecture: str = "x86_64") -> None:
        self.command("uname", "")
        (self.bin / "uname").write_text(f"#!/bin/sh\n[ $1 = -m ] && echo {architecture} || echo {KERNEL}\n")

    def dmesg(self, *lines: str) -> None:
        self.command("dmesg", "\n".join(f"[{number:>5}.1] {line}" for number, line in enumerate(lines)))

    def hold(self, driver: str, *addresses: str) -> None:
        """Let another kernel driver take these GPUs."""
        for address in addresses:
            (self.root / "sys/bus/pci/devices" / address / "driver").symlink_to(f"/sys/bus/pci/drivers/{driver}")

    def kernel(self, release: str) -> None:
        """Run another kernel, which nothing is installed for."""
        (self.bin / "uname").write_text(f"#!/bin/sh\n[ $1 = -m ] && echo x86_64 || echo {release}\n")

    def driver_gone(self) -> None:
        self.command("modinfo", "modinfo: ERROR: Module nvidia not found.", 1)
        self.command("nvidia-smi", "sh: nvidia-smi: not found", 127)
        self.remove("proc/driver", "usr/lib/x86_64-linux-gnu")
        self.write(f"lib/modules/{KERNEL}/modules.dep")

    def not_loaded(self) -> None:
        self.remove("proc/driver")
        self.command("nvidia-smi", "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.", 9)

    def results(self, **changes: object) -> list:
        return examine(HostProbe(self.root), Requirements(**{**self.required, **changes}))

    def nouveau_loaded(self) -> None:
        self.not_loaded()
        self.write("proc/modules", "nouveau 2433024 0 - Live 0x0\nttm 114688 1 nouveau, Live 0x0\n")


def healthy(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine(folder)
    monkeypatch.setenv("PATH", str(made.bin))
    for name, text in {
        "etc/os-release": 'PRETTY_NAME="Debian GNU/Linux 11 (bullseye)"\nNAME="Debian GNU/Linux"\nVERSION_ID="11"\n'
                          "ID=debian\n",
        "etc/debian_version": "11.11\n",
        "etc/apt/sources.list": "# deb http://mirror.example.org/debian buster main\n"
                                "deb http://mirror.example.org/debian bullseye main\n"
                                "deb http://mirror.example.org/debian-security bullseye-security main\n",
        "etc/apt/apt.conf.d/50unattended-upgrades": 'Unattended-Upgrade::Package-Blacklist {\n//  "linux-";\n};\n',
        "etc/modprobe.d/nvidia-blacklists-nouveau.conf": "blacklist nouveau\n",
        "proc/1/comm": "systemd\n", "proc/meminfo": "MemTotal:       263856000 kB\n",
        "proc/cmdline": "root=/dev/sda1 iommu=pt",
        "proc/modules": "nvidia 35323904 2 nvidia_uvm, Live 0x0 (POE)\n",
        "proc/driver/nvidia/version": f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  {DRIVER}  Thu May  2 14:37:44\n"
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
    made.command("lspci", "\n".join(f"{address} 3D controller: NVIDIA Corporation GA100 [A100 PCIe 40GB] (rev a1)"
                                    for address in GPUS))
    made.uname()
    (made.bin / "modinfo").write_text(f"#!/bin/sh\n[ $3 = nvidia-current ] || exit 1\n"
                                      f"[ $2 = signer ] || echo {DRIVER}\n")
    (made.bin / "modinfo").chmod(0o755)
    made.command("dmesg", "[    1.0] NVRM: loading NVIDIA UNIX x86_64 Kernel Module")
    made.command("timedatectl", "yes")
    made.command("dpkg-query", f"install linux-image-{KERNEL}")
    made.command("apt-cache", "linux-headers:\n  Installed: (none)\n  Candidate: 5.10.223-1")
    made.smi(*GPUS)
    return made
