"""The model and its tokenizer: from the hub, from a folder, or from scratch; for transformers 4 and 5 alike."""
from __future__ import annotations

from typing import Any

from debzero.base.errors import UserError
from debzero.model import tasks
from debzero.model.tokenizer import Model
from debzero.resolve.resolve import ResolvedJob


def from_scratch(model: dict[str, Any]) -> Any:
    """The configuration of a job's `model:` that is no name: its type, and settings of that."""
    from transformers import AutoConfig

    return AutoConfig.for_model(model["type"], **{key: value for key, value in model.items() if key != "type"})


def config(model: Model, labels: list[str], tokens: Any) -> Any:
    """The model's configuration, with the real class names in it."""
    from transformers import AutoConfig

    names = {"id2label": dict(enumerate(labels)),
             "label2id": {name: number for number, name in enumerate(labels)}} if labels else {}
    if isinstance(model, str):
        made = AutoConfig.from_pretrained(model, **names)
    else:
        made = from_scratch({**model, "vocab_size": len(tokens), "bos_token_id": tokens.bos_token_id,
                             "eos_token_id": tokens.eos_token_id, **names})
        if made.is_encoder_decoder and getattr(made, "decoder_start_token_id", None) is None:
            made.decoder_start_token_id = tokens.pad_token_id  # T5's own choice
    if len(tokens) > getattr(made, "vocab_size", len(tokens)):
        raise UserError(f"the tokenizer knows {len(tokens)} tokens, but the model's embedding holds {made.vocab_size}",
                        "use the tokenizer that belongs to the model, or enlarge the embedding and save both into one "
                        "folder")
    made.pad_token_id = tokens.pad_token_id
    made.use_cache = False  # keys and values of earlier tokens are for generating text
    return made


def build(resolved: ResolvedJob, settings: Any, deepspeed: dict[str, Any]) -> Any:
    """The model with the task's head, in fp32. For stage 3 it is born sharded: no rank ever holds it whole."""
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
        settings.is_decoder = True  # a BERT would otherwise see the tokens it is asked for
    stage3 = deepspeed.get("zero_optimization", {}).get("stage") == 3
    alive = None
    if stage3:
        from transformers.integrations import HfDeepSpeedConfig

        alive = HfDeepSpeedConfig(deepspeed)  # transformers itself holds only a weak reference
    # transformers 5 loads weights as they were saved, in half precision often: the optimizer needs them whole.
    dtype = {"dtype" if int(transformers.__version__.split(".")[0]) >= 5 else "torch_dtype": torch.float32}
    auto, name = getattr(transformers, task.auto), job.model
    model = auto.from_pretrained(name, config=settings,
                                 **dtype) if isinstance(name, str) else auto.from_config(settings, **dtype)
    del alive
    use_contiguous_bias(model)
    if job.train.gradient_checkpointing:
        # A sharded parameter is empty when the recomputation is compared with what was saved, which only reentrant
        # checkpointing does not do.
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": stage3})
    return model


def use_contiguous_bias(model: Any) -> None:
    """Give T5's bias of relative positions the strides that torch's fused attention takes. It comes from a permutation, and for such
    a mask torch falls back to products in fp32 that keep all of their s x s matrices."""
    for module in model.modules():
        made = getattr(module, "compute_bias", None)
        if made:
            module.compute_bias = lambda *given, made=made, **named: made(*given, **named).contiguous()
