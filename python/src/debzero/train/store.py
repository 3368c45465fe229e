"""torch's store for ranks on several hosts: kept by the launcher of the first host, behind the job's key.

torch's own TCPStore takes whoever reaches its port for a rank.
"""
from __future__ import annotations

import base64
import threading
import time
from datetime import timedelta
from typing import Any, Optional

import torch.distributed as dist

from debzero.hosts.channel import Channel, ChannelError, connect

FIRST_PAUSE, LONGEST_PAUSE = 0.01, 0.2  # seconds between two looks for a key
RPC_SECONDS = 60.0                      # for an answer: the first host may be busy importing


class ChannelStore(dist.Store):
    """torch calls its methods, from any thread, also while another one waits."""

    def __init__(self, address: str, port: int, key: bytes) -> None:
        super().__init__()
        self._place, self._asking = (address, port, key), threading.Lock()
        self._channel: Optional[Channel] = None

    def _ask(self, does: str, **values: Any) -> dict[str, Any]:
        """What the first host answers. Raises a RuntimeError, as torch's own stores do, where it is lost."""
        with self._asking:
            try:
                if self._channel is None:
                    self._channel = connect(*self._place)
                    self._channel.send({"store": "torch"})
                self._channel.send({"do": does, **values})
                answer = self._channel.receive(RPC_SECONDS)
            except ChannelError as error:
                raise RuntimeError(f"the first host {error}") from None
        if answer is None:
            raise RuntimeError(f"the first host has not answered for {RPC_SECONDS:g} seconds")
        return answer

    def set(self, key: str, value: Any) -> None:
        self._ask("set", key=key, value=_text(value))

    def get(self, key: str) -> bytes:
        self.wait([key])
        return _bytes(self._ask("get", key=key))

    def compare_set(self, key: str, expected: Any, desired: Any) -> bytes:
        return _bytes(self._ask("compare", key=key, expected=_text(expected), value=_text(desired)))

    def add(self, key: str, amount: int) -> int:
        return int(_bytes(self._ask("add", key=key, by=amount)))

    def check(self, keys: list[str]) -> bool:
        return bool(self._ask("check", keys=list(keys))["there"])

    def wait(self, keys: list[str], timeout: Optional[timedelta] = None) -> None:
        until = time.monotonic() + (timeout or self.timeout).total_seconds()
        pause = FIRST_PAUSE
        while not self.check(keys):
            if time.monotonic() > until:
                raise RuntimeError(f"timed out waiting for {', '.join(keys)}")
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def deleteKey(self, key: str) -> bool:  # noqa: N802 - torch's name
        return bool(self._ask("delete", key=key)["there"])

    def getNumKeys(self) -> int:  # noqa: N802 - torch's name
        return int(self._ask("count")["count"])

    def clone(self) -> ChannelStore:
        """Of later releases: for another thread."""
        return ChannelStore(*self._place)


def _text(value: Any) -> str:
    """torch 1.13 gives some values as lists of numbers."""
    return base64.b64encode(bytes(value)).decode()


def _bytes(answer: dict[str, Any]) -> bytes:
    return base64.b64decode(answer["value"] or "")
