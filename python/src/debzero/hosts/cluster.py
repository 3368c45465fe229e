"""The cluster file: which hosts train a job together, and which of them this one is.

It lies under the job's name in the folder `cluster` beside that of the host's jobs, and beside it, as NAME.key, the
secret that the hosts share. The job file is the same on all hosts; all that differs between them is here.
"""
from __future__ import annotations

import ipaddress
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional, Union

from debzero.base.environment import environment
from debzero.base.errors import InputError, Problem
from debzero.base.privileges import acting_as_owner
from debzero.base.reading import JOB, ContentError, open_regular, read_text, why
from debzero.base.stack import jobs_folder, stack
from debzero.base.text import short
from debzero.base.yaml_reading import load

NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")  # of a host; also what an address may be instead
INTERFACE = re.compile(r"[^\s/]{1,15}")  # the kernel's limit
# The name service takes 10.1 for 10.0.0.1, and 010.0.0.1 for 8.0.0.1.
NUMBER = re.compile(r"(.*\.)?([0-9]+|0[xX][0-9a-fA-F]*)")
KEY = re.compile(r"[0-9a-fA-F]{64}")
MOST_HOSTS = 1024
PORTS = range(1024, 65536)
EXAMPLE = {"hosts": "hosts: {gpu1: 10.0.0.1, gpu2: 10.0.0.2}", "host": "host: gpu1", "port": "port: 29510",
           "interface": "interface: eth0"}
MAKE_KEY = "make one and copy it to all hosts: `openssl rand -hex 32`"


@dataclass(frozen=True)
class Cluster:
    """`hosts`: the address of each, in the order of their ranks; `host`: this one. The first listens on `port`."""

    file: Path
    hosts: Mapping[str, str]
    host: str
    port: int
    interface: Optional[str] = None  # that the hosts reach each other by; None: that of the route to the first

    @property
    def names(self) -> list[str]:
        return list(self.hosts)

    @property
    def first(self) -> str:
        """The host that the others meet at, with the first ranks."""
        return self.names[0]

    @property
    def number(self) -> int:
        """This host's, from 0."""
        return self.names.index(self.host)

    @property
    def leads(self) -> bool:
        return self.host == self.first

    @property
    def others(self) -> list[str]:
        return [name for name in self.hosts if name != self.host]

    @property
    def key_file(self) -> Path:
        return self.file.with_suffix(".key")

    def key(self) -> bytes:
        """The secret of the job's hosts. Raises an InputError where there is none, or where it is none."""
        def wrong(reason: str, fix: str) -> InputError:
            return InputError([Problem(str(self.key_file), "file", reason, fix)])

        try:
            with acting_as_owner(self.key_file), open_regular(self.key_file) as file:
                mode, text = os.fstat(file.fileno()).st_mode, file.read(200)
        except OSError as error:
            raise wrong(why(error), MAKE_KEY if isinstance(error, FileNotFoundError) else
                        "let this user read it: chown root:debzero, chmod 0640") from None
        if stat.S_IMODE(mode) & (stat.S_IRWXO | stat.S_IWGRP):
            raise wrong("is open to other users, and whoever has it can join the job",
                        f"chmod 0640 {self.key_file}; make a new one if other users log in here")
        found = text.decode("ascii", "replace").strip()
        if not KEY.fullmatch(found):
            raise wrong("must hold 64 hexadecimal digits", MAKE_KEY)
        return bytes.fromhex(found)


def file_of(job: Path) -> Path:
    """Where the cluster file of a job of this host lies."""
    return Path(stack().config, "cluster", f"{job.stem}.yml")


def find(job: Path) -> Optional[Cluster]:
    """The cluster that trains a job: in the file that the environment names (as `debzero train --cluster` does), or in
    that of the job's name where the job is one of this host's. None where one host trains it. Raises an InputError."""
    if environment().cluster_file:
        return given()
    is_own = job.parent.resolve() == jobs_folder().resolve() and os.path.lexists(file_of(job))
    return _of_several(file_of(job) if is_own else None)


def given() -> Optional[Cluster]:
    """The cluster in the file that the environment names; as find."""
    return _of_several(environment().cluster_file)


def _of_several(file: Optional[Path]) -> Optional[Cluster]:
    cluster = read(file.absolute()) if file else None
    return cluster if cluster and len(cluster.hosts) > 1 else None


