"""Examine a host from its memory to a driver that answers: the part of doctor's chain below Python's libraries.

Standard library only, and so is all that this imports: the role preflight runs it on hosts that have nothing else
yet, as an archive that ansible/plugins/lookup/host_probe.py packs. It changes nothing. In the order of the chain the
first check that fails is the cause, and what depends on it is skipped.

`python3 -m debzero.doctor.host '{"gpus": 2, "free_mb": {"/opt": 7000}}'` prints lines, with --json a list; exit code 0
(sound), 1 (a check fails), 2 (usage). With --facts it checks nothing and prints what the role nvidia_driver decides by.
"""
from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import time
from typing import Optional

from debzero.base.text import printable
from debzero.doctor.gpu_checks import GPU_CHECKS
from debzero.doctor.host_check import CheckResult, HostCheck, Requirements, fail, ok, skip, warn
from debzero.doctor.probe import HostProbe
from debzero.doctor.smi import driver_facts

OFFLOAD_BYTES = 18  # of the host's memory that ZeRO takes for each parameter whose optimizer state is there
CLOCK_SECONDS = 60  # beyond which certificates begin to look expired
SHM_MB, SHM_PEERS_MB = 32, 1024  # that NCCL needs for one GPU; for more, some 10 MB for each channel of each pair
SECURITY_SUITE = re.compile(r"(?<![/\w.-])[a-z]+(?:-security|/updates)(?![\w/])")
OLD_SUITES = re.compile(r"(?:jessie|stretch|buster)\b|bullseye-backports")


def check_system(probe: HostProbe, required: Requirements) -> CheckResult:
    facts = dict(re.findall(r'^(\w+)="?(.*?)"?$', probe.read("/etc/os-release"), re.MULTILINE))
    debian, machine = facts.get("ID") == "debian", probe.run("uname", "-m")[1]
    version = (debian and probe.read("/etc/debian_version").strip()) or facts.get("VERSION_ID", "")
    judge = fail if required.stage == "preflight" else warn  # what does not stop a host that works
    if not debian or facts.get("VERSION_ID") != "11":
        name = "Debian" if debian else facts.get("NAME")
        return judge(f"The system is {name} {version}, but the pinned stack is built for Debian 11 (Bullseye)",
                     "reinstall the host with Debian 11, or take it out of the inventory")
    if machine != "x86_64":
        return judge(f"The architecture is {machine}, but torch for CUDA 11 exists only for amd64", "use an amd64 host")
    if not probe.path("run/systemd/system").is_dir():
        return judge("The init system is not systemd, but jobs run as its units", "boot the host with systemd")
    return ok(f"Debian {version}, {machine}, kernel {probe.kernel}", kernel=probe.kernel)


def check_memory(probe: HostProbe, required: Requirements) -> CheckResult:
    total = int(re.findall(r"MemTotal:\s+(\d+)|$", probe.read("/proc/meminfo"))[0] or 0) // 1024
    offload = required.offload_parameters * OFFLOAD_BYTES // 2**20
    advice = "add memory, or lower preflight_min_memory_mb and preflight_offload_parameters to what your jobs need"
    if total < required.memory_mb:
        return fail(f"The host has {total} MB of memory, but {required.memory_mb} MB are required", advice)
    if total < offload:
        return fail(f"The host has {total} MB of memory, but the offloaded optimizer of "
                    f"{required.offload_parameters / 1e9:g} billion parameters takes {offload} MB", advice)
    room = total * 2**20 / OFFLOAD_BYTES / 1e9
    return ok(f"{total} MB: room for the offloaded optimizer of {room:.1f} billion parameters")


def check_disk(probe: HostProbe, required: Requirements) -> CheckResult:
    """Free space for each path; paths on one file system need the sum of what is required for each."""
    folders = {name: next(path for path in (probe.path(name), *probe.path(name).parents) if path.exists())
               for name in required.free_mb}
    shared: dict[int, list[str]] = {}
    for name, folder in folders.items():
        shared.setdefault(folder.stat().st_dev, []).append(name)
    enough, lacking = [], []
    for names in shared.values():
        free, needed = shutil.disk_usage(folders[names[0]]).free // 2**20, sum(required.free_mb[name] for name in names)
        text = " and ".join(names) + (" (one file system) have" if len(names) > 1 else " has") + f" {free} MB free"
        if free >= needed:
            enough.append(text)
        else:
            lacking.append(f"{text}, but {needed} MB are required")
    if lacking:
        lower = ", or lower preflight_min_free_mb" * (required.stage == "preflight")
        return fail("; ".join(lacking), f"free some space, mount a larger disk there{lower}")
    return ok("; ".join(enough) or "no free space is required")


def check_shm(probe: HostProbe, required: Requirements) -> CheckResult:
    """The ranks of one host meet in /dev/shm."""
    needed = required.shm_mb or (SHM_PEERS_MB if len(probe.gpus or probe.smi_gpus) > 1 else SHM_MB)
    total = shutil.disk_usage(probe.path("dev/shm")).total // 2**20 if probe.path("dev/shm").is_dir() else 0
    if total < needed:
        return fail(f"/dev/shm holds {total} MB, but the ranks of one host need {needed} MB there to talk to each "
                    "other", f"mount -o remount,size={needed}M /dev/shm, and the same in /etc/fstab (for a container: "
                    "--shm-size)")
    return ok(f"/dev/shm holds {total} MB")


