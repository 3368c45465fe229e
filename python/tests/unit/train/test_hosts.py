"""One job over two hosts: here two folders and two addresses of the loopback, or two network namespaces."""
import os
import secrets
from pathlib import Path

import pytest
import yaml
from support import Bench
from warm import server

PORTS = iter(range(29600 + 20 * (os.getpid() % 1000), 65000))
ADDRESSES = {"gpu1": "127.0.0.2", "gpu2": "127.0.0.3"}
ZERO2 = {"zero__stage": 2, "ranks": 1, "train__epochs": 1}


class Pair:
    """Two hosts, each with its own folder, data and output."""

    def __init__(self, folder: Path) -> None:
        self.port, self.key = next(PORTS), secrets.token_hex(32)
        self.benches = {}
        for name in ADDRESSES:
            (folder / name).mkdir()
            self.benches[name] = Bench(folder / name)
            self.write(name)

    def write(self, name, key=None, **changes):
        """The cluster file of a host, and its key."""
        file = self.benches[name].folder / "cluster.yml"
        file.write_text(yaml.safe_dump({"hosts": ADDRESSES, "host": name, "port": self.port, **changes},
                                       sort_keys=False))
        file.with_suffix(".key").write_text(key or self.key)
        file.with_suffix(".key").chmod(0o600)

    def start(self, name, *options, **changes):
        bench = self.benches[name]
        return server().start(["train", str(bench.job(**changes)), "--cluster", str(bench.folder / "cluster.yml"),
                               *options], bench.folder)

    def both(self, **changes):
        """What each printed, with its exit code."""
        processes = {name: self.start(name, **changes) for name in ADDRESSES}
        return {name: (process.communicate(300)[0], process.returncode) for name, process in processes.items()}

    def weights(self):
        return [weights_of(bench.output()) for bench in self.benches.values()]


def weights_of(output):
    return (output / "model" / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A job that two hosts have finished, and the same by two ranks on one."""
    pair = Pair(tmp_path_factory.mktemp("hosts"))
    pair.texts = pair.both(**ZERO2)
    alone = Bench(tmp_path_factory.mktemp("alone"))
    alone.train(**{**ZERO2, "ranks": 2})
    pair.alone = weights_of(alone.output())
    return pair


def test_two_hosts_train_to_the_same_weights_as_one(done):
    assert {name: code for name, (_, code) in done.texts.items()} == {"gpu1": 0, "gpu2": 0}, done.texts
    assert done.weights() == [done.alone, done.alone]
