"""What nvidia-smi's answer means: judged by its rows, and by NVML's errors where there are none.

Exit codes and texts of the errors: "RETURN VALUE" in the manual page nvidia-smi(1), and nvmlReturn_t in nvml.h.
Standard library only: this travels to bare hosts with host.py.
"""
from __future__ import annotations

import re
from typing import Any, NamedTuple, Optional

from debzero.doctor.host_check import CheckResult, Requirements, fail, ok, warn
from debzero.doctor.kernel_log import COLD_BOOT, NO_DRIVER, SAME_BRANCH, Cause, explain, hardware_xid
from debzero.doctor.probe import VERSION, HostProbe

NOTHING_WRONG = ("[n/a]", "[not supported]")  # what this GPU does not have
NO_PERMISSION, NO_DEVICES, CORRUPT_INFOROM, BLOCKED, UNKNOWN = 4, 6, 14, 17, 999  # NVML's; UNKNOWN is no exit code
ABOVE_THE_KERNEL = (NO_PERMISSION, 12, 13, BLOCKED, 18)  # so that its log has nothing to do with them
NO_ANSWER, NOT_INSTALLED = 124, 127  # the probe's
READ_LOG = "read what the kernel says, as root: journalctl --dmesg --grep NVRM"
REBOOT = "reboot, or power the host off and on"
RESET = "end every process on it and run nvidia-smi --gpu-reset -i {index}; where that is refused, " + REBOOT
RIGHTS = ("ls -l /dev/nvidia*: add the user to the group that may write there (usermod -aG video USER, then log in "
          "again), or correct NVreg_DeviceFileMode and NVreg_DeviceFileGID in /etc/modprobe.d; under SELinux, in a "
          "container: setsebool -P container_use_devices 1")
CGROUP = ("a unit needs DeviceAllow= for char-nvidia-frontend, char-nvidiactl and char-nvidia-uvm, as "
          "debzero@.service has it; a container loses its devices at `systemctl daemon-reload`: start it again, and "
          "let nvidia-ctk create the links in /dev/char")


class _Error(NamedTuple):
    """An error of NVML's: its words, as they end a sentence or stand in brackets, or else its exit code."""

    words: str
    code: int
    found: str  # after "GPU 1 " or the like
    advice: str
    helps: str = NO_DRIVER


ERRORS = [_Error(*error) for error in (
    ("requires? (?:a )?reset", 16, "must be reset before it can be used", RESET),
    ("GPU is lost|fallen off the bus", 15, "is lost", COLD_BOOT),
    ("Insufficient Permissions?", NO_PERMISSION,
     "is closed to this user: the rights on /dev/nvidia* do not let them open it", RIGHTS),
    ("blocked by the operating system", BLOCKED,
     "is closed by the operating system: a cgroup, a unit or a container does not hand on /dev/nvidia*", CGROUP),
    ("external power|power cables", 8, "lacks a power cable",
     "power the host off and connect all of the card's power cables"),
    ("interrupt issue|IRQ", 10, "gets no interrupts", "update the firmware, or boot with pci=nomsi to see whether "
     "message-signalled interrupts are the cause"),
    ("Driver/library version mismatch", 18, "cannot be asked: nvidia-smi's library and the kernel's module have "
     "different versions", "install libcuda1 and nvidia-smi in the module's version, or reboot into the new module",
     SAME_BRANCH),
    ("couldn't communicate|Driver Not Loaded", 9, "cannot be asked: the driver's module does not answer",
     "modprobe nvidia, create /dev/nvidia* with nvidia-modprobe -u -c 0 where they are missing, and " + READ_LOG,
     SAME_BRANCH),
    (r"libnvidia-ml|shared library|Library Not Found", 12, "cannot be asked: libnvidia-ml is not installed",
     "apt install libnvidia-ml1, in the driver's version", SAME_BRANCH),
    ("Function Not Found", 13, "cannot be asked: nvidia-smi is newer than its library",
     "install nvidia-smi and libnvidia-ml1 in one version", SAME_BRANCH),
    ("Timeout|timed out", 0, "does not answer in time", RESET),
    ("Unknown Error", UNKNOWN, "answers with an unknown error", f"{READ_LOG}; then {REBOOT}"),
)]


