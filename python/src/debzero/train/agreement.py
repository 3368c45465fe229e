"""What the ranks agree on between steps: to stop, and when to write a checkpoint.

A signal reaches the ranks at different moments, and clocks differ, but all ranks must leave the loop, or enter a save,
at the same step. So at each turn every rank hands in what it knows, and hears what all had handed in at the turn
before: the exchange runs beside the step (on gloo, in the processor's memory) and nobody waits for it. """
from __future__ import annotations

import os
import signal
import threading
from typing import Any, Callable, NamedTuple, NoReturn, Optional

SIGNALS = {signal.SIGTERM: 143, signal.SIGINT: 130}


def block_signals() -> None:
    """Keep the signals for whoever waits for them. Before any library is imported that starts threads: they inherit
    it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


class Stopping(Exception):  # noqa: N818 - no error: the run ends as it was asked to
    """Every rank has heard that the run shall stop."""


class Turn(NamedTuple):
    """What the ranks heard of each other: the same on all of them."""

    stop: bool
    save: bool


class Stop:
    """The signals that ask this process to stop. Until `orderly` is set they end it at once: there is nothing to save yet. So they do
    when another rank has failed: the step that this one is in will never end."""

    def __init__(self) -> None:
        self.asked, self.orderly = threading.Event(), threading.Event()
        self.number = signal.SIGTERM

    def listen(self, at_once: Callable[[], None], failed: Callable[[], bool]) -> None:
        """Wait for the signals in a thread of its own: the main one may be in a collective. `failed()`: whether any
        rank has."""
        def wait() -> NoReturn:
            while True:
                self.number = signal.Signals(signal.sigwait(SIGNALS))
                self.asked.set()
                if failed():
                    os._exit(1)
                if not self.orderly.is_set():
                    at_once()
                    os._exit(SIGNALS[self.number])

        threading.Thread(target=wait, daemon=True).start()


class Control:
    """One per rank, made by all ranks together. `turn` is called by all of them equally often."""

    def __init__(self, stop: Stop, ranks: int) -> None:
        import torch.distributed as dist

        self.stop, self.ranks = stop, ranks
        self.group = dist.new_group(backend="gloo") if ranks > 1 else None
        self._pending: Optional[tuple[Any, Any]] = None

    def turn(self, save: bool = False) -> Turn:
        """Hand in whether this rank wants a checkpoint (and whether it was asked to stop); what any rank handed in at the turn
        before."""
        import torch
        import torch.distributed as dist

        mine = torch.tensor([float(self.stop.asked.is_set()), float(save)])
        if self.group is None:
            return Turn(*mine.bool().tolist())
        heard = self.heard()
        self._pending = (dist.all_reduce(mine, dist.ReduceOp.MAX, self.group, async_op=True), mine)
        return heard

    def heard(self) -> Turn:
        """What the last turn came to; nothing is under way after this."""
        if self._pending is None:
            return Turn(False, False)
        work, told = self._pending
        work.wait()
        self._pending = None
        return Turn(*told.bool().tolist())
