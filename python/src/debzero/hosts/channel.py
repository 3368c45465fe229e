"""A connection between two processes of one job, on which each proves that it has the job's key.

Both sides send a random number, from which and the key they derive one key for each direction. Each message is JSON
behind its length and its HMAC-SHA256, which also covers the message's number: whoever has no key can neither send one,
nor repeat, leave out or change one that he sees on the way, in this connection or another. He can read it: nothing
secret is sent (docs/decisions, 12).
"""
from __future__ import annotations

import hmac
import json
import os
import socket
import struct
import threading
import time
from contextlib import suppress
from typing import Any, Optional

from debzero.base.reading import ContentError, parse_json

VERSION = b"debzero hosts 1\n"
NONCE, MAC = 32, 32                # bytes
HEAD = struct.Struct(f">I{MAC}s")  # the length of the message, and its HMAC
LIMIT, FIRST_LIMIT = 2**24, 2**16  # bytes of a message, and of the first, from whoever connects
HANDSHAKE = 10.0                   # seconds for it
BACKLOG = 128


class ChannelError(Exception):
    """The connection is of no use any more; says why, as the rest of a sentence about the other side."""


class KeyMismatchError(ChannelError):
    """The other side has another key."""


class Channel:
    """One end. Any thread may send; one receives."""

    def __init__(self, connection: socket.socket, key: bytes, listens: bool) -> None:
        """Takes the connection over. `listens`: this end accepted it. Raises a ChannelError."""
        # Two objects for the one connection, for each has one timeout.
        self._connection, self._writer, self._sending = connection, connection, threading.Lock()
        self._sent = self._received = 0
        self._buffer = bytearray()
        connection.settimeout(HANDSHAKE)
        with suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        own = os.urandom(NONCE)
        try:
            self._writer = connection.dup()
            connection.sendall(VERSION + own)
            theirs = self._exactly(len(VERSION) + NONCE, time.monotonic() + HANDSHAKE)
            if not theirs.startswith(VERSION):
                raise ChannelError("is no debzero, or one of a release that cannot talk to this one")
            nonces = theirs[-NONCE:] + own if listens else own + theirs[-NONCE:]  # the caller's first
            keys = [hmac.digest(key, VERSION + side + nonces, "sha256") for side in (b"caller", b"listener")]
            self._out, self._in = reversed(keys) if listens else keys
            self._limit = FIRST_LIMIT if listens else LIMIT
        except OSError as error:
            self.close()
            raise ChannelError(_why(error)) from None
        except BaseException:
            self.close()
            raise

    @property
    def peer(self) -> str:
        """The other end's address."""
        try:
            return str(self._connection.getpeername()[0])
        except OSError:
            return "unknown"

    def send(self, values: dict[str, Any], seconds: float = HANDSHAKE) -> None:
        """Raises a ChannelError where the other side does not take it."""
        body = json.dumps(values).encode()
        if len(body) > LIMIT:
            raise ValueError(f"a message of {len(body)} bytes")
        with self._sending:
            head = HEAD.pack(len(body), self._mac(self._out, self._sent, body))
            self._sent += 1
            try:
                self._writer.settimeout(seconds)
                self._writer.sendall(head + body)
            except OSError as error:
                self.close()  # half a message may be on the way
                raise ChannelError(_why(error)) from None

    def receive(self, seconds: float) -> Optional[dict[str, Any]]:
        """The next message; None where none came in so many seconds. Raises a ChannelError."""
        until = time.monotonic() + seconds
        try:
            if not self._fill(HEAD.size, until):
                return None
            length, mac = HEAD.unpack_from(self._buffer)
            if length > self._limit:
                raise ChannelError("sent too long a message")
            if not self._fill(HEAD.size + length, until):
                return None
        except OSError as error:
            raise ChannelError(_why(error)) from None
        body = bytes(self._buffer[HEAD.size:HEAD.size + length])
        if not hmac.compare_digest(mac, self._mac(self._in, self._received, body)):
            raise KeyMismatchError("has another key")
        del self._buffer[:HEAD.size + length]
        self._received, self._limit = self._received + 1, LIMIT
        try:
            values = parse_json(body.decode())
        except (ContentError, UnicodeDecodeError):
            values = None
        if not isinstance(values, dict):
            raise ChannelError("sent what is no message")
        return values

    def close(self) -> None:
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)  # close alone would not wake a thread that receives
        self._connection.close()
        self._writer.close()

    @staticmethod
    def _mac(key: bytes, number: int, body: bytes) -> bytes:
        return hmac.digest(key, struct.pack(">Q", number) + body, "sha256")

    def _exactly(self, size: int, until: float) -> bytes:
        if not self._fill(size, until):
            raise ChannelError("does not answer")
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken

    def _fill(self, size: int, until: float) -> bool:
        """Whether the buffer has `size` bytes by then; what has come stays there for the next call."""
        while len(self._buffer) < size:
            left = until - time.monotonic()
            if left <= 0:
                return False
            try:
                self._connection.settimeout(left)
                more = self._connection.recv(min(2**16, size - len(self._buffer)))
            except socket.timeout:
                return False
            if not more:
                raise ChannelError("closed the connection")
            self._buffer += more
        return True


def connect(address: str, port: int, key: bytes, seconds: float = HANDSHAKE) -> Channel:
    """Raises a ChannelError that says what is wrong with the way there."""
    try:
        connection = socket.create_connection((address, port), seconds)
    except OSError as error:
        raise ChannelError(_why(error)) from None
    return Channel(connection, key, listens=False)


def listen(address: str, port: int) -> socket.socket:
    """Raises an OSError."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    server = socket.socket(family, socket.SOCK_STREAM)
    try:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((address, port))
        server.listen(BACKLOG)
    except BaseException:
        server.close()
        raise
    return server


def _why(error: OSError) -> str:
    if isinstance(error, (socket.timeout, TimeoutError)):
        return "does not answer"
    if isinstance(error, ConnectionRefusedError):
        return "is there, but nothing listens at the port"
    if isinstance(error, (ConnectionResetError, BrokenPipeError)):
        return "closed the connection"
    return f"cannot be reached: {error.strerror or error}"
