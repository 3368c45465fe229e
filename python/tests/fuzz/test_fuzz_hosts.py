"""The cluster file, the hosts.json of a run that other hosts train as well, and what strangers send to the first host's
port."""
from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import yaml
from fuzzing import JSON_TOKENS, SCALARS, as_json, command, damaged, fuzz, spoilt
from hypothesis import strategies as st

from debzero.base.errors import InputError
from debzero.hosts import channel, cluster
from debzero.run import lock
from debzero.run.folder import RunFolder

CLUSTER = {"hosts": {"gpu1": "10.0.0.1", "gpu2": "gpu2.example"}, "host": "gpu1", "port": 29510, "interface": "eth0"}
TABLE = {"host": "gpu1", "hosts": {"gpu1": {"state": "training", "step": 3}, "gpu2": None},
         "missing": {"gpu2": "does not answer"}}
KEY = b"k" * 32
HELLO = channel.VERSION + b"n" * channel.NONCE


def _as_yaml(values: Any) -> bytes:
    return yaml.safe_dump(values, allow_unicode=True).encode("utf-8", "surrogatepass")


def read(folder: Path, content: bytes) -> int:
    (folder / "cluster.yml").write_bytes(content)
    try:
        found = cluster.read(folder / "cluster.yml")
    except InputError as error:
        assert error.problems and all(character == "\n" or character.isprintable() for character in error.text())
        return 2
    assert found.host in found.hosts and found.port in cluster.PORTS
    return 0


def test_no_cluster_file_crashes_its_reader(tmp_path: Path, cases: int, fuzzed: Any) -> None:
    fuzz(fuzzed("clusters"), cases, st.one_of(damaged(CLUSTER).map(_as_yaml), spoilt(_as_yaml(CLUSTER), JSON_TOKENS)),
         lambda content: read(tmp_path, content))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    monkeypatch.setattr(lock, "is_held", lambda path: True)  # the run is alive
    return RunFolder(str(tmp_path))


def show(run: RunFolder, content: bytes) -> int:
    run.hosts_file.write_bytes(content)
    assert isinstance(json.loads(command("status", run.folder, "--json")[1]), dict)
    return command("status", run.folder)[0]


def test_no_table_of_hosts_crashes_status(run: RunFolder, cases: int, fuzzed: Any) -> None:
    steps = {("hosts", "gpu1", "step"): SCALARS, ("hosts", "gpu1", "state"): SCALARS}
    fuzz(fuzzed("hosts"), cases, st.one_of(damaged(TABLE, steps).map(as_json), spoilt(as_json(TABLE), JSON_TOKENS)),
         lambda content: show(run, content))


def hear(content: bytes) -> int:
    """What a stranger sends is refused, however it begins."""
    one, two = socket.socketpair()
    with one:
        one.sendall(content)
        one.shutdown(socket.SHUT_WR)
        with pytest.raises(channel.ChannelError):
            channel.Channel(two, KEY, listens=True).receive(5)
    return 1


def test_no_stranger_is_heard(cases: int, fuzzed: Any) -> None:
    message = channel.HEAD.pack(12, b"m" * channel.MAC) + b'{"join": ""}'
    fuzz(fuzzed("strangers"), cases, spoilt(HELLO + message, [HELLO, message, *JSON_TOKENS]) | st.binary(max_size=200),
         hear)
