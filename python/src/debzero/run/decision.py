"""What a start of a job does with the runs in its output folder. `debzero check` says it, `debzero train` does it."""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Callable, Literal, NamedTuple, Optional

from debzero.base.text import count_text
from debzero.data.sampler import total_steps
from debzero.job.effects import EFFECTS, OF_THE_JSON
from debzero.job.reference import value_text
from debzero.resolve.absorb import Origins
from debzero.resolve.identity import Identity
from debzero.resolve.resolve import ResolvedJob
from debzero.run import checkpoint
from debzero.run.folder import RunFolder
from debzero.run.records import RunRecord, Status

SCHEDULED = ("train.epochs", "train.max_steps")  # the learning rate falls to its end with the last step
NAMED = 3  # files whose content changed
LONG = 150  # characters of a value


class Change(NamedTuple):
    """A setting that differs between a run and the job. None: not set."""

    key: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.key} {_shown(self.old)} -> {_shown(self.new)}"


class Content(NamedTuple):
    """Files that differ, of the `part` data or model."""

    part: str
    files: list[str]

    def __str__(self) -> str:
        more = f" and {len(self.files) - NAMED} more" if len(self.files) > NAMED else ""
        return f"the {self.part}'s content ({', '.join(self.files[:NAMED])}{more})"


@dataclass(frozen=True)
class Kept:
    """A run as its files show it, in the output folder or in archive/."""

    folder: Path
    record: Optional[RunRecord]
    status: Optional[Status]
    checkpoints: Path
    saved: Optional[int]   # the newest checkpoint's step
    finished: bool
    fingerprint: str       # empty: unknown

    @property
    def step(self) -> int:
        done = self.status.step if self.finished and self.status else 0
        return done if self.saved is None else self.saved


@dataclass(frozen=True)
class Decision:
    """`current` is the run in the output folder, `archived` the one that is taken back in its place. `changes` and
    `contents`: what differs in the run that continues, or that the new one leaves behind; `why`: the reason for a new
    one; `total`: the job's steps, where they are known; `reschedules`: debzero's own schedule has another end."""

    does: Literal["begins", "has finished", "resumes", "continues", "starts anew", "trains again"]
    current: Optional[Kept] = None
    archived: Optional[Kept] = None
    changes: tuple[Change, ...] = ()
    contents: tuple[Content, ...] = ()
    why: str = ""
    total: Optional[int] = None
    reschedules: bool = False

    @property
    def run(self) -> Optional[Kept]:
        """The run that goes on."""
        return None if self.does in ("begins", "starts anew", "trains again") else self.archived or self.current

    @property
    def archives(self) -> bool:
        """Whether the run in the output folder moves to archive/."""
        return self.current is not None and self.run is not self.current

    @property
    def keeps(self) -> bool:
        """Whether a finished run goes on, whose result is kept in archive/ as it is."""
        return self.does == "continues" and self.run is not None and self.run.finished

    @property
    def is_news(self) -> bool:
        """Whether somebody who only started the job again should hear of it."""
        return self.archives or self.archived is not None or self.does == "continues"

    def as_json(self) -> dict[str, Any]:
        return {"does": self.does, "says": str(self), "step": self.run.step if self.run else 0,
                "total_steps": self.total, "archives": self.archives, "keeps_result": self.keeps,
                "takes_back": str(self.archived.folder) if self.archived else None,
                "changes": [change._asdict() for change in self.changes],
                "contents": [content.part for content in self.contents]}

    def __str__(self) -> str:
        if self.archived:
            back = f"takes back the run in {self.archived.folder}, which fits, and {self._forward()}"
            return back + ("; the run there now moves to archive/" if self.current else "")
        if self.does == "starts anew":
            why = f"{self.why}: {self._listed()}" if self.changes or self.contents else self.why
            return f"starts anew because {why}. The run there ({self._place(self.current)}) moves to archive/"
        return self._forward()

    def _forward(self) -> str:
        """What is done, without what is done to other runs."""
        texts = {"begins": "begins: there is no run yet", "resumes": f"resumes after {self._place(self.run)}",
                 "has finished": f"has finished, after {self._place(self.run)}",
                 "trains again": f"begins, and the run there ({self._place(self.current)}) moves to archive/",
                 "continues": f"continues after {self._place(self.run)} with {self._listed()}"}
        rate = ". Its learning rate is from now on that of a run of the new length" if self.reschedules else ""
        return texts[self.does] + rate + (". Its result so far is kept in archive/" if self.keeps else "")

    def _listed(self) -> str:
        return ", ".join(map(str, [*self.changes, *self.contents]))

    def _place(self, run: Optional[Kept]) -> str:
        step = run.step if run else 0
        total = self.total if run is self.run else run and run.status and run.status.total_steps
        return f"step {step} of {total}" if total else count_text(step, "step")


def decide(resolved: ResolvedJob, folder: RunFolder, again: bool = False,
           usable: Callable[[Path], bool] = lambda root: bool(checkpoint.tags(root))) -> Decision:
    """What a start of the job does. `usable`: whether a run could resume from a checkpoint in a folder of them."""
    decision = _Choice(resolved, folder, usable).decision(again)
    return replace(decision, changes=tuple(change._replace(key=_written(change.key, resolved.origins))
                                           for change in decision.changes))


