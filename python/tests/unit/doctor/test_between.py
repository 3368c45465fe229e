"""`debzero doctor --job` between two network namespaces: the first failing line is the cause."""
import json

import namespaces
import pytest

from debzero import cli
from debzero.base.errors import InputError
from debzero.doctor import between
from debzero.hosts import cluster

pytestmark = namespaces.needed


@pytest.fixture(scope="module")
def hosts():
    with namespaces.two() as made:
        yield made


def diagnose(hosts, tmp_path, names=tuple(namespaces.HOSTS), **changes):
    """The findings on each host, by check. `changes` to gpu2's cluster file."""
    started = {}
    for host in names:
        (tmp_path / host).mkdir()
        namespaces.write_cluster(tmp_path / host, host, **(changes if host == "gpu2" else {}))
        started[host] = hosts.start(host, tmp_path / host, "doctor", "--job", "demo", "--json")
    found = {}
    for host, process in started.items():
        answer = json.loads(process.communicate(timeout=90)[0])
        assert process.returncode == (0 if answer["ok"] else 1)
        found[host] = {line["check"]: (line["status"], line["found"]) for line in answer["findings"]}
    return found


def test_two_hosts_that_reach_each_other(hosts, tmp_path):
    found = diagnose(hosts, tmp_path)
    assert {status for findings in found.values() for status, _ in findings.values()} <= {"ok", "warn"}, found
    assert found["gpu1"]["port"][1].startswith("gpu2 came") and found["gpu2"]["interface"][1] == "eth0, 10.77.0.2"
    assert "Gbit/s" in found["gpu2"]["link"][1]


def test_another_mtu_is_the_cause(hosts, tmp_path):
    hosts.ip("gpu2", "link", "set", "eth0", "mtu", "1400")
    try:
        assert diagnose(hosts, tmp_path)["gpu2"]["mtu"] == (
            "fail", "1400 bytes here and 1500 on gpu1: large packets are lost on the way")
    finally:
        hosts.ip("gpu2", "link", "set", "eth0", "mtu", "1500")


def test_a_wrong_interface_is_the_cause(hosts, tmp_path):
    found = diagnose(hosts, tmp_path, ["gpu2"], interface="eth9")["gpu2"]
    assert found["interface"] == ("fail", "gpu2 has no interface eth9; it has eth0, lo")
    assert found["port"] == ("skip", "because of interface")


def test_a_name_on_the_loopback_is_the_cause(tmp_path, monkeypatch):
    """As Debian's installer writes it into /etc/hosts."""
    namespaces.write_cluster(tmp_path, "gpu1", hosts={"gpu1": "gpu1.example", "gpu2": "10.77.0.2"})
    monkeypatch.setattr(between.network.socket, "getaddrinfo", lambda name, *_, **__: [
        (0, 0, 0, "", ("127.0.1.1" if name == "gpu1.example" else name, 0))])
    links = between.Between(cluster.read(tmp_path / "cluster.yml"))
    result = links.names(None)
    assert result.status == "fail" and "127.0.1.1 here, the loopback" in result.found, result


def test_a_job_of_one_host_has_nothing_between(tmp_path):
    with pytest.raises(InputError, match="no other host trains it"):
        between.of_job(str(tmp_path / "alone.yml"))


def test_an_empty_name_is_no_wish_for_the_hosts_own_checks(capsys):
    """As from a shell variable that is not set: a healthy host would say that all is well."""
    assert cli.main(["doctor", "--job", ""]) == 2 and "--job  is empty" in capsys.readouterr().err
