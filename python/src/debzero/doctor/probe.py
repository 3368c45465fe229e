"""The one probe of a host and its GPUs: PCI devices, kernel modules, libraries, what nvidia-smi answers.

`debzero doctor`, the role preflight and the role nvidia_driver all ask it. It gathers facts, judges nothing and changes
nothing. Standard library only: it travels to bare hosts with host.py.
"""
from __future__ import annotations

import os
import re
import subprocess
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

NVIDIA = "0x10de"  # PCI vendor
DISPLAY, BRIDGE = "0x03", "0x0680"  # PCI classes: display and 3D controllers; what NVSwitches call themselves
COMMAND_SECONDS, KILL_SECONDS = 30, 5  # for a command to answer, and for a killed one to end
SMI_SECONDS = 120  # eight GPUs without persistence mode take their time; a broken one never answers
VERSION = re.compile(r"(?<![\d.])(\d{3,}\.\d+(?:\.\d+)?)(?![\d.])")
SMI_FIELDS = ("index", "name", "driver_version", "pci.bus_id", "memory.total", "persistence_mode",
              "ecc.errors.uncorrected.volatile.total")


class HostProbe:
    """Facts of this host, each gathered once, when first asked for: files below `root`, commands by PATH."""

    def __init__(self, root: Path = Path("/")) -> None:
        self.root = root

    def path(self, name: str) -> Path:
        return self.root / name.lstrip("/")

    def read(self, name: str) -> str:
        """The file's text; empty where it is missing or this user may not read it."""
        try:
            return self.path(name).read_text(errors="replace")
        except OSError:
            return ""

    def glob(self, pattern: str) -> list[Path]:
        return sorted(self.root.glob(pattern.lstrip("/")))

    def read_all(self, *patterns: str) -> dict[str, str]:
        """{name: text} of the files that match; empty texts where this user may not read."""
        return {file.name: self.read(str(file.relative_to(self.root)))
                for pattern in patterns for file in self.glob(pattern)}

    def run(self, *command: str, timeout: float = COMMAND_SECONDS) -> tuple[int, str]:
        """Exit code and output. 127: there is no such command; 124: it did not answer within `timeout` seconds."""
        path = os.environ.get("PATH", "/usr/bin") + ":/usr/sbin:/sbin"  # modinfo is not on a user's PATH
        try:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, errors="replace",
                                       stderr=subprocess.STDOUT, env={**os.environ, "LC_ALL": "C", "PATH": path})
        except OSError:
            return 127, f"{command[0]} is not installed"
        try:
            text = process.communicate(timeout=timeout)[0].strip()
            return process.returncode, text
        except subprocess.TimeoutExpired:
            process.kill()
        with suppress(subprocess.TimeoutExpired):  # what hangs inside the driver cannot even be killed
            process.wait(KILL_SECONDS)
        return 124, f"{command[0]} did not answer within {timeout:.0f} s"

    @cached_property
    def kernel(self) -> str:
        """Release of the running kernel."""
        return self.run("uname", "-r")[1]

    @cached_property
    def boot_id(self) -> str:
        """Changes with every boot, and is the same in all containers of one machine."""
        return self.read("/proc/sys/kernel/random/boot_id").strip()

    @cached_property
    def in_container(self) -> bool:
        """A container sees its host's PCI bus and kernel, but perhaps not all its GPUs."""
        init = self.read("/proc/1/comm").strip()
        return self.path("run/systemd/container").exists() or init not in ("systemd", "init", "")

    def nvidia_devices(self, pci_class: str) -> list[Path]:
        """Folders in /sys of NVIDIA's PCI devices whose class begins so."""
        return [device for device in self.glob("/sys/bus/pci/devices/*") if self.pci(device, "vendor") == NVIDIA
                and self.pci(device, "class").startswith(pci_class)]

    def pci(self, device: Path, attribute: str) -> str:
        return self.read(f"/sys/bus/pci/devices/{device.name}/{attribute}").strip()

    @cached_property
    def gpus(self) -> dict[str, dict[str, Any]]:
        """{PCI address: name, NUMA node, kernel driver} of NVIDIA's display and 3D controllers."""
        found: dict[str, dict[str, Any]] = {}
        for device in self.nvidia_devices(DISPLAY):
            driver = Path(os.readlink(device / "driver")).name if (device / "driver").is_symlink() else ""
            found[device.name.lower()] = {"name": f"10de:{self.pci(device, 'device')[2:]}",
                                          "numa": int(self.pci(device, "numa_node") or -1), "driver": driver}
        listed = self.run("lspci", "-D", "-d", "10de:")[1] if found else ""
        named = r"^(\S+) .*NVIDIA Corporation (.+?)(?: \(rev \w+\))?$"
        for address, name in re.findall(named, listed, re.MULTILINE):
            if address in found:
                found[address]["name"] = name
        return found

    @cached_property
    def held(self) -> dict[str, str]:
        """{PCI address: kernel driver} of the GPUs that another driver than NVIDIA's has taken."""
        return {address: gpu["driver"] for address, gpu in self.gpus.items() if gpu["driver"] not in ("", "nvidia")}

    @cached_property
    def switches(self) -> list[str]:
        """PCI addresses of NVSwitches: GPUs behind them need the fabric manager."""
        return [device.name.lower() for device in self.nvidia_devices(BRIDGE)]

    @cached_property
    def nouveau_loaded(self) -> bool:
        return bool(re.search(r"^nouveau ", self.read("/proc/modules"), re.MULTILINE))

    @cached_property
    def loaded_version(self) -> str:
        """Version of the driver's module in the kernel; empty when none is loaded."""
        version = VERSION.search(self.read("/proc/driver/nvidia/version") or self.read("/sys/module/nvidia/version"))
        return version.group(1) if version else ""

    def modules_for(self, kernel: str) -> list[str]:
        """What depmod knows of the driver's main module for a kernel: Debian calls it nvidia-current, NVIDIA nvidia."""
        main = (r"^[^:\n]*/(nvidia(?:-(?:current|tesla|legacy)[\w-]*)?)"
                r"(?<!-drm)(?<!-modeset)(?<!-uvm)(?<!-peermem)\.ko[.\w]*:")
        return re.findall(main, self.read(f"/lib/modules/{kernel}/modules.dep"), re.MULTILINE)

    @cached_property
    def module_on_disk(self) -> dict[str, str]:
        """Version and signer of the driver's module on disk for the running kernel; empty when there is none."""
        for name in dict.fromkeys([*self.modules_for(self.kernel), "nvidia"]):
            code, version = self.run("modinfo", "-F", "version", name)
            if not code and version:
                return {"version": version, "signer": self.run("modinfo", "-F", "signer", name)[1]}
        return {}

    @cached_property
    def library_versions(self) -> list[str]:
        """Versions of the driver's user-space library."""
        lib = "usr/lib/x86_64-linux-gnu"
        folders = (lib, f"{lib}/nvidia/*", "usr/lib64", "usr/local/nvidia/lib64")
        names = [file.name for folder in folders for stem in ("cuda", "nvidia-ml")
                 for file in self.glob(f"{folder}/lib{stem}.so.*")]
        found = (VERSION.search(name.partition(".so.")[2]) for name in names)
        return sorted({version.group(1) for version in found if version})

    @cached_property
    def smi_answer(self) -> tuple[int, str]:
        """nvidia-smi's exit code and output."""
        query = f"--query-gpu={','.join(SMI_FIELDS)}"
        return self.run("nvidia-smi", query, "--format=csv,noheader,nounits", timeout=SMI_SECONDS)

    @cached_property
    def smi_gpus(self) -> list[dict[str, str]]:
        """SMI_FIELDS of each GPU that nvidia-smi lists, whatever its exit code: 14 is a mere warning."""
        rows = (_smi_row(line) for line in self.smi_answer[1].splitlines())
        return [row for row in rows if row]

    @cached_property
    def smi_notes(self) -> list[str]:
        """What nvidia-smi says beside the GPUs: warnings and errors, a line each."""
        lines = map(str.strip, self.smi_answer[1].splitlines())
        return [line for line in lines if line and not _smi_row(line)]

    @cached_property
    def nvrm(self) -> list[str]:
        """What NVIDIA's driver wrote to the kernel's log since the start, where this user may read it."""
        text = self.run("dmesg")[1]
        if "NVRM" not in text:  # the kernel's own buffer is small; the journal keeps what it drops
            text = self.run("journalctl", "--dmesg", "--no-pager", "--output=cat")[1]
        return [line.strip() for line in re.findall(r"NVRM:?\s+(.*)", text)]

    @cached_property
    def xids(self) -> list[tuple[int, str]]:
        """(number, the whole report) of each GPU error that the kernel reported, the last one last."""
        found = (re.match(r"Xid \(.*?\): (\d+)", line) for line in self.nvrm)
        return [(int(xid.group(1)), xid.string) for xid in found if xid]


def _smi_row(line: str) -> dict[str, str]:
    """SMI_FIELDS of a line that is a GPU; empty for any other line."""
    cells = [cell.strip() for cell in line.split(",")]
    return dict(zip(SMI_FIELDS, cells)) if len(cells) == len(SMI_FIELDS) and cells[0].isdigit() else {}
