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
PRECISIONS = ("fp32", "fp16", "int8")


class Exported(Record):
    """What export.json must say for the export to be used. `files`: {name: SHA-256} of the graphs."""

    format: Literal[1]
    to: Literal["onnx"]
    precision: Literal["fp32", "fp16", "int8"]
    files: dict[str, str]


def folder_for(model: Path, precision: str, layout: str = "onnx") -> Path:
    """Where the export of a run's model goes by default. `model`: the run's model folder."""
    return model.parent / FOLDER / f"{layout}-{precision}"


def load(folder: Path, precision: str) -> tuple[Trained, Exported]:
    """The export that a model folder, or its own, stands for; `precision`: the one that is wanted, or auto: fp32, or
    whatever there is. Raises an InputError where there is none, and a UserError for graphs that were changed."""
    if precision not in ("auto", *PRECISIONS):
        raise InputError([Problem("the command line", "--precision", f"there are no exports in {precision}",
                                  f"use one of: auto, {', '.join(PRECISIONS)}")])
    here = place(folder, precision)
    record = read_record(here / RECORD, Exported)
    if record is None or precision not in ("auto", record.precision):
        wanted = "an export" if precision == "auto" else f"an export in {precision}"
        option = "" if precision == "auto" else f" --precision {precision}"
        raise InputError([Problem(str(folder), "--engine", f"{here} is not {wanted} to ONNX",
                                  f"make one: debzero export NAME --to onnx{option}")])
    steps = [read_json(each / MODEL_FACTS).get("step") for each in (here, folder)]
    if steps[0] != steps[1]:
        raise UserError(f"{here} is of the weights after step {steps[0]}, and the model's are those after step "
                        f"{steps[1]} by now", "export the model again")
    for name, digest in record.files.items():
        if Path(name).name != name or not is_intact(here / name, digest):
            raise UserError(f"{here / name} is not the graph that was verified", "export the model again")
    return load_folder(here, weights=False), record


def place(folder: Path, precision: str) -> Path:
    """The export that a model folder stands for, or would have."""
    if (folder / RECORD).is_file():
        return folder
    places = [folder_for(folder, each) for each in ([precision] if precision in PRECISIONS else PRECISIONS)]
    return next((place for place in places if (place / RECORD).is_file()), places[0])


def is_intact(graph: Path, digest: str) -> bool:
    try:
        with open_regular(graph) as file:
            return sha256(file) == digest
    except OSError as error:
        raise UserError(f"{graph} {why(error)}", "export the model again") from None
