#!/usr/bin/env python3
"""What a host brings along, from its memory to a driver that answers: the part of doctor's chain below Python's libraries.

One file of the standard library alone, because the role preflight runs it on hosts that have nothing else yet:
`python3 host.py '{"gpus": 2, "free_mb": {"/opt": 7000}}'` prints lines, with --json a list; exit code 0 (sound), 1 (something
fails), 2 (usage). It changes nothing. In the order of the chain, the first that fails is the cause; what follows is `skip`.
"""
from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple, Optional

OLDEST_DRIVER, NATIVE_DRIVER = "450.80.02", "515.43.04"  # that run CUDA 11 at all, and that CUDA 11.7 was released with
OFFLOAD_BYTES = 18  # of the host's memory that ZeRO takes for each parameter whose optimizer state is there
CLOCK_SECONDS, KILL_SECONDS = 60, 5  # beyond which certificates begin to look expired; that a killed command has to end
OLD_SUITES = re.compile(r"(?:jessie|stretch|buster)\b|bullseye-backports")
VERSION = re.compile(r"(?<![\d.])(\d{3,}\.\d+(?:\.\d+)?)(?![\d.])")
SMI = ("index", "name", "driver_version", "pci.bus_id", "memory.total", "persistence_mode", "ecc.errors.uncorrected.volatile.total")


class Finding(NamedTuple):
    check: str
    status: str  # ok, warn, fail, or skip (not judged)
    found: str
    advice: str = ""  # what to do: every warn and every fail has it
    data: Optional[dict[str, Any]] = None


ok, warn, fail, skip = (partial(Finding, "", status) for status in ("ok", "warn", "fail", "skip"))


@dataclass(frozen=True)
class Asked:
    """What the host must have. `stage` is preflight (it will be provisioned) or doctor (it should work)."""

    stage: str = "doctor"
    gpus: int = 0  # at least; 0 takes what the PCI bus shows
    memory_mb: int = 0
    offload_parameters: int = 0  # of the largest model whose optimizer state goes to this host's memory
    free_mb: dict[str, int] = field(default_factory=dict)
    shm_mb: int = 0  # 0 takes what NCCL needs for the GPUs that are there
    epoch: Optional[float] = None  # seconds since 1970 by a clock to compare with
    driver_managed: bool = False  # the role nvidia_driver comes next

    def __post_init__(self) -> None:
        if not all(isinstance(n, int) for n in (self.gpus, self.memory_mb, self.offload_parameters, self.shm_mb, *self.free_mb.values())):
            raise TypeError(f"numbers must be whole: {self}")


