"""The output folder of one run: who holds it, how far it is, what it left."""
from __future__ import annotations

import errno
import fcntl
import json
import os
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Optional

from debzero.base import privileges
from debzero.base.errors import InputError, PassingError, Problem
from debzero.base.failures import disk_full
from debzero.base.files import nearest, read_json, remove, remove_leftovers, without_dots, write_json, write_text
from debzero.base.reading import lines_of, parse_json
from debzero.job import contents
from debzero.resolve.identity import Identity
from debzero.run import archive, checkpoint, lock
from debzero.run.records import AnyReport, ErrorNote, Failures, HostsRecord, RunRecord, Status, read_record, read_report

FINAL = ("finished", "failed", "stopped")
SAME_FAILURES = 3
# All that debzero makes in an output folder (patterns): the results and the state of one run, which move to archive/
# together, and what stays for the next. Anything else there is somebody else's, and is left alone.
RUNS = ("status.json", "run.json", "metrics.jsonl", "metrics.csv", "tensorboard", "debzero-*.prom", "checkpoints",
        "model", "export", "report.json", "aio.json", ".error.json", ".failures.json")
MODEL_FACTS = "debzero.json"  # in model/
NO_STATUS = Status(state="preparing", step=0, total_steps=None, epoch=0, loss=None, learning_rate=None,
                   samples_per_second=None, eta_seconds=None)
KEPT = ("data", archive.FOLDER, ".lock", "hosts.json")  # the last is there before a run begins, while hosts wait
NO_PLACE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.EISDIR,
            errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL)  # of a path where no folder can be written


def now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")


def is_runs(name: str) -> bool:
    """Whether a name in an output folder is that of one run's results or state."""
    return any(fnmatchcase(name, pattern) for pattern in RUNS)


def _among(hosts: HostsRecord, status: Optional[Status]) -> Status:
    """The status of a run that other hosts train as well. One that waits for some of them has not begun, and what
    status.json says is of the start before."""
    if not hosts.missing:
        return (status or NO_STATUS).model_copy(update={"hosts": hosts.hosts})
    return (status or NO_STATUS).model_copy(update={"state": "waiting", "error": None, "given_up": None,
                                                    "hosts": hosts.hosts, "waiting_for": hosts.missing})