class _Choice:
    def __init__(self, resolved: ResolvedJob, folder: RunFolder, usable: Callable[[Path], bool]) -> None:
        self.resolved, self.folder, self.usable = resolved, folder, usable
        self.identity = resolved.identity
        self.fingerprint = self.identity.fingerprint

    def decision(self, again: bool) -> Decision:
        current = _read(self.folder)
        if again:
            return Decision("trains again", current) if current else Decision("begins")
        if current and self._fits(current) and not self._left(current):
            return self._with(current, current)
        for run in self._archived():
            if not self._left(run):
                return self._with(run, current)
        if current and self._fits(current):
            return self._with(current, current)
        for run in self._archived():
            return self._with(run, current)
        return self._anew(current) if current else Decision("begins")

    def _total(self, run: Kept) -> Optional[int]:
        per_epoch = run.record.steps_per_epoch if run.record else None
        return total_steps(self.resolved.job.train, per_epoch) if per_epoch else None

    def _changes(self, run: Kept) -> list[Change]:
        """What differs in the settings with which a run continues."""
        return _changes(run.record.others, self.identity.others) if run.record else []

    def _left(self, run: Kept) -> list[Change]:
        """The changes that give a finished run something to do."""
        return [change for change in self._changes(run) if change.key.startswith(f"{OF_THE_JSON}.")
                or change.key in EFFECTS and EFFECTS[change.key].counts_when_finished
                and (change.key not in SCHEDULED or self._ends_elsewhere(run))]

    def _ends_elsewhere(self, run: Kept) -> bool:
        """Whether the job ends at another step than the run was to: `epochs` and `max_steps` hide one another."""
        return not run.status or self._total(run) != run.status.total_steps

    def _past(self, run: Kept) -> bool:
        total = self._total(run)
        return total is not None and run.step > total and bool(self._left(run))

    def _fits(self, run: Kept) -> bool:
        """Whether a run can become what the job asks for."""
        if run.fingerprint != self.fingerprint or self._past(run):
            return False
        return not (run.finished and self._left(run)) or self.usable(run.checkpoints)

    def _archived(self) -> Iterator[Kept]:
        """The archived runs that fit, those with most done first, and of these the newest."""
        runs = [run for path in reversed(self.folder.archive.runs()) if (run := _read(RunFolder(str(path))))]
        yield from (run for run in sorted(runs, key=lambda run: -run.step)
                    if (run.saved is not None or run.finished) and self._fits(run))

    def _with(self, run: Kept, current: Optional[Kept]) -> Decision:
        changes, archived = tuple(self._changes(run)), run if run is not current else None
        if run.finished and not self._left(run):
            return Decision("has finished", current, archived, total=run.status.total_steps if run.status else None)
        own = "scheduler" not in (self.resolved.deepspeed or {}) and self._ends_elsewhere(run) and any(
            change.key in SCHEDULED for change in changes)
        return Decision("continues" if changes else "resumes", current, archived, changes, total=self._total(run),
                        reschedules=own)

    def _anew(self, current: Kept) -> Decision:
        decision = Decision("starts anew", current)
        if current.record is None:
            return replace(decision, why="what the run there trained was not written down")
        if current.fingerprint != self.fingerprint:
            return replace(decision, why="this is another training", contents=tuple(
                _contents(current.record, self.identity)), changes=tuple(_other(current.record, self.identity)))
        past = f"this job ends at step {self._total(current)} and the run there is beyond it"
        lost = "the finished run there has no intact checkpoint to continue from"
        return replace(decision, why=past if self._past(current) else lost, changes=tuple(self._left(current)))


def _written(key: str, origins: Origins) -> str:
    """What the user writes for a setting, in the job or in DeepSpeed's JSON."""
    if origins.json_file and key.startswith(f"{OF_THE_JSON}."):
        elsewhere = f" in {origins.json_file}" if origins.json_file != origins.file else ""
        return origins.prefix + key[len(OF_THE_JSON) + 1:] + elsewhere
    return origins.text(key)


def _read(folder: RunFolder) -> Optional[Kept]:
    """The run in a folder; a killed start may have left its files halfway to archive/."""
    try:
        there = bool(folder.parts()) or folder.archive.moving.is_dir()
    except OSError:
        return None
    if not there:
        return None
    status, record = folder.written_status(), folder.run_record()
    checkpoints = folder.archive.place(folder.checkpoints.name)
    saved = max(map(checkpoint.step, checkpoint.tags(checkpoints)), default=None)
    finished = bool(status and status.state == "finished") and folder.archive.place(folder.model.name).is_dir()
    known = record or status
    return Kept(folder.folder, record, status, checkpoints, saved, finished,
                (known.fingerprint if known else "") or checkpoint.run_of(checkpoints))


def _changes(old: dict[str, Any], new: dict[str, Any]) -> list[Change]:
    return [Change(key, old.get(key), new.get(key)) for key in dict.fromkeys([*old, *new])
            if old.get(key) != new.get(key)]


def _other(record: RunRecord, identity: Identity) -> Iterator[Change]:
    """The settings that make the job another training than the run's."""
    old, new = ({**facts.others, **facts.weights} for facts in (record, identity))
    both_from_scratch = all(any(key.startswith("model.") for key in facts) for facts in (old, new))
    for key in dict.fromkeys([*record.weights, *identity.weights]):
        differs = record.weights.get(key) != identity.weights.get(key)
        if differs and (both_from_scratch or not key.startswith("model.")):
            yield Change(key, old.get(key), new.get(key))


def _contents(record: RunRecord, identity: Identity) -> Iterator[Content]:
    for part, now in identity.contents.items():
        before = record.contents.get(part)
        if before and before != now:
            names = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
            one = part == "data" and {*before, *now} == {"train"}
            yield Content(part, [Path(str(identity.others.get("data.dataset"))).name] if one else names)


def _shown(value: Any) -> str:
    text = "not set" if value is None else value_text(value)
    return text if len(text) <= LONG else f"{text[:LONG - 3]}..."
