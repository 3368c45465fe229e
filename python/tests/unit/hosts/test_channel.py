"""The side channel: nobody without the key is heard, nothing is repeated or changed on the way, and who is lost is
noticed."""
import dataclasses
import os
import socket
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from debzero.hosts import channel, leader, member
from debzero.hosts.channel import Channel, ChannelError, KeyMismatchError
from debzero.hosts.cluster import Cluster

pytestmark = pytest.mark.timeout(60)  # a host that learns nothing waits for ever
KEY, OTHER = b"k" * 32, b"o" * 32


def ends(key=KEY, other=KEY):
    """Two ends of a connection: the caller's and the listener's."""
    with channel.listen("127.0.0.1", 0) as server:
        made = []
        caller = threading.Thread(target=lambda: made.append(
            channel.connect("127.0.0.1", server.getsockname()[1], key)))
        caller.start()
        listener = Channel(server.accept()[0], other, listens=True)
        caller.join()
    return made[0], listener


def test_both_sides_hear_each_other():
    one, two = ends()
    one.send({"a": "ü" * 9000})
    two.send({"b": 2})
    assert (one.receive(5), two.receive(5)) == ({"b": 2}, {"a": "ü" * 9000}) and one.receive(0.01) is None
    two.close()
    with pytest.raises(ChannelError, match="closed the connection"):
        one.receive(5)


def test_another_key_is_refused_by_either_side():
    one, two = ends(KEY, OTHER)
    one.send({"join": "gpu1"})
    two.send({"hosts": {}})
    for end in (one, two):
        with pytest.raises(KeyMismatchError):
            end.receive(5)


@pytest.mark.parametrize("tamper", ["changed", "repeated", "turned back"])
def test_what_is_changed_repeated_or_turned_back_on_the_way_is_noticed(tamper):
    one, two = ends()
    sent = []
    one._writer = SimpleNamespace(settimeout=lambda seconds: None, sendall=sent.append, close=lambda: None)
    one.send({"step": 1})
    wire = {"changed": sent[0][:-2] + b"2}", "repeated": sent[0] * 2,
            "turned back": sent[0]}[tamper]
    (two if tamper == "turned back" else one)._connection.sendall(wire)
    receiver = one if tamper == "turned back" else two
    if tamper == "repeated":
        assert receiver.receive(5) == {"step": 1}
    with pytest.raises(KeyMismatchError):
        receiver.receive(5)


@pytest.mark.parametrize("noise", [b"GET / HTTP/1.1\r\n" * 10, b"", channel.VERSION + os.urandom(32) + b"\xff" * 40])
def test_strangers_are_not_heard(noise):
    with channel.listen("127.0.0.1", 0) as server, socket.create_connection(server.getsockname()) as stranger:
        stranger.sendall(noise)
        stranger.shutdown(socket.SHUT_WR)
        with pytest.raises(ChannelError):
            Channel(server.accept()[0], KEY, listens=True).receive(5)


def until(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.01)


