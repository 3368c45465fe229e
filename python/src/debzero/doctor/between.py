"""`debzero doctor --job`: the chain of checks between the hosts of a job. It runs on all of them at the same time: the
first one answers the others, unless the job's own launcher listens there already."""
from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Callable, Optional

from debzero.base.errors import InputError, PassingError, Problem
from debzero.base.stack import jobs_folder
from debzero.doctor.chain import Check, Context
from debzero.doctor.host_check import CheckResult, fail, ok, warn
from debzero.hosts import cluster, network, probe
from debzero.hosts.channel import Channel, ChannelError, connect
from debzero.hosts.cluster import Cluster
from debzero.hosts.leader import Leader

WAIT = 30.0         # seconds for doctor to be started on the other hosts
MOST_SKEW = 2.0     # seconds
SLOW = 1.0          # Gbit/s
OPEN = "let the hosts reach each other at all ports: gloo and NCCL use whichever are free"


class Between:
    """What one check learns and the next ones need."""

    def __init__(self, found: Cluster) -> None:
        self.cluster = found
        self.addresses: dict[str, str] = {}
        self.channel: Optional[Channel] = None
        self.leader: Optional[Leader] = None
        self.said: dict[str, Any] = {}

    @property
    def own(self) -> str:
        return self.addresses[self.cluster.host]

    @property
    def first(self) -> str:
        return self.addresses[self.cluster.first]

    def checks(self) -> list[Check]:
        """In the order of cause and effect."""
        links: list[tuple[str, Callable[[Context], CheckResult], tuple[str, ...]]] = [
            ("names", self.names, ()), ("key", self.key, ()), ("interface", self.interface, ("names",)),
            ("port", self.port, ("names", "key", "interface"))]
        if not self.cluster.leads:
            links += [("versions", self.versions, ("port",)), ("clock", self.clock, ("port",)),
                      ("mtu", self.mtu, ("port",)), ("ports", self.ports, ("port",)),
                      ("link", self.link, ("ports",))]
        return [Check(name, run, needs, seconds=round(WAIT) if name == "port" else 0) for name, run, needs in links]

    def close(self) -> None:
        if self.channel:
            self.channel.close()
        if self.leader:
            self.leader.close()

    def names(self, _: Context) -> CheckResult:
        try:
            self.addresses = network.addresses(self.cluster)
        except InputError as error:
            return fail(error.problems[0].reason, error.problems[0].fix)
        except PassingError as error:
            return fail(error.reason, error.fix)
        return ok(", ".join(f"{name} {address}" for name, address in self.addresses.items()))

    def key(self, _: Context) -> CheckResult:
        try:
            self.cluster.key()
        except InputError as error:
            return fail(f"{self.cluster.key_file} {error.problems[0].reason}", error.problems[0].fix)
        return ok(str(self.cluster.key_file))

    def interface(self, _: Context) -> CheckResult:
        try:
            name = network.interface(self.cluster, self.addresses)
        except InputError as error:
            return fail(error.problems[0].reason, error.problems[0].fix)
        target = next(address for host, address in self.addresses.items() if host != self.cluster.host) \
            if self.cluster.leads else self.first
        source = network.source_to(target)
        if source is None:
            return fail(f"there is no route to {target}",
                        "see `ip route`, and whether the link is up: `ip -brief link`")
        used = network.interface_of(source)
        if used != name:
            return fail(f"the route to {target} is by {used}, but gloo and NCCL would use {name}",
                        f"set `interface: {used}` in {self.cluster.file}, or correct this host's address in `hosts`")
        return ok(f"{name}, {self.own}")

    def port(self, _: Context) -> CheckResult:
        """Reach the first host; as the first, wait for the others."""
        if self.cluster.leads:
            try:
                self.leader = Leader(self.cluster, self.cluster.key(), self.first)
            except OSError as error:
                if self._connected():
                    return ok(f"the job's launcher listens at {self.first}, port {self.cluster.port}")
                return fail(f"cannot listen at {self.first}, port {self.cluster.port}: {error.strerror}",
                            f"see who does: ss -ltnp 'sport = {self.cluster.port}'")
            return self._others(self.leader)
        why = self._connected(WAIT)
        if not self.channel:
            return fail(f"{self.cluster.first} ({self.first}, port {self.cluster.port}) {why}",
                        "run this on all hosts at the same time; then see the firewall, and whether the keys are the "
                        f"same: sha256sum {self.cluster.key_file}")
        if self.said["peer"] != self.own:
            return fail(f"{self.cluster.first} sees this host as {self.said['peer']}, not as {self.own}",
                        "correct this host's address in `hosts` on all hosts, or the address translation between them")
        return ok(f"{self.cluster.first} answers at {self.first}, port {self.cluster.port}")

    def _others(self, leader: Leader) -> CheckResult:
        """Answer the others until each has asked and gone."""
        until, others = time.monotonic() + WAIT, set(self.cluster.others)
        while time.monotonic() < until and not (others <= leader.probed and not leader.probing):
            time.sleep(0.1)
        missing = sorted(others - leader.probed)
        if missing:
            return fail(f"{', '.join(missing)} did not come within {WAIT:g} seconds",
                        "run this on all hosts at the same time; what fails there is the cause")
        return ok(f"{', '.join(sorted(others))} came to {self.first}, port {self.cluster.port}")

    def _connected(self, seconds: float = 0.0) -> str:
        """Why the first host cannot be reached, or nothing."""
        until, why = time.monotonic() + seconds, ""
        while self.channel is None:
            channel = None
            try:
                channel = connect(self.first, self.cluster.port, self.cluster.key(), probe.PATIENCE)
                self.said = probe.hello(channel, self.cluster.host)
                self.channel = channel
            except ChannelError as error:
                why = f"{error} (has it another key?)" if channel else str(error)
                if channel:
                    channel.close()
                if time.monotonic() > until:
                    return why
                time.sleep(0.5)
        return ""

    def versions(self, _: Context) -> CheckResult:
        mine, theirs = probe.versions(), self.said["versions"]
        for name in dict.fromkeys([*mine, *theirs]):
            if mine.get(name) != theirs.get(name):
                return fail(f"{name} is {theirs.get(name)} on {self.cluster.first} and {mine.get(name)} on "
                            f"{self.cluster.host}", "install the same release on all hosts")
        return ok(", ".join(f"{name} {version}" for name, version in mine.items()))

    def clock(self, _: Context) -> CheckResult:
        skew = self.said["skew"]
        text = f"{self.cluster.first} is {abs(skew):.2f} s {'ahead' if skew > 0 else 'behind'}"
        if abs(skew) > MOST_SKEW:
            return warn(text, "let both follow a time server: the hosts' logs cannot be compared", skew_seconds=skew)
        return ok(text, skew_seconds=skew)

    def mtu(self, _: Context) -> CheckResult:
        mine, theirs = probe.mtu(self.own), self.said["mtu"]
        if mine != theirs:
            return fail(f"{mine} bytes here and {theirs} on {self.cluster.first}: large packets are lost on the way",
                        "set the same MTU on all hosts and on the switches between them", mtu=mine)
        return ok(f"{mine} bytes on both", mtu=mine)

    def ports(self, _: Context) -> CheckResult:
        assert self.channel
        if why := probe.is_reached(self.channel, self.own):
            return fail(f"{self.cluster.first} does not reach a free port of {self.cluster.host}: {why}", OPEN)
        return ok(f"{self.cluster.first} reaches a free port of this host")

    def link(self, _: Context) -> CheckResult:
        assert self.channel
        try:
            speed = probe.receive(self.channel, self.first)
        except ChannelError as error:
            return fail(f"{self.cluster.first} {error}", "run this again")
        except OSError as error:
            return fail(f"nothing comes through a free port of {self.cluster.first}: {error.strerror or error}",
                        f"{OPEN}; and see that large packets get through: ping -M do -s 1472 {self.first}")
        text = f"{speed.gigabits:.1f} Gbit/s, {1000 * self.said['latency']:.2f} ms there and back"
        facts = {"gbit_per_second": round(speed.gigabits, 2), "latency_ms": round(1000 * self.said["latency"], 3)}
        if speed.gigabits < SLOW:
            return warn(text, "each step sends about twice the weights over this link: use a faster one", **facts)
        return ok(text, **facts)


def of_job(name: str) -> Between:
    """The checks for a job, by its name or file. Raises an InputError where one host trains it."""
    if not name:
        raise InputError([Problem("the command line", "--job", "is empty", "name a job of several hosts")])
    path = Path(name)
    job = path if path.suffix in (".yml", ".yaml") else jobs_folder() / f"{name}.yml"
    found = cluster.find(job)
    if found is None:
        raise InputError([Problem(name, "--job", f"no other host trains it: {cluster.file_of(job)} is not there, or "
                                  "names one host", "name a job of several hosts; without --job this host is "
                                  "examined")])
    return Between(found)
