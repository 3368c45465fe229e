"""From a run to a verified folder: written beside its place, and there only once it answers as the original does."""
from __future__ import annotations

import json
import shutil
from argparse import Namespace
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from debzero import __version__
from debzero.base import privileges
from debzero.base.errors import InputError, Problem, UserError
from debzero.base.files import read_json, sha256, write_json, write_text
from debzero.base.text import count_text, printable_lines
from debzero.export import engines, graphs, ranges, readme, samples, triton
from debzero.export.optimise import optimise
from debzero.export.samples import HeldOut
from debzero.export.verify import METRIC_LIMIT, ROWS_LIMIT, Comparison, compare
from debzero.predict import exported, trained
from debzero.predict.engine import Choice
from debzero.predict.engine_onnx import MISSING, OnnxEngine
from debzero.predict.engine_tensorrt import model_on
from debzero.predict.engine_torch import TorchEngine
from debzero.predict.tensorrt_process import Process
from debzero.predict.trained import Trained
from debzero.run.folder import MODEL_FACTS
from debzero.run.report import device_name

# Of a model folder, what its export takes over: all but its weights and what describes those.
TAKEN = ("*.json", "*.txt", "*.model", "*.jinja", "*.spm")
SHOWN = 10  # samples with other answers that a message lists
LEFT = ("*.index.json", MODEL_FACTS, exported.RECORD)
FAILED = "the export was removed: use another precision, or --accept-loss if the model is good enough for you"


def export(options: Namespace) -> int:
    """The exit code. Raises a UserError for an export that is not the original any more."""
    _check_installed()
    exported.check_precision(options.to, options.precision)
    privileges.tighten_umask()
    folder = trained.find(options.name, options.output)
    model = trained.load(folder)
    target = Target(options.to, options.precision)
    if options.layout == "triton":
        triton.check(model, options.to)
    if options.to == "tensorrt":
        engines.check(model, options.precision)
    held_out = samples.of_run(model, options.name)
    served = options.layout == "triton"
    kind = "triton" if served else options.to
    final = (options.output or exported.folder_for(folder, kind, options.precision)).absolute()
    if served:
        final = final / triton.name_of(model)  # the other models of a repository stay
    _check_place(final, served)
    with exported.new_export(final, "--output") as made:
        place = made / triton.VERSION if served else made
        place.mkdir(exist_ok=True)
        found, record = write(model, held_out, target, place, options.accept_loss)
        if served:
            triton.write(made, model, options.precision)
    if options.json:
        print(json.dumps({"folder": str(final), **record}, indent=2))
    else:
        print(printable_lines(summary(found, final, options.precision, record["accepted"])))
    return 0


class Target(NamedTuple):
    """What a model is exported to."""

    to: str
    precision: str


def write(model: Trained, held_out: HeldOut, target: Target, folder: Path, accept: bool
          ) -> tuple[Comparison, dict[str, Any]]:
    """Write the export into a new folder; what it was compared to, and its record. Raises a UserError where it does not
    pass; `accept`: though it loses more than the limits allow."""
    import torch

    original = TorchEngine(model, Choice("cpu", "fp32"))
    make = engines.write if target.to == "tensorrt" else _graphs
    facts = make(model, original.model, held_out.example(), target.precision, folder)
    _take_over(model, folder)
    found, accepted = judge(model, original.model, held_out, folder, target, accept)
    record = {"format": 1, **target._asdict(), "task": model.task, "opset": graphs.OPSET,
              "files": {path.name: _digest(path) for path in sorted(folder.iterdir())}, **facts,
              "model": {path.name: _digest(path) for path in sorted(model.folder.glob("*.safetensors"))},
              "versions": _versions(),
              "verified_on": facts.get("built_for", {}).get("gpu") or device_name(torch.device("cpu")),
              "limits": {"metric": METRIC_LIMIT, "answers": ROWS_LIMIT}, "verification": asdict(found),
              "accepted": accepted}
    write_json(folder / exported.RECORD, record)
    write_text(folder / "README.md", readme.text(model, record, found))
    return found, record


def _graphs(model: Trained, original: Any, example: dict[str, Any], precision: str, folder: Path) -> dict[str, Any]:
    """Write the graphs for onnxruntime; what the record says of them."""
    graphs.write(model, original, example, folder)
    with graphs.quiet():
        for name in graphs.names(model):
            optimise(folder / name, model.config, precision)
    return {"axes": {name: graphs.axes(folder / name) for name in graphs.names(model)}}


