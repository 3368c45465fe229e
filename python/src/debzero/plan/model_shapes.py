"""A job's model without its weights: the configuration, the parameters' sizes, and the trace of a training step."""
from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Optional

import torch

from debzero.base.errors import InputError, Problem
from debzero.job.schema import Job
from debzero.model import build, tasks
from debzero.plan import meta_device
from debzero.plan.activations import PRIME, Curve, shorten, stacks, trace
from debzero.plan.memory import Model

# Sizes that the papers give (Devlin et al. 2019, Radford et al. 2019, Raffel et al. 2020), so that the hub need not be
# asked: what transformers' classes do not say themselves.
PUBLISHED: dict[str, dict[str, Any]] = {
    "bert-base-uncased": {"type": "bert"},
    "bert-large-uncased": {"type": "bert", "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16,
                           "intermediate_size": 4096},
    "gpt2": {"type": "gpt2"},
    "gpt2-medium": {"type": "gpt2", "n_embd": 1024, "n_layer": 24, "n_head": 16},
    "t5-small": {"type": "t5"},
    "t5-base": {"type": "t5", "d_model": 768, "d_ff": 3072, "num_layers": 12, "num_heads": 12},
}
CLASSES = 2   # of a data set that has not been read yet
WORDS = 4     # in the name of a class, for a model that answers in words
HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}


class Shapes:
    """`notes` says what had to be assumed."""

    def __init__(self, job: Job, file: str, config: Optional[Path]) -> None:
        """`config`: a configuration (config.json, or the folder that holds it) to use in place of the job's model."""
        self.job, self.notes, self.task = job, list[str](), tasks.of(job)
        self.name, self.config = self._config(file, config)
        if not tasks.suits(type(self.task), self.config.model_type):
            raise InputError([Problem(file, "model", f"{self.config.model_type} models cannot do the task {job.task}",
                                      "choose another model, or another task")])

    @property
    def hidden(self) -> int:
        """As training.py asks for it."""
        return int(getattr(self.config, "hidden_size", None) or getattr(self.config, "d_model", None) or 768)

    def facts(self) -> dict[str, Any]:
        return {"name": self.name, "type": self.config.model_type, "hidden_size": self.hidden,
                "sequence_length": self.job.data.max_length, "attention": self._attention}

    def _config(self, file: str, path: Optional[Path]) -> tuple[str, Any]:
        from transformers.utils import logging

        logging.set_verbosity_error()
        model: Any = self.job.model if path is None else str(path)
        labels = {"num_labels": 1 if self.job.task == "regression" else CLASSES}
        if isinstance(model, dict):
            return self._ready(f"{model['type']} from scratch", build.from_scratch({**model, **labels}))
        try:
            return self._ready(model, self._read(model, labels))
        except Exception as error:  # whatever a file that is no configuration makes of transformers
            known = PUBLISHED.get(Path(model).name) if path is None and not Path(model).is_absolute() else None
            if known is None:
                key, fix = ("--config", "give a config.json of a model that transformers knows") if path else (
                    "model", "give a folder with config.json, or that file as --config; no weights are needed")
                raise InputError([Problem("the command line" if path else file, key,
                                          f"the configuration of {model} cannot be read: "
                                          f"{(str(error).splitlines() or [type(error).__name__])[0]}", fix)]) from None
            self.notes.append(f"the hub's configuration of {model} is not here: the sizes are its paper's")
            return self._ready(model, build.from_scratch({**known, **labels}))

    @staticmethod
    def _read(model: str, labels: dict[str, int]) -> Any:
        """From a file, a folder, the hub's cache or the hub, which is asked only when nothing else has it."""
        from transformers import AutoConfig

        if os.path.exists(model):
            return AutoConfig.from_pretrained(model, local_files_only=True, **labels)
        if Path(model).is_absolute():
            raise OSError("there is no such file")
        try:
            return AutoConfig.from_pretrained(model, local_files_only=True, **labels)
        except OSError:
            if os.environ.get("HF_HUB_OFFLINE") or model in PUBLISHED:
                raise
            return AutoConfig.from_pretrained(model, **labels)

    def _ready(self, name: str, config: Any) -> tuple[str, Any]:
        """As models.py changes it for training."""
        if config.pad_token_id is None:
            config.pad_token_id = 0
        if config.is_encoder_decoder and getattr(config, "decoder_start_token_id", None) is None:
            config.decoder_start_token_id = config.pad_token_id
        config.use_cache = False
        if self.job.task == "causal-lm" and hasattr(config, "is_decoder"):
            config.is_decoder = True
        return name, config

    def _build(self) -> Any:
        import transformers

        with meta_device.OnMeta():
            model = getattr(transformers, self.task.auto).from_config(self.config)
        build.use_contiguous_bias(model)
        model.float()  # transformers 5 takes the type that the weights were saved in, which models.py does not
        if self.job.train.gradient_checkpointing:
            model.gradient_checkpointing_enable()
        return model

    def model(self) -> Model:
        """The numbers of the whole model; only some of its layers are kept for the traces."""
        built = self._build()
        self._attention = getattr(built.config, "_attn_implementation", "eager")
        parameters = [p for p in built.parameters() if p.requires_grad]
        # Embeddings are gathered when there are no activations yet, unless they are the output's weights as well.
        busy = [m for _, _, stack in stacks(built) for m in stack.modules()] + [built.get_output_embeddings()
                                                                                or torch.nn.Identity()]
        layers = (sum(p.numel() for p in module.parameters(recurse=False)) for module in busy)
        made = Model(tuple(p.numel() for p in parameters if p.dim() > 1),
                     tuple(p.numel() for p in parameters if p.dim() <= 1),
                     sum(b.numel() * b.element_size() for b in built.buffers()), max(layers), self.hidden)
        self._built, self._stack = built, shorten(built)
        return made

    def _batch(self) -> dict[str, Any]:
        """What data.Collator makes, of PRIME samples as long as they may be."""
        def tensor(*shape: int, dtype: torch.dtype = torch.long) -> Any:
            return torch.empty(*shape, dtype=dtype, device="meta")

        words = self.job.data.max_length
        made = {"input_ids": tensor(PRIME, words), "attention_mask": tensor(PRIME, words)}
        if getattr(self.config, "type_vocab_size", 0) > 1:
            made["token_type_ids"] = tensor(PRIME, words)
        if self.job.task == "regression":
            made["labels"] = tensor(PRIME, dtype=torch.float32)
        elif self.job.task != "causal-lm":
            made["labels"] = tensor(PRIME, WORDS) if self.job.task == "text-to-text" else tensor(PRIME)
        return made

    def curve(self, kind: str, compiled: bool) -> Curve:
        """`kind`: fp32, fp16, bf16 (DeepSpeed's engine casts the model), or autocast to one of these."""
        half, autocast = HALF.get(kind.split()[-1]), kind.startswith("autocast")
        self._built.to(half if half and not autocast else torch.float32)
        return trace(self._built, self._stack, self.task.losses, self._batch(), half if autocast else None, compiled)
