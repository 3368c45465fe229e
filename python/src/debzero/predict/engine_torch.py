"""torch as an engine: on a CPU in fp32, on a GPU in the precision that it is fastest in."""
from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Callable

import numpy as np

from debzero.base.errors import InputError, OutOfMemory, Problem, UserError
from debzero.base.failures import as_user_error
from debzero.model.build import drop_mask
from debzero.model.folder import no_code
from debzero.model.task import IGNORED, token_losses
from debzero.model.weights import AGAIN
from debzero.predict.engine import Batch, Choice, Writing
from debzero.predict.trained import Trained, incomplete
from debzero.resolve.host import this_host
from debzero.resolve.precision import OVERFLOWING

CPU_ROWS, CPU_TOKENS = 64, 4096      # of a batch: more do not make a processor faster
GPU_ROWS, GPU_TOKENS = 512, 2**16
# What a model's own generation settings say of its tokens; what they say of how it writes is the user's choice.
TOKENS = ("bos_token_id", "decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id")


class TorchEngine:
    """transformers' model. Where a GPU's memory is too small for a batch, that and all later ones are halved."""

    def __init__(self, trained: Trained, choice: Choice) -> None:
        import torch
        import transformers

        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        self.device, self.precision = _device(choice.device), ""
        gpu = self.device != "cpu"
        self.precision = _precision(choice.precision, gpu, trained.config.model_type)
        self.rows, self.tokens = (GPU_ROWS, GPU_TOKENS) if gpu else (CPU_ROWS, CPU_TOKENS)
        if not gpu and "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(min(torch.get_num_threads(), processors()))
        kind = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[self.precision]
        word = "dtype" if int(transformers.__version__.split(".")[0]) >= 5 else "torch_dtype"
        try:
            self.model, found = getattr(transformers, trained.auto).from_pretrained(
                trained.folder, local_files_only=True, use_safetensors=True, output_loading_info=True, **no_code(),
                **{word: kind})
        except Exception as error:  # of many types: settings and weights that do not belong together
            first = next((line.strip() for line in str(error).splitlines() if "size mismatch" in line), str(error))
            raise as_user_error(error, str(trained.folder)) or UserError(
                f"{trained.folder}: transformers cannot load it: {type(error).__name__}: {first[:200]}",
                AGAIN) from error
        lacking = sorted([*found["missing_keys"], *(key[0] for key in found["mismatched_keys"])])
        if lacking:
            raise incomplete(trained.folder, lacking)
        self.model.config.pad_token_id = trained.tokenizer.pad_token_id  # where GPT-2 classifies is before it
        drop_mask(self.model)
        with _memory_explained(self.device):
            self.model.to(self.device).eval()

    def logits(self, batch: Batch) -> np.ndarray:
        return self._in_parts(batch, lambda part: self.model(**part).logits.float().cpu().numpy())

    def likelihoods(self, batch: Batch, names: np.ndarray) -> np.ndarray:
        import torch
        from transformers.modeling_outputs import BaseModelOutput

        def of(part: dict[str, Any]) -> np.ndarray:
            encoded = self.model.get_encoder()(**part)
            given = {"attention_mask": part["attention_mask"],
                     "encoder_outputs": BaseModelOutput(encoded.last_hidden_state)}
            found = []
            for name in torch.as_tensor(names, device=self.device):
                name = name[name != IGNORED].expand(len(part["input_ids"]), -1).contiguous()
                found.append(-token_losses(self.model(**given, labels=name).logits, name).sum(1))
            return np.asarray(torch.stack(found, 1).cpu().numpy())

        return self._in_parts(batch, of)

    def generate(self, batch: Batch, how: Writing) -> np.ndarray:
        import torch
        from transformers import GenerationConfig

        own = {name: getattr(self.model.generation_config, name, None) for name in TOKENS}
        drawn = {"temperature": how.temperature, "top_k": how.top_k, "top_p": how.top_p} if how.sample else {}
        # In the model's place, too: of what this leaves open, later releases of transformers take the model's own.
        settings = GenerationConfig(**own, **drawn, max_new_tokens=how.limit, num_beams=how.beams,
                                    do_sample=how.sample, eos_token_id=list(how.ends) or None, pad_token_id=how.pad,
                                    use_cache=True)
        kept, self.model.generation_config = self.model.generation_config, settings
        if how.sample and how.seed is not None:
            torch.manual_seed(how.seed)
        skipped = 1 if self.model.config.is_encoder_decoder else batch["input_ids"].shape[1]
        try:
            # Unless it is said that no GPUs wait for each other, transformers imports FSDP to find out.
            return self._in_parts(batch, lambda part: self.model.generate(**part, synced_gpus=False)[:, skipped:].cpu()
                                  .numpy(), how.pad)
        finally:
            self.model.generation_config = kept

    def _in_parts(self, batch: Batch, of: Callable[[dict[str, Any]], np.ndarray], fill: int = 0) -> np.ndarray:
        """`of` a batch's tensors, in as many parts as its memory needs; rows of different width are filled up."""
        import torch

        done: list[np.ndarray] = []
        count, start, step = len(batch["input_ids"]), 0, self.rows
        while start < count:
            part = {name: torch.from_numpy(values[start : start + step]).to(self.device)
                    for name, values in batch.items()}
            try:
                with torch.inference_mode():
                    done.append(of(part))
                start += step
            except torch.cuda.OutOfMemoryError:
                del part
                step = min(step, count) // 2
                self.rows = max(step, 1)  # the next batch may fit
                if not step:
                    raise OutOfMemory("the GPU's memory is too small for one text", "use --device cpu, or --precision "
                                      "bf16 or fp16") from None
                torch.cuda.empty_cache()
        width = max(each.shape[1] for each in done)
        return np.concatenate([np.pad(each, ((0, 0), (0, width - each.shape[1])), constant_values=fill)
                               for each in done])