class Host:
    """The machine: files below `root`, commands by PATH. Facts come first, each read once; then the checks."""

    def __init__(self, root: Path = Path("/")) -> None:
        self.root = root

    def path(self, name: str) -> Path:
        return self.root / name.lstrip("/")

    def read(self, name: str) -> str:
        try:
            return self.path(name).read_text(errors="replace")
        except OSError:
            return ""

    def glob(self, pattern: str) -> list[Path]:
        return sorted(self.root.glob(pattern.lstrip("/")))

    def texts(self, *patterns: str) -> dict[str, str]:
        """{name: text} of files; empty texts where this user may not read."""
        return {file.name: self.read(str(file.relative_to(self.root))) for pattern in patterns for file in self.glob(pattern)}

    def run(self, *command: str, timeout: float = 30) -> tuple[int, str]:
        """Exit code and output. 127: there is no such command; 124: it did not answer in time. modinfo is not on a user's PATH."""
        own = {**os.environ, "LC_ALL": "C", "PATH": os.environ.get("PATH", "/usr/bin") + ":/usr/sbin:/sbin"}
        try:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                       errors="replace", env=own)
        except OSError:
            return 127, f"{command[0]} is not installed"
        try:
            text = process.communicate(timeout=timeout)[0].strip()
            return process.returncode, text
        except subprocess.TimeoutExpired:
            process.kill()
        with suppress(subprocess.TimeoutExpired):  # what hangs inside the driver cannot even be killed: it is left behind
            process.wait(KILL_SECONDS)
        return 124, f"{command[0]} did not answer within {timeout:.0f} s"

    @cached_property
    def kernel(self) -> str:
        return self.run("uname", "-r")[1]

    @cached_property
    def contained(self) -> bool:  # sees its machine's PCI bus and kernel, but perhaps not all its GPUs
        return self.path("run/systemd/container").exists() or self.read("/proc/1/comm").strip() not in ("systemd", "init", "")

    @cached_property
    def gpus(self) -> dict[str, dict[str, Any]]:
        """{PCI address: name, NUMA node, kernel driver} of NVIDIA's display and 3D controllers."""
        found: dict[str, dict[str, Any]] = {}
        for device in self.glob("/sys/bus/pci/devices/*"):
            vendor, kind, name, node = (self.read(f"/sys/bus/pci/devices/{device.name}/{key}").strip()
                                        for key in ("vendor", "class", "device", "numa_node"))
            if vendor == "0x10de" and kind.startswith("0x03"):
                driver = Path(os.readlink(device / "driver")).name if (device / "driver").is_symlink() else ""
                found[device.name.lower()] = {"name": f"10de:{name[2:]}", "numa": int(node or -1), "driver": driver}
        listed = self.run("lspci", "-D", "-d", "10de:")[1] if found else ""
        for address, name in re.findall(r"^(\S+) .*NVIDIA Corporation (.+?)(?: \(rev \w+\))?$", listed, re.MULTILINE):
            if address in found:
                found[address]["name"] = name
        return found

    @cached_property
    def loaded(self) -> str:  # version of the module in the kernel; empty when there is none
        version = VERSION.search(self.read("/proc/driver/nvidia/version") or self.read("/sys/module/nvidia/version"))
        return version.group(1) if version else ""

    def modules(self, kernel: str) -> list[str]:
        """Names of the driver's main module that depmod knows for a kernel; Debian's is nvidia-current, NVIDIA's nvidia."""
        main = r"^[^:\n]*/(nvidia(?:-(?:current|tesla|legacy)[\w-]*)?)(?<!-drm)(?<!-modeset)(?<!-uvm)(?<!-peermem)\.ko[.\w]*:"
        return re.findall(main, self.read(f"/lib/modules/{kernel}/modules.dep"), re.MULTILINE)

    @cached_property
    def module(self) -> dict[str, str]:  # version and signer of the module on disk for the running kernel; empty when there is none
        for name in dict.fromkeys([*self.modules(self.kernel), "nvidia"]):
            code, version = self.run("modinfo", "-F", "version", name)
            if not code and version:
                return {"version": version, "signer": self.run("modinfo", "-F", "signer", name)[1]}
        return {}

    @cached_property
    def libraries(self) -> list[str]:  # versions of the driver's user-space library
        folders = ("usr/lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu/nvidia/*", "usr/lib64", "usr/local/nvidia/lib64")
        names = [file.name for folder in folders for stem in ("cuda", "nvidia-ml") for file in self.glob(f"{folder}/lib{stem}.so.*")]
        return sorted({version.group(1) for name in names if (version := VERSION.search(name.partition(".so.")[2]))})

    @cached_property
    def smi(self) -> tuple[int, str]:
        return self.run("nvidia-smi", f"--query-gpu={','.join(SMI)}", "--format=csv,noheader,nounits")

    @cached_property
    def working(self) -> list[dict[str, str]]:  # what nvidia-smi says of each GPU that answers; empty when it fails
        lines = [line.split(", ") for line in self.smi[1].splitlines()] if not self.smi[0] else []
        return [dict(zip(SMI, map(str.strip, line))) for line in lines if len(line) == len(SMI)]

    @cached_property
    def xid(self) -> str:  # the kernel's last report of a GPU error since it started, where this user may read it
        return ["", *re.findall(r"NVRM: (Xid.*)", self.run("dmesg")[1])][-1]

    def check_system(self, asked: Asked) -> Finding:
        facts = dict(re.findall(r'^(\w+)="?(.*?)"?$', self.read("/etc/os-release"), re.MULTILINE))
        debian, machine = facts.get("ID") == "debian", self.run("uname", "-m")[1]
        version = (debian and self.read("/etc/debian_version").strip()) or facts.get("VERSION_ID", "")
        refuse = fail if asked.stage == "preflight" else warn  # what does not stop a host that works
        if not debian or facts.get("VERSION_ID") != "11":
            name = "Debian" if debian else facts.get("NAME")
            return refuse(f"The system is {name} {version}, and the pinned stack is built for Debian 11 (Bullseye)",
                          "reinstall the host with Debian 11, or take it out of the inventory")
        if machine != "x86_64":
            return refuse(f"The architecture is {machine}, and torch for CUDA 11 exists for amd64 alone", "take an amd64 host")
        if not self.path("run/systemd/system").is_dir():
            return refuse("The init system is not systemd, and jobs run as its units", "boot the host with systemd")
        return ok(f"Debian {version}, {machine}, kernel {self.kernel}", data={"kernel": self.kernel})

    def check_memory(self, asked: Asked) -> Finding:
        have = int(re.findall(r"MemTotal:\s+(\d+)|$", self.read("/proc/meminfo"))[0] or 0) // 1024
        why = f"are what the offloaded optimizer of {asked.offload_parameters / 1e9:g} billion parameters takes"
        for wanted, reason in ((asked.memory_mb, "are asked for"), (asked.offload_parameters * OFFLOAD_BYTES // 2**20, why)):
            if have < wanted:
                return fail(f"The host has {have} MB of memory, and {wanted} MB {reason}",
                            "add memory, or lower preflight_min_memory_mb and preflight_offload_parameters to what your jobs need")
        return ok(f"{have} MB: room for the offloaded optimizer of {have * 2**20 / OFFLOAD_BYTES / 1e9:.1f} billion parameters")

    def check_disk(self, asked: Asked) -> Finding:  # paths on one file system need the sum of what is asked for each
        folders = {name: next(path for path in (self.path(name), *self.path(name).parents) if path.exists()) for name in asked.free_mb}
        shared: dict[int, list[str]] = {}
        for name, folder in folders.items():
            shared.setdefault(folder.stat().st_dev, []).append(name)
        texts: dict[bool, list[str]] = {True: [], False: []}
        for names in shared.values():
            free, wanted = shutil.disk_usage(folders[names[0]]).free // 2**20, sum(asked.free_mb[name] for name in names)
            text = " and ".join(names) + (" (one file system) have" if len(names) > 1 else " has") + f" {free} MB free"
            texts[free >= wanted].append(text + f", and {wanted} MB are asked for" * (free < wanted))
        if texts[False]:
            lower = ", or lower preflight_min_free_mb" * (asked.stage == "preflight")
            return fail("; ".join(texts[False]), f"free some, mount a larger disk there{lower}")
        return ok("; ".join(texts[True]) or "nothing is asked for")

    def check_shm(self, asked: Asked) -> Finding:  # where the ranks of one host meet: NCCL takes some 10 MB for each channel of each pair
        wanted = asked.shm_mb or (1024 if len(self.gpus or self.working) > 1 else 32)
        have = shutil.disk_usage(self.path("dev/shm")).total // 2**20 if self.path("dev/shm").is_dir() else 0
        if have < wanted:
            return fail(f"/dev/shm holds {have} MB, and the ranks of one host need {wanted} MB there to talk to each other",
                        f"mount -o remount,size={wanted}M /dev/shm, and the same in /etc/fstab (for a container: --shm-size)")
        return ok(f"/dev/shm holds {have} MB")

    def check_clock(self, asked: Asked) -> Finding:
        ahead = 0 if asked.epoch is None else round(time.time() - asked.epoch)
        follow = "let it follow a time server: apt install systemd-timesyncd, then timedatectl set-ntp true"
        if abs(ahead) > CLOCK_SECONDS:
            return fail(f"The clock is {abs(ahead)} s {'ahead of' if ahead > 0 else 'behind'} the controller's", follow)
        if not self.contained and self.run("timedatectl", "show", "--property=NTPSynchronized", "--value")[1] != "yes":
            return warn("The clock follows no time server", follow)
        return ok("right" if asked.epoch is not None else "its machine's" if self.contained else "synchronised")

    def check_archives(self, asked: Asked) -> Finding:
        texts = self.texts("/etc/apt/sources.list", "/etc/apt/sources.list.d/*.[ls]*")
        old = {suite: name for name, text in texts.items() for line in re.findall(r"^\s*[^#\s].*", text, re.MULTILINE)
               for suite in OLD_SUITES.findall(line)}
        if old:
            names = ", ".join(f"{suite} in {file}" for suite, file in old.items())
            return warn(f"apt is configured with archives that have reached their end of life: {names}",
                        "remove these lines: mirrors drop such archives, and apt update then fails as a whole", old)
        return ok("none older than Bullseye (whose support ended in August 2026: keep a mirror of it)")

    def check_gpu(self, asked: Asked) -> Finding:
        there = len(self.gpus or self.working)
        if not there and not asked.gpus:
            return skip("no NVIDIA GPU, and none asked for")
        if there < asked.gpus:
            return fail(f"The PCI bus shows {there or 'no'} NVIDIA GPU, and {asked.gpus} asked for", "check the card's seat, power and "
                        "passthrough, and the firmware's Above 4G Decoding; or lower preflight_min_gpus", self.gpus or None)
        away = [address for address, gpu in self.gpus.items() if gpu["driver"].startswith("vfio")]
        if away:
            return warn(f"vfio-pci keeps {', '.join(away)} for virtual machines, so no job here can use it",
                        "to train on it, take it out of vfio-pci.ids in /etc/modprobe.d and on the kernel's command line", self.gpus)
        return ok(", ".join(f"{gpu['name']} at {address}" for address, gpu in self.gpus.items()) or "hidden by PCI", data=self.gpus)

    def check_numa(self, asked: Asked) -> Finding:
        nodes = len(self.glob("/sys/devices/system/node/node[0-9]*"))
        lost = [address for address, gpu in self.gpus.items() if gpu["numa"] < 0]
        if nodes > 1 and lost:
            return warn(f"The firmware does not say which of the {nodes} NUMA nodes is near {', '.join(lost)}",
                        "update the firmware or set its NUMA options: a rank on the far node offloads at about half the speed")
        near = ", ".join(f"{name} near {gpu['numa']}" for name, gpu in self.gpus.items())
        return ok(f"{nodes} nodes: {near}" if nodes > 1 else "one node")

    def check_iommu(self, asked: Asked) -> Finding:
        if len(self.gpus) < 2:
            return ok("one GPU has no neighbour to talk to")
        if self.glob("/sys/kernel/iommu_groups/*") and not re.search(r"\biommu=(pt|off)\b", self.read("/proc/cmdline")):
            return warn("The IOMMU translates the traffic between the GPUs, which slows NCCL or makes it hang",
                        "add iommu=pt to GRUB_CMDLINE_LINUX in /etc/default/grub, run update-grub, and reboot")
        if re.search(r"ACSCtl:.*SrcValid\+", self.run("lspci", "-vvv")[1]):
            return warn("PCI access control (ACS) sends the traffic between the GPUs through the CPU, which slows NCCL",
                        "disable ACS in the firmware (it does not matter where NVLink joins the GPUs)")
        return ok("the GPUs reach each other directly")

    def check_secureboot(self, asked: Asked) -> Finding:
        enrol = "have DKMS sign it and enrol that key (mokutil --import, confirm at the next boot), or disable Secure Boot in the firmware"
        settings = self.texts("/sys/firmware/efi/efivars/SecureBoot-*").values()
        if not any(text[4:5] == "\1" for text in settings):  # four bytes of attributes come first
            return ok("off")
        if self.loaded:
            return ok("on, and the kernel took the driver's module")
        if self.module and not self.module["signer"]:
            return fail("Secure Boot is on, and the kernel refuses the driver's module, which is not signed", enrol)
        why = f"perhaps refuses the driver's module, if it does not know the key of {self.module['signer']}" if self.module else (
            "will refuse a driver's module that DKMS builds and nobody signs")
        return warn(f"Secure Boot is on: the kernel {why}", enrol)

    def check_nouveau(self, asked: Asked) -> Finding:
        advice = "write 'blacklist nouveau' to /etc/modprobe.d/nouveau.conf, run update-initramfs -u, and reboot"
        if re.search(r"^nouveau ", self.read("/proc/modules"), re.MULTILINE) and not self.loaded:
            return fail("nouveau drives the GPU, so NVIDIA's driver cannot", advice)
        settings = "\n".join(self.texts("/etc/modprobe.d/*.conf", "/usr/lib/modprobe.d/*.conf").values()) + self.read("/proc/cmdline")
        if self.module and not re.search(r"blacklist[ =]\S*nouveau", settings):
            return warn("nouveau is not blacklisted, so it may take the GPU at the next boot", advice)
        return ok("not loaded")

    def check_headers(self, asked: Asked) -> Finding:
        package = f"linux-headers-{self.kernel}"
        if self.contained or self.path(f"lib/modules/{self.kernel}/build/Makefile").exists():
            return ok("its machine's" if self.contained else f"of {self.kernel}")
        if asked.driver_managed:
            return ok("the role nvidia_driver sees to them", data=None if self.loaded or self.module else {"package": package})
        if re.search(r"Candidate: [^(]", self.run("apt-cache", "policy", package)[1]):
            return warn(f"{package} is not installed, so DKMS cannot build the driver for the running kernel", f"apt install {package}")
        return (warn if self.module else fail)(f"apt has no {package} for the running kernel, so DKMS cannot build the driver",
                                               "apt update && apt install linux-image-amd64 linux-headers-amd64, and reboot")

    def check_module(self, asked: Asked) -> Finding:
        others = [folder.name for folder in self.glob("/lib/modules/*") if folder.name != self.kernel]
        if self.module or (self.contained and self.loaded):
            bare = [name for name in others if self.path(f"boot/vmlinuz-{name}").exists() and not self.modules(name)]
            if bare:
                return warn(f"The driver is built for the running {self.kernel}, but not for {bare[-1]}, which may run after a reboot",
                            f"apt install linux-headers-{bare[-1]} && dkms autoinstall -k {bare[-1]}")
            return ok(f"{self.module['version']} for {self.kernel}" if self.module else "its machine's")
        built, registered = [name for name in others if self.modules(name)], self.glob("/var/lib/dkms/nvidia*/[0-9]*")
        if built or registered:
            what = f"built for {', '.join(built)}" if built else f"registered with DKMS ({registered[-1].name})"
            return fail(f"The driver is {what}, but there is no module for the running kernel {self.kernel}",
                        f"apt install linux-headers-{self.kernel} && dkms autoinstall -k {self.kernel}; where that fails, "
                        "/var/lib/dkms/nvidia*/*/build/make.log says why")
        if self.loaded:
            return warn(f"Driver {self.loaded} runs, but its module is not on the disk: a reboot ends it", "install the driver again")
        return fail("No NVIDIA driver is installed", "set nvidia_driver_manage: true and run site.yml, or apt install nvidia-driver")

    def check_versions(self, asked: Asked) -> Finding:
        on_disk, libraries = self.module.get("version", self.loaded), ", ".join(self.libraries)
        if not self.loaded:
            return fail(f"The driver's module {on_disk} is on the disk, but not loaded", "modprobe nvidia, and read dmesg")
        if on_disk != self.loaded:
            return fail(f"The loaded module is stale: the kernel runs {self.loaded}, and {on_disk} is on the disk since an upgrade",
                        "reboot; or stop every GPU process, modprobe -r nvidia_uvm nvidia_drm nvidia_modeset nvidia, and modprobe nvidia")
        if libraries and self.loaded not in self.libraries:
            return fail(f"The kernel runs driver {self.loaded}, and its user-space library is {libraries}: they must be the same",
                        f"install libcuda1 and nvidia-smi {self.loaded}, or the module {libraries} and reboot")
        if not libraries and not self.working:
            return fail(f"The kernel runs driver {self.loaded}, and its user-space library (libcuda) is not installed",
                        f"apt install libcuda1 nvidia-smi, both {self.loaded}")
        return ok(f"{self.loaded} in the kernel and in user space")

    def check_nvidia_smi(self, asked: Asked) -> Finding:
        kernel = f"; the kernel says: {self.xid}" if self.xid else ""
        cold = "do a cold boot, which a lost GPU needs; if it goes again, check its power, cooling and seat, or replace it"
        if self.smi[0] == 127:
            return fail(self.smi[1], f"apt install nvidia-smi, version {self.loaded}")
        if not self.working:
            return fail(f"nvidia-smi fails: {(self.smi[1].splitlines() or [f'exit code {self.smi[0]}'])[0]}{kernel}", cold)
        answer = {gpu["pci.bus_id"].lower()[-12:] for gpu in self.working}
        silent = [name for name, gpu in self.gpus.items() if name[-12:] not in answer and not gpu["driver"].startswith("vfio")]
        if silent and not (self.contained and len(answer) >= asked.gpus):  # a container is given some of the machine's
            return fail(f"The PCI bus shows {len(self.gpus)} GPUs and nvidia-smi {len(answer)}: {', '.join(silent)} is lost{kernel}", cold)
        return ok("; ".join(f"{gpu['name']}, {gpu['memory.total']} MiB" for gpu in self.working), data={"gpus": self.working})

    def check_driver(self, asked: Asked) -> Finding:
        version = self.working[0]["driver_version"]
        numbers, oldest, native = (list(map(int, re.findall(r"\d+", text))) for text in (version, OLDEST_DRIVER, NATIVE_DRIVER))
        if numbers < oldest:
            return fail(f"Driver {version} is too old for CUDA 11, which needs {OLDEST_DRIVER} or newer",
                        "install a newer one: set nvidia_driver_manage: true and run site.yml")
        how = "natively" if numbers >= native else "by minor-version compatibility: compiled code, no PTX"
        return ok(f"{version} runs CUDA 11 {how}", data={"version": version})

    def check_persistence(self, asked: Asked) -> Finding:
        off = ", ".join(gpu["index"] for gpu in self.working if gpu["persistence_mode"] == "Disabled")
        return warn(f"Persistence mode is off for GPU {off}, so each start waits until the driver has woken it",
                    "systemctl enable --now nvidia-persistenced") if off else ok("on")

    def check_errors(self, asked: Asked) -> Finding:
        said = [f"GPU {gpu['index']}: {gpu[SMI[-1]]} uncorrected memory errors" for gpu in self.working if re.match("[1-9]", gpu[SMI[-1]])]
        said += [f"the kernel says: {self.xid}"] if self.xid else []
        return warn("; ".join(said), "look at nvidia-smi -q -d ECC,PAGE_RETIREMENT and up the Xid in NVIDIA's list; reboot, and replace "
                    "the card if they return") if said else ok("none since the start")


CHAIN: dict[str, tuple[str, ...]] = {  # each check, and those whose failure leaves nothing for it to judge
    "system": (), "memory": (), "disk": (), "shm": (), "clock": (), "archives": (), "gpu": (), "numa": ("gpu",), "iommu": ("gpu",),
    "nouveau": ("gpu",), "secureboot": ("gpu",), "headers": ("gpu",), "module": ("gpu", "headers"),
    "versions": ("module", "nouveau", "secureboot"), "nvidia-smi": ("versions",), "driver": ("nvidia-smi",),
    "persistence": ("nvidia-smi",), "errors": ("nvidia-smi",)}
MENDED = ("nouveau", "module", "versions", "driver", "persistence")  # by the role nvidia_driver


def examine(host: Host, asked: Asked) -> list[Finding]:
    """One finding for each check, in the order of the chain. One with data leaves something to judge, even if it failed."""
    findings, blocked = [], dict[str, str]()
    if host.contained and not asked.gpus and host.smi[0] == 127:
        host.gpus = {}  # the machine's, of which this container was given none
    for name, needs in CHAIN.items():
        cause = next((blocked[need] for need in needs if need in blocked), None)
        finding: Finding = skip(f"because of {cause}") if cause else getattr(host, f"check_{name.replace('-', '_')}")(asked)
        if finding.status in ("fail", "skip") and not finding.data:
            blocked[name] = cause or name
        if asked.driver_managed and name in MENDED and finding.status == "fail":
            finding = warn(finding.found, "nothing to do: the role nvidia_driver, which comes next, puts it right")
        findings.append(finding._replace(check=name))
    return findings


def main(arguments: Optional[list[str]] = None) -> int:
    parser = argparse.ArgumentParser(description="Examine this host, from its memory to the NVIDIA driver. Changes nothing.")
    parser.add_argument("asked", nargs="?", default="{}", help='what it must have, as JSON: \'{"gpus": 2, "free_mb": {"/opt": 7000}}\'')
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    try:
        asked = Asked(**json.loads(options.asked))
    except (TypeError, ValueError) as error:
        parser.error(f"what is asked for must be a JSON object with keys of {', '.join(Asked.__dataclass_fields__)}: {error}")
    findings = examine(Host(), asked)
    lines = [f"{one.check:<12}{one.status:<6}{one.found}" + f"\n{'':18}-> {one.advice}" * bool(one.advice) for one in findings]
    print(json.dumps([one._asdict() for one in findings]) if options.json else "\n".join(lines))
    return int(any(one.status == "fail" for one in findings))


if __name__ == "__main__":
    sys.exit(main())
