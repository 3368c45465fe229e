"""What the role trainer makes of trainer_jobs: a filter without side effects.

An entry with `hosts:` is one job over these hosts. What differs on each of them lies beside its job file, in the
cluster file that `debzero train` reads.
"""
from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from itertools import combinations
from typing import Any, Callable

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*\Z")
OWN_KEYS = ("hosts", "port")  # of an entry: for the role, no part of the job file
PORTS = 8  # of the first host that belong to one job, from `port` on
LOWEST, HIGHEST = 1024, 65536 - PORTS


def _members(hosts: Any, groups: Mapping[str, list[str]]) -> tuple[list[str], list[str]]:
    """The hosts that an entry names, in the order of their ranks, and what is wrong with them."""
    if isinstance(hosts, str) and hosts not in groups:
        return [], [f"the inventory has no group {hosts}"]
    if not isinstance(hosts, (str, list)):
        return [], ["hosts must be a group of the inventory, or a list of its hosts"]
    names = list(groups[hosts]) if isinstance(hosts, str) else list(map(str, hosts))
    problems = [f"the inventory has no host {name}" if name not in groups["all"] else
                f"{name} is not in the group gpu_servers, whose hosts get the trainer"
                for name in names if name not in groups.get("gpu_servers", [])]
    problems += [f"hosts names {name} twice" for name in sorted({name for name in names if names.count(name) > 1})]
    if len({*names}) < 2:
        problems.append(f"hosts comes to {names[0] if names else 'no host'}, and a job over hosts needs two or more: "
                        "leave hosts out for a job that every host trains by itself")
    return names, problems


def _address(host: str, variables: Mapping[str, Any]) -> tuple[str, str]:
    """The address that the other hosts reach this one at, and what is wrong with it."""
    interface, address = str(variables.get("trainer_interface") or ""), str(variables.get("trainer_address") or "")
    known = variables.get(f"ansible_{re.sub('[^A-Za-z0-9_]', '_', interface)}" if interface else "ansible_default_ipv4")
    known = known.get("ipv4", {}) if known and interface else known
    address = address or str((known or {}).get("address") or "")
    if not address:
        return "", (f"the address of {host}{f' at {interface}' if interface else ''} is not known, for this run has "
                    "not reached it: set trainer_address for it, or run the play without --limit once it answers")
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return "", f"trainer_address of {host} is {address}, which is no IP address"
    if parsed.is_loopback or parsed.is_unspecified or parsed.is_multicast:
        return "", f"the address of {host} is {address}, where no other host reaches it: set trainer_address for it"
    return str(parsed), ""


def _cluster(entry: Mapping[str, Any], host: str, groups: Mapping[str, list[str]], hostvars: Mapping[str, Any],
             port: int) -> tuple[dict[str, Any], list[str]]:
    """What all hosts of a job share of its cluster file, and what is wrong with its entry, for `host`.

    `port`: where the entry has none. A host that was left out has no address: the job's other hosts are refused, and
    those that have no part in the job are not.
    """
    names, problems = _members(entry["hosts"], groups)
    port = entry.get("port", port)
    if type(port) is not int or not LOWEST <= port <= HIGHEST:
        problems.append(f"port must be a whole number from {LOWEST} to {HIGHEST}, not {port}")
    if problems:
        return {"hosts": {}, "port": 0}, problems
    if host not in names:
        return {"hosts": dict.fromkeys(names, ""), "port": port}, []
    found = {name: _address(name, hostvars[name]) for name in names}
    problems = [problem for _, problem in found.values() if problem]
    problems += [f"{one} and {other} have the same address {found[one][0]}: set trainer_address for each of them"
                 for one, other in combinations(names, 2) if found[one][0] and found[one][0] == found[other][0]]
    return {"hosts": {name: address for name, (address, _) in found.items()}, "port": port}, problems


def plan(jobs: Mapping[str, Any], host: str, groups: Mapping[str, list[str]], hostvars: Mapping[str, Any],
         port_base: int) -> dict[str, Any]:
    """What belongs on `host`: the content of its `jobs` and `clusters` files, by name; the names of the jobs over hosts
    that it has no part in, `elsewhere`; and all `problems`, a sentence each."""
    spread = {name: entry for name, entry in jobs.items() if isinstance(entry, Mapping) and "hosts" in entry}
    problems = [f"trainer_jobs: {name!r} names a file and a unit, so it may have letters, digits, dots, dashes and "
                "underscores alone, and begins with a letter or a digit" for name in jobs if not NAME.match(str(name))]
    clusters = {}
    for number, (name, entry) in enumerate(spread.items()):
        clusters[name], wrong = _cluster(entry, host, groups, hostvars, port_base + PORTS * number)
        problems += [f"trainer_jobs.{name}: {problem}" for problem in wrong]
    problems += [f"trainer_jobs.{one} and trainer_jobs.{other} would use the same ports of {min(both)}: give one of "
                 f"them a port of its own, {PORTS} or more from the other's"
                 for one, other in combinations(clusters, 2)
                 if (both := {*clusters[one]["hosts"]} & {*clusters[other]["hosts"]})
                 and abs(clusters[one]["port"] - clusters[other]["port"]) < PORTS]
    interface = hostvars[host].get("trainer_interface")
    own = {"host": host, **({"interface": interface} if interface else {})}
    mine = {name: {**cluster, **own} for name, cluster in clusters.items() if host in cluster["hosts"]}
    elsewhere = [name for name in spread if name not in mine]
    files = {name: {key: value for key, value in entry.items() if key not in OWN_KEYS} if name in mine else entry
             for name, entry in jobs.items() if name not in elsewhere}
    return {"jobs": files, "clusters": mine, "elsewhere": elsewhere, "problems": problems}


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"trainer_plan": plan}