def _error(words: str, code: int = 0) -> Optional[_Error]:
    """The error that NVML's words name, else the exit code."""
    by_words = (error for error in ERRORS if re.search(error.words, words, re.IGNORECASE))
    return next(by_words, next((error for error in ERRORS if code and error.code == code), None))


def faults(probe: HostProbe) -> list[Cause]:
    """One for each GPU whose row holds an error in brackets in place of a value."""
    found = []
    for row in probe.smi_gpus:
        bad = dict.fromkeys(value for value in row.values()
                            if re.fullmatch(r"\[.*\]|ERR!", value) and value.lower() not in NOTHING_WRONG)
        if bad:
            index, error = row["index"], next(filter(None, map(_error, bad)), None)
            what = error.found if error else "answers with an error"
            advice = error.advice if error else f"{READ_LOG}; then {RESET}"
            found.append(Cause(f"GPU {index} {what} (nvidia-smi: {', '.join(bad)})", advice.format(index=index)))
    return found


def why_silent(probe: HostProbe) -> Cause:
    """Why nvidia-smi lists no GPU, or none with a driver's version."""
    code, answer = probe.smi_answer
    said = " ".join(probe.smi_notes) or (f"exit code {code}" if code else "nothing")
    wrong = faults(probe)
    if wrong:  # a row without even the driver's version
        return wrong[0]
    if code == NOT_INSTALLED:
        return Cause(answer or "nvidia-smi is not installed",
                     f"apt install nvidia-smi, version {probe.loaded_version}", SAME_BRANCH)
    if code == NO_ANSWER:
        return Cause(f"{said}: a GPU or its driver hangs{hardware_xid(probe)}", f"{READ_LOG}; then {REBOOT}")
    nothing_found = "No devices were found" in said or code == NO_DEVICES
    kernel, error = explain(probe), None if nothing_found else _error(said, code)
    if error and error.code == UNKNOWN and "initialize NVML" in said and not kernel:
        error = next(one for one in ERRORS if one.code == BLOCKED)  # so it looks where a cgroup has taken the devices
    if error and error.code in ABOVE_THE_KERNEL:
        return Cause(f"The driver {error.found} (nvidia-smi: {said})", error.advice, error.helps)
    if kernel:
        return kernel._replace(found=f"{kernel.found} (nvidia-smi: {said})")
    if error:
        return Cause(f"nvidia-smi fails: {said}{hardware_xid(probe)}", error.advice.format(index="N"), error.helps)
    if nothing_found and probe.in_container:
        return Cause(f"This container was given no GPU (nvidia-smi: {said})", "start it with --gpus all (Docker) or "
                     "--device nvidia.com/gpu=all (podman)")
    if nothing_found:
        return Cause(f"nvidia-smi fails: {said}: the driver is loaded and starts no GPU{hardware_xid(probe)}",
                     f"{READ_LOG} (a GPU that this driver does not know, too little PCI address space, a card that "
                     "does not start); then power the host off and on")
    return Cause(f"nvidia-smi fails: {said}{hardware_xid(probe)}", f"{READ_LOG}; {COLD_BOOT}", SAME_BRANCH)


