"""The checkpoint that a run resumes from, resharded where another number of ranks wrote it."""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Optional

from debzero.base.errors import UserError
from debzero.base.text import count_text
from debzero.run import checkpoint, reshard
from debzero.run.records import RunIdentity, TrainingState
from debzero.train import exchange, gathering, placement
from debzero.train.context import Context


@dataclass
class Start:
    """Where training begins: at a checkpoint, or at the first step. `messages`: for the user; `tag`: the folder that
    the engine loads, which may be a temporary one."""

    found: Optional[gathering.Whole] = None
    tag: str = ""
    messages: list[str] = field(default_factory=list)


def find_start(context: Context, identity: RunIdentity) -> Start:
    """The newest checkpoint of this run that the hosts have, each intact, for as many ranks as there are now. All ranks
    call this."""
    root, start, incomplete = context.folder.checkpoints, Start(), list[gathering.Whole]()
    steps = {tag for tags in context.everywhere(lambda: checkpoint.tags(root)) for tag in tags}
    for tag in sorted(steps, key=checkpoint.step, reverse=True):
        records, said = _examine(context, tag, identity)
        start.messages += said
        found = gathering.whole(tag, records)
        if found and not found.missing:
            start.found = found
            break
        if found:
            incomplete.append(found)
    if start.found is None and len(incomplete) > 1:  # one alone may be what a crash left of the first
        found = incomplete[0]
        ranks = ", ".join(map(str, found.missing))
        raise UserError(f"no host has the shards of rank {ranks} of the checkpoint {found.tag}, nor those of an older "
                        "one", "start on the hosts that wrote it, or begin anew with `debzero train --again`")
    for found in incomplete:
        start.messages += context.agree(lambda tag=found.tag: checkpoint.put_aside(  # type: ignore[misc]
            root, tag, "is on some hosts only"))
    if start.found:
        _make_ready(context, start, start.found)
        start.messages.append(f"resuming from step {start.found.record.state.step}")
    return start


def _examine(context: Context, tag: str, identity: RunIdentity) -> tuple[list[Optional[dict[str, Any]]], list[str]]:
    """What each host has of a checkpoint (a record as JSON, or None), and what this one has to say about it."""
    def work() -> dict[str, Any]:
        said = list[str]()
        record = checkpoint.examined(context.folder.checkpoints, tag, identity, said.append)
        return {"record": record and record.as_json(), "said": said}

    answers = context.everywhere(work)
    return [answer["record"] for answer in answers], answers[placement.host()]["said"]


def _make_ready(context: Context, start: Start, found: gathering.Whole) -> None:
    """Have on this host what its ranks load."""
    root = context.folder.checkpoints
    reshards = found.ranks != context.ranks and checkpoint.is_sharded(list(found.owners))
    start.tag = gathering.gather(root, found, reshards or context.resolved.is_native, context.progress.alive)
    if reshards:
        start.messages.append(
            f"the checkpoint {found.tag} was written by {count_text(found.ranks, 'rank')}; resharding it for "
            f"{count_text(context.ranks, 'rank')}")
        context.agree(lambda: checkpoint.drop_temporary(root, checkpoint.RESHARDED))
        context.agree(lambda: reshard.reshard(root / start.tag, root / checkpoint.RESHARDED, context.ranks))
        start.tag = checkpoint.RESHARDED


def loaded(context: Context) -> None:
    """The temporary copies of the checkpoint are not needed any more. All ranks call this."""
    exchange.barrier()
    if context.leads:
        for name in checkpoint.TEMPORARY:
            checkpoint.drop_temporary(context.folder.checkpoints, name)


def resumed_state(start: gathering.Whole, ranks: int) -> TrainingState:
    """Where the loop was, for `ranks` ranks: rank 0 keeps the sum of the losses, and a rank's share of the tokens is
    another one now."""
    state, before = start.record.state, start.ranks
    state.resumed += 1
    if before != ranks:
        share = before / ranks
        state.losses = [sum(state.losses) / share] + [0.0] * (ranks - 1)
        state.tokens = [count * share for count in state.tokens]
        state.interval[2:] = [count * share for count in state.interval[2:]]
    return state
