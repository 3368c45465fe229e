"""`debzero check`: everything that can be known before the ranks start, all at once."""
from __future__ import annotations

import os
import shlex
import shutil
from pathlib import Path
from typing import Any, Callable, Optional

from debzero.base import privileges
from debzero.base.environment import environment
from debzero.base.errors import InputError, PassingProblem, Problem, without_known
from debzero.base.files import nearest, unreadable
from debzero.base.reading import why
from debzero.base.text import did_you_mean
from debzero.check.hub_names import hub_problems
from debzero.check.inputs import require_roots
from debzero.check.operators import operator_problems
from debzero.data.columns import column_names
from debzero.deepspeed_json import lint
from debzero.deepspeed_json.reader import read_deepspeed
from debzero.job.local_files import FORMATS, did_you_mean_path, files_of, local_files
from debzero.job.reader import parse
from debzero.job.schema import SECTIONS_DATASET, Job
from debzero.model import tasks
from debzero.model.checks import bytes_needed, model_problems
from debzero.resolve import nvme_swap
from debzero.resolve.host import this_host
from debzero.resolve.resolve import ResolvedJob, resolve
from debzero.run import checkpoint
from debzero.run.folder import RunFolder, is_runs

FolderOf = Callable[[Job], Path]  # where a command works for a job


def output_of(job: Job) -> Path:
    return Path(job.output)


def check(path: Path, ranks: Optional[int] = None, works_in: FolderOf = output_of) -> ResolvedJob:
    """The job in `path` on this host; raises an InputError with every problem found. Root becomes the owner of the
    folder that the command works in; where that is root's, all that the job names must be as well."""
    return examine(path, ranks, works_in=works_in)[0]


def examine(path: Path, ranks: Optional[int] = None, again: bool = False,
            works_in: FolderOf = output_of, ask_hub: bool = False) -> tuple[ResolvedJob, list[Problem]]:
    """As check, with the warnings. `again`: for a run that starts from the beginning, whatever the output holds.
    `ask_hub`: whether it has what the job names, which a training learns soon enough."""
    job, problems = parse(path)
    warnings: list[Problem] = []
    resolved = None
    if job is not None:
        privileges.become_owner(works_in(job))
        require_roots(job, path)
        file = str(path)
        in_the_file = list(problems)
        try:  # a start would fail at it, after it had opened the output folder
            environment()
        except InputError as error:
            problems += error.problems
        config, wrong = read_deepspeed(job, file)
        problems += without_known(wrong, in_the_file)
        try:
            resolved = resolve(job, this_host(), ranks, file, config)
        except InputError as error:
            problems += without_known(error.problems, in_the_file)
        if config is not None:
            warnings = [p for p in lint.problems(config, file, None, None, job) if p.severity == "warning"]
        hub = hub_problems(job, file) if ask_hub else []
        warnings += [p for p in hub if p.severity == "warning"]
        found = [*(p for p in hub if p.severity == "error"), *_data(job, file), *tasks.problems(job, file),
                 *model_problems(job, file), *_swap(resolved, job, file),
                 *(operator_problems(resolved, file) if resolved else []),
                 *_in_output(job, file, resolved.fingerprint if resolved and not again else None)]
        problems += without_known(found, in_the_file)
    if problems or resolved is None:
        raise InputError(problems + warnings)
    return resolved, warnings


def _swap(resolved: Optional[ResolvedJob], job: Job, file: str) -> list[Problem]:
    job = resolved.job if resolved else job
    used = job.zero.nvme_path and "nvme" in (job.zero.offload_optimizer, job.zero.offload_param)
    found = nvme_swap.problems(str(job.zero.nvme_path), job.output, file) if used else []
    return resolved.origins.placed(found) if resolved else found


def _data(job: Job, file: str) -> list[Problem]:
    data, labels = job.data, [] if job.task == "causal-lm" else [job.data.label]
    if data.dataset == SECTIONS_DATASET:
        wrong = [p for p, given, only in (("text", data.text, ["text"]), ("label", data.label, "label"))
                 if given != only]
        return [Problem(file, f"data.{key}", "debian-sections has only the columns text and label", f"remove {key}")
                for key in wrong]
    path = Path(data.dataset)
    if not path.is_absolute():
        return []  # the hub's: known when it is downloaded
    if data.revision != "main":
        return [Problem(file, "data.revision", f"only a data set of the hub has revisions, and {path} is local",
                        "remove it, or name the hub's data set in data.dataset")]
    if reason := unreadable(path):
        return [Problem(file, "data.dataset", f"{path} {reason}", "correct the path or its permissions")]
    if not path.exists():
        return [Problem(file, "data.dataset", f"{path} does not exist", did_you_mean_path(path, model=False) or
                        "check the path; it is relative to the job file")]
    files = local_files(data.dataset)
    if "train" not in files or (path.is_file() and path.suffix not in FORMATS):
        programs = [found.name for found in files_of(data.dataset) if found.suffix == ".py"]
        if programs:
            return [Problem(file, "data.dataset", f"{path} comes as a program ({programs[0]}), which debzero "
                            "never runs", "run it where it can do no harm, and write its rows to parquet, csv or json "
                            "files")]
        return [Problem(file, "data.dataset",
                        f"{path} is neither a csv, json, jsonl or parquet file nor a folder with train.csv "
                        "(or .json, .jsonl, .parquet)", "rename them accordingly, or convert them")]
    problems = []
    if len(files) == 1 and not data.held_out:
        problems.append(Problem(file, "data.held_out", f"{path} has no validation split to measure the accuracy on",
                                "set held_out: 0.1 to keep a tenth of the training rows, or give a folder with "
                                "train.* and validation.*"))
    for part in files.values():
        try:
            columns = column_names(part)
        except (OSError, ValueError) as error:
            problems.append(Problem(file, "data.dataset", f"{part} {why(error)}",
                                    "correct the file or its permissions"))
            continue
        for key, names in (("text", data.text), ("label", labels)):
            for name in names:
                if name not in columns:
                    problems.append(Problem(file, f"data.{key}", f"{part.name} has no column {name!r}",
                                            did_you_mean(name, columns)))
    return problems


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
        return [Problem(file, "output", f"the user {user} may not write to {above}",
                        "choose another output" + (f", or as root: install -d -o {user} {shlex.quote(str(folder))}"
                                                   if privileges.is_roots_alone(folder) else ""))]
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


def summary(resolved: ResolvedJob, path: Path) -> dict[str, Any]:
    """What a valid job comes to, for people and for --json."""
    job = resolved.job
    stage = "plain DDP" if not resolved.uses_deepspeed else f"ZeRO stage {resolved.stage}"
    parts = (("optimizer", job.zero.offload_optimizer), ("param", job.zero.offload_param))
    label = "" if job.task == "causal-lm" else f" -> {job.data.label}"
    if job.task == "text-to-text":
        label += f" (texts of at most {job.data.max_answer_length} tokens)" if job.data.answers == "text" else (
            " (one of the training rows' labels, a closed set)")
    offload = [f"{part} offloaded to {device}" for part, device in parts if device != "none"]
    return {
        "job": str(path), "model": job.model if isinstance(job.model, str) else f"{job.model['type']} from scratch",
        "data": f"{job.data.dataset}: {', '.join(job.data.text)}{label}", "batch": str(resolved.batch),
        "ranks": resolved.batch.ranks, "stage": ", ".join([stage, *offload]),
        "precision": resolved.precision, "output": job.output, "fingerprint": resolved.fingerprint,
    }
