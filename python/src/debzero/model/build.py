"""Builds the model from the hub, from a folder or from scratch, with transformers 4 and 5 alike."""
from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from debzero.base.errors import UserError
from debzero.job.schema import Job
from debzero.model import tasks
from debzero.model.folder import no_code, weight_files
from debzero.model.inputs import input_names
from debzero.model.opened import has_new_head, skeleton
from debzero.model.settings import from_scratch
from debzero.model.sharded import whole_initialisation
from debzero.model.tokenizer import Model
from debzero.model.weights import AGAIN, fit, tensors
from debzero.resolve.resolve import ResolvedJob


def config(model: Model, labels: list[str], tokens: Any) -> Any:
    """The model's configuration, with the names of the classes."""
    from transformers import AutoConfig

    names = {"id2label": dict(enumerate(labels)),
             "label2id": {name: number for number, name in enumerate(labels)}} if labels else {}
    if isinstance(model, str):
        found = AutoConfig.from_pretrained(model, **no_code(), **names)
    else:
        found = from_scratch({**model, "vocab_size": len(tokens), "bos_token_id": tokens.bos_token_id,
                              "eos_token_id": tokens.eos_token_id, **names})
    if found.is_encoder_decoder and getattr(found, "decoder_start_token_id", None) is None:
        found.decoder_start_token_id = tokens.pad_token_id  # T5's own choice
    found.problem_type = None  # of the head that the folder came with: pipelines would take its word
    vars(found).pop("auto_map", None)  # code that was not run does not belong to the result
    found.pad_token_id = tokens.pad_token_id
    found.use_cache = False  # keys and values of earlier tokens only help to generate text
    return found


def build(resolved: ResolvedJob, where: Model, settings: Any, deepspeed: dict[str, Any]) -> Any:
    """The model with the task's head, in fp32. For stage 3 it is sharded while it is built: no rank ever holds all of
    it. `where`: the model's folder, or its settings (source.local); `settings`: what config() returned; `deepspeed`:
    DeepSpeed's JSON, empty for plain DDP."""
    import torch
    import transformers
    from safetensors.torch import load_file
    from transformers.utils import logging

    logging.set_verbosity_error()  # "some weights are newly initialized" is what fine-tuning is
    logging.disable_progress_bar()
    task, job = tasks.of(resolved.job), resolved.job
    if not tasks.suits(type(task), settings.model_type):
        raise UserError(f"{settings.model_type} models cannot do the task {job.task}",
                        "choose another model, or another task")
    tasks.look_back_only(type(task), settings)
    unfit = _unfit_head(job, where, settings)
    stage3 = deepspeed.get("zero_optimization", {}).get("stage") == 3
    reference = None
    if stage3:
        from transformers.integrations import HfDeepSpeedConfig

        reference = HfDeepSpeedConfig(deepspeed)  # keep it: transformers itself holds only a weak reference
    # transformers 5 loads weights in the type they were saved in, often half precision; the optimizer needs fp32.
    dtype = {"dtype" if int(transformers.__version__.split(".")[0]) >= 5 else "torch_dtype": torch.float32}
    auto = getattr(transformers, task.auto)
    kind = auto._model_mapping[type(settings)]
    with whole_initialisation(kind, scratch=not isinstance(where, str)) if stage3 else nullcontext():
        if isinstance(where, str) and unfit:
            # Not with ignore_mismatched_sizes: at stage 3 parameters have no size yet, and none would fit.
            kept = {name: tensor for file in weight_files(Path(where))
                    for name, tensor in load_file(Path(where, file)).items() if name not in unfit}
            model = kind.from_pretrained(None, config=settings, state_dict=kept, use_safetensors=True, **no_code(),
                                         **dtype)
        elif isinstance(where, str):
            with _misfits_explained(where):
                model = auto.from_pretrained(where, config=settings, use_safetensors=True, **no_code(), **dtype)
        else:
            model = auto.from_config(settings, **no_code(), **dtype)
    del reference
    # What the saved configuration says of its origin: the hub's name, but no path of this host.
    model.config._name_or_path = job.model if isinstance(job.model, str) and where != job.model else ""
    use_contiguous_bias(model)
    drop_mask(model)
    if job.train.gradient_checkpointing:
        # Other checkpointing compares the recomputed tensors with the saved ones, and sharded parameters are empty
        # then.
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": stage3})
    return model


@contextmanager
def _misfits_explained(where: str) -> Iterator[None]:
    """Of models that check cannot build without memory, such as those with pruned heads."""
    try:
        yield
    except RuntimeError as error:
        if "size mismatch" not in str(error):
            raise
        first = next(line.strip() for line in str(error).splitlines() if "size mismatch" in line)
        raise UserError(f"{where}: its weights do not fit its config.json: {first[:200]}", AGAIN) from None


def _unfit_head(job: Job, where: Model, settings: Any) -> set[str]:
    """The tensors of a folder's head that has not the job's number of classes: a new one takes its place."""
    if isinstance(where, str) and has_new_head(job):
        with suppress(NotImplementedError):
            return set(fit(skeleton(job, settings, seconds=math.inf), tensors(Path(where))).heads)
    return set()


def drop_mask(model: Any) -> None:
    """Keep the attention mask, which each batch has, from a model without attention, such as FNet. What else forward()
    may not take, the tokenizer does not make (inputs.py)."""
    forward = model.forward
    if "attention_mask" not in input_names(model.config):
        model.forward = lambda *args, attention_mask=None, **kwargs: forward(*args, **kwargs)


def use_contiguous_bias(model: Any) -> None:
    """Give T5's bias of relative positions the strides that torch's fused attention takes. It is the result of a
    permutation, and for such a mask torch falls back to products in fp32, which keep all of their s x s matrices."""
    for module in model.modules():
        compute = getattr(module, "compute_bias", None)
        if compute:
            module.compute_bias = lambda *args, compute=compute, **kwargs: compute(*args, **kwargs).contiguous()
