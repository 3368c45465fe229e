"""What the kernel says of GPUs that do not work: causes, from the lines that NVIDIA's driver (NVRM) wrote to its log.

The wording is that of kernel-open/nvidia/nv-pci.c, nv.c and src/nvidia/arch/nvalloc/unix/src/osapi.c, osinit.c in
NVIDIA's open-gpu-kernel-modules 595.45.04, and of reports from older releases. Meanings of Xids: NVIDIA's Xid catalog
(docs.nvidia.com/deploy/xid-errors). Standard library only: this travels to bare hosts with host.py.
"""
from __future__ import annotations

import re
from collections.abc import Collection
from typing import NamedTuple, Optional

from debzero.doctor.probe import HostProbe

COLD_BOOT = ("power the host off and on (a lost GPU needs a cold boot); if it happens again, check the card's power, "
             "cooling and seat, or replace it")
BRANCH = "set nvidia_driver_branch to {} and run playbooks/gpu.yml"
FIRMWARE = ("enable Above 4G Decoding in the firmware, or boot with pci=realloc; in a virtual machine, give it a "
            "larger PCI address space (MMIO)")
OTHER_BRANCH, SAME_BRANCH, NO_DRIVER = "other", "same", "none"  # which driver helps

ADDRESS = r"(?P<gpu>[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}(?:\.[0-9a-f])?)"
INSTALLED = rf"GPU {ADDRESS} \(PCI ID: (?P<id>[\w:]+)\) installed in this (?:vGPU host )?system "


class Cause(NamedTuple):
    """Why GPUs do not work, and what to do."""

    found: str
    advice: str
    helps: str = NO_DRIVER  # another branch, the same branch (installed, built and loaded properly), or no driver


class _Rule(NamedTuple):
    """`pattern` in NVRM's lines, which are joined by blanks; its groups fill the texts, {gpu} with the PCI address."""

    pattern: str
    found: str
    advice: str
    helps: str = NO_DRIVER


RULES = [_Rule(*rule) for rule in (  # what names the cause before what only names the effect
    (INSTALLED + "requires use of (?:the )?NVIDIA open kernel modules",
     "GPU {gpu} ({id}) works only with NVIDIA's open kernel modules, and the driver's module is the proprietary one",
     "install them in place of nvidia-kernel-dkms, in one version with the other packages (NVIDIA calls the package "
     "nvidia-kernel-open-dkms, Debian nvidia-open-kernel-dkms), and reboot", OTHER_BRANCH),
    (INSTALLED + r"is not supported by open nvidia\.ko",
     "GPU {gpu} ({id}) does not work with NVIDIA's open kernel modules, which are installed",
     "install nvidia-kernel-dkms in their place, in one version with the other packages, and reboot", OTHER_BRANCH),
    (INSTALLED + r"is not supported by the NVIDIA (?P<version>[\d.]*\d) driver release",
     "Driver {version} does not know GPU {gpu} ({id}), which is newer",
     BRANCH.format("a newer branch (with nvidia_driver_source: nvidia, where Debian has none)"), OTHER_BRANCH),
    (r"The NVIDIA (?P<name>.{1,80}?) (?:GPU )?installed in this system is supported through the NVIDIA "
     r"(?P<branch>\d+)[\w.-]* Legacy drivers.{0,200}?The (?P<version>[\d.]*\d) NVIDIA driver will ignore this GPU",
     "Driver {version} is too new for the {name}: {branch} is the last branch that knows this GPU",
     BRANCH.format('"{branch}"'), OTHER_BRANCH),
    (rf"invalid: (?P<bar>BAR\d) is (?P<size>\d+M) @ \S+ \(PCI:{ADDRESS}\)",
     "The firmware gave GPU {gpu} too little PCI address space ({bar}: {size})", FIRMWARE),
    (rf"GPU {ADDRESS}: GPU does not have the necessary power cables connected",
     "GPU {gpu} lacks a power cable", "power the host off and connect all of the card's power cables"),
    (INSTALLED + "has fallen off the bus", "GPU {gpu} ({id}) has fallen off the bus", COLD_BOOT),
    (rf"GPU (?:at PCI:)?{ADDRESS}: GPU has fallen off the bus", "GPU {gpu} has fallen off the bus", COLD_BOOT),
    (r"Can't find an IRQ for your NVIDIA card", "The firmware gave a GPU no interrupt",
     "update the firmware, or load its defaults; in a virtual machine, correct the passthrough"),
    (r"The NVIDIA probe routine was not called for \d+ device|request_mem_region failed for",
     "Another driver holds the GPU", "lspci -k names it: keep it from loading (blacklist it in /etc/modprobe.d, run "
     "update-initramfs -u), and reboot"),
    (rf"Cannot initialize GSP firmware RM.{{0,300}}?GPU {ADDRESS}: RmInitAdapter failed! \((?P<code>[\w:]+)\)",
     "The firmware that the driver loads into GPU {gpu} (GSP) does not start (RmInitAdapter failed, {code})",
     "install firmware-nvidia-gsp in the driver's version, where it is missing; else power the host off and on, and "
     "if that does not help, try another nvidia_driver_branch", SAME_BRANCH),
    (rf"GPU {ADDRESS}: RmInitAdapter failed! \((?P<code>[\w:]+)\)",
     "The driver cannot start GPU {gpu} (RmInitAdapter failed, {code})",
     "power the host off and on; check the card's seat and power, the firmware's Above 4G Decoding, and in a virtual "
     "machine the passthrough; if that does not help, try another nvidia_driver_branch"),
    (r"RmInitAdapter failed! \((?P<code>[\w:]+)\)",
     "The driver cannot start a GPU (RmInitAdapter failed, {code})",
     "power the host off and on; check the card's seat and power, and the firmware's Above 4G Decoding; if that does "
     "not help, try another nvidia_driver_branch"),
)]