def check_clock(probe: HostProbe, required: Requirements) -> CheckResult:
    ahead = 0 if required.epoch is None else round(time.time() - required.epoch)
    advice = "synchronize it with a time server: apt install systemd-timesyncd, then timedatectl set-ntp true"
    if abs(ahead) > CLOCK_SECONDS:
        return fail(f"The clock is {abs(ahead)} s {'ahead of' if ahead > 0 else 'behind'} the controller's", advice)
    synchronized = ("timedatectl", "show", "--property=NTPSynchronized", "--value")
    if not probe.in_container and probe.run(*synchronized)[1] != "yes":
        return warn("The clock is not synchronized with a time server", advice)
    if required.epoch is not None:
        return ok("agrees with the controller's")
    return ok("kept by the container's host" if probe.in_container else "synchronized")


def check_archives(probe: HostProbe, required: Requirements) -> CheckResult:
    """What apt is configured with; whether it answers is for the role preflight to find out."""
    texts = probe.read_all("/etc/apt/sources.list", "/etc/apt/sources.list.d/*.[ls]*")
    old = {suite: name for name, text in texts.items() for line in re.findall(r"^\s*[^#\s].*", text, re.MULTILINE)
           for suite in OLD_SUITES.findall(line)}
    if old:
        names = ", ".join(f"{suite} in {file}" for suite, file in old.items())
        return warn(f"apt is configured with archives that have reached their end of life: {names}",
                    "remove these lines: mirrors drop such archives, and apt update then fails as a whole", **old)
    bullseye = re.search(r'^VERSION_ID="?11\b', probe.read("/etc/os-release"), re.MULTILINE)
    ended = " (whose support ended in August 2026: keep a mirror of it)" if bullseye else ""
    return ok(f"none older than Bullseye{ended}")


def check_updates(probe: HostProbe, required: Requirements) -> CheckResult:
    """Security updates arrive: apt has an archive of them, and nothing keeps the kernel back."""
    sources = _without_comments(probe.read_all("/etc/apt/sources.list", "/etc/apt/sources.list.d/*.[ls]*"), "#")
    found, advice = [], []
    if sources.strip() and not SECURITY_SUITE.search(sources):
        found.append("apt has no security archive, such as bullseye-security")
        advice.append("add it to apt's sources, or set base_apt_security_mirror")
    if not probe.in_container:  # the kernel is another host's
        want = ("dpkg-query", "--show", "--showformat=${db:Status-Want} ${Package}\n", "linux-image-*")
        held = re.findall(r"^hold (\S+)", probe.run(*want)[1], re.MULTILINE)
        if held:
            found.append(f"the kernel is held: {', '.join(held)}")
            advice.append(f"apt-mark unhold {' '.join(held)}")
        settings = _without_comments(probe.read_all("/etc/apt/apt.conf.d/*"), "//")
        if any('"linux-' in names for names in re.findall(r"Package-Blacklist\s*\{([^}]*)", settings)):
            found.append("unattended-upgrades leaves the kernel out")
            advice.append("take linux- out of Unattended-Upgrade::Package-Blacklist in /etc/apt/apt.conf.d")
    if found:
        return warn(f"Security updates do not reach this host: {'; '.join(found)}", "; ".join(advice))
    return ok("apt has a security archive, and nothing holds the kernel" if sources.strip() else "apt has no archives")


def _without_comments(texts: dict[str, str], mark: str) -> str:
    lines = "\n".join(texts.values()).splitlines()
    return "\n".join(line for line in lines if not line.lstrip().startswith(mark))


HOST_CHECKS = [  # in the order of cause and effect
    HostCheck("system", check_system), HostCheck("memory", check_memory), HostCheck("disk", check_disk),
    HostCheck("shm", check_shm), HostCheck("clock", check_clock), HostCheck("archives", check_archives),
    HostCheck("updates", check_updates), *GPU_CHECKS]


def examine(probe: HostProbe, required: Requirements) -> list[CheckResult]:
    """One result for each check, in the order of the chain. One that failed with data blocks no other."""
    results: list[CheckResult] = []
    blocked: dict[str, str] = {}  # {check: the failed check that is its cause}
    if probe.in_container and not required.gpus and probe.smi_answer[0] == 127:
        probe.gpus = {}  # they are the container's host's, and this container was given none
    for check in HOST_CHECKS:
        cause = next((blocked[need] for need in check.needs if need in blocked), None)
        result = skip(f"because of {cause}") if cause else check.run(probe, required)
        if result.status in ("fail", "skip") and not result.data:
            blocked[check.name] = cause or check.name
        fixed = check.fixed_by_role
        if required.driver_managed and result.status == "fail" and (fixed(probe) if callable(fixed) else fixed):
            result = warn(result.found, "nothing to do: the role nvidia_driver, which runs next, fixes it")
        results.append(result._replace(check=check.name))
    return results


def main(arguments: Optional[list[str]] = None) -> int:
    parser = argparse.ArgumentParser(
        prog="host.py", description="Examine this host, from its memory to the NVIDIA driver. Changes nothing.")
    parser.add_argument("requirements", nargs="?", default="{}",
                        help='what it must have, as JSON: \'{"gpus": 2, "free_mb": {"/opt": 7000}}\'')
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--facts", action="store_true", help="check nothing: print facts of GPUs and driver as JSON")
    options = parser.parse_args(arguments)
    probe = HostProbe()
    if options.facts:
        print(json.dumps(driver_facts(probe)))
        return 0
    try:
        required = Requirements(**json.loads(options.requirements))
    except (TypeError, ValueError) as error:
        keys = ", ".join(Requirements.__dataclass_fields__)
        parser.error(f"the requirements must be a JSON object with keys of {keys}: {error}")
    results = examine(probe, required)
    if options.json:
        print(json.dumps([result._asdict() for result in results]))
    else:
        for result in results:
            print(printable(f"{result.check:<12}{result.status:<6}{result.found}"))
            if result.advice:
                print(printable(f"{'':18}-> {result.advice}"))
    return int(any(result.status == "fail" for result in results))


if __name__ == "__main__":
    sys.exit(main())