def find_unless_wrong(job: Path) -> Optional[Cluster]:
    """As find; None where the file is wrong, too."""
    try:
        return find(job)
    except InputError:
        return None


def read(file: Path) -> Cluster:
    """Raises an InputError with all that is wrong with the file."""
    try:
        with acting_as_owner(file):
            text = read_text(file, JOB)
        values, repeated = load(text)
    except (OSError, ContentError) as error:
        place = error.place if isinstance(error, ContentError) else "file"
        raise InputError([Problem(str(file), place, why(error), "the role `trainer` writes it")]) from None
    if not isinstance(values, dict):
        raise InputError([Problem(str(file), "file", "must hold a mapping such as `hosts: ...`",
                                  f"for example `{EXAMPLE['hosts']}`")])
    problems = [Problem(str(file), key, f"is repeated on line {line}", "keep one") for key, line in repeated]
    problems += [Problem(str(file), key, reason, f"for example `{EXAMPLE[key]}`" if key in EXAMPLE else
                         f"the keys are {', '.join(EXAMPLE)}") for key, reason in _wrong(values)]
    if problems:
        raise InputError(problems)
    return Cluster(file, {name: _plain(address) for name, address in values["hosts"].items()}, values["host"],
                   values["port"], values.get("interface"))


def _wrong(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Each key with what is wrong with it."""
    for key in values:
        if key not in EXAMPLE:
            yield key, "is not a known key"
    hosts = values.get("hosts")
    if "hosts" not in values:
        yield "hosts", "is missing"
    elif not isinstance(hosts, dict) or not hosts:
        yield "hosts", f"must be a mapping of names to addresses, not {short(hosts)}"
    elif len(hosts) > MOST_HOSTS:
        yield "hosts", f"must have at most {MOST_HOSTS} hosts, not {len(hosts)}"
    else:
        yield from (("hosts", reason) for reason in _wrong_hosts(hosts))
    host = values.get("host")
    if "host" not in values:
        yield "host", "is missing"
    elif not isinstance(host, str):
        yield "host", f"must be text, not {short(host)}"
    elif isinstance(hosts, dict) and host not in hosts:
        yield "host", f"{short(host)} is none of `hosts`: {', '.join(list(hosts)[:20])}"
    port = values.get("port")
    if "port" not in values:
        yield "port", "is missing"
    elif type(port) is not int or port not in PORTS:
        yield "port", f"must be a whole number from {PORTS[0]} to {PORTS[-1]}, not {short(port)}"
    interface = values.get("interface")
    if interface is not None and not (isinstance(interface, str) and INTERFACE.fullmatch(interface)):
        yield "interface", f"must be the name of one network interface, not {short(interface)}"


def _wrong_hosts(hosts: Mapping[str, Any]) -> Iterator[str]:
    seen: dict[str, str] = {}
    for name, address in hosts.items():
        if not NAME.fullmatch(name):
            yield f"{short(name)} is no name of a host"
        elif not isinstance(address, str) or not (_ip(address) or _is_name(address)):
            yield f"{name}: must be an IP address or a name, not {short(address)}"
        elif _is_for_many(address):
            yield f"{name}: {address} is no address of one host"
        elif (plain := _plain(address).lower()) in seen:
            yield f"{name} and {seen[plain]} have the same address, {address}"
        else:
            seen[plain] = name
    local = [name for name, address in hosts.items() if _is_loopback(address)]
    if local and len(local) < len(hosts):
        yield (f"{local[0]}: {hosts[local[0]]} is the loopback, where each host reaches only itself; give the address "
               "that the others reach it at")


def _ip(text: str) -> Union[ipaddress.IPv4Address, ipaddress.IPv6Address, None]:
    """The address that `text` is; an IPv4 address also where it is written as one of IPv6."""
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return None
    return getattr(found, "ipv4_mapped", None) or found


def _plain(address: str) -> str:
    """An address as everybody writes it; a name as it is."""
    return str(_ip(address) or address)


def _is_name(text: str) -> bool:
    return bool(NAME.fullmatch(text)) and ".." not in text and not NUMBER.fullmatch(text)


def _is_for_many(address: str) -> bool:
    found = _ip(address)
    return found is not None and (found.is_unspecified or found.is_multicast or str(found) == "255.255.255.255")


def _is_loopback(address: object) -> bool:
    found = _ip(str(address))
    return address == "localhost" or found is not None and found.is_loopback
