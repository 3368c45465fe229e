"""Which interface gloo and NCCL get, and what is refused before they hang on it."""
import pytest

from debzero.base.errors import InputError
from debzero.hosts import network
from debzero.hosts.cluster import Cluster

HERE = {"lo": ["127.0.0.1", "::1"], "eth0": ["192.168.1.7"], "ib0": ["10.0.0.2", "fd00::2"], "ib1": []}


@pytest.fixture(autouse=True)
def here(monkeypatch):
    monkeypatch.setattr(network, "interfaces", lambda: HERE)


def interface(tmp_path, named, own="10.0.0.2"):
    hosts = {"gpu1": "10.0.0.1", "gpu2": own}
    return network.interface(Cluster(tmp_path / "bert.yml", hosts, "gpu2", 29500, named), hosts)


def test_two_names_of_one_address_are_named(tmp_path, monkeypatch):
    """Both hosts would take themselves for the one that is there."""
    monkeypatch.setattr(network, "look_up", lambda name: "10.0.0.1")
    with pytest.raises(InputError) as caught:
        network.addresses(Cluster(tmp_path / "bert.yml", {"gpu1": "one", "gpu2": "other"}, "gpu2", 29500))
    assert caught.value.problems[0].reason == "gpu1 and gpu2 have the same address here, 10.0.0.1"


@pytest.mark.parametrize("named", [None, "ib0"])
def test_it_is_the_one_with_this_hosts_address(tmp_path, named):
    assert interface(tmp_path, named) == "ib0"


@pytest.mark.parametrize(("named", "own", "key", "reason"), [
    ("ib9", "10.0.0.2", "interface", "gpu2 has no interface ib9; it has eth0, ib0, ib1, lo"),
    ("ib1", "10.0.0.2", "interface", "ib1 of gpu2 has no IP address"),
    ("lo", "10.0.0.2", "interface", "lo of gpu2 has not 10.0.0.2, where the other hosts reach it: ib0 has"),
    # The ranks would offer an address there that the other hosts take for a stranger's.
    ("eth0", "10.0.0.2", "interface", "eth0 of gpu2 has not 10.0.0.2, where the other hosts reach it: ib0 has"),
    ("eth0", "10.0.0.9", "hosts", "gpu2: 10.0.0.9 is no address of this host, which has 192.168.1.7, 10.0.0.2, "
                                  "fd00::2"),
    (None, "10.0.0.9", "hosts", "gpu2: 10.0.0.9 is no address of this host, which has 192.168.1.7, 10.0.0.2, fd00::2"),
])
def test_another_one_is_refused(tmp_path, named, own, key, reason):
    with pytest.raises(InputError) as caught:
        interface(tmp_path, named, own)
    assert [(one.key, one.reason) for one in caught.value.problems] == [(key, reason)]
