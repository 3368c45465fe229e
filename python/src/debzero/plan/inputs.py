"""What a plan needs: the job, the hardware, the model's shapes; and what is wrong with them, all at once."""
from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Optional

from debzero.base.errors import InputError, Problem, without_known
from debzero.base.privileges import become_owner
from debzero.deepspeed_json.reader import read_deepspeed
from debzero.job.local_files import files_of
from debzero.job.reader import parse
from debzero.job.schema import Job, Parallel
from debzero.model import tasks
from debzero.model.checks import model_problems
from debzero.model.positions import position_problems
from debzero.plan.activations import LayersNotTrainedError
from debzero.plan.hardware import Hardware
from debzero.plan.model_shapes import Shapes
from debzero.resolve.host import HostGpus
from debzero.resolve.resolve import resolve


@dataclass(frozen=True)
class Opened:
    """A job file, and what is wrong with its text. `config`: the path of --config."""

    path: Path
    config: Optional[Path]
    job: Optional[Job]
    wrong: list[Problem]

    def inputs(self, hardware: Hardware, problems: list[Problem],
               ranks: Optional[int] = None) -> tuple[Shapes, Optional[dict[str, Any]]]:
        """The model's shapes and the job's own DeepSpeed JSON. `problems`: those of the options; `ranks`: to check the
        job with, undivided, where they are not its own. Raises an InputError with every problem of the job and the
        options."""
        problems, config = list(problems), self.config
        if config is not None and not config.exists():
            problems.append(Problem("the command line", "--config", f"{config} does not exist",
                                    "give a config.json, or the folder that holds one"))
            config = None
        others = {"ranks": ranks, "parallel": Parallel()} if ranks else {}
        job = self.job and self.job.model_copy(update=others)
        shapes, settings, of_job = _read(self.path, job, hardware, config, bool(problems or self.wrong))
        problems += [*self.wrong, *without_known(of_job, self.wrong)]
        if problems or shapes is None:
            raise InputError(problems)
        return shapes, settings


def open_job(path: Path, config: Optional[Path]) -> Opened:
    """Read the job file, as its owner from here on."""
    job, wrong = parse(path)
    _become_owner(path, job, config)
    return Opened(path, config, job, wrong)


@contextmanager
def tracing(path: Path, shapes: Shapes) -> Iterator[None]:
    """Turns what tracing the model raises into an InputError."""
    try:
        yield
    except InputError:
        raise
    except LayersNotTrainedError as error:
        checkpoints = shapes.job.train.gradient_checkpointing
        cause = f": transformers {version('transformers')} drops their outputs when it checkpoints" * checkpoints
        raise InputError([Problem(str(path), "train.gradient_checkpointing" if checkpoints else "model",
                                  f"{shapes.name} would not learn: {error}{cause}",
                                  "set gradient_checkpointing: false" if checkpoints else "choose another model")
                          ]) from None
    except Exception as error:  # the trace runs the model's own code, which may be anybody's
        raise InputError([Problem(str(path), "model",
                                  f"{shapes.name} cannot be traced: {type(error).__name__}: {error}",
                                  "correct the model's settings; if they are right, `debzero tune` measures it without "
                                  "a prediction")]) from error


def _become_owner(path: Path, job: Optional[Job], config: Optional[Path]) -> None:
    """Nothing is written, so root may be whoever owns the first file that is not root's. Before CUDA is asked anything:
    its state does not pass on to a child, in which this continues where there is a terminal."""
    named = (job.deepspeed, job.model) if job else ()
    paths = [part for part in named if isinstance(part, str) and os.path.isabs(part)]
    files = [file for named_path in paths for file in (Path(named_path), *files_of(named_path))]
    become_owner(path, *([config] if config else []), *files)


def _read(path: Path, job: Optional[Job], hardware: Hardware, config: Optional[Path], refused: bool) -> tuple[
        Optional[Shapes], Optional[dict[str, Any]], list[Problem]]:
    """The job's model (None where a problem is in the way), its DeepSpeed JSON, and what is wrong with the job beside
    its text. `refused`: the command line or the text is wrong, so the hub, which may take its time, is not asked."""
    if job is None:
        return None, None, []
    shapes, file = None, str(path)
    settings, found = read_deepspeed(job, file)
    found += tasks.problems(job, file)
    try:
        resolve(job, HostGpus(hardware.gpus, hardware.bf16), None, file, settings)
    except InputError as error:
        found += error.problems
    # Of a folder or a hub's model a plan needs only the configuration, which Shapes looks for.
    if config is None and isinstance(job.model, dict):
        found += model_problems(job, file)
    at_hand = config is not None or isinstance(job.model, dict) or Path(job.model).is_absolute()
    if not any(p.key.startswith("model") for p in found) and (at_hand or not (refused or found)):
        try:
            shapes = Shapes(job, file, config)
            if config is not None or isinstance(job.model, str):  # else model_problems has looked
                found += position_problems(job, file, shapes.config)
        except InputError as error:
            found += error.problems
    return shapes, settings, found