def explain(probe: HostProbe, addresses: Collection[str] = ()) -> Optional[Cause]:
    """Why these GPUs (all, where none are named) do not work; None where the kernel does not say, or is not readable.

    What an earlier driver reported before it was replaced does not count.
    """
    text, present = " ".join(probe.nvrm), probe.loaded_version or probe.module_on_disk.get("version", "")
    for rule in RULES:
        for match in reversed(list(re.finditer(rule.pattern, text, re.IGNORECASE))):
            facts = {name: value or "" for name, value in match.groupdict().items()}
            earlier = present and facts.get("version", present) != present
            gpu = facts.get("gpu", "").lower()[-12:]
            if not earlier and (not gpu or not addresses or any(gpu in address for address in addresses)):
                return Cause(rule.found.format(**facts), rule.advice.format(**facts), rule.helps)
    return None


CAUSED_BY_PROGRAMS = {13, 31, 43, 45}  # an exception or a wild pointer in its code; it was ended
XIDS = (  # from the worst to the mildest: numbers, what to do
    ({79}, COLD_BOOT),
    ({48, 63, 64, 92, 94, 95, 140, 171, 172}, "look at nvidia-smi -q -d ECC,PAGE_RETIREMENT,ROW_REMAPPER, and reset "
     "the GPU (nvidia-smi --gpu-reset) or reboot; replace the card if these errors return"),
    ({74, 144, 145, 146, 147, 148, 149, 150}, "look at nvidia-smi nvlink --status and --errorcounters, and at the "
     "fabric manager's log; power the host off and on, and check the seat of card and bridge if it returns"),
    ({46, 61, 62, 109, 110, 119, 120, 136, 143, 154}, "reset the GPU (nvidia-smi --gpu-reset) or power the host off "
     "and on; if it returns, try another nvidia_driver_branch, then another card"),
)
UNKNOWN_XID = "look up the Xid in NVIDIA's catalog (docs.nvidia.com/deploy/xid-errors); reboot if jobs fail"
PROGRAM_XID = ("the card is sound: a program's own error ended it. Look at that job's log; only where sound programs "
               "fail on this GPU alone, suspect the card")


def worst_xid(probe: HostProbe) -> Optional[Cause]:
    """The worst GPU error that the kernel reported since the start, the last of its kind."""
    for numbers, advice in (*XIDS, (None, UNKNOWN_XID), (CAUSED_BY_PROGRAMS, PROGRAM_XID)):
        found = [text for number, text in probe.xids
                 if (number in numbers if numbers is not None else number not in CAUSED_BY_PROGRAMS)]
        if found:
            return Cause(f"the kernel says: {found[-1]}", advice)
    return None


def hardware_xid(probe: HostProbe) -> str:
    """The last report that no program caused, as the end of a sentence; else empty."""
    found = [text for number, text in probe.xids if number not in CAUSED_BY_PROGRAMS]
    return f"; the kernel says: {found[-1]}" if found else ""
