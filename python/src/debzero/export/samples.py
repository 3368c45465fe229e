"""The run's own held-out samples, tokenised as the training left them or made again, and batches of them."""
from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from debzero.base.errors import InputError, Problem
from debzero.base.text import printable
from debzero.check import checks
from debzero.data import seal
from debzero.data.collator import Collator
from debzero.data.sampler import held_out_batches
from debzero.data.tokens import Prepared
from debzero.model.free_text import FreeText
from debzero.model.task import Task
from debzero.model.tasks import TASKS
from debzero.predict.trained import Trained
from debzero.run import checkpoint
from debzero.run.folder import RunFolder
from debzero.run.records import CheckpointRecord, Report, read_record
from debzero.train import prepare

ROWS = 64           # of a batch
LOGITS = 2**26      # in a batch at most: 256 MiB of them, from each of two models


class HeldOut(NamedTuple):
    """The samples, and the task that scores answers to them."""

    task: Task
    prepared: Prepared

    def __len__(self) -> int:
        return len(self.prepared.held_out)

    def batches(self, classes: int) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
        """The samples' numbers (int64[n]) and their tensors, the longest first. `classes`: numbers in a logit's row."""
        held_out = self.prepared.held_out
        collate = Collator(self.prepared.tokenizer, 1, None, pin=False)
        rows = max(1, min(ROWS, LOGITS // (classes * held_out.limit)))
        for indices in held_out_batches(held_out.lengths, 1, 0, rows):
            yield indices, collate(held_out, indices)

    def example(self) -> dict[str, Any]:
        """A batch of two rows, as the model's inputs."""
        collate = Collator(self.prepared.tokenizer, 1, None, pin=False)
        batch = collate(self.prepared.held_out, np.arange(2) % len(self))
        return {name: tensor for name, tensor in batch.items() if name != "labels"}


def of_run(trained: Trained, name: str) -> HeldOut:
    """Raises an InputError where the samples that the run was scored on cannot be had. `name`: what the user called
    the run."""
    run = RunFolder(str(trained.folder.parent))
    status = run.written_status()
    if trained.folder != run.model or status is None:
        raise InputError([Problem(name, "NAME", f"{trained.folder} is not the model of a run, so there are no held-out "
                                  "samples to compare the export on", "name a run of debzero's")])
    report = run.report()
    metric = report.metric if isinstance(report, Report) else "auto"
    task = FreeText(metric, trained.inputs.max_answer_length) if trained.task == "text-to-text" and not trained.labels \
        else TASKS[trained.task](metric)
    folders = [path for path in run.data.glob("tokenised-*") if path.is_dir() and seal.is_intact(path)]
    prepared = prepare.load(folders[0] if len(folders) == 1 else _again(run, status.job, status.fingerprint), task)
    wanted = _digest(run)
    if wanted and prepared.digest != wanted:
        raise InputError([Problem(name, "data", f"the samples in {run.data} are not those that the run was trained on",
                                  f"put its data back as they were, and remove {run.data}: it is made again")])
    return HeldOut(task, prepared)


def _again(run: RunFolder, job: str, fingerprint: str) -> Path:
    """The samples made from the job's data once more."""
    print(printable(f"the samples of {run.folder} are gone: making them again from {job}"), file=sys.stderr, flush=True)
    if not Path(job).is_file():
        raise InputError([Problem(job, "file", f"does not exist, and {run.data} has no samples either",
                                  "put the job file back, with its data: the export is compared with the original on "
                                  "the samples that were held out")])
    resolved = checks.check(Path(job))
    if resolved.fingerprint != fingerprint:
        raise InputError([Problem(job, "file", "is another job than the run's by now, or its data have changed, and "
                                  f"{run.data} has no samples", "put both back as they were when the run was trained")])
    return prepare.prepare(resolved, run.data)


def _digest(run: RunFolder) -> str:
    """Of the samples that the run was trained on, as its newest checkpoint says; empty where there is none."""
    for tag in checkpoint.tags(run.checkpoints)[-1:]:
        record = read_record(run.checkpoints / tag / checkpoint.FACTS, CheckpointRecord)
        return record.facts.data if record else ""
    return ""
