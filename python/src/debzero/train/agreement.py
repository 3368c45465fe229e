"""What the ranks agree on between steps: to stop, and when to write a checkpoint.

A signal reaches the ranks at different moments, and clocks differ, but all ranks must leave the loop, or start to save,
at the same step. So after each step every rank hands in what it knows, and gets what all had handed in after the step
before: the exchange runs beside the step (on gloo, in the host's memory) and nobody waits for it.
"""
from __future__ import annotations

import os
import signal
import threading
from typing import Any, Callable, NamedTuple, NoReturn, Optional

SIGNALS = {signal.SIGTERM: 143, signal.SIGINT: 130}


def block_signals() -> None:
    """Keep the signals for the thread that waits for them. To be called before any library starts threads, which
    inherit this."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


class Stopping(Exception):  # noqa: N818 - no error: the run ends as it was asked to
    """All ranks know that the run shall stop."""


class Turn(NamedTuple):
    """What any rank asked for: the same on all ranks."""

    stop: bool
    save: bool


class Stop:
    """The signals that ask this process to stop. They end it at once until `orderly` is set, for there is nothing to
    save yet, and when another rank has failed, for then the step that this one is in never ends."""

    def __init__(self) -> None:
        self.asked, self.orderly = threading.Event(), threading.Event()
        self.number = signal.SIGTERM

    def listen(self, at_once: Callable[[], None], failed: Callable[[], bool]) -> None:
        """Wait for the signals in a thread of its own, as the main one may be in a collective. `at_once` runs before
        the process ends at once; `failed` says whether any rank has failed."""
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
    """One per rank; all ranks create theirs at the same time, and call `turn` equally often."""

    def __init__(self, stop: Stop, ranks: int) -> None:
        import torch.distributed as dist

        self.stop, self.ranks = stop, ranks
        self.group = dist.new_group(backend="gloo") if ranks > 1 else None
        self._pending: Optional[tuple[Any, Any]] = None

    def turn(self, save: bool = False) -> Turn:
        """Hand in whether this rank wants a checkpoint (and whether it was asked to stop). Returns what any rank handed
        in at the turn before."""
        import torch
        import torch.distributed as dist

        mine = torch.tensor([float(self.stop.asked.is_set()), float(save)])
        if self.group is None:
            return Turn(*mine.bool().tolist())
        before = self.heard()
        self._pending = (dist.all_reduce(mine, dist.ReduceOp.MAX, self.group, async_op=True), mine)
        return before

    def heard(self) -> Turn:
        """What any rank handed in at the last turn. No exchange is pending after this."""
        if self._pending is None:
            return Turn(False, False)
        work, asked = self._pending
        work.wait()
        self._pending = None
        return Turn(*asked.bool().tolist())
