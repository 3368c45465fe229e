"""onnxruntime as an engine: a model that `debzero export` wrote, on a CPU or, with onnxruntime's build for it, a GPU.

What writes texts is optimum's model, which is transformers' own generation on top of onnxruntime.
"""
from __future__ import annotations

from functools import wraps
from types import SimpleNamespace
from typing import Any, Callable

import numpy as np

from debzero.base.errors import InputError, Problem, UserError
from debzero.model.folder import no_code
from debzero.model.task import IGNORED
from debzero.predict.engine import Batch, Choice
from debzero.predict.engine_torch import CPU_ROWS, CPU_TOKENS, GPU_ROWS, GPU_TOKENS, TorchEngine, processors
from debzero.predict.trained import Trained

MODEL = "model.onnx"
# Of an encoder-decoder, by optimum's names: the second writes the first token, the third those after it.
PARTS = ("encoder_model.onnx", "decoder_model.onnx", "decoder_with_past_model.onnx")
ON_GPU = "CUDAExecutionProvider"
MISSING = UserError("onnxruntime is not installed for this Python",
                    "apt install debzero-runtime-inference, or with Ansible `inference_manage: true`")


class OnnxEngine(TorchEngine):
    """`model` answers as transformers' model does."""

    def __init__(self, trained: Trained, choice: Choice) -> None:
        provider = _provider(choice.device)
        gpu = provider == ON_GPU
        self.device, self.precision = "cuda:0" if gpu else "cpu", choice.precision
        self.rows, self.tokens = (GPU_ROWS, GPU_TOKENS) if gpu else (CPU_ROWS, CPU_TOKENS)
        try:
            self.model: Any = _model(trained, provider)
        except Exception as error:  # of types that onnxruntime does not export
            raise UserError(f"onnxruntime cannot load the model in {trained.folder}: {str(error)[:300]}",
                            "export the model again") from None

    def logits(self, batch: Batch) -> np.ndarray:
        return np.asarray(self.model.run(batch))


class Classifier:
    """A session of a graph with one output, called as transformers' model is."""

    def __init__(self, session: Any) -> None:
        self.session = session

    def run(self, batch: Batch) -> np.ndarray:
        """The logits of n rows, float32[n, classes]."""
        feeds = {each.name: batch[each.name] for each in self.session.get_inputs()}
        return np.asarray(self.session.run(["logits"], feeds)[0])

    def __call__(self, **inputs: Any) -> Any:
        import torch

        arrays = {name: each.cpu().numpy() for name, each in inputs.items()}
        return SimpleNamespace(logits=torch.from_numpy(self.run(arrays)))


def precisions() -> tuple[str, ...]:
    """Those that are worth having on this host; none where onnxruntime is not installed."""
    try:
        import onnxruntime  # noqa: F401
    except ImportError:
        return ()
    return ("fp32", "fp16") if _has_gpu() else ("fp32", "int8")


def _has_gpu() -> bool:
    """Whether this is onnxruntime's build for GPUs, and there is one. torch has loaded CUDA's libraries by then."""
    import onnxruntime
    import torch

    return ON_GPU in onnxruntime.get_available_providers() and torch.cuda.is_available()


def session_options() -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = processors()
    options.log_severity_level = 3
    return options


def _provider(device: str) -> str:
    """Raises a UserError where onnxruntime is not installed, and an InputError for a GPU that it cannot use."""
    try:
        there = _has_gpu()
    except ImportError:
        raise MISSING from None
    if device == "cpu" or device == "auto" and not there:
        return "CPUExecutionProvider"
    if not there or device not in ("auto", "cuda", "cuda:0"):
        raise InputError([Problem("the command line", "--device", f"onnxruntime cannot use {device} here",
                                  "use --device cpu, or --engine torch")])
    return ON_GPU


def _providers(provider: str) -> list[str]:
    return [provider] if provider != ON_GPU else [provider, "CPUExecutionProvider"]


def _model(trained: Trained, provider: str) -> Any:
    if trained.task in ("classification", "regression"):
        import onnxruntime

        session = onnxruntime.InferenceSession(str(trained.folder / MODEL), session_options(),
                                               providers=_providers(provider))
        if provider not in session.get_providers():  # it computes on the CPU instead, and only logs that
            raise ValueError("it cannot use the GPU: a library of CUDA 11 or cuDNN 8 is missing")
        return Classifier(session)
    from optimum.onnxruntime import ORTModelForCausalLM, ORTModelForSeq2SeqLM

    kind, own = (ORTModelForCausalLM, {}) if trained.continues else (ORTModelForSeq2SeqLM, {"use_merged": False})
    model = kind.from_pretrained(
        trained.folder, config=trained.config, use_cache=True, provider=provider, session_options=session_options(),
        use_io_binding=provider == ON_GPU, local_files_only=True, **own, **no_code())
    model.forward = continuing(model.forward) if trained.continues else answering(model, model.forward)
    return model


def continuing(forward: Callable[..., Any]) -> Callable[..., Any]:
    """optimum's forward(), which also does without a mask and positions, as transformers' own."""
    import torch

    @wraps(forward)
    def called(input_ids: Any, attention_mask: Any = None, **inputs: Any) -> Any:
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if inputs.get("position_ids") is None:
            inputs["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)[:, -input_ids.shape[1] :]
        return forward(input_ids=input_ids, attention_mask=mask, **inputs)

    return called


def answering(model: Any, forward: Callable[..., Any]) -> Callable[..., Any]:
    """optimum's forward(), which also derives the decoder's inputs from labels, and gives what the encoder made, as
    transformers' own."""
    import torch

    @wraps(forward)
    def called(labels: Any = None, encoder_outputs: Any = None, **inputs: Any) -> Any:
        if encoder_outputs is None:
            encoder_outputs = model.encoder(**{name: inputs[name] for name in ("input_ids", "attention_mask")})
        if labels is not None:
            start = torch.full_like(labels[:, :1], model.config.decoder_start_token_id)
            before = torch.cat([start, labels[:, :-1]], 1)
            inputs["decoder_input_ids"] = before.masked_fill(before == IGNORED, model.config.pad_token_id)
        output = forward(encoder_outputs=encoder_outputs, **inputs)
        output.encoder_last_hidden_state = encoder_outputs.last_hidden_state
        return output

    return called
