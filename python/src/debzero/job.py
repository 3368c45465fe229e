"""The job file: what it may hold, read and checked with all problems at once.

Only the shape is judged here; whether the files, the disk and the GPUs are there is checks.py's part.
"""
from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Dict, List, Literal, Optional, Union

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from debzero.base.errors import InputError, Problem
from debzero.base.files import unreadable

SECTIONS_DATASET = "debian-sections"
MOST = 2**40  # of anything that is counted: more is a slip, and its divisors would take minutes to find


def _number(value: Any) -> Any:
    if isinstance(value, bool):  # Python counts True as 1
        raise ValueError(f"must be a number, not {str(value).lower()}")
    return value


def _auto_or_count(value: Any) -> Union[int, str]:
    if value == "auto":
        return "auto"
    if isinstance(value, str) and value.isdigit() or isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"must be auto or a whole number of at least 1, not {value!r}")
    return value


def _columns(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _stage(value: Any) -> Any:
    return int(value) if isinstance(value, str) and value.isdigit() else value


def _model(value: Any) -> Any:
    if isinstance(value, dict):
        if not isinstance(value.get("type"), str):
            raise ValueError("a model trained from scratch needs its type")
        if _auto_or_count(value.get("vocab_size", 0) or None) == "auto":
            raise ValueError("a model trained from scratch needs vocab_size, the number of word pieces to learn")
    elif not isinstance(value, str) or not value:
        raise ValueError(f"must be a hub id, a folder or a mapping, not {value!r}")
    return value


Count = Annotated[int, BeforeValidator(_number), Field(ge=1, lt=MOST)]
AutoCount = Annotated[Union[int, str], BeforeValidator(_auto_or_count)]
Positive = Annotated[float, BeforeValidator(_number), Field(gt=0)]
AtLeastZero = Annotated[float, BeforeValidator(_number), Field(ge=0)]
Share = Annotated[float, BeforeValidator(_number), Field(ge=0, lt=1)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


class Data(Section):
    dataset: str = Field(min_length=1, examples=["glue/mrpc"])
    text: Annotated[List[str], BeforeValidator(_columns), Field(min_length=1, max_length=2)] = Field(
        ["text"], examples=["[sentence1, sentence2]"])
    label: str = Field("label", examples=["label"])
    max_length: Annotated[int, BeforeValidator(_number), Field(ge=8)] = Field(128, examples=["128"])
    held_out: Optional[Annotated[float, BeforeValidator(_number), Field(gt=0, lt=1)]] = Field(None, examples=["0.1"])
    prefix: Annotated[List[str], BeforeValidator(_columns)] = Field([], examples=["['mrpc sentence1: ', ' sentence2: ']"])
    batching: Literal["bucketed", "shuffled"] = Field("bucketed", examples=["bucketed"])
    padding: Literal["longest", "max_length"] = Field("longest", examples=["longest"])


class Train(Section):
    epochs: Count = Field(3, examples=["3"])
    global_batch: Count = Field(64, examples=["64"])
    micro_batch: AutoCount = Field("auto", examples=["auto"])
    learning_rate: Positive = Field(3e-5, examples=["3e-5"])
    precision: Literal["auto", "fp32", "fp16", "bf16"] = Field("auto", examples=["auto"])
    seed: Annotated[int, BeforeValidator(_number), Field(ge=0, lt=2**31)] = Field(42, examples=["42"])
    warmup: Share = Field(0.1, examples=["0.1 (a share of the steps)"])
    weight_decay: AtLeastZero = Field(0.01, examples=["0.01"])
    gradient_clipping: AtLeastZero = Field(1.0, examples=["1.0"])
    log_every: Count = Field(10, examples=["10"])
    max_steps: Optional[Count] = Field(None, examples=["100"])
    gradient_checkpointing: bool = Field(False, examples=["true"])
    compile: Literal["auto", "never"] = Field("auto", examples=["never"])
    evaluate_every: Optional[Count] = Field(None, examples=["50 (steps; without it, at each epoch's end)"])
    metric: Literal["auto", "accuracy", "f1", "matthews", "pearson", "spearman", "loss"] = Field("auto", examples=["f1"])
    select: Literal["last", "best"] = Field("last", examples=["best"])
    patience: Optional[Count] = Field(None, examples=["3 (evaluations without a better metric)"])


class Zero(Section):
    stage: Annotated[Literal["none", 1, 2, 3], BeforeValidator(_stage)] = Field("none", examples=["2"])
    offload_optimizer: Literal["none", "cpu", "nvme"] = Field("none", examples=["cpu"])
    offload_param: Literal["none", "cpu", "nvme"] = Field("none", examples=["cpu"])
    nvme_path: Optional[str] = Field(None, examples=["/nvme/swap"])


class Checkpoint(Section):
    minutes: Positive = Field(10, examples=["10"])
    steps: Optional[Count] = Field(None, examples=["500"])
    keep: Count = Field(2, examples=["2"])


class Job(Section):
    """One job file. Paths in it are relative to the file's own folder."""

    model: Annotated[Union[str, Dict[str, Any]], BeforeValidator(_model)] = Field(
        examples=["bert-large-uncased` or `model: {type: bert, vocab_size: 8000}"])
    task: Literal["classification", "regression", "causal-lm", "text-to-text"] = Field("classification", examples=["causal-lm"])
    data: Data = Field(examples=["{dataset: glue/mrpc, text: [sentence1, sentence2], label: label}"])
    train: Train = Field(default_factory=Train, examples=["{epochs: 3}"])
    zero: Zero = Field(default_factory=Zero, examples=["{stage: 2}"])
    checkpoint: Checkpoint = Field(default_factory=Checkpoint, examples=["{minutes: 10}"])
    ranks: AutoCount = Field("auto", examples=["auto"])
    deepspeed: Optional[Union[str, Dict[str, Any]]] = Field(None, examples=["deepspeed_config.json"])
    output: str = Field(min_length=1, examples=["/var/lib/debzero/mrpc"])


def _known(location: tuple[Any, ...]) -> dict[str, Any]:
    """The fields of the section that `location` (a key's path) lies in."""
    fields: dict[str, Any] = dict(Job.model_fields)
    for part in location[:-1]:
        inner = fields[part].annotation if part in fields else None
        fields = dict(inner.model_fields) if isinstance(inner, type) and issubclass(inner, BaseModel) else {}
    return fields


def did_you_mean(word: object, choices: list[str]) -> str:
    close = difflib.get_close_matches(str(word), choices, 1, 0.6)
    return f"did you mean {close[0]}?" if close else f"use one of: {', '.join(choices)}"


def _problem(file: str, error: Any) -> Problem:
    """One of pydantic's errors as a sentence."""
    location = tuple(part for part in error["loc"] if not (isinstance(part, str) and "[" in part))
    kind, value, context = error["type"], error.get("input"), error.get("ctx", {})
    fields, name = _known(location), str(location[-1])
    field = fields.get(name)
    example = f"for example `{name}: {field.examples[0]}`" if field is not None and field.examples else "see `man debzero`"
    key = ".".join(map(str, location))
    if kind == "extra_forbidden":
        return Problem(file, key, "is not a known key", did_you_mean(name, sorted(fields)))
    if kind == "missing":
        return Problem(file, key, "is missing", f"add it, {example}")
    if kind == "literal_error":
        choices = context["expected"].replace("'", "").replace(" or ", ", ").split(", ")
        return Problem(file, key, f"cannot be {value!r}", did_you_mean(value, choices))
    if kind == "value_error":
        return Problem(file, key, str(context["error"]), example)
    if kind.startswith(("int_", "float_")):
        whole = "a whole number" if kind.startswith("int_") else "a number"
        return Problem(file, key, f"must be {whole}, not {value!r}", example)
    if kind in ("model_type", "dict_type", "model_attributes_type"):
        return Problem(file, key, f"must be a mapping of keys, not {value!r}", example)
    return Problem(file, key, f"{error['msg'][0].lower()}{error['msg'][1:]}, not {value!r}", example)


def read_mapping(path: Path) -> dict[str, Any]:
    """The YAML mapping in `path`; whatever is wrong with the file itself is raised as an InputError."""
    return _read(path)[0]


def _read(path: Path) -> tuple[dict[str, Any], list[Problem]]:
    """As read_mapping, with a problem for each key that is written again."""
    def wrong(key: str, reason: str, fix: str) -> InputError:
        return InputError([Problem(str(path), key, reason, fix)])

    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise wrong("file", "does not exist", f"check the path; `ls {path.parent}` shows what is there") from None
    except IsADirectoryError:
        raise wrong("file", "is a folder, not a job file", "give the .yml file inside it") from None
    except (OSError, UnicodeDecodeError) as error:
        raise wrong("file", f"cannot be read: {error}", "make it a text file that this user may read") from None
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        again = [Problem(str(path), ".".join(key), f"is written again on line {line}, and YAML takes the last without a word", "keep one")
                 for key, line in _again(node, (), (), set())]
        values = loader.construct_document(node) if node is not None else None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date such as 2024-13-01, 5000 digits
        mark = getattr(error, "problem_mark", None)
        place = f"line {mark.line + 1}, column {mark.column + 1}" if mark else "file"
        reason = " ".join(filter(None, [getattr(error, "context", None), getattr(error, "problem", None)])) or str(error)
        raise wrong(place, f"is not YAML: {reason}", "check the indentation, quotes and brackets there") from None
    if not isinstance(values, dict):
        raise wrong("file", f"must hold a mapping such as `model: ...`, not {type(values).__name__}",
                    "start from a job file in /etc/debzero/jobs")
    return values, again


def _again(node: Any, path: tuple[str, ...], above: tuple[Any, ...], seen: set[Any]) -> Iterator[tuple[tuple[str, ...], int]]:
    """The path and the line of each key that its mapping holds already; what an alias stands for has been `seen`."""
    if node in above:
        raise yaml.MarkedYAMLError(problem="what is there holds itself", problem_mark=node.start_mark)
    if not isinstance(node, yaml.CollectionNode) or node in seen:
        return
    seen.add(node)
    keys = set()
    for number, item in enumerate(node.value):
        key, value = item if isinstance(node, yaml.MappingNode) else (None, item)
        here = (*path, key.value if isinstance(key, yaml.ScalarNode) else str(number))
        if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
            if (key.tag, key.value) in keys:
                yield here, key.start_mark.line + 1
            keys.add((key.tag, key.value))
        yield from _again(value, here, (*above, node), seen)


def within(folder: Path, path: str) -> str:
    """A path as a job file in `folder` means it."""
    return str((folder / os.path.expanduser(path)).absolute())


def _locate(job: Job, folder: Path) -> Job:
    """Make the job's paths absolute; names that are neither path-like nor there are the hub's."""
    update: dict[str, Any] = {"output": within(folder, job.output)}
    if is_path(job.data.dataset, folder):
        update["data"] = job.data.model_copy(update={"dataset": within(folder, job.data.dataset)})
    if isinstance(job.model, str) and is_path(job.model, folder):
        update["model"] = within(folder, job.model)
    if isinstance(job.deepspeed, str):
        update["deepspeed"] = within(folder, job.deepspeed)
    if job.zero.nvme_path is not None:
        update["zero"] = job.zero.model_copy(update={"nvme_path": within(folder, job.zero.nvme_path)})
    return job.model_copy(update=update)


def is_path(name: str, folder: Path) -> bool:
    """Whether a model's or data set's name means this host's files, not the hub's."""
    if name == SECTIONS_DATASET:
        return False
    looks_so = name.startswith(("/", "./", "../", "~")) or Path(name).suffix in (".csv", ".json", ".jsonl", ".parquet")
    return looks_so or os.path.exists(folder / name) or bool(unreadable(folder / name))


def _without(values: dict[str, Any], locations: list[tuple[Any, ...]]) -> dict[str, Any]:
    """`values` without the keys that were refused, so that the rest of the job can still be checked."""
    rest: dict[str, Any] = json.loads(json.dumps(values, default=str))
    for location in locations:
        inner: Any = rest
        for part in location[:-1]:
            inner = inner.get(part) if isinstance(inner, dict) else None
        if isinstance(inner, dict):
            inner.pop(location[-1], None)
    return rest


def parse(path: Path) -> tuple[Optional[Job], list[Problem]]:
    """The job in `path` and its problems. With problems the job holds defaults in their place, for further checks."""
    values, problems = _read(path)
    job = None
    try:
        job = Job.model_validate(values)
    except ValidationError as error:
        details = error.errors()
        problems += {p.key: p for p in (_problem(str(path), detail) for detail in details)}.values()
        refused = [tuple(detail["loc"])[:2] for detail in details]
        try:
            job = Job.model_validate(_without(values, refused))
        except ValidationError:
            return None, problems
    return _locate(job, path.absolute().parent), problems