class Hosts:
    """A leader and a member for each of two hosts, in this process."""

    def __init__(self) -> None:
        with channel.listen("127.0.0.2", 0) as free:
            port = free.getsockname()[1]
        self.cluster = Cluster(Path("demo.yml"), {"gpu1": "127.0.0.2", "gpu2": "127.0.0.3"}, "gpu1", port)
        self.leader = leader.Leader(self.cluster, KEY, "127.0.0.2")
        self.members = {name: self.member(name) for name in self.cluster.hosts}

    def member(self, name, key=KEY):
        return member.Member(dataclasses.replace(self.cluster, host=name), key, "127.0.0.2",
                             lambda: {"state": name}, lambda table: None)

    def each(self, work):
        """What `work` gives for each member, at the same time."""
        found = {}
        threads = [threading.Thread(target=lambda name=name, one=one: found.update({name: work(name, one)}))
                   for name, one in self.members.items()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        return found

    def close(self):
        for one in self.members.values():
            one.close()
        self.leader.close()


@pytest.fixture
def hosts():
    made = Hosts()
    made.met = made.each(lambda name, one: one.gather(name.upper(), lambda: False))
    yield made
    made.close()


def test_every_host_gets_what_all_have_handed_in(hosts):
    assert hosts.met == dict.fromkeys(hosts.members, {"gpu1": "GPU1", "gpu2": "GPU2"})
    assert hosts.each(lambda name, one: one.gather(1, lambda: False))["gpu2"] == {"gpu1": 1, "gpu2": 1}


def test_hosts_are_in_the_clusters_order_whoever_is_first(hosts):
    def second_first(name, one):
        time.sleep(0.3 * (name == "gpu1"))
        return list(one.gather(2, lambda: False))

    assert hosts.each(second_first) == dict.fromkeys(hosts.members, ["gpu1", "gpu2"])


@pytest.mark.parametrize(("reports", "host", "code"), [
    ({"gpu1": ("finished", 0), "gpu2": ("finished", 0)}, "gpu1", 0),
    ({"gpu1": ("partner", 1), "gpu2": ("killed", 1)}, "gpu2", 1),
    ({"gpu1": ("failed", 1), "gpu2": ("partner", 1)}, "gpu1", 1),
    ({"gpu1": ("finished", 0), "gpu2": ("failed", 1)}, "gpu2", 1),
    ({"gpu1": ("partner", 1), "gpu2": ("stopped", 143)}, "gpu2", 143),
    ({"gpu1": ("partner", 1), "gpu2": ("input", 2)}, "gpu2", 2)])
def test_all_hosts_end_for_the_cause_and_not_for_what_followed(hosts, reports, host, code):
    found = hosts.each(lambda name, one: one.report({"kind": reports[name][0], "code": reports[name][1]}))
    assert {(end["host"], end["code"]) for end in found.values()} == {(host, code)}


def test_a_lost_host_ends_the_others(hosts):
    hosts.members["gpu2"].close()
    until = time.monotonic() + 10
    while not hosts.members["gpu1"].end and time.monotonic() < until:
        time.sleep(0.01)
    assert hosts.members["gpu1"].end == {"kind": "lost", "code": 1, "error": "closed the connection", "passing": True,
                                         "host": "gpu2"}


def test_the_loss_of_the_first_host_is_noticed_by_the_others(hosts):
    hosts.leader._closed = True
    for host in list(hosts.leader.hosts.values()):
        host.channel.close()
    until = time.monotonic() + 10
    while not hosts.members["gpu2"].end and time.monotonic() < until:
        time.sleep(0.01)
    assert hosts.members["gpu2"].end["host"] == "gpu1"


def test_a_wait_ends_when_somebody_asks_for_it():
    hosts = Hosts()
    try:
        until = time.monotonic() + 10
        while not all(one._channel for one in hosts.members.values()) and time.monotonic() < until:
            time.sleep(0.01)
        with pytest.raises(member.Stopped):
            hosts.members["gpu1"].gather(1, lambda: True)
        assert hosts.members["gpu1"].report({"kind": "stopped", "code": 143})["host"] == "gpu1"
        with pytest.raises(member.Ended):
            hosts.members["gpu2"].gather(1, lambda: False)
    finally:
        hosts.close()


def test_who_comes_after_the_end_of_a_meeting_ends_too():
    hosts = Hosts()
    try:
        hosts.members["gpu2"].close()
        hosts.leader.end = {"kind": "stopped", "code": 143, "host": "gpu1"}
        hosts.members["gpu2"] = hosts.member("gpu2")
        with pytest.raises(member.Ended):
            hosts.members["gpu2"].gather(1, lambda: False)
    finally:
        hosts.close()


def test_who_comes_after_the_end_of_a_run_waits_for_the_next(hosts):
    hosts.members["gpu2"].close()
    until = time.monotonic() + 10
    while not hosts.leader.end and time.monotonic() < until:
        time.sleep(0.01)
    hosts.members["gpu2"] = hosts.member("gpu2")
    time.sleep(0.5)
    assert hosts.leader.end and not hosts.members["gpu2"].end


def test_strangers_who_say_nothing_keep_no_host_out(hosts):
    place = ("127.0.0.2", hosts.cluster.port)
    silent = [socket.create_connection(place) for _ in range(2 * leader.STRANGERS)]
    try:
        for number in range(3):
            host = channel.connect(*place, KEY)
            host.send({"store": "torch"})
            host.send({"do": "add", "key": "n", "by": 1})
            assert host.receive(5), number
            host.close()
    finally:
        for one in silent:
            one.close()


@pytest.mark.parametrize("error", [OSError(103, "Software caused connection abort"), OSError(24, "Too many open files"),
                                   RuntimeError("can't start new thread")])
def test_a_connection_that_cannot_be_taken_does_not_end_the_meeting(monkeypatch, error):
    class Server:
        def __init__(self, server):
            self.server, self.errors = server, [error]

        def __getattr__(self, name):
            return getattr(self.server, name)

        def accept(self):
            if self.errors:
                raise self.errors.pop()
            return self.server.accept()

    monkeypatch.setattr(leader, "listen", lambda *place: Server(channel.listen(*place)))
    hosts = Hosts()
    try:
        assert hosts.each(lambda name, one: one.gather(1, lambda: False))
    finally:
        hosts.close()


def test_a_connection_without_a_second_handle_is_a_channel_error(monkeypatch):
    """As with too many open files."""
    def dup(self):
        raise OSError(24, "Too many open files")

    one, two = socket.socketpair()
    with two:
        monkeypatch.setattr(socket.socket, "dup", dup)
        with pytest.raises(ChannelError, match="Too many open files"):
            Channel(one, KEY, listens=True)
        assert one.fileno() == -1


def test_another_key_is_said_once_and_its_owner_is_told_why(capsys):
    hosts = Hosts()
    shown = []
    other = member.Member(dataclasses.replace(hosts.cluster, host="gpu2"), OTHER, "127.0.0.2",
                          lambda: {"state": "mine"},
                          lambda table: shown.append((dict(table.hosts), dict(table.missing))))
    try:
        until(lambda: len(shown) > 3)
        assert {why["gpu1"] for _, why in shown} == {
            "closed the connection (has it the same key, and gpu2 among its hosts?)"}
        assert {table["gpu2"]["state"] for table, _ in shown} == {"mine"}, "this one is there"
    finally:
        other.close()
        hosts.close()
    assert capsys.readouterr().err.count("has another key") == 1


def test_the_store_of_the_ranks(hosts):
    from datetime import timedelta

    import torch.distributed as dist

    from debzero.train.store import ChannelStore

    own = [ChannelStore("127.0.0.2", hosts.cluster.port, KEY) for _ in range(2)]
    stores = [dist.PrefixStore("a", store) for store in own]
    stores[0].set("key", b"\0\xff")
    assert stores[1].get("key") == b"\0\xff" and [store.add("n", 2) for store in stores] == [2, 4]
    threading.Timer(0.2, stores[0].set, ["late", "x"]).start()
    stores[1].wait(["late"], timedelta(seconds=10))
    assert stores[1].compare_set("late", "x", "y") == b"y" and stores[0].delete_key("late")
    with pytest.raises(RuntimeError, match="timed out waiting for a/never"):
        stores[0].wait(["never"], timedelta(seconds=0.1))
    with pytest.raises(RuntimeError, match="closed the connection"):
        ChannelStore("127.0.0.2", hosts.cluster.port, OTHER).check(["a"])
