"""Opening a run: hold its folder, show a finished one's report, and move another run's results away."""
from __future__ import annotations

from debzero.base import systemd
from debzero.base.errors import InputError
from debzero.base.text import printable
from debzero.resolve.resolve import ResolvedJob
from debzero.run import report
from debzero.run.folder import RunFolder


def open_folder(resolved: ResolvedJob, folder: RunFolder, job: str, again: bool) -> bool:
    """Hold the output folder and make room; False when this very job has finished there already, after showing its
    report."""
    if foreign := folder.foreign_problems(job):
        raise InputError(foreign)
    folder.lock()
    done = None if again else folder.finished(resolved.fingerprint)
    if done is not None:
        print(report.text(done), "  train it again  debzero train --again ...", sep="\n", flush=True)
        systemd.notify("READY=1", f"STATUS=finished before, {report.headline(done)}")
        return False
    archive = folder.begin(job, resolved.fingerprint, again)
    if archive:
        kind = "an earlier" if again else "a different"
        print(printable(f"the folder {folder.folder} held {kind} run; moved to {archive}"), flush=True)
    return True
