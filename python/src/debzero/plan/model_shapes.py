"""A job's model without its weights: the configuration, the sizes of its parameters, and traces of a training step."""
from __future__ import annotations

import copy
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Optional

import torch

from debzero.base.errors import InputError, Problem
from debzero.job.schema import Job
from debzero.model import build, compiled, meta, settings, tasks
from debzero.model.folder import flaws, no_code
from debzero.model.inputs import input_names
from debzero.plan.activations import PRIME, Curve, shorten, stacks, trace
from debzero.plan.memory import ParameterCounts

# The configurations of models for which the hub need not be asked, where they differ from the defaults of transformers'
# classes. Sources: Devlin et al. 2019, Radford et al. 2019, Raffel et al. 2020.
PUBLISHED: dict[str, dict[str, Any]] = {
    "bert-base-uncased": {"type": "bert"},
    "bert-large-uncased": {"type": "bert", "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16,
                           "intermediate_size": 4096},
    "gpt2": {"type": "gpt2"},
    "gpt2-medium": {"type": "gpt2", "n_embd": 1024, "n_layer": 24, "n_head": 16},
    "gpt2-xl": {"type": "gpt2", "n_embd": 1600, "n_layer": 48, "n_head": 25},
    "t5-small": {"type": "t5"},
    "t5-base": {"type": "t5", "d_model": 768, "d_ff": 3072, "num_layers": 12, "num_heads": 12},
}
CLASSES = 2      # assumed, as the data set is not read
NAME_TOKENS = 4  # assumed length of a class's name, which a text-to-text model answers with
HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class _Built:
    """The model on the meta device, with all but four layers of each stack removed after it was counted."""

    model: Any
    stack: list[tuple[Any, int]]
    counts: ParameterCounts
    attention: str  # transformers' name of the implementation


