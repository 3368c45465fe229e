"""The checks of a job's data set: where it lies, then every row of it."""
from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal, NamedTuple, Optional

import numpy as np

from debzero.base.errors import Problem
from debzero.base.files import unreadable
from debzero.base.reading import why
from debzero.base.text import printable
from debzero.data import dataset
from debzero.data.dataset import DataSet
from debzero.data.faults import DataError, Fault
from debzero.data.forms import fix_of_folder, fix_of_name, fix_of_path
from debzero.data.lengths import KEPT, cut_share, in_tokens, joined, length_facts, length_that_keeps
from debzero.data.sources import local_parts
from debzero.data.survey import Wanted
from debzero.job.local_files import FORMATS, did_you_mean_path, files_of, local_files
from debzero.job.schema import SECTIONS_DATASET, Job
from debzero.model import source, tasks
from debzero.model.folder import flaws
from debzero.model.tokenizer import load_tokenizer

MOST_ROWS = 5_000_000    # of a file, that a check reads
NOTED_CUT = 0.01         # more rows cut by max_length than this are worth a warning


Reads = Literal["columns", "rows", "lengths"]  # of the data: the last with the rows' lengths in tokens


class DataFound(NamedTuple):
    """`problems`: errors and warnings; `facts`: of the rows, for people; `labels`: the classes' names, where all rows
    were read."""

    problems: list[Problem]
    facts: dict[str, str]
    labels: Optional[list[str]] = None


def data_found(job: Job, file: str, reads: Reads) -> DataFound:
    """What is wrong with the data of the job in `file`, as far as it is on this host and `reads` allows."""
    if problems := _place(job, file):
        return DataFound(problems, {})
    if not Path(job.data.dataset).is_absolute():
        return DataFound([], {})  # the hub's: known when it is downloaded; or this host's packages
    wanted = Wanted.by(job.data, tasks.of(job).label)
    faults: list[Fault] = []
    facts: dict[str, str] = {}
    labels = None
    try:
        parts = local_parts(job.data, wanted)
        if reads == "columns":
            rows = [part for part in (parts.train, parts.held_out) if part is not None]
            faults += dataset.missing_columns(job.data, wanted, rows)
        else:
            read = dataset.read(job.data, parts, wanted, job.train.seed,
                                dataset.Pass(most_rows=MOST_ROWS, say=_say))
            faults += read.faults()
            if wrong := tasks.not_closed(job, len(read.labels), read.train.count):
                faults.insert(0, Fault("label", *wrong))
            if not any(fault.severity == "error" for fault in faults):
                facts, labels = read.facts(), None if read.cut_short else read.labels
                if reads == "lengths":
                    cut, more = _lengths(job, read)
                    faults, facts = [*faults, *cut], {**facts, **more}
    except DataError as error:
        faults += error.faults
    except (OSError, ValueError) as error:
        faults.append(Fault("dataset", f"{job.data.dataset} {why(error)}", "correct the file or its permissions"))
    return DataFound([fault.problem(file) for fault in faults], facts, labels)


def _say(text: str) -> None:
    print(printable(text), file=sys.stderr, flush=True)


def _place(job: Job, file: str) -> list[Problem]:
    """What is wrong with where the data set lies."""
    data = job.data
    if data.dataset == SECTIONS_DATASET:
        labels = [] if job.task == "causal-lm" else [data.label]
        wrong = [p for p, given, only in (("text", data.text, ["text"]), ("label", labels or ["label"], ["label"]))
                 if given != only]
        return [Problem(file, f"data.{key}", "debian-sections has only the columns text and label", f"remove {key}")
                for key in wrong]
    path = Path(data.dataset)
    if not path.is_absolute():
        return []
    if data.revision != "main":
        return [Problem(file, "data.revision", f"only a data set of the hub has revisions, and {path} is local",
                        "remove it, or name the hub's data set in data.dataset")]
    if reason := unreadable(path):
        return [Problem(file, "data.dataset", f"{path} {reason}", "correct the path or its permissions")]
    if not path.exists():
        return [Problem(file, "data.dataset", f"{path} does not exist", fix_of_path(path)
                        or did_you_mean_path(path, model=False) or "check the path; it is relative to the job file")]
    files = local_files(data.dataset)
    if "train" not in files or (path.is_file() and path.suffix not in FORMATS):
        programs = [found.name for found in files_of(data.dataset) if found.suffix == ".py"]
        if programs:
            return [Problem(file, "data.dataset", f"{path} comes as a program ({programs[0]}), which debzero "
                            "never runs", "run it where it can do no harm, and write its rows to parquet, csv or json "
                            "files")]
        return [Problem(file, "data.dataset",
                        f"{path} is neither a csv, json, jsonl or parquet file nor a folder with train.csv "
                        "(or .json, .jsonl, .parquet)", fix_of_folder(path) if path.is_dir() else fix_of_name(path))]
    return []


def _lengths(job: Job, read: DataSet) -> tuple[list[Fault], dict[str, str]]:
    """How many tokens the rows have, by the tokenizer that the training will use, where it is here already."""
    if read.wanted.kind == "nothing":  # texts that are not cut, but joined
        return [], {}
    whole = not read.cut_short and all(survey.stride == 1 for survey in read.surveys)
    try:
        tokenizer = _tokenizer(job, read)
    except Exception:  # of many types; the checks of the model report what is wrong with it
        return [], {}
    if tokenizer is None:
        return [], {}
    lengths = np.concatenate([in_tokens(tokenizer, survey.sample(), job.data) for survey in read.surveys])
    share, about = cut_share(lengths, job.data), "" if whole else "about "
    facts = length_facts([lengths], job.data, sampled=not whole)
    if share <= NOTED_CUT:
        return [], facts
    keeps = length_that_keeps(lengths, KEPT)
    return [Fault("max_length", f"{about}{share:.0%} of the rows have more than {job.data.max_length} tokens and are "
                  "cut", f"max_length {keeps} would keep {KEPT:.0%} of them whole, and takes more memory", "warning")
            ], facts


def _tokenizer(job: Job, read: DataSet) -> Any:
    """None where it is not on this host. One from scratch learns from the training rows, as it will in the training."""
    if isinstance(job.model, dict):
        survey, training = read.train.survey, None
        if survey.stride == 1:  # else what it learns is like it, but not the same anyway
            training = np.zeros(survey.count, bool)
            training[read.train.rows] = True
        columns = joined(survey.sample(training), job.data)
        texts = [text for column in columns for text in column] + read.labels * 2
        return load_tokenizer(job.model, lambda: texts, job.data.max_length, continues=job.task == "causal-lm")
    folder = source.folder_here(job)
    return None if folder is None or flaws(folder, weights=False) else load_tokenizer(str(folder), list, 0)