def judge(model: Trained, original: Any, held_out: HeldOut, folder: Path, target: Target, accept: bool
          ) -> tuple[Comparison, list[str]]:
    """The comparison of an export with `original`, and what of it is above the limits but accepted. Raises a UserError
    where it does not pass."""
    here = trained.load(folder, weights=False)
    # Engines in another process than the one that built them, which holds memory of the GPU.
    answers = OnnxEngine(here, Choice("cpu", target.precision)).model if target.to == "onnx" else model_on(
        here, Process())
    found = compare(original, answers, model, held_out)
    found.labels_agree = model.labels == here.labels
    if target == Target("onnx", "fp16"):
        found.peak = peak(here, held_out, original)
    broken, losses = found.broken(), found.losses(target.precision)
    if broken or losses and not accept:
        reasons = "; ".join([*broken, *losses])
        raise UserError(f"the exported model is not the original any more: {reasons}"
                        + _rows(found), FAILED if not broken else
                        "the export was removed: use --precision fp32" if target.precision != "fp32" else
                        "the export was removed: use the model with `debzero predict --engine torch`")
    return found, losses


def peak(here: Trained, held_out: HeldOut, original: Any) -> float:
    """The largest value that the graphs of an export reach on the held-out samples."""
    with TemporaryDirectory(dir=here.folder.parent, prefix=".watched-") as name:
        folder = Path(name)
        for graph in graphs.names(here):
            ranges.watch(here.folder / graph, folder / graph)
        for path in here.folder.glob("*.json"):
            shutil.copyfile(path, folder / path.name)
        model = OnnxEngine(replace(here, folder=folder), Choice("cpu", "fp16")).model
        watched = ranges.watched_sessions(model)
        compare(original, model, here, held_out)
        return max(each.peak for each in watched)


def _rows(found: Comparison) -> str:
    if not found.rows:
        return ""
    listed = ", ".join(map(str, found.rows[:SHOWN]))
    return f" (the held-out samples with other answers: {listed}{', ...' if len(found.rows) > SHOWN else ''})"


def _check_installed() -> None:
    try:
        for name in ("onnx", "onnxruntime", "optimum"):
            metadata.version(name)
    except metadata.PackageNotFoundError:
        raise MISSING from None


def _check_place(final: Path, served: bool) -> None:
    """Raises an InputError where something else than an export is at its place. `served`: it is a model of Triton's, of
    which the export is one version."""
    others = triton.other_versions(final) if served else []
    mine = (final / (triton.VERSION if served else "") / exported.RECORD).is_file() and not others
    reason = f"{final} has other versions than {triton.VERSION}: {', '.join(others)}" if others else (
        f"{final} is there, and no export")
    if final.exists() and not mine and (not final.is_dir() or any(final.iterdir())):
        raise InputError([Problem("the command line", "--output", reason,
                                  "name a new folder, or one of an earlier export, which is replaced")])
    if final.parent.exists() and not final.parent.is_dir():
        raise InputError([Problem("the command line", "--output", f"{final.parent} is no folder", "name a new one")])


def _take_over(model: Trained, folder: Path) -> None:
    """The configuration, the tokenizer, and what debzero says of the inputs."""
    for pattern in TAKEN:
        for path in model.folder.glob(pattern):
            if path.is_file() and not any(path.match(left) for left in LEFT):
                shutil.copyfile(path, folder / path.name)
    facts = read_json(model.folder / MODEL_FACTS)
    write_json(folder / MODEL_FACTS, {**facts, "inputs": model.inputs.model_dump(mode="json")})


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return sha256(file)


def _versions() -> dict[str, str]:
    return {"debzero": __version__, **{name: metadata.version(name) for name in (
        "torch", "transformers", "optimum", "onnx", "onnxruntime")}}


def summary(found: Comparison, final: Path, precision: str, accepted: list[str]) -> str:
    """What was exported, for people."""
    lines = [f"exported: {final}", f"  precision   {precision}",
             f"  {found.metric:<11} {found.exported[found.metric]:.4f} (original {found.original[found.metric]:.4f}), "
             f"on {count_text(found.samples, 'held-out sample')}",
             f"  answers     {found.differing} of {found.answers} differ",
             f"  logits      differ by {found.largest_difference:.3g} at most, {found.mean_difference:.3g} on average",
             *(f"  accepted    {loss}" for loss in accepted)]
    return "\n".join(lines)
