"""Where the ranks of one start find each other.

torch's usual place is a TCP store: it listens on all addresses and asks nobody who he is, and who may write to it
becomes a rank. Ranks on one host meet in a file instead, in a folder that only their user can enter, made for this
start and removed after it; and what they then connect with (gloo, NCCL) listens on the loopback alone. How they were
started decides which folder that is:

- by `debzero train`: one that the launcher has made;
- by the launchers of torch and DeepSpeed: one that rank 0 makes in the output folder, named after the launcher;
- alone: none, a store in memory;
- by `debzero train` on several hosts: none; the first host's launcher keeps a store that asks for the job's key;
- in any other way (by hand, or by other launchers over several hosts): MASTER_ADDR and MASTER_PORT, as torch has it.
  Whoever reaches that port can join.
"""
from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Optional

from debzero.base import own_files
from debzero.base.environment import environment
from debzero.base.errors import PassingError, UserError
from debzero.base.files import remove, temporary_name
from debzero.hosts import cluster, network
from debzero.train import exchange, peers

STORE = "store"  # the file in the folder
LOCAL = ("127.", "localhost", "::1")  # how a MASTER_ADDR of this host begins
PAUSE = 0.05  # seconds between two looks for the folder


@contextmanager
def meeting_folder(output: Path) -> Iterator[Path]:
    """The launcher's: a folder for one start of its ranks. What a killed launcher leaves goes at the next start."""
    folder = temporary_name(output / "ranks")
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        remove(folder)


class Meeting:
    """One rank's way to the others. `folder` is None where they do not meet in one."""

    def __init__(self, output: Path, launcher: Optional[str]) -> None:
        """`launcher`: as local_launcher has named it."""
        self.rank, self.ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        made, self.cluster = environment().meeting_folder, cluster.given()
        self.makes_folder = False
        self.folder = None if self.cluster else made
        if made is None and self.cluster is None and self.ranks > 1 and launcher:
            self.folder = output / f".ranks.{launcher}.new"
            self.makes_folder = self.rank == 0

    @property
    def on_one_host(self) -> bool:
        if self.cluster:
            return False
        return bool(self.folder) or self.ranks == 1 or os.environ.get("MASTER_ADDR", "").startswith(LOCAL)

    def join(self, backend: str) -> None:
        """Bring torch's process group up; all ranks call this. Raises a PassingError if another user got among them."""
        import torch.distributed as dist

        if self.on_one_host:
            os.environ.update(GLOO_SOCKET_IFNAME="lo", NCCL_SOCKET_IFNAME="lo")
        # NCCL registers the buffers of a recorded collective, and must then find them registered on all ranks. But a
        # rank may replay a graph while another, whose batch has another shape, runs eagerly.
        os.environ["NCCL_GRAPH_REGISTER"] = "0"
        store = self._store()
        place = {} if store is None else {"store": store, "rank": self.rank, "world_size": self.ranks}
        nccl = backend == "nccl"
        hosts = frozenset(network.addresses(self.cluster).values()) if self.cluster else frozenset()
        with peers.checked(nccl, hosts), _connecting():
            dist.init_process_group(backend, **place)
            if nccl:  # which connects when it is first used
                exchange.barrier()
        _check_new_groups(nccl, hosts)

    def leave(self) -> None:
        """Remove what this rank has made, when no rank needs it any more."""
        if self.makes_folder and self.folder:
            remove(self.folder)

    def _store(self) -> Any:
        """What the ranks exchange their addresses in; None for torch's own choice."""
        import torch.distributed as dist
        from torch.distributed.constants import default_pg_timeout

        if self.cluster:
            from debzero.train.store import ChannelStore

            first = network.addresses(self.cluster)[self.cluster.first]
            self.store = ChannelStore(first, self.cluster.port, self.cluster.key())  # torch alone would not keep it
            self.store.set_timeout(default_pg_timeout)
            return self.store
        if self.folder:
            if self.makes_folder:
                self.folder.mkdir(mode=0o700)
            _wait_for(self.folder, default_pg_timeout.total_seconds())
            require_private(self.folder)
            store = dist.FileStore(str(self.folder / STORE), self.ranks)
        elif self.ranks == 1:
            store = dist.HashStore()
        else:
            return None
        store.set_timeout(default_pg_timeout)
        return store


@contextmanager
def _connecting() -> Iterator[None]:
    """A rank whose place a stranger has taken finds it closed, and the others wait for it: no failure of the job."""
    try:
        yield
    except RuntimeError as error:
        reason = next(iter(str(error).splitlines()), "")
        raise PassingError(f"the ranks could not connect to each other: {reason[:300]}",
                           "see what the other ranks reported, and who else runs programs on this host") from error


def require_private(folder: Path) -> None:
    """Raises a UserError unless this user alone can enter the folder."""
    info = os.lstat(folder)
    try:
        own_files.require_own(info, folder, folders=True)
    except own_files.ForeignFileError as error:
        raise UserError(f"the ranks cannot meet in {folder}: {error}", "remove it") from None
    if stat.S_IMODE(info.st_mode) & 0o077:
        raise UserError(f"the ranks cannot meet in {folder}: other users may enter it", "remove it")


def _wait_for(folder: Path, seconds: float) -> None:
    until = time.monotonic() + seconds
    while not os.path.lexists(folder):
        if time.monotonic() > until:
            raise UserError(f"rank 0 did not come to {folder}", "see what it reported")
        time.sleep(PAUSE)


def local_launcher() -> Optional[str]:
    """16 hexadecimal digits for this start by torch's or DeepSpeed's launcher, the same for all its ranks; None where
    another program has started them, ranks are on other hosts, too, or the launcher cannot be seen. To be called before
    a change of user, which may hide the launcher and put a process of this rank's own in its place."""
    local = os.environ.get("LOCAL_WORLD_SIZE") if "TORCHELASTIC_RUN_ID" in os.environ else (
        os.environ.get("LOCAL_SIZE") if "CROSS_SIZE" in os.environ else None)
    if local != os.environ["WORLD_SIZE"]:
        return None
    parent = os.getppid()
    try:
        began = Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[19]  # ticks since the host's boot
    except (OSError, IndexError):  # another user's where /proc hides those, or outside this container
        return None
    start = f"{parent} {began} {os.environ.get('TORCHELASTIC_RESTART_COUNT')}"
    return hashlib.sha256(start.encode()).hexdigest()[:16]


def _check_new_groups(nccl: bool, hosts: Collection[str]) -> None:
    """Check the connections of each new group as well, of those that DeepSpeed makes, too; `nccl`: the process has
    NCCL's among its own; `hosts`: as for peers.strangers."""
    import torch.distributed as dist

    create = dist.new_group
    if getattr(create, "checked", False):
        return

    def new_group(*arguments: Any, **options: Any) -> Any:
        with peers.checked(nccl, hosts), _connecting():
            return create(*arguments, **options)

    new_group.checked = True  # type: ignore[attr-defined]
    dist.new_group = new_group
