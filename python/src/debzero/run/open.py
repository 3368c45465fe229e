"""Opening a run: hold its folder, and make its run the one that the job continues, if there is one."""
from __future__ import annotations

from typing import Callable

from debzero.base import systemd
from debzero.base.errors import InputError
from debzero.base.text import printable
from debzero.resolve.resolve import ResolvedJob
from debzero.run import checkpoint, report
from debzero.run.decision import Decision, decide
from debzero.run.folder import RunFolder


def open_folder(resolved: ResolvedJob, folder: RunFolder, job: str, again: bool,
                meet: Callable[[bool], bool] = lambda done: done) -> bool:
    """Hold the output folder and make room; False when this very job has finished there already, after showing its
    report. `meet` gets whether it has, before anything is moved, and returns whether it has on all hosts."""
    if foreign := folder.foreign_problems(job):
        raise InputError(foreign)
    folder.lock()
    folder.put_back()
    decision = decide(resolved, folder, again, checkpoint.any_intact)
    done_everywhere = meet(decision.does == "has finished")
    if decision.is_news:
        print(printable(f"this job {decision}"), flush=True)
    _move(folder, decision)
    if done_everywhere and (done := folder.report()):
        print(report.text(done), "  train it again  debzero train --again ...", sep="\n", flush=True)
        systemd.notify("READY=1", f"STATUS=finished before, {report.headline(done)}")
        return False
    folder.begin(job, resolved.identity, decision.run.step if decision.run else 0)
    return True


def _move(folder: RunFolder, decision: Decision) -> None:
    """Move the run that is there away, and the one that fits to its place; keep a result that is about to change."""
    if decision.archives:
        print(printable(f"the run that was in {folder.folder} is now in {folder.make_room()}"), flush=True)
    if decision.archived:
        folder.take_back(decision.archived.folder)
    if decision.keeps:
        print(printable(f"its result so far is in {folder.keep()}"), flush=True)