class Shapes:
    """`notes`: what had to be assumed."""

    def __init__(self, job: Job, file: str, config: Optional[Path]) -> None:
        """`file`: the job file, for errors; `config`: a config.json, or the folder that holds one, to use in place of
        the job's model. Raises an InputError if there is no configuration or it does not suit the job's task."""
        self.job, self.notes, self.task = job, list[str](), tasks.of(job)
        self.name, self.config = self._config(file, config)
        if not tasks.suits(type(self.task), self.config.model_type):
            raise InputError([Problem(file, "model", f"{self.config.model_type} models cannot do the task {job.task}",
                                      "choose another model, or another task")])

    @property
    def hidden(self) -> int:
        """The hidden size, as train/loop.py finds it."""
        return int(getattr(self.config, "hidden_size", None) or getattr(self.config, "d_model", None) or 768)

    @property
    def counts(self) -> ParameterCounts:
        return self._built.counts

    def facts(self) -> dict[str, Any]:
        """What `debzero plan --json` says of the model."""
        return {"name": self.name, "type": self.config.model_type, "hidden_size": self.hidden,
                "sequence_length": self.job.data.max_length, "attention": self._built.attention}

    def _config(self, file: str, path: Optional[Path]) -> tuple[str, Any]:
        from transformers.utils import logging

        logging.set_verbosity_error()
        model: Any = self.job.model if path is None else str(path.absolute())
        labels = {"num_labels": 1 if self.job.task == "regression" else CLASSES}
        if isinstance(model, dict):
            return self._ready(f"{model['type']} from scratch", settings.from_scratch({**model, **labels}))
        try:
            return self._ready(model, self._read(model, self.job.revision, labels))
        except Exception as error:  # transformers raises many types for a file that is no configuration
            known = PUBLISHED.get(Path(model).name) if path is None and not Path(model).is_absolute() else None
            if known is None:
                key, fix = ("--config", "give a config.json of a model that transformers knows") if path else (
                    "model", "give a folder with config.json, or that file as --config; no weights are needed")
                raise InputError([Problem("the command line" if path else file, key,
                                          f"the configuration of {model} cannot be read: "
                                          f"{(str(error).splitlines() or [type(error).__name__])[0]}", fix)]) from None
            self.notes.append(f"the configuration of {model} is not in the hub's cache; using the sizes of its paper")
            return self._ready(model, settings.from_scratch({**known, **labels}))

    @staticmethod
    def _read(model: str, revision: str, labels: dict[str, int]) -> Any:
        """From a file, a folder, the hub's cache, or last the hub itself."""
        from huggingface_hub import hf_hub_download
        from transformers import AutoConfig

        if Path(model).is_absolute():
            if not os.path.exists(model):
                raise OSError("there is no such file")
            if found := flaws(Path(model), weights=False) if os.path.isdir(model) else []:
                raise OSError(found[0].reason)
            if not os.path.isfile(model) and not os.path.isfile(os.path.join(model, "config.json")):
                raise OSError("it is no file")
            file = model
        else:  # by the path in the cache: a folder here may have the same name
            try:
                file = hf_hub_download(model, "config.json", revision=revision, local_files_only=True)
            except OSError:
                if os.environ.get("HF_HUB_OFFLINE") or model in PUBLISHED:
                    raise
                file = hf_hub_download(model, "config.json", revision=revision)
        return AutoConfig.from_pretrained(file, local_files_only=True, **no_code(), **labels)

    def _ready(self, name: str, config: Any) -> tuple[str, Any]:
        """The configuration with the changes that model/build.py makes for training."""
        if config.pad_token_id is None:
            config.pad_token_id = 0
        if config.is_encoder_decoder and getattr(config, "decoder_start_token_id", None) is None:
            config.decoder_start_token_id = config.pad_token_id
        config.use_cache = False
        tasks.look_back_only(type(self.task), config)
        return name, config

    def _build(self) -> Any:
        model = copy.deepcopy(self.untouched)
        build.use_contiguous_bias(model)
        model.float()  # as model/build.py does; transformers 5 would take the type that the weights were saved in
        if self.job.train.gradient_checkpointing:
            model.gradient_checkpointing_enable()
        return model

    @cached_property
    def untouched(self) -> Any:
        """The whole model as transformers builds it, which takes most of the time; what is traced are copies."""
        import transformers

        with meta.OnMeta():
            return getattr(transformers, self.task.auto).from_config(self.config, **no_code())

    @cached_property
    def _built(self) -> _Built:
        model = self._build()
        attention = getattr(model.config, "_attn_implementation", "eager")
        parameters = [p for p in model.parameters() if p.requires_grad]
        # Stage 3 gathers embeddings while there are no activations yet, unless they are the output's weights as well.
        modules = [module for _, _, stack in stacks(model) for module in stack.modules()]
        modules.append(model.get_output_embeddings() or torch.nn.Identity())
        largest = max(sum(p.numel() for p in module.parameters(recurse=False)) for module in modules)
        layers = [[p.numel() for p in layer.parameters()] for layer in compiled.blocks(model)]
        counts = ParameterCounts(tuple(p.numel() for p in parameters if p.dim() > 1),
                                 tuple(p.numel() for p in parameters if p.dim() <= 1),
                                 sum(b.numel() * b.element_size() for b in model.buffers()), largest, self.hidden,
                                 sum(map(sum, layers)), max(map(sum, layers), default=0),
                                 max(map(len, layers), default=0))
        return _Built(model, shorten(model), counts, attention)

    def _batch(self) -> dict[str, Any]:
        """A batch as data/collator.py makes it, with PRIME samples of the greatest length."""
        def tensor(*shape: int, dtype: torch.dtype = torch.long) -> Any:
            return torch.empty(*shape, dtype=dtype, device="meta")

        length = self.job.data.max_length
        names = {*input_names(self.config), *(["attention_mask"] if self.job.task == "causal-lm" else [])}
        batch = {name: tensor(PRIME, length) for name in sorted(names)}
        if self.job.task == "regression":
            batch["labels"] = tensor(PRIME, dtype=torch.float32)
        elif self.job.task != "causal-lm":
            batch["labels"] = tensor(PRIME, self.answer) if self.job.task == "text-to-text" else tensor(PRIME)
        return batch

    @property
    def answer(self) -> int:
        """The most tokens that a text-to-text model answers with."""
        return self.job.data.max_answer_length if self.job.data.answers == "text" else NAME_TOKENS

    def curve(self, kind: str, compiled: bool) -> Curve:
        """The trace of a micro-batch. `kind`: the type that DeepSpeed's engine casts the model to (fp32, fp16, bf16),
        or `autocast fp16` and the like; `compiled`: with compiled layers."""
        half, autocast = HALF.get(kind.split()[-1]), kind.startswith("autocast")
        built = self._built
        built.model.to(half if half and not autocast else torch.float32)
        return trace(built.model, built.stack, self.losses, self._batch(), half if autocast else None, compiled)

    def losses(self, model: Any, batch: dict[str, Any]) -> Any:
        """float32[n], each sample's; or, of a part of the model, the tensors that it passes on."""
        return self.task.losses(model, batch)
