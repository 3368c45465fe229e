"""The addresses of a job's hosts, and the interface of this one by which they reach it."""
from __future__ import annotations

import ipaddress
import socket
from collections.abc import Mapping
from contextlib import suppress
from typing import Optional

import psutil

from debzero.base.errors import InputError, PassingError, Problem
from debzero.hosts.cluster import Cluster

FIX = "correct the file; `ip -brief address` shows this host's addresses"


def look_up(name: str) -> str:
    """The IP address of a host. Raises an OSError where it is unknown."""
    try:
        return str(socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)[0][4][0])
    except UnicodeError:  # a part of the name is empty, or too long
        raise OSError(None, "it is no name of a host") from None


def addresses(cluster: Cluster) -> dict[str, str]:
    """Each host's IP address. Raises an InputError where a name is that of the loopback or two are of one host, and a
    PassingError where one is unknown: the name server may be down."""
    found = {}
    for name, address in cluster.hosts.items():
        try:
            found[name] = look_up(address)
        except OSError as error:
            raise PassingError(f"{cluster.file}: the address {address} of {name} is unknown: {error.strerror or error}",
                               "write its IP address there, or correct the name") from None
    local = [name for name, address in found.items() if is_loopback(address)]
    if local and len(local) < len(found):
        name = local[0]
        raise InputError([Problem(
            str(cluster.file), "hosts", f"{name}: {cluster.hosts[name]} is {found[name]} here, the loopback, where "
            "the other hosts do not reach it (Debian's /etc/hosts gives a host's own name to 127.0.1.1)",
            f"write the IP address of {name}")])
    names = {address: name for name, address in reversed(found.items())}  # the first of each
    twice = [(names[address], name) for name, address in found.items() if names[address] != name]
    if twice:
        raise InputError([Problem(str(cluster.file), "hosts", f"{first} and {name} have the same address here, "
                                  f"{found[name]}", "give each host its own") for first, name in twice])
    return found


def is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.split("%")[0]).is_loopback


def interfaces() -> Mapping[str, list[str]]:
    """The IP addresses of each interface of this host."""
    return {name: [one.address.split("%")[0] for one in found if one.family in (socket.AF_INET, socket.AF_INET6)]
            for name, found in psutil.net_if_addrs().items()}


def interface_of(address: str) -> Optional[str]:
    if is_loopback(address):
        return "lo"
    return next((name for name, found in interfaces().items() if address in found), None)


def source_to(address: str) -> Optional[str]:
    """This host's own address on the route to another; None where there is no route."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((address, 9))  # of UDP: nothing is sent
        return str(probe.getsockname()[0])
    return None


def interface(cluster: Cluster, found: Mapping[str, str]) -> str:
    """The interface that gloo and NCCL are to use: the one with this host's address. `found`: every host's address.
    Raises an InputError where this host has none such, or where the file names another: what the ranks offer there the
    other hosts would take for a stranger's (train/peers)."""
    def wrong(key: str, reason: str) -> InputError:
        return InputError([Problem(str(cluster.file), key, reason, FIX)])

    known, own, named = interfaces(), found[cluster.host], cluster.interface
    if named and named not in known:
        raise wrong("interface", f"{cluster.host} has no interface {named}; it has {', '.join(sorted(known))}")
    if named and not known[named]:
        raise wrong("interface", f"{named} of {cluster.host} has no IP address")
    name = interface_of(own)
    if name is None:
        mine = ", ".join(address for addresses in known.values() for address in addresses if not is_loopback(address))
        raise wrong("hosts", f"{cluster.host}: {own} is no address of this host, which has {mine or 'none'}")
    if named and name != named and own not in known[named]:
        raise wrong("interface", f"{named} of {cluster.host} has not {own}, where the other hosts reach it: "
                                 f"{name} has")
    return named or name
