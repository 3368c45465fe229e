"""The checkpoint that a run resumes from, resharded where another number of ranks wrote it."""
from __future__ import annotations

import json
from typing import Any, NamedTuple, Optional

from debzero.base.text import count_text
from debzero.run import checkpoint, reshard
from debzero.run.records import CheckpointRecord, RunIdentity, TrainingState
from debzero.train.context import Context


class Start(NamedTuple):
    """Where training begins: at a checkpoint, or at the first step."""

    found: Optional[checkpoint.Found]
    messages: list[str]

    @property
    def resharded(self) -> bool:
        return self.found is not None and self.found.tag == checkpoint.RESHARDED

    def as_json(self) -> dict[str, Any]:
        """For the other ranks."""
        found = self.found and {"tag": self.found.tag, "record": self.found.record.as_json()}
        return {"found": found, "messages": self.messages}

    @staticmethod
    def from_json(values: dict[str, Any]) -> Start:
        found = values["found"] and checkpoint.Found(
            values["found"]["tag"], CheckpointRecord.model_validate_json(json.dumps(values["found"]["record"])))
        return Start(found, values["messages"])


def find_start(context: Context, identity: RunIdentity) -> Start:
    """The newest checkpoint of this run, for as many ranks as there are now, and what to tell the user about it. Rank
    0's work."""
    root, messages = context.folder.checkpoints, list[str]()
    found = checkpoint.newest(root, identity, messages.append)
    if found is None:
        return Start(None, messages)
    record = found.record
    if record.ranks != context.ranks and checkpoint.is_sharded(root / found.tag):
        messages.append(f"the checkpoint {found.tag} was written by {count_text(record.ranks, 'rank')}; resharding it "
                        f"for {count_text(context.ranks, 'rank')}")
        checkpoint.drop_resharded(root)
        reshard.reshard(root / found.tag, root / checkpoint.RESHARDED, context.ranks)
        found = found._replace(tag=checkpoint.RESHARDED)
    return Start(found, [*messages, f"resuming from step {record.state.step}"])


def resumed_state(found: checkpoint.Found, ranks: int) -> TrainingState:
    """Where the loop was, for `ranks` ranks: rank 0 keeps the sum of the losses, and a rank's share of the tokens is
    another one now."""
    state, before = found.record.state, found.record.ranks
    state.resumed += 1
    if before != ranks:
        share = before / ranks
        state.losses = [sum(state.losses) / share] + [0.0] * (ranks - 1)
        state.tokens = [count * share for count in state.tokens]
        state.interval[2:] = [count * share for count in state.interval[2:]]
    return state