def check_nvidia_smi(probe: HostProbe, required: Requirements) -> CheckResult:
    """Every GPU on the PCI bus answers, without an error."""
    rows, notes = probe.smi_gpus, "; ".join(probe.smi_notes)
    if not rows:
        cause = why_silent(probe)
        return fail(cause.found, cause.advice)
    answering = {row["pci.bus_id"].lower()[-12:] for row in rows}
    silent = [address for address in probe.gpus if address[-12:] not in answering and address not in probe.held]
    enough = probe.in_container and len(answering) >= required.gpus  # a container is given some of its host's GPUs
    wrong = faults(probe)
    if wrong:
        return fail("; ".join(cause.found for cause in wrong) + hardware_xid(probe),
                    "; ".join(dict.fromkeys(cause.advice for cause in wrong)))
    if silent and not enough:
        said = f"; nvidia-smi says: {notes}" if notes else ""
        cause = explain(probe, silent) or Cause("", COLD_BOOT)
        why = f": {cause.found}" if cause.found else hardware_xid(probe)
        return fail(f"The PCI bus shows {len(probe.gpus)} GPUs and nvidia-smi {len(answering)}; lost: "
                    f"{', '.join(silent)}{why}{said}", cause.advice)
    code = probe.smi_answer[0]
    if re.search("infoROM is corrupted", notes, re.IGNORECASE) or code == CORRUPT_INFOROM:
        return warn(f"The infoROM of a GPU, which holds its serial number and its counters, is damaged; the GPUs work "
                    f"({notes or f'nvidia-smi ends with {code}'})", "nothing needs doing now: report it to the "
                    "card's vendor, who can write it anew", gpus=rows)
    if code or notes:
        return warn(f"All GPUs answer, but nvidia-smi complains: {notes or f'it ends with exit code {code}'}",
                    READ_LOG, gpus=rows)
    return ok("; ".join(f"{row['name']}, {row['memory.total']} MiB" for row in rows), gpus=rows)


def passes_on(driver: str) -> bool:
    """Whether this kernel driver keeps a GPU for virtual machines: on purpose, so no role takes it away."""
    return "vfio" in driver or driver in ("pci-stub", "pciback", "xen-pciback")


def why_none_answers(probe: HostProbe) -> Cause:
    """Why the driver lists no GPU, and which driver helps."""
    holders = set(probe.held.values())
    if len(probe.held) == len(probe.gpus) > 0 and all(map(passes_on, holders)):
        return Cause(f"{' and '.join(sorted(holders))} keeps the GPUs for virtual machines",
                     "take them out of vfio-pci.ids in /etc/modprobe.d and on the kernel's command line")
    if holders or probe.nouveau_loaded:
        return Cause(f"{' and '.join(sorted(holders or {'nouveau'}))} drives the GPUs", "", SAME_BRANCH)
    if probe.loaded_version:
        return why_silent(probe)
    return explain(probe) or Cause(probe.smi_answer[1].strip() or "its module is not loaded", "", SAME_BRANCH)


def role_helps(probe: HostProbe) -> bool:
    """Whether no GPU answers, and the driver that is installed would do: the role nvidia_driver builds and loads it."""
    return not probe.smi_gpus and why_none_answers(probe).helps == SAME_BRANCH


def driver_facts(probe: HostProbe) -> dict[str, Any]:
    """What the role nvidia_driver decides by, ready for JSON.

    `works`: the driver lists a GPU; `running` then is its version, and `answering` how many GPUs it lists. Where it
    does not work, `cause` says why, `advice` what to do, and `helps` which driver helps: of another branch, the same
    branch (installed, built, loaded), or none, because the driver is not the cause.
    """
    versions = [row["driver_version"] for row in probe.smi_gpus if VERSION.fullmatch(row["driver_version"])]
    held = {name for name in probe.held.values() if not passes_on(name)}
    cause = Cause("", "", "") if versions else why_none_answers(probe)
    return {"gpus": list(probe.gpus), "switches": probe.switches, "nouveau": probe.nouveau_loaded, "loaded":
            probe.loaded_version, "held_by": sorted(held), "works": bool(versions), "answering": len(versions),
            "smi": probe.smi_answer[1], "boot_id": probe.boot_id, "running": versions[0] if versions else "",
            "cause": cause.found, "advice": cause.advice, "helps": cause.helps}
