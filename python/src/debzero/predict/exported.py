"""What `debzero export` wrote: where it is, and what it says of itself."""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal

from debzero.base.errors import InputError, Problem, UserError
from debzero.base.failures import full_disk_named
from debzero.base.files import new_folder, read_json, sha256
from debzero.base.reading import open_regular, why
from debzero.predict.trained import Trained
from debzero.predict.trained import load as load_folder
from debzero.run.folder import MODEL_FACTS
from debzero.run.records import Record, read_record

RECORD = "export.json"
FOLDER = "export"      # in a run's output folder
PRECISIONS = {"onnx": ("fp32", "fp16", "int8"), "tensorrt": ("fp32", "fp16")}  # of each format
NAMES = {"onnx": "ONNX", "tensorrt": "TensorRT"}
COMPUTES = {".onnx": "graph", ".engine": "engine"}
AGAIN = "export the model again"


class Exported(Record):
    """What export.json must say for the export to be used. `files`: {name: SHA-256} of all that decides its answers,
    the graphs or engines at least; `built_for`: of engines, the GPU, driver and TensorRT that they are good for."""

    format: Literal[1]
    to: Literal["onnx", "tensorrt"]
    precision: Literal["fp32", "fp16", "int8"]
    files: dict[str, str]
    built_for: dict[str, str] = {}


def folder_for(model: Path, kind: str, precision: str) -> Path:
    """Where the export of a run's model goes by default. `model`: the run's model folder; `kind`: the format, or the
    layout where it is another than the plain one."""
    return model.parent / FOLDER / f"{kind}-{precision}"


@contextmanager
def new_export(final: Path, option: str) -> Iterator[Path]:
    """A new folder that becomes `final`, which `option` names, when the block succeeds. Raises an InputError where this
    user cannot make one there."""
    with full_disk_named(final), ExitStack() as stack:
        try:
            made = stack.enter_context(new_folder(final))
        except OSError as error:
            raise InputError([Problem("the command line", option, f"{final} cannot be made: {error.strerror}",
                                      "name a folder where this user may make one")]) from error
        yield made


def check_precision(to: str, precision: str) -> None:
    """Raises an InputError for a precision that there is no export in."""
    if precision not in PRECISIONS[to]:
        raise InputError([Problem("the command line", "--precision", f"there are no exports to {NAMES[to]} in "
                                  f"{precision}", f"use one of: {', '.join(PRECISIONS[to])}")])


def load(folder: Path, to: str, precision: str) -> tuple[Trained, Exported]:
    """The export in a format that a model folder, or its own, stands for; `precision`: the one that is wanted, or auto:
    fp32, or whatever there is. Raises an InputError where there is none, and a UserError for files that were
    changed."""
    if precision != "auto":
        check_precision(to, precision)
    here = place(folder, to, precision)
    record = read_record(here / RECORD, Exported)
    if record is None or record.to != to or precision not in ("auto", record.precision):
        wanted = "an export" if precision == "auto" else f"an export in {precision}"
        option = "" if precision == "auto" else f" --precision {precision}"
        raise InputError([Problem(str(folder), "--engine", f"{here} is not {wanted} to {NAMES[to]}",
                                  f"make one: debzero export NAME --to {to}{option}")])
    check_step(here, folder)
    check_files(here, record, here)
    return load_folder(here, weights=False), record


def place(folder: Path, to: str, precision: str) -> Path:
    """The export that a model folder stands for, or would have."""
    if (folder / RECORD).is_file():
        return folder
    places = [folder_for(folder, to, each) for each in (PRECISIONS[to] if precision == "auto" else [precision])]
    return next((place for place in places if (place / RECORD).is_file()), places[0])


def check_step(export: Path, model: Path) -> None:
    """Raises a UserError for an export of other weights than the model's."""
    of_export, of_model = (read_json(each / MODEL_FACTS).get("step") for each in (export, model))
    if of_export != of_model:
        raise UserError(f"{export} is of the weights after step {of_export}, and the model's are those after step "
                        f"{of_model} by now", AGAIN)


def check_files(folder: Path, record: Exported, shown: Path) -> None:
    """Raises a UserError for a file of an export that is not the verified one. `shown`: the folder, or that of which it
    is a copy."""
    for name, digest in record.files.items():
        try:
            if Path(name).name != name:
                raise FileNotFoundError
            with open_regular(folder / name) as file:
                reason = "" if sha256(file) == digest else (
                    f"is not the {COMPUTES.get(Path(name).suffix, 'file')} that was verified")
        except (OSError, ValueError) as error:
            reason = why(error)
        if reason:
            raise UserError(f"{shown / name} {reason}", AGAIN)
    for path in sorted(folder.iterdir()):
        if path.suffix in COMPUTES and path.name not in record.files:
            raise UserError(f"{shown / path.name} was not verified", AGAIN)
