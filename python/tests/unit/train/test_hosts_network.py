"""One job over two network namespaces: its link, its interface, and what a cable does."""
import re
import time

import namespaces
import pytest
from support import Bench

from debzero.base.files import read_json

pytestmark = [namespaces.needed, pytest.mark.long]
JOB = {"zero__stage": 2, "ranks": 1, "train__epochs": 8, "checkpoint__steps": 20}


@pytest.fixture
def hosts(tmp_path):
    with namespaces.two() as made:
        made.benches = {}
        for host in namespaces.HOSTS:
            (tmp_path / host).mkdir()
            made.benches[host] = Bench(tmp_path / host)
            namespaces.write_cluster(tmp_path / host, host)
        yield made


def train(hosts, names=tuple(namespaces.HOSTS)):
    return {host: hosts.start(host, hosts.benches[host].folder, "train", hosts.benches[host].job(**JOB))
            for host in names}


def ended(processes, seconds):
    began = time.monotonic()
    return {host: (process.communicate(timeout=seconds)[0], process.returncode)
            for host, process in processes.items()}, time.monotonic() - began


def test_a_link_that_is_down_ends_both_hosts_and_they_resume_to_the_same_weights(hosts, tmp_path):
    processes = train(hosts)
    until = time.monotonic() + 200
    while any((read_json(bench.output() / "status.json").get("step") or 0) < 25 for bench in hosts.benches.values()):
        assert time.monotonic() < until and all(process.poll() is None for process in processes.values())
        time.sleep(0.1)
    hosts.ip("gpu2", "link", "set", "eth0", "down")
    texts, seconds = ended(processes, 60)
    assert seconds < 30 and [code for _, code in texts.values()] == [1, 1], texts
    for host, other in (("gpu1", "gpu2"), ("gpu2", "gpu1")):
        assert re.search(rf"debzero: {other} (has not been heard of for 15 seconds|cannot be reached)", texts[host][0])
    states = [bench.output() / "hosts.json" for bench in hosts.benches.values()]
    for state in states:
        state.unlink()
    again = train(hosts)
    until = time.monotonic() + 200
    while not all(read_json(state).get("missing") for state in states):
        assert time.monotonic() < until and all(process.poll() is None for process in again.values())
        time.sleep(0.1)
    hosts.ip("gpu2", "link", "set", "eth0", "up")
    texts, _ = ended(again, 400)
    assert [code for _, code in texts.values()] == [0, 0], texts
    assert "waiting for gpu2" in texts["gpu1"][0] and "waiting for gpu1, which" in texts["gpu2"][0], texts
    alone = Bench(tmp_path)
    alone.train(**{**JOB, "ranks": 2})
    weights = [(bench.output() / "model" / "model.safetensors").read_bytes()
               for bench in [*hosts.benches.values(), alone]]
    assert weights[0] == weights[1] == weights[2]


def test_a_wrong_interface_is_one_sentence(hosts):
    namespaces.write_cluster(hosts.benches["gpu2"].folder, "gpu2", interface="docker0")
    processes = train(hosts, ["gpu1"])
    until = time.monotonic() + 200
    while not read_json(hosts.benches["gpu1"].output() / "hosts.json").get("missing"):
        assert time.monotonic() < until
        time.sleep(0.1)
    texts, _ = ended({**processes, **train(hosts, ["gpu2"])}, 100)
    reason = "gpu2 has no interface docker0; it has eth0, lo"
    assert texts["gpu2"][1] == 2 and reason in texts["gpu2"][0], texts
    assert texts["gpu1"][1] == 2 and f"debzero: gpu2: interface: {reason}" in texts["gpu1"][0], texts
