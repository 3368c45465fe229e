"""What `debzero export` wrote: where it is, and what it says of itself."""
from __future__ import annotations

from pathlib import Path
from typing import Literal

from debzero.base.errors import InputError, Problem, UserError
from debzero.base.files import read_json, sha256
from debzero.base.reading import open_regular, why
from debzero.predict.trained import Trained
from debzero.predict.trained import load as load_folder
from debzero.run.folder import MODEL_FACTS
from debzero.run.records import Record, read_record

RECORD = "export.json"
FOLDER = "export"      # in a run's output folder
PRECISIONS = {"onnx": ("fp32", "fp16", "int8"), "tensorrt": ("fp32", "fp16")}  # of each format
NAMES = {"onnx": "ONNX", "tensorrt": "TensorRT"}


class Exported(Record):
    """What export.json must say for the export to be used. `files`: {name: SHA-256} of the graphs or engines;
    `built_for`: of engines, the GPU, driver and TensorRT that they are good for."""

    format: Literal[1]
    to: Literal["onnx", "tensorrt"]
    precision: Literal["fp32", "fp16", "int8"]
    files: dict[str, str]
    built_for: dict[str, str] = {}


def folder_for(model: Path, kind: str, precision: str) -> Path:
    """Where the export of a run's model goes by default. `model`: the run's model folder; `kind`: the format, or the
    layout where it is another than the plain one."""
    return model.parent / FOLDER / f"{kind}-{precision}"


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
    for name, digest in record.files.items():
        if Path(name).name != name or not is_intact(here / name, digest):
            raise UserError(f"{here / name} is not the {'graph' if to == 'onnx' else 'engine'} that was verified",
                            "export the model again")
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
                        f"{of_model} by now", "export the model again")


def is_intact(graph: Path, digest: str) -> bool:
    try:
        with open_regular(graph) as file:
            return sha256(file) == digest
    except OSError as error:
        raise UserError(f"{graph} {why(error)}", "export the model again") from None
