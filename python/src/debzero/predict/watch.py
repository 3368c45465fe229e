"""`debzero predict --spool`: answers the files that are put into a folder, one after the other, until it is stopped."""
from __future__ import annotations

import signal
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Optional

from debzero.base import privileges
from debzero.base.errors import HostError, InputError, PassingError, UserError
from debzero.base.failures import full_disk_named
from debzero.base.systemd import notify
from debzero.base.text import count_text, printable
from debzero.predict import trained
from debzero.predict.ask import Session, check
from debzero.predict.rows import File
from debzero.predict.spool import MOST_DEATHS, Spool

INTERVAL = 0.5  # seconds between two looks at the folder
LATER = 30.0    # seconds until another try, where the disk is full


def watch(options: Namespace) -> int:
    """The exit code, once a signal has stopped it."""
    check(options)
    privileges.tighten_umask()
    folder = trained.find(options.name, options.spool / "in").absolute()
    watcher = Watcher(options, folder)
    with watcher.stopped_by_signals():
        return watcher.run()


class Watcher:
    """`folder`: the model's, or a link to it, which may lead to another one for the next file."""

    def __init__(self, options: Namespace, folder: Path) -> None:
        self.options, self.folder = options, folder
        self.spool = Spool(options.spool)
        self.session: Optional[Session] = None
        self.state: list[Any] = []
        self.signal = 0
        self.answered = 0

    @contextmanager
    def stopped_by_signals(self) -> Iterator[None]:
        """Within the block a signal lets the rows that are being computed be written, and ends it then."""
        def stop(number: int, _: Any) -> None:
            self.signal = number

        before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def run(self) -> int:
        self.load()
        notify("READY=1")
        print(printable(f"waiting for files in {self.spool.folder / 'in'}"), flush=True)
        while not self.signal:
            pause = INTERVAL
            try:
                with full_disk_named(self.spool.folder):
                    self.look()
            except PassingError as error:
                self.spool.advance()  # it is no death of this process
                say(f"{error.reason}; trying again in {LATER:.0f} s")
                pause = LATER
            self.rest(pause)
        say(f"stopped, after {count_text(self.answered, 'file')}")
        return 128 + self.signal

    def rest(self, seconds: float) -> None:
        notify("WATCHDOG=1", f"STATUS=waiting for files in {self.spool.folder}/in; "
               f"{count_text(self.answered, 'file')} answered")
        until = time.monotonic() + seconds
        while not self.signal and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, INTERVAL))
            notify("WATCHDOG=1")

    def look(self) -> None:
        """Answer what was begun, or else what has come."""
        begun, said = self.spool.begun()
        for line in said:
            say(line)
        if begun is not None:
            self.answer(begun)
            return
        for name in self.spool.waiting():
            if self.signal:
                return
            if refused := self.spool.take(name):
                say(refused)
            elif name == self.spool.begun()[0]:
                self.answer(name)

    def load(self) -> Session:
        """The model that is the current one."""
        folder = self.folder.resolve()
        state = trained.states(folder)
        if self.session is None or state != self.state:
            self.session = None  # its memory goes before that of the next is taken
            self.session = Session(Namespace(**vars(self.options)), folder).load()
            self.state = state
            say(f"the model is {folder}")
        return self.session

    def answer(self, name: str) -> None:
        """Answer the file that is begun, from the first row that has no answer yet, or put it aside."""
        session = self.load()
        notify("WATCHDOG=1", f"STATUS=answering {name}")
        if not self.spool.begin():
            say(self.spool.fail(name, f"ended this process {MOST_DEATHS} times at the same rows: its journal says how"))
            return
        try:
            file = File(self.spool.input(name), session.texts, self.options.keep)
            total = file.count()
        except InputError as error:
            say(self.spool.fail(name, sentence(error)))
            return
        except MemoryError:
            say(self.spool.fail(name, "needs more memory than this host has: divide it"))
            return
        try:
            self.write(session, file, total)
        except (PassingError, HostError):  # the other files would meet it, too; where this one causes it, deaths tell
            raise
        except UserError as error:
            say(self.spool.fail(name, f"cannot be answered: {error.reason}; {error.fix}"))

    def write(self, session: Session, file: File, total: int) -> None:
        with closing(session.output(file, self.spool.answers(file.path.name))) as made:
            made.begin(total)
            for piece in file.pieces(session.most, made.rows):
                made.add(session.rows(piece, made.rows, alive))
                self.spool.advance()
                notify("WATCHDOG=1", f"STATUS=answering {file.path.name}: {made.rows} of {total} rows")
                if self.signal:
                    return
                self.spool.begin()
            made.finish(alive)
        say(self.spool.publish())
        self.answered += 1


def alive(rows: int = 0) -> None:
    notify("WATCHDOG=1")


def sentence(error: InputError) -> str:
    """What is wrong with a file, for whoever sent it."""
    parts = []
    for problem in error.problems:
        place = "" if problem.key.startswith("--") else f"{problem.key}: "
        parts.append(f"{place}{problem.reason}; {problem.fix}")
    return "cannot be read: " + " ".join(parts)


def say(line: str) -> None:
    print(printable(line), flush=True)
