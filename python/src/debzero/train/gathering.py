"""A checkpoint whose parts lie on several hosts: which one the run resumes from, and how a host gets what it lacks.

Each host keeps what its own ranks wrote. All that a rank needs is there as long as hosts and ranks stay the same. Where
they have changed, or a host has lost its disk, the files go from those who have them to those who need them.
"""
from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any, NamedTuple, Optional

from debzero.base.errors import UserError
from debzero.base.files import Heartbeat, created, remove
from debzero.run import checkpoint
from debzero.run.records import CheckpointRecord
from debzero.train import exchange, placement

SHARD = re.compile(r"zero_pp_rank_(\d+)_mp_rank_\d+_(optim|model)_states\.pt$")
BLOCK = 2**25  # bytes that are sent at a time


class Whole(NamedTuple):
    """A checkpoint of which the hosts together have all. `records`: what each host that has a part of it knows."""

    tag: str
    records: list[Optional[CheckpointRecord]]

    @property
    def ranks(self) -> int:
        """That wrote it."""
        return self.record.ranks

    @property
    def record(self) -> CheckpointRecord:
        """This host's; another's where this one has none."""
        own = self.records[placement.host()]
        return own or next(record for record in self.records if record)

    @property
    def owners(self) -> dict[str, int]:
        """The first host that has each file."""
        found: dict[str, int] = {}
        for host, record in enumerate(self.records):
            for name in record.files if record else ():
                found.setdefault(name, host)
        return found

    @property
    def missing(self) -> list[int]:
        """The ranks whose shards no host has."""
        shards = [int(match[1]) for name in self.owners if (match := SHARD.search(name)) and match[2] == "optim"]
        return sorted({*range(self.ranks)} - set(shards)) if checkpoint.is_sharded(list(self.owners)) else []

    def lacks(self, host: int, everything: bool) -> list[str]:
        """The files that a host needs and has not. `everything`: its ranks need the shards of all."""
        record, per_host = self.records[host], placement.local_ranks()
        own = range(host * per_host, (host + 1) * per_host)
        return [name for name in sorted(self.owners) if (record is None or name not in record.files) and (
            everything or not (match := SHARD.search(name)) or int(match[1]) in own)]


def whole(tag: str, records: list[Optional[dict[str, Any]]]) -> Optional[Whole]:
    """Of what each host says that it has of a checkpoint (records as JSON); None where no host has any. Only those that
    as many ranks wrote belong together."""
    read = [None if record is None else CheckpointRecord.model_validate_json(json.dumps(record)) for record in records]
    first = next((record for record in read if record), None)
    if first is None:
        return None
    return Whole(tag, [record if record and record.ranks == first.ranks else None for record in read])


def gather(root: Path, found: Whole, everything: bool, alive: Heartbeat) -> str:
    """The name of a folder in `root` in which this host has all that it needs. All ranks call this."""
    hosts = range(len(found.records))
    lacking = {host: found.lacks(host, everything) for host in hosts}
    if not any(lacking.values()):
        return found.tag
    here = placement.host()
    target = root / checkpoint.GATHERED if placement.leads() and lacking[here] else None
    if target:
        remove(target)
        target.mkdir(parents=True)
        own = found.records[here]
        for name in own.files if own else ():
            os.link(root / found.tag / name, target / name)
    for name in sorted(set().union(*lacking.values())):
        owner = found.owners[name]
        record = found.records[owner]
        assert record
        takes = target / name if target and name in lacking[here] else None
        digest = _share(owner * placement.local_ranks(), root / found.tag / name, takes, alive)
        if takes and digest != record.files[name][1]:
            raise UserError(f"{name} of the checkpoint {found.tag} came over the network damaged", "start again")
    return checkpoint.GATHERED if lacking[here] else found.tag


def _share(source: int, path: Path, target: Optional[Path], alive: Heartbeat) -> str:
    """Rank `source` reads the file `path`; who has a `target` writes it there. The SHA-256 of what came."""
    import torch
    import torch.distributed as dist

    device, digest = exchange.device(), hashlib.sha256()
    reads = path.open("rb") if dist.get_rank() == source else None
    writes = created(target, 0o600) if target else None
    try:
        size = torch.tensor([os.fstat(reads.fileno()).st_size if reads else 0], device=device)
        dist.broadcast(size, source)
        for start in range(0, int(size), BLOCK):
            block = torch.empty(min(BLOCK, int(size) - start), dtype=torch.uint8)
            if reads:
                block = torch.frombuffer(bytearray(reads.read(len(block))), dtype=torch.uint8)
            block = block.to(device)
            dist.broadcast(block, source)
            if writes:
                content = block.cpu().numpy().tobytes()
                writes.write(content)
                digest.update(content)
            alive()
    finally:
        for file in (reads, writes):
            if file:
                file.close()
    return digest.hexdigest()
