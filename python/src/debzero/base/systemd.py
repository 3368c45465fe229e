"""What a job tells systemd, in the words of sd_notify(3). Outside a unit nobody listens, and nothing is sent."""
from __future__ import annotations

import os
import socket
from contextlib import suppress

from debzero.base.text import printable


def notify(*lines: str) -> None:
    """Send lines such as READY=1 or STATUS=..., each of which stays one line. The library for this has no wheel, and so
    no hash that a lock could hold.

    Nobody's work may end, or wait for long, because systemd does not listen just now.
    """
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.settimeout(1)
            channel.connect("\0" + address[1:] if address.startswith("@") else address)
            channel.sendall("\n".join(map(printable, lines)).encode())