class RunFolder:
    """<output>/: status.json, metrics.jsonl, report.json, run.json, checkpoints/, model/, data/ (a cache), archive/."""

    def __init__(self, folder: str) -> None:
        self.folder = without_dots(Path(folder))
        self.archive = archive.Archive(self.folder)
        self.status_file = self.folder / "status.json"
        self.run_file = self.folder / "run.json"
        self.report_file = self.folder / "report.json"
        self.hosts_file = self.folder / "hosts.json"
        self.metrics_file = self.folder / "metrics.jsonl"
        self.checkpoints = self.folder / "checkpoints"
        self.model = self.folder / "model"
        self.data = self.folder / "data"
        self.error_file = self.folder / ".error.json"
        self.failures_file = self.folder / ".failures.json"
        self.lock_file = self.folder / ".lock"
        self._lock: Optional[int] = None

    def lock(self) -> None:
        """Hold the folder until this process ends. Raises an InputError where it cannot be written or another process
        holds it, and a UserError where the disk is full, or where root was to work in another user's folder."""
        with self._writable():
            self.folder.mkdir(parents=True, exist_ok=True)
            privileges.require_own(self.folder)
            handle = lock.open_own(self.lock_file)
        for last in (False, False, False, True):  # `debzero status` holds the lock for a moment when it tests it
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if last:
                    os.close(handle)
                    raise InputError([Problem(
                        str(self.folder), "output",
                        f"another run (process {self.holder() or 'unknown'}) is writing to this folder",
                        f"wait for it (`{shlex.join(['debzero', 'status', str(self.folder), '--watch'])}`), stop it, "
                        "or set another output",
                    )]) from None
                time.sleep(0.2)
        self._lock = handle

    @contextmanager
    def _writable(self) -> Iterator[None]:
        """Raises an InputError where no folder can be written at this path, and a UserError for any other reason, such
        as a full disk, which may be over at the next start."""
        try:
            yield
        except OSError as error:
            if later := disk_full(error, str(nearest(self.folder))):
                raise later from None
            reason = f"no folder that this user may write to: {error.strerror or error}"
            fix = "choose another folder, or give this user the right to write there"
            if error.errno not in NO_PLACE:
                raise PassingError(f"{self.folder}: {reason}", fix) from None
            raise InputError([Problem(str(self.folder), "output", reason, fix)]) from None

    def held(self) -> bool:
        """Whether a living process holds the lock. A process number alone would lie after a reboot."""
        return lock.is_held(self.lock_file)

    def holder(self) -> Optional[int]:
        """The process of this folder's owner that trains into it now, as the kernel knows it."""
        return lock.holder(self.lock_file)

    def foreign(self) -> list[str]:
        """What is in a folder where debzero never ran, except for hidden names and what the start of a run leaves
        alone: another program's, which a run would mix with its own, replace and remove."""
        try:
            names = sorted(os.listdir(self.folder))
        except OSError:
            return []
        if {self.lock_file.name, self.status_file.name} & set(names):
            return []
        with suppress(OSError):  # a run removes names in data/, too; `debzero check` leaves one there
            inside = [f"data/{name}" for name in sorted(os.listdir(self.folder / "data"))]
            names += [name for name in inside if name != contents.KEPT]
        return [name for name in names
                if not name.rpartition("/")[2].startswith(".") and name not in (*KEPT, "lost+found")]

    def foreign_problems(self, file: str) -> list[Problem]:
        """Why no run may start here, for the job in `file`."""
        names = self.foreign()
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        return [Problem(file, "output", f"{self.folder} is not empty, and debzero never ran there: it holds "
                        f"{', '.join(names[:5])}{more}", "choose a folder of its own, new or empty: a run replaces and "
                        "removes files in its output")] if names else []

    def status(self) -> Optional[Status]:
        """status.json as it is now; None where no run wrote it. A run whose process is gone has failed, whatever it
        wrote last."""
        status = self.written_status()
        if status and status.state not in FINAL and not self.held():
            status = self.written_status()  # it may have ended since
            if status and status.state not in FINAL:
                gone = {"state": "failed",
                        "error": "the process ended without reporting an error (killed, or the host went down)"}
                status = status.model_copy(update=gone)
        hosts = read_record(self.hosts_file, HostsRecord)
        return _among(hosts, status) if hosts and self.held() else status

    def written_status(self) -> Optional[Status]:
        """status.json as the run wrote it."""
        return read_record(self.archive.place(self.status_file.name), Status)

    def report(self) -> Optional[AnyReport]:
        return read_report(self.archive.place(self.report_file.name))

    def update(self, **values: object) -> None:
        """Change these keys of status.json (records.Status names them)."""
        write_json(self.status_file, {**read_json(self.status_file), **values, "updated": now()})

    def end(self, state: str, error: Optional[str] = None) -> None:
        """The final state, unless one is written already. A full disk must not hide the error that it caused."""
        try:
            status = self.written_status()
            if status is None or status.state not in FINAL:
                self.update(state=state, **({"error": error} if error else {}), eta_seconds=None)
        except OSError:
            return

    def put_back(self) -> None:
        """Complete what a killed start has left undone, before anything is decided."""
        with self._writable():
            remove_leftovers(self.folder)
            self.archive.put_back()

    def parts(self) -> list[Path]:
        """What is there of a run."""
        return sorted(path for path in self.folder.iterdir() if is_runs(path.name))

    def make_room(self) -> Path:
        """Move the run that is there to archive/; where it is now."""
        with self._writable():
            return self.archive.add(self.parts())

    def keep(self) -> Path:
        """Keep the finished run that is there in archive/, before it goes on; where that is. One that is kept already,
        as by a start that was killed, is not kept twice."""
        with self._writable():
            result = self.report_file.read_bytes() if self.report_file.is_file() else b""
            for run in self.archive.runs():
                if result and (run / self.report_file.name).is_file() and (
                        run / self.report_file.name).read_bytes() == result:
                    return run
            newest = [self.checkpoints / tag for tag in checkpoint.tags(self.checkpoints)[-1:]]
            return self.archive.keep([*(part for part in self.parts() if part != self.checkpoints), *newest])

    def take_back(self, run: Path) -> None:
        """Make an archived run the one that is here."""
        with self._writable():
            self.archive.take_back(run)

    def begin(self, job: str, identity: Identity, step: int = 0) -> None:
        """Begin the run of a job, at `step`, or continue the one that is here."""
        with self._writable():
            self._begin(job, identity, step)

    def _begin(self, job: str, identity: Identity, step: int) -> None:
        before, record = self.written_status(), self.run_record()
        for leftover in self.checkpoints.glob(".*"):
            with suppress(OSError):
                remove(leftover)
        self.error_file.unlink(missing_ok=True)
        learned = {"micro_batch": before.micro_batch} if before and before.micro_batch else {}
        # First of all a finished run that continues is none any more, whatever its record says.
        write_json(self.status_file, Status(
            job=job, fingerprint=identity.fingerprint, state="preparing", step=step, total_steps=None, epoch=0,
            loss=None, learning_rate=None, samples_per_second=None, eta_seconds=None, pid=os.getpid(), started=now(),
            updated=now(), **learned).as_json())
        write_json(self.run_file, RunRecord(
            fingerprint=identity.fingerprint, weights=identity.weights, others=identity.others,
            contents=identity.contents, steps_per_epoch=record.steps_per_epoch if record else None).as_json())

    def run_record(self) -> Optional[RunRecord]:
        """What the run that is here trains; None where that was not written down."""
        return read_record(self.archive.place(self.run_file.name), RunRecord)

    def step_of_model(self) -> Optional[int]:
        """The optimizer steps after which the weights in model/ were."""
        step = read_json(self.model / MODEL_FACTS, own=True).get("step")
        return step if type(step) is int else None

    def note_steps_per_epoch(self, steps: int) -> None:
        """Write down what only the prepared data show."""
        if record := self.run_record():
            write_json(self.run_file, record.model_copy(update={"steps_per_epoch": steps}).as_json())

    def note_first_error(self, note: ErrorNote) -> bool:
        """Note a rank's error; true for the first one only. The other ranks merely lost their partner."""
        try:
            handle = os.open(self.error_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            os.write(handle, json.dumps(note.as_json()).encode())
            os.close(handle)
        except FileExistsError:
            return False
        except OSError:
            return True  # no room to note it: better reported twice than never
        return True

    def replace_error(self, note: ErrorNote) -> None:
        """Note what went wrong, over what a rank may have noted."""
        with suppress(OSError):
            write_json(self.error_file, note.as_json())

    def error_note(self) -> Optional[ErrorNote]:
        return read_record(self.error_file, ErrorNote)

    def record_failure(self, error: Optional[str]) -> bool:
        """Count a failed start; true when SAME_FAILURES in a row failed at one step with one error, so that another
        start would fail like them. Then the count begins anew."""
        step = max(map(checkpoint.step, checkpoint.tags(self.checkpoints)), default=0)
        before = read_record(self.failures_file, Failures)
        count = before.count + 1 if before and (before.step, before.error) == (step, error) else 1
        hopeless = count >= SAME_FAILURES
        with suppress(OSError):
            write_json(self.failures_file,
                       Failures(step=step, error=error, count=0 if hopeless else count).as_json())
            if hopeless:
                self.update(given_up=f"failed {count} times in the same way")
        return hopeless

    def cut_metrics(self, step: int) -> None:
        """Forget what was measured after `step`, from which the run resumes."""
        if self.metrics_file.is_file():
            kept = []
            for line in lines_of(self.metrics_file):
                with suppress(ValueError, KeyError, TypeError):  # a line that a crash or a hand spoilt
                    if parse_json(line)["step"] <= step:
                        kept.append(line + "\n")
            write_text(self.metrics_file, "".join(kept))
