"""Builds the model from the hub, from a folder or from scratch, with transformers 4 and 5 alike."""
from __future__ import annotations

import re
from contextlib import nullcontext
from typing import Any

from debzero.base.errors import UserError
from debzero.model import tasks
from debzero.model.folder import no_code
from debzero.model.sharded import whole_initialisation
from debzero.model.tokenizer import Model
from debzero.resolve.resolve import ResolvedJob

# Settings that count the parts of a model: with more, transformers takes minutes and gigabytes even without weights.
PARTS = re.compile("layer|block|group|expert|head|label|depth")
MOST_PARTS = 10_000


def from_scratch(model: dict[str, Any]) -> Any:
    """The configuration for a job's `model:` section, which gives the type and some of its settings. Raises whatever
    transformers does, and a ValueError for more parts than any model has."""
    from transformers import AutoConfig

    for key, value in model.items():
        most = max((part for part in (value if isinstance(value, list) else [value]) if type(part) is int), default=0)
        if PARTS.search(key) and most > MOST_PARTS:
            raise ValueError(f"{key}: {most} is more than {MOST_PARTS}, the most that is built")
    return AutoConfig.for_model(model["type"], **{key: value for key, value in model.items() if key != "type"})


def config(model: Model, labels: list[str], tokens: Any) -> Any:
    """The model's configuration, with the names of the classes. Raises a UserError if the tokenizer knows more tokens
    than the model."""
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
    if len(tokens) > getattr(found, "vocab_size", len(tokens)):
        raise UserError(f"the tokenizer knows {len(tokens)} tokens, but the model's embedding holds {found.vocab_size}",
                        "use the tokenizer that belongs to the model, or enlarge the embedding and save both into one "
                        "folder")
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
    from transformers.utils import logging

    logging.set_verbosity_error()  # "some weights are newly initialized" is what fine-tuning is
    logging.disable_progress_bar()
    task, job = tasks.of(resolved.job), resolved.job
    if not tasks.suits(type(task), settings.model_type):
        raise UserError(f"{settings.model_type} models cannot do the task {job.task}",
                        "choose another model, or another task")
    if isinstance(task, tasks.CausalLM) and hasattr(settings, "is_decoder"):
        settings.is_decoder = True  # without it a BERT would see the tokens that it shall predict
    stage3 = deepspeed.get("zero_optimization", {}).get("stage") == 3
    reference = None
    if stage3:
        from transformers.integrations import HfDeepSpeedConfig

        reference = HfDeepSpeedConfig(deepspeed)  # keep it: transformers itself holds only a weak reference
    # transformers 5 loads weights in the type they were saved in, often half precision; the optimizer needs fp32.
    dtype = {"dtype" if int(transformers.__version__.split(".")[0]) >= 5 else "torch_dtype": torch.float32}
    auto = getattr(transformers, task.auto)
    if isinstance(where, str):
        model = auto.from_pretrained(where, config=settings, use_safetensors=True, **no_code(), **dtype)
    else:
        with whole_initialisation(auto._model_mapping[type(settings)]) if stage3 else nullcontext():
            model = auto.from_config(settings, **no_code(), **dtype)
    del reference
    # What the saved configuration says of its origin: the hub's name, but no path of this host.
    model.config._name_or_path = job.model if isinstance(job.model, str) and where != job.model else ""
    use_contiguous_bias(model)
    if job.train.gradient_checkpointing:
        # Other checkpointing compares the recomputed tensors with the saved ones, and sharded parameters are empty
        # then.
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": stage3})
    return model


def use_contiguous_bias(model: Any) -> None:
    """Give T5's bias of relative positions the strides that torch's fused attention takes. It is the result of a
    permutation, and for such a mask torch falls back to products in fp32, which keep all of their s x s matrices."""
    for module in model.modules():
        compute = getattr(module, "compute_bias", None)
        if compute:
            module.compute_bias = lambda *args, compute=compute, **kwargs: compute(*args, **kwargs).contiguous()
