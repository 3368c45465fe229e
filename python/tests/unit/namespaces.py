"""Two hosts on one machine: network namespaces with a link between them, gpu1 at 10.77.0.1 and gpu2 at 10.77.0.2."""
from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from support import SOURCE

HOSTS = {"gpu1": "10.77.0.1", "gpu2": "10.77.0.2"}
needed = pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("ip"), reason="needs root and iproute2")


class Namespaces:
    """`name(host)` is a namespace's; its end of the link is eth0."""

    def name(self, host: str) -> str:
        return f"debzero-{os.getpid()}-{host}"

    def ip(self, host: str, *arguments: str) -> None:
        subprocess.run(["ip", "-n", self.name(host), *arguments], check=True)

    def start(self, host: str, folder: Path, *arguments: object) -> subprocess.Popen:
        """`debzero` on a host, in a folder that holds its cluster.yml."""
        return subprocess.Popen(
            ["ip", "netns", "exec", self.name(host), sys.executable, "-m", "debzero", *map(str, arguments)],
            cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(SOURCE), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1",
                 "DEBZERO_CLUSTER": str(folder / "cluster.yml")})


def write_cluster(folder: Path, host: str, **changes: object) -> None:
    """The cluster file of one of HOSTS, with its key."""
    file = folder / "cluster.yml"
    file.write_text(yaml.safe_dump({"hosts": HOSTS, "host": host, "port": 29510, **changes}, sort_keys=False))
    file.with_suffix(".key").write_text("a1" * 32)
    file.with_suffix(".key").chmod(0o600)


@contextmanager
def two() -> Iterator[Namespaces]:
    made = Namespaces()
    first, second = (made.name(host) for host in HOSTS)
    try:
        for name in (first, second):
            subprocess.run(["ip", "netns", "add", name], check=True)
        subprocess.run(["ip", "link", "add", "eth0", "netns", first, "type", "veth", "peer", "name", "eth0", "netns",
                        second], check=True)
        for host, address in HOSTS.items():
            made.ip(host, "address", "add", f"{address}/24", "dev", "eth0")
            made.ip(host, "link", "set", "eth0", "up")
            made.ip(host, "link", "set", "lo", "up")
        yield made
    finally:
        for name in (first, second):
            subprocess.run(["ip", "netns", "del", name], check=False)
