"""`debzero check`: everything that can be known before the ranks start, all at once."""
from __future__ import annotations

import os
import shlex
import shutil
from pathlib import Path
from typing import Any, Callable, NamedTuple, Optional

from debzero.base import privileges
from debzero.base.environment import environment
from debzero.base.errors import InputError, PassingProblem, Problem, without_known
from debzero.base.files import nearest, unreadable
from debzero.base.reading import why
from debzero.base.stack import jobs_folder, stack
from debzero.check.data import Reads, data_found
from debzero.check.hub_names import hub_problems
from debzero.check.inputs import require_roots
from debzero.check.operators import operator_problems
from debzero.deepspeed_json import lint
from debzero.deepspeed_json.reader import read_deepspeed
from debzero.hosts.cluster import find
from debzero.job.reader import parse
from debzero.job.schema import Job
from debzero.model import tasks
from debzero.model.checks import bytes_needed, model_problems
from debzero.resolve import nvme_swap
from debzero.resolve.host import this_host
from debzero.resolve.resolve import ResolvedJob, resolve
from debzero.run import checkpoint
from debzero.run.folder import RunFolder, is_runs

FolderOf = Callable[[Job], Path]  # where a command works for a job


class Examined(NamedTuple):
    """A job on this host, with the warnings about it. `facts`: of its data, for people."""

    resolved: ResolvedJob
    warnings: list[Problem]
    facts: dict[str, str]


def output_of(job: Job) -> Path:
    return Path(job.output)


def _units_user(path: Path) -> str:
    """The user of the unit that trains this job, too: that user could not write to what root left."""
    return stack().user if path.absolute().parent == jobs_folder() else ""


def check(path: Path, ranks: Optional[int] = None, works_in: FolderOf = output_of) -> ResolvedJob:
    """The job in `path` on this host; raises an InputError with every problem found. Root becomes the owner of the
    folder that the command works in, or of a job that has a unit that unit's user; where root stays root, all that the
    job names must be root's as well."""
    return examine(path, ranks, works_in=works_in).resolved


def examine(path: Path, ranks: Optional[int] = None, again: bool = False,
            works_in: FolderOf = output_of, reads: Reads = "rows",
            settled: Callable[[Job], None] = lambda job: None) -> Examined:
    """As check, with the warnings. `again`: for a run that starts from the beginning, whatever the output holds.
    `reads`: how much of the data is read; by default as much as a start needs, which also learns soon enough whether
    the hub has what the job names. `settled` is called with a job that can be read, when this process has become the
    user that it works as."""
    job, problems = parse(path)
    warnings: list[Problem] = []
    facts: dict[str, str] = {}
    resolved = None
    if job is not None:
        privileges.become_owner(works_in(job), otherwise=_units_user(path) if works_in is output_of else "")
        require_roots(job, path)
        if not problems:
            settled(job)
        file = str(path)
        in_the_file = list(problems)
        try:  # a start would fail at it, after it had opened the output folder
            environment()
        except InputError as error:
            problems += error.problems
        config, wrong = read_deepspeed(job, file)
        problems += without_known(wrong, in_the_file)
        try:
            cluster = find(path) if works_in is output_of else None  # bench and tune measure this host alone
            resolved = resolve(job, this_host(), ranks, file, config, len(cluster.hosts) if cluster else 1)
        except InputError as error:
            problems += without_known(error.problems, problems)
        if config is not None:
            warnings = [p for p in lint.problems(config, file, None, None, job) if p.severity == "warning"]
        data, facts, labels = data_found(job, file, reads)
        names = hub_problems(job, file) if reads != "rows" else []
        found = [*names, *data, *tasks.problems(job, file), *model_problems(job, file, labels),
                 *_swap(resolved, job, file),
                 *(operator_problems(resolved, file) if resolved else []),
                 *_in_output(job, file, resolved.fingerprint if resolved and not again else None)]
        warnings += [p for p in found if p.severity == "warning"]
        problems += without_known([p for p in found if p.severity == "error"], in_the_file)
    if problems or resolved is None:
        raise InputError(problems + warnings)
    return Examined(resolved, warnings, facts)


def _swap(resolved: Optional[ResolvedJob], job: Job, file: str) -> list[Problem]:
    job = resolved.job if resolved else job
    used = job.zero.nvme_path and "nvme" in (job.zero.offload_optimizer, job.zero.offload_param)
    found = nvme_swap.problems(str(job.zero.nvme_path), job.output, file) if used else []
    return resolved.origins.placed(found) if resolved else found


