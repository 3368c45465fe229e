"""The output folder of one run: who holds it, how far it is, what it left."""
from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Optional

from debzero.base.errors import InputError, Problem, full
from debzero.base.files import nearest, read_json, write_json, write_text
from debzero.run import checkpoint

FINAL = ("finished", "failed", "stopped")
SAME_FAILURES = 3
KEPT = ("data", "archive", ".lock")  # neither results nor state of one run


def now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")


class Output:
    """<output>/: status.json, metrics.jsonl, report.json, checkpoints/, model/, data/ (a cache), archive/."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.status_file = self.folder / "status.json"
        self.report_file = self.folder / "report.json"
        self.metrics_file = self.folder / "metrics.jsonl"
        self.checkpoints = self.folder / "checkpoints"
        self.model = self.folder / "model"
        self.data = self.folder / "data"
        self.first_error = self.folder / ".error.json"
        self.failures_file = self.folder / ".failures.json"
        self.lock_file = self.folder / ".lock"
        self._lock: Optional[int] = None

    def lock(self) -> None:
        """Hold the folder until this process ends, or raise an InputError: it cannot be written, or somebody holds it.
        A full disk is a UserError."""
        with self._writable():
            self.folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.lock_file, os.O_RDWR | os.O_CREAT, 0o644)
        for last in (False, False, False, True):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if last:
                    holder = os.read(handle, 20).decode().strip() or "unknown"
                    os.close(handle)
                    raise InputError([Problem(
                        str(self.folder), "output", f"another run (process {holder}) is training into this folder",
                        "wait for it (`debzero status " + str(self.folder)
                        + " --watch`), stop it, or set another output"
                    )]) from None
                time.sleep(0.2)  # `debzero status` may have been looking at the lock just now
        self._lock = handle
        with self._writable():
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)

    @contextmanager
    def _writable(self) -> Iterator[None]:
        """Of what keeps this process from writing to the folder, only a full disk may be no more at the next start."""
        try:
            yield
        except OSError as error:
            if later := full(error, str(nearest(self.folder))):
                raise later from None
            raise InputError([Problem(str(self.folder), "output",
                                      f"no folder that this user may write to: {error.strerror or error}",
                                      "choose another folder, or give this user the right to write there")]) from None

    def held(self) -> bool:
        """Whether a living process holds the lock. A process number alone would lie after a reboot."""
        try:
            handle = os.open(self.lock_file, os.O_RDONLY)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except PermissionError:
            return True
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        finally:
            os.close(handle)
        return False

    def holder(self) -> Optional[int]:
        """The process that trains into the folder now."""
        try:
            return int(self.lock_file.read_text()) if self.held() else None
        except (OSError, ValueError):
            return None

    def status(self) -> dict[str, Any]:
        """status.json as it is now, empty where no run wrote it; a run whose process is gone has failed, whatever it
        last wrote."""
        values = self._written()
        if values and values["state"] not in FINAL and not self.held():
            values = self._written()  # it may have ended between the two looks
            if values and values["state"] not in FINAL:
                values.update(state="failed", error="the process ended without a word (killed, or the host went down)")
        return values

    def _written(self) -> dict[str, Any]:
        values = read_json(self.status_file)
        return values if values.get("state") else {}

    def update(self, **values: Any) -> None:
        write_json(self.status_file, {**read_json(self.status_file), **values, "updated": now()})

    def end(self, state: str, error: Optional[str] = None) -> None:
        """The final state, unless one is written already. A full disk must not hide the error that it caused."""
        try:
            if read_json(self.status_file).get("state") not in FINAL:
                self.update(state=state, **({"error": error} if error else {}), eta_seconds=None)
        except OSError:
            return

    def finished(self, fingerprint: str) -> Optional[dict[str, Any]]:
        """The report, if exactly this job has finished here."""
        status = read_json(self.status_file)
        same = status.get("state") == "finished" and status.get("fingerprint") == fingerprint
        return read_json(self.report_file) if same and self.model.is_dir() else None

    def begin(self, job: str, fingerprint: str, again: bool) -> Optional[Path]:
        """Make room for a run: another job's (or, with `again`, this one's) results move to archive/, whose path is
        returned.

        An unfinished run of the same job stays: its newest checkpoint is where the new one starts.
        """
        with self._writable():
            return self._begin(job, fingerprint, again)

    def _begin(self, job: str, fingerprint: str, again: bool) -> Optional[Path]:
        before = read_json(self.status_file)
        archive = None
        if before and (again or before.get("fingerprint") != fingerprint):
            archive = self.folder / "archive" / datetime.now().strftime("%Y-%m-%dT%H%M%S.%f")
            archive.mkdir(parents=True)
            for path in sorted(self.folder.iterdir()):
                if path.name not in KEPT:
                    shutil.move(str(path), str(archive / path.name))
        for leftover in [*self.folder.glob(".*.new"), *self.folder.glob(".*.aside"), *self.checkpoints.glob(".*")]:
            shutil.rmtree(leftover, ignore_errors=True)
        self.first_error.unlink(missing_ok=True)
        learned = {} if archive else {key: before[key] for key in ("micro_batch",) if key in before}
        write_json(self.status_file, {
            "job": job, "fingerprint": fingerprint, "state": "preparing", "step": 0, "total_steps": None, "epoch": 0,
            "loss": None, "learning_rate": None, "samples_per_second": None, "eta_seconds": None, "pid": os.getpid(),
            "started": now(), "updated": now(), **learned})
        return archive

    def claim_error(self, error: dict[str, Any]) -> bool:
        """Note a rank's error; true for the first one only. The others merely lost their partner."""
        try:
            handle = os.open(self.first_error, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            os.write(handle, json.dumps(error).encode())
            os.close(handle)
        except FileExistsError:
            return False
        except OSError:
            return True  # no room to note it: better said twice than never
        return True

    def name_error(self, error: dict[str, Any]) -> None:
        """Note what went wrong, over what a rank may have noted."""
        with suppress(OSError):
            write_json(self.first_error, error)

    def first_error_text(self) -> Optional[str]:
        return read_json(self.first_error).get("error")

    def fails_alike(self, error: Optional[str]) -> bool:
        """Count a failure; true when the last SAME_FAILURES were at one step with one error: another start would end
        like them."""
        step = max(map(checkpoint.step, checkpoint.tags(self.checkpoints)), default=0)
        this = {"step": step, "error": error}
        before = read_json(self.failures_file)
        count = before["count"] + 1 if {**before, "count": 0} == {**this, "count": 0} else 1
        alike = count >= SAME_FAILURES
        with suppress(OSError):
            write_json(self.failures_file, {**this, "count": 0 if alike else count})
            if alike:
                self.update(given_up=f"failed {count} times in the same way")
        return alike

    def cut_metrics(self, step: int) -> None:
        """Forget what was measured after `step`: the run goes on from there."""
        if self.metrics_file.is_file():
            kept = []
            for line in self.metrics_file.read_text().splitlines():
                with suppress(ValueError, KeyError):  # a line cut short by a crash
                    if json.loads(line)["step"] <= step:
                        kept.append(line + "\n")
            write_text(self.metrics_file, "".join(kept))
