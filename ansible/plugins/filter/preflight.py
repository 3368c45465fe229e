"""What the role preflight concludes: filters without side effects, from what its scripts printed to results.

A result is a dictionary of check, status (ok, warn, fail, skip), found and advice, as debzero/doctor/host_check.py
defines it. `script` is what Ansible registers of a task: rc, stdout, stderr, skipped.
"""
from __future__ import annotations

import json
import re
from typing import Any, Callable

Result = dict[str, Any]
DRIVER_PACKAGES = ["nvidia-kernel-dkms", "libcuda1", "nvidia-smi"]
PACKAGE_ADVICE = {
    "headers": "apt update, then apt install linux-image-{0} linux-headers-{0} and reboot into that kernel, whose "
               "headers the archives have",
    "cuda": "set base_apt_mirror to a mirror that has it, or cuda_source to nvidia or local",
    "fail": "set base_apt_mirror to a mirror that has it, or base_apt_components to its component",
    "warn": "set base_apt_mirror to a mirror that has it; else the role nvidia_driver takes an older driver that it "
            "can fetch"}


def _result(check: str, status: str, found: str, advice: str = "") -> Result:
    return {"check": check, "status": status, "found": found, "advice": advice}


def _last_line(script: dict[str, Any]) -> str:
    """Why a script failed, in most cases."""
    lines = (script.get("stdout", "") + script.get("stderr", "")).strip().split("\n")
    return lines[-1].strip()


def _data(results: list[Result], check: str) -> dict[str, Any]:
    """The data of one check; empty where it has none."""
    return next((result.get("data") or {} for result in results if result["check"] == check), {})


def write_results(script: dict[str, Any], folders: list[str]) -> list[Result]:
    """One failure for each reason why a folder cannot be written. `script` printed "FOLDER<tab>message of mktemp"."""
    if script.get("rc") != 0:
        return [_result("writable", "fail", f"It cannot be tried whether the host can be written: {_last_line(script)}",
                        "see that a shell runs there as root, and that preflight_writable is a list of folders")]
    reasons: dict[str, list[str]] = {}
    for line in script.get("stdout", "").splitlines():
        folder, _, message = line.partition("\t")
        reasons.setdefault(message.rpartition(": ")[2], []).append(folder)
    return [_result("writable", "fail", f"{', '.join(dict.fromkeys(lost))} cannot be written ({reason})",
                    "find the cause (dmesg, findmnt, df -i), repair it, and mount it again with -o remount,rw")
            for reason, lost in reasons.items()] or [
        _result("writable", "ok", f"{', '.join(folders)} can be written")]


def machine_results(machines: dict[str, dict[str, Any]], name: str) -> list[Result]:
    """A failure of each name but the first of a machine that has several: its changes would get in each other's way.

    `machines`: by the hosts' names in the order of the play, the script that printed what no other machine prints.
    Where it failed, nothing is known, and nothing is wrong.
    """
    same = [host for host, script in machines.items() if script.get("rc") == 0
            and script.get("stdout") == machines[name].get("stdout")]
    return [] if name not in same[1:] else [_result(
        "machine", "fail", f"{name} is the same machine as {same[0]}",
        "write it into the inventory once, under one name, which may be in several groups")]


def host_results(script: dict[str, Any]) -> list[Result]:
    """What host.py printed; where it could not run, that is the one result."""
    text = script.get("stdout", "")
    if script.get("rc") in (0, 1) and text.startswith("["):
        return list(json.loads(text))
    return [_result("system", "fail", f"The host cannot be examined: {_last_line(script)}",
                    "install python3 on it, or correct the variables preflight_*")]


def archive_results(unreachable: list[str], host: list[Result]) -> list[Result]:
    """One failure for each archive that does not answer. `unreachable`: lines of fetch_indexes.sh, "URL<tab>reason"."""
    ended, results = _data(host, "archives"), []
    for line in unreachable:
        url, _, reason = line.partition("\t")
        advice = "check the network and base_proxy_environment, or set base_apt_mirror to one that this host reaches"
        if any(suite in url for suite in ended):
            advice = "remove it from apt's sources: it has reached its end of life"
        reason = re.sub(r"^E: |Failed to fetch \S+ +", "", reason)
        results.append(_result("apt", "fail", f"apt cannot fetch {url} ({reason})", advice))
    return results or [_result("apt", "ok", "all archives answer")]


def packages_to_fetch(host: list[Result], packages: list[str], non_free: list[str],
                      installs_driver: bool) -> dict[str, list[str]]:
    """What must be in the archives: {"packages", "non_free"}.

    `installs_driver`: the role nvidia_driver runs next and takes Debian's driver where none works. Where it will build
    one, it needs the running kernel's headers, too.
    """
    headers = [_data(host, "headers")["package"]] if _data(host, "headers") else []
    # A warning that lists the GPUs is one about a driver that works.
    works = all(result["status"] == "ok" or (result["status"] == "warn" and result.get("data"))
                for result in host if result["check"] == "nvidia-smi")
    driver = DRIVER_PACKAGES if installs_driver and _data(host, "gpu") and not works else []
    return {"packages": [*packages, *headers], "non_free": [*non_free, *driver]}


def package_results(script: dict[str, Any], wanted: dict[str, list[str]]) -> list[Result]:
    """What fetch_packages.py printed for the `wanted` packages.

    A package of non-free is a warning: its role takes another version, or refuses with more to say.
    """
    if script.get("skipped"):
        return [_result("packages", "skip", "because of apt")]
    if not script.get("stdout", "").startswith("{"):
        return [_result("packages", "fail", f"apt's packages cannot be examined: {_last_line(script)}",
                        "run apt-get check on the host, and fix what it reports")]
    lacking, results = json.loads(script["stdout"]), []
    for status, rows in (("fail", lacking["packages"]), ("warn", lacking["non_free"])):
        for name, reason in rows:
            kind = "headers" if "linux-headers" in name else "cuda" if name.startswith("nvidia-cuda") else status
            flavour = re.search(r"(?:cloud-|rt-)?amd64", name)
            advice = PACKAGE_ADVICE[kind].format(flavour.group() if flavour else "amd64")
            results.append(_result("packages", status, f"apt cannot fetch {name} ({reason})", advice))
    count = len(wanted["packages"]) + len(wanted["non_free"])
    return results or [_result("packages", "ok", f"{count} can be fetched, or are installed already")]


def failures(results: list[Result]) -> list[str]:
    """A sentence for each failed check: what was found, and what to do."""
    return [f"{result['found']}: {result['advice']}." for result in results if result["status"] == "fail"]


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"preflight_write_results": write_results, "preflight_machine_results": machine_results,
                "preflight_host_results": host_results,
                "preflight_archive_results": archive_results, "preflight_packages_to_fetch": packages_to_fetch,
                "preflight_package_results": package_results, "preflight_failures": failures}
