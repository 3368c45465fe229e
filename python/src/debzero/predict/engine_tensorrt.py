"""TensorRT as an engine: what `debzero export --to tensorrt` built, on the GPU that it was built for.

A model that writes has no memory of earlier tokens here: each new one is computed from the whole text so far. What
writes is optimum's model, as in engine_onnx, on sessions of TensorRT's.
"""
from __future__ import annotations

from functools import wraps
from pathlib import Path
from typing import Any, Optional

from debzero.base.errors import InputError, Problem, UserError
from debzero.predict.engine import Choice
from debzero.predict.engine_onnx import MODEL, PARTS, Classifier, OnnxEngine, answering, continuing
from debzero.predict.engine_torch import GPU_TOKENS
from debzero.predict.exported import RECORD, Exported
from debzero.predict.tensorrt_process import Process, Session
from debzero.predict.trained import Trained
from debzero.run.records import read_record

ROWS = 64           # of a batch
ENDING = ".engine"  # of its files


def engine_name(graph: str) -> str:
    """The file of a graph's engine."""
    return str(Path(graph).with_suffix(ENDING))


def process_on(device: str) -> Process:
    """TensorRT on a GPU. Raises an InputError for what is none."""
    if device == "cpu":
        raise InputError([Problem("the command line", "--device", "TensorRT needs a GPU",
                                  "use --device auto, or --engine onnx")])
    return Process(int(device.partition(":")[2] or 0))


class TensorRTEngine(OnnxEngine):
    """`device` is where its inputs and outputs are: the process takes them to the GPU."""

    def __init__(self, trained: Trained, choice: Choice) -> None:
        process = process_on(choice.device)
        record = read_record(trained.folder / RECORD, Exported)
        check_host(trained, record, process.host)
        self.device, self.precision, self.rows, self.tokens = "cpu", choice.precision, ROWS, GPU_TOKENS
        self.model = model_on(trained, process)


def model_on(trained: Trained, process: Process) -> Any:
    """The model of an export, which answers as transformers' does."""
    pad = trained.tokenizer.pad_token_id

    def session(graph: str) -> Session:
        return Session(process, trained.folder / engine_name(graph), pad)

    if trained.task in ("classification", "regression"):
        return Classifier(session(MODEL))
    from optimum.onnxruntime import ORTModelForCausalLM, ORTModelForSeq2SeqLM

    if trained.continues:
        writing = session(MODEL)
        model = ORTModelForCausalLM(writing, trained.config, use_cache=False, use_io_binding=False)
        model.forward = continuing(model.forward)
    else:
        encoder, writing = map(session, PARTS[:2])
        model = ORTModelForSeq2SeqLM(encoder, writing, trained.config, [encoder._model_path, writing._model_path],
                                     use_cache=False, use_io_binding=False)
        model.forward = answering(model, model.forward)
    model.generate = _of_last_tokens(writing, model.generate)
    return model


def _of_last_tokens(session: Session, generate: Any) -> Any:
    """generate(), for which the process hands over the last token's logits alone."""
    @wraps(generate)
    def called(*arguments: Any, **inputs: Any) -> Any:
        session.last = True
        try:
            return generate(*arguments, **inputs)
        finally:
            session.last = False

    return called


def check_host(trained: Trained, record: Optional[Exported], host: dict[str, str]) -> None:
    """Raises a UserError for engines that were built for another GPU, driver or TensorRT."""
    built = record.built_for if record else {}
    changed = [f"{name} {built.get(name, 'unknown')}, here {value}" for name, value in host.items()
               if built.get(name) != value]
    if changed:
        raise UserError(f"{trained.folder} was built for another host: {'; '.join(changed)}",
                        f"build it again: debzero export NAME --to tensorrt --precision "
                        f"{record.precision if record else 'fp32'}")