def processors() -> int:
    """How many this process may use: a container or a unit may have a share of them only."""
    count = len(os.sched_getaffinity(0))
    with suppress(OSError, ValueError):
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        group = next((line[3:] for line in lines if line.startswith("0::")), "")
        quota, period = Path(f"/sys/fs/cgroup{group}/cpu.max").read_text().split()
        count = min(count, -(-int(quota) // int(period)))
    return count


@contextmanager
def _memory_explained(device: str) -> Iterator[None]:
    import torch

    try:
        yield
    except torch.cuda.OutOfMemoryError:
        raise OutOfMemory(f"the memory of {device} is too small for the model", "use --device cpu, another GPU "
                          "(--device cuda:1), or --precision bf16 or fp16") from None


def _device(wanted: str) -> str:
    """Where it computes. Raises an InputError for a GPU that is not there."""
    import torch

    count = torch.cuda.device_count()
    if wanted == "auto":
        return "cuda:0" if count else "cpu"
    if wanted == "cpu":
        return wanted
    number = int(wanted.partition(":")[2] or 0)
    if number >= count:
        raise InputError([Problem("the command line", "--device", f"{wanted} is not there: torch can use {count} GPUs "
                                  "of this host", "use --device auto; see `debzero doctor`" if not count else
                                  f"use cuda:0 to cuda:{count - 1}")])
    return f"cuda:{number}"


def _precision(wanted: str, gpu: bool, kind: str) -> str:
    """What it computes in: on a GPU bf16 where it has that, else fp16, but fp32 for models that overflow."""
    bf16 = gpu and this_host().bf16
    if wanted == "auto":
        return "fp32" if not gpu else "bf16" if bf16 else "fp32" if kind in OVERFLOWING else "fp16"
    reason = ("is for --engine onnx" if wanted == "int8" else
              "needs a GPU" if wanted != "fp32" and not gpu else
              "is more than this GPU has: it came with Ampere" if wanted == "bf16" and not bf16 else
              "overflows in models of the T5 family" if wanted == "fp16" and kind in OVERFLOWING else "")
    if reason:
        raise InputError([Problem("the command line", "--precision", f"{wanted} {reason}", "use --precision auto")])
    return wanted