def _moves(folder: str, path: str) -> bool:
    """Whether `path`, or what it links to, would move to archive/ with a run in `folder`."""
    for real in (os.path.abspath, os.path.realpath) if not unreadable(Path(path)) else ():
        inside, whole = Path(real(path)), Path(real(folder))
        if inside.is_relative_to(whole) and (inside == whole or is_runs(inside.relative_to(whole).parts[0])):
            return True
    return False


def _in_output(job: Job, file: str, own: Optional[str]) -> list[Problem]:
    """As _output, where root works elsewhere (`debzero bench --output`), and for a folder that somebody changes in the
    meantime."""
    try:
        with privileges.acting_as_owner(Path(job.output)):
            return _output(job, file, own)
    except OSError as error:
        return [PassingProblem(file, "output", f"{error.filename or job.output} {why(error)}",
                               "start again when nobody else changes the folder")]


def _output(job: Job, file: str, own: Optional[str]) -> list[Problem]:
    """`own`: the fingerprint of a run that may resume here, from checkpoints that already take room, also in the
    archive."""
    folder = Path(job.output)
    above = nearest(folder)
    if not above.is_dir():
        return [Problem(file, "output", f"{above} is a file, so {folder} cannot be a folder",
                        "choose another output folder")]
    if not os.access(above, os.W_OK | os.X_OK):
        user = os.environ.get("USER") or str(os.getuid())
        make = f", or as root: {shlex.join(['install', '-d', '-o', user, str(folder)])}"
        return [Problem(file, "output", f"the user {user} may not write to {above}", "choose another output"
                        + (make if privileges.is_roots_alone(folder) else ""))]
    if reason := unreadable(folder):
        return [Problem(file, "output", f"{folder} {reason}", "choose another output folder")]
    paths = {"the job file": file, "data.dataset": job.data.dataset, "model": job.model, "deepspeed": job.deepspeed}
    held = [name for name, path in paths.items() if isinstance(path, str)
            and (name == "the job file" or os.path.isabs(path))
            and _moves(job.output, path)]
    if held:
        return [Problem(file, "output",
                        f"{folder} holds {' and '.join(held)}, and what is in an output folder moves to archive/ when "
                        "another job is started there", "choose a folder of its own for the output")]
    if foreign := RunFolder(job.output).foreign_problems(file):
        return foreign
    return _room(job, file, own, above)


def _room(job: Job, file: str, own: Optional[str], above: Path) -> list[Problem]:
    """`above`: the output folder, or its nearest parent that is there."""
    need, disk, there = bytes_needed(job), shutil.disk_usage(above), RunFolder(job.output)
    runs = [there, *(RunFolder(str(path)) for path in there.archive.runs())] if own else []
    kept = [run for run in runs if (status := run.written_status()) and status.fingerprint == own]
    saved = max((checkpoint.folder_bytes(run.checkpoints) + checkpoint.folder_bytes(run.model) for run in kept),
                default=0)
    if need and disk.free + saved < need:
        kind = Problem if disk.total < need else PassingProblem
        return [kind(file, "output",
                     f"{job.output} needs about {need // 2**20} MiB for three checkpoints (16 bytes a parameter) "
                     f"and the weights, and its disk has {disk.free / 2**20:.0f} MiB free",
                     "make room, or choose a larger disk")]
    return []


def summary(examined: Examined, path: Path) -> dict[str, Any]:
    """What a valid job comes to, for people and for --json."""
    resolved = examined.resolved
    job = resolved.job
    sharded = resolved.uses_deepspeed or resolved.stage
    engine = "native engine" if resolved.is_native else "DeepSpeed"
    stage = f"ZeRO stage {resolved.stage}, {engine}" if sharded else "plain DDP"
    parts = (("optimizer", job.zero.offload_optimizer), ("param", job.zero.offload_param))
    label = "" if job.task == "causal-lm" else f" -> {job.data.label}"
    if job.task == "text-to-text":
        label += f" (texts of at most {job.data.max_answer_length} tokens)" if job.data.answers == "text" else (
            " (one of the training rows' labels, a closed set)")
    offload = [f"{part} offloaded to {device}" for part, device in parts if device != "none"]
    return {
        "job": str(path), "model": job.model if isinstance(job.model, str) else f"{job.model['type']} from scratch",
        "data": f"{job.data.dataset}: {', '.join(job.data.text)}{label}", **examined.facts,
        "batch": resolved.batch_text, "ranks": resolved.layout.ranks, "stage": ", ".join([stage, *offload]),
        "precision": resolved.precision, "output": job.output, "fingerprint": resolved.fingerprint,
    }
