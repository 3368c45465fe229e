"""The settings that were found, written into the job file with its comments kept."""
from __future__ import annotations

import io
import json
import os
import re
import signal
import socket
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NoReturn, Union

from debzero.base import privileges
from debzero.base.errors import InputError, Problem, UserError
from debzero.base.files import rewrite_text
from debzero.base.reading import JOB, read_text
from debzero.tune.dimensions import COMBINED, REFINED

Value = Union[str, int, bool, None]  # None: the key goes
# What a search may change in a job.
KEYS = {"train.micro_batch", "ranks", *(key for keys in COMBINED.values() for key in keys), *REFINED.values()}
MOST_CHARACTERS = 1000


def check_writable(job: Path) -> None:
    """Before the first trial: nobody should wait for a result that then cannot be written."""
    folder, reason = job.resolve().parent, ""
    if not os.access(folder, os.W_OK | os.X_OK):
        reason, fix = f"{folder} may not be written by this user", "run it as the file's owner, or with --dry-run"
    try:
        with_values(read_text(job, JOB), {})
    except Exception as error:  # ruamel.yaml raises more than its own: a ValueError for the date 2024-13-01
        reason, fix = f"cannot be rewritten: {' '.join(str(error).split())}", "fix the line"
    if reason:
        raise InputError([Problem(str(job), "file", reason, fix)])


def write(job: Path, values: Mapping[str, Value]) -> None:
    rewrite_text(job, with_values(read_text(job, JOB), values))


class RootsWriter:
    """Writes into root's job file what a search has found that runs as another user: a process that stays root's, and
    does nothing but this once."""

    def __init__(self, job: Path) -> None:
        self.job = job
        ours, theirs = socket.socketpair()
        if os.fork() == 0:
            ours.close()
            self._serve(theirs)
        theirs.close()
        self.channel = ours

    def write(self, values: Mapping[str, Value]) -> None:
        """Raises a UserError where it could not be written."""
        self.channel.sendall(json.dumps(dict(values)).encode() + b"\n")
        answer = self.channel.makefile().readline().strip()
        if answer != "written":
            raise UserError(f"{self.job} could not be written: {answer or 'its writer was killed'}",
                            "write the values into it by hand: " + str(dict(values)))

    def _serve(self, channel: socket.socket) -> NoReturn:
        """Write what the other side sends, or nothing if it ends without. What it sends is what another user's process
        says: only the keys that a search may choose, and no more than a number or a word for each."""
        code = 0
        try:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            line = channel.makefile().readline(MOST_CHARACTERS)
            if line:
                values = json.loads(line)
                if set(values) - KEYS or not all(re.fullmatch(r"\w{1,20}", str(value)) for value in values.values()):
                    raise ValueError("these are no settings that a search chooses")
                with privileges.acting_as_owner(self.job):
                    write(self.job, values)
                channel.sendall(b"written\n")
        except BaseException as error:
            code = 1
            with suppress(OSError):
                channel.sendall(f"{type(error).__name__}: {error}".replace("\n", " ").encode() + b"\n")
        finally:
            os._exit(code)


def with_values(text: str, values: Mapping[str, Value]) -> str:
    """A job file's text with `values` (by dotted key, such as train.micro_batch) in it; comments, order and quotes
    stay, and a key whose value is None goes. Raises a YAMLError where it cannot be read."""
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.preserve_quotes, yaml.width = True, 2**16
    job = yaml.load(text)
    for path, value in values.items():
        *sections, key = path.split(".")
        section = job
        for name in sections:
            if section.get(name) is None:
                section[name] = {}
            section = section[name]
        if value is None:
            section.pop(key, None)
        else:
            section[key] = value
    written = io.StringIO()
    yaml.dump(job, written)
    return written.getvalue()
