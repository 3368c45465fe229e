#!/usr/bin/env python3
"""One rank of a program that `make bench-gpus` (gpus.py) compares debzero with.

    ddp         a short loop in PyTorch: DistributedDataParallel, compiled, bf16 autocast, fused AdamW
    fsdp2       the same with fully_shard on each layer and on the model, and the layers compiled
    trainer     transformers' Trainer with its defaults, bf16
    trainer2    the same with DeepSpeed ZeRO-2, as transformers' documentation sets it up
    trainer3    the same with ZeRO-3

None of them clips gradients or accumulates them, except for the Trainer, which clips by default. All samples have the
same length in tokens; a classifier's are padded to it. Without a GPU all run in fp32 on gloo, uncompiled, which only
shows that they run. The clock starts after the warm-up and is read after each window of steps, when the device has
finished.
"""
from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Callable

import common  # noqa: F401 - the path of debzero
import torch
import torch.distributed as dist
import transformers

from debzero.model.compiled import blocks
from debzero.model.folder import no_code
from debzero.train import gloo

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if CUDA else torch.device("cpu")
RATE = 3e-5
CLASSES = {"classification": "AutoModelForSequenceClassification", "causal-lm": "AutoModelForCausalLM"}


class Clock:
    """The seconds of each window of `window` steps after `warmup` steps."""

    def __init__(self, warmup: int, window: int) -> None:
        self.warmup, self.window, self.marks = warmup, window, list[float]()

    def done(self, step: int) -> None:
        """Optimizer step number `step` (from 1) has been handed to the device."""
        if step >= self.warmup and (step - self.warmup) % self.window == 0:
            if CUDA:
                torch.cuda.synchronize()
            self.marks.append(time.perf_counter())

    @property
    def seconds(self) -> list[float]:
        return [end - start for start, end in zip(self.marks, self.marks[1:])]


def load_model(options: argparse.Namespace) -> Any:
    """In fp32, on the CPU; at the Trainer's ZeRO-3 already sharded."""
    auto = getattr(transformers, CLASSES[options.task])
    width = "dtype" if int(transformers.__version__.split(".")[0]) >= 5 else "torch_dtype"
    return auto.from_pretrained(options.model, use_safetensors=True, **no_code(), **{width: torch.float32})


def load_data(options: argparse.Namespace) -> dict[str, torch.Tensor]:
    """This rank's samples, int64[rows, length]: a classifier's are debzero's own rows, padded. Those of a language
    model are random tokens: the speed does not depend on them."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    if options.task == "causal-lm":
        size = transformers.AutoConfig.from_pretrained(options.model, **no_code()).vocab_size
        ids = torch.randint(size, (4 * options.micro_batch, options.length), generator=torch.manual_seed(rank))
        return {"input_ids": ids, "labels": ids}
    with open(options.data / "train.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))[rank::ranks]
    tokenizer = transformers.AutoTokenizer.from_pretrained(options.model, **no_code())
    data = tokenizer([row["text"] for row in rows], padding="max_length", truncation=True, max_length=options.length,
                     return_tensors="pt")
    return {**data, "labels": torch.tensor([int(row["label"][1:]) for row in rows])}


def batches(data: dict[str, torch.Tensor], size: int, steps: int) -> Iterator[dict[str, torch.Tensor]]:
    """`steps` shuffled batches of exactly `size` rows; an epoch's remainder is dropped (torch.compile wants one
    shape)."""
    order = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        if len(order) < size:
            order = torch.randperm(len(data["labels"]))
        chosen, order = order[:size].to(DEVICE), order[size:]
        yield {name: tensor[chosen] for name, tensor in data.items()}


def loop(options: argparse.Namespace, model: Any, context: Callable[[], Any]) -> Clock:
    """Train a model that all ranks share in some way. `context`: what the forward pass runs in."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, **({"fused": True} if CUDA else {}))
    data = {name: tensor.to(DEVICE) for name, tensor in load_data(options).items()}
    clock = Clock(options.warmup, options.window)
    for step, batch in enumerate(batches(data, options.micro_batch, options.steps), 1):
        with context():
            loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        clock.done(step)
    return clock


def ddp(options: argparse.Namespace) -> Clock:
    model: Any = load_model(options).to(DEVICE).train()
    if dist.get_world_size() > 1:
        model = torch.nn.parallel.DistributedDataParallel(model, device_ids=[DEVICE.index] if CUDA else None,
                                                          gradient_as_bucket_view=True)
    return loop(options, torch.compile(model) if CUDA else model,
                lambda: torch.autocast("cuda", torch.bfloat16) if CUDA else nullcontext())


def fsdp2(options: argparse.Namespace) -> Clock:
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    model: Any = load_model(options).train()  # fully_shard moves each part, so no GPU ever holds the whole
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16) if CUDA else MixedPrecisionPolicy()
    for layer in blocks(model):
        if CUDA:
            layer.compile()
        fully_shard(layer, mp_policy=policy)
    fully_shard(model, mp_policy=policy)
    return loop(options, model, nullcontext)


def zero(stage: int) -> dict[str, Any]:
    """DeepSpeed's JSON as transformers' documentation has it for ZeRO-2 and 3, without offload; the optimizer is the
    Trainer's, because DeepSpeed's would have to be compiled."""
    sharding: dict[str, Any] = {"stage": stage, "overlap_comm": CUDA, "contiguous_gradients": True}
    if stage == 2:
        sharding.update(allgather_partitions=True, allgather_bucket_size=2e8, reduce_scatter=True,
                        reduce_bucket_size=2e8)
    else:
        sharding.update(sub_group_size=1e9, reduce_bucket_size="auto", stage3_prefetch_bucket_size="auto",
                        stage3_param_persistence_threshold="auto", stage3_max_live_parameters=1e9,
                        stage3_max_reuse_distance=1e9, stage3_gather_16bit_weights_on_model_save=True)
    return {"bf16": {"enabled": "auto"}, "zero_optimization": sharding, "gradient_clipping": "auto",
            "gradient_accumulation_steps": "auto", "train_batch_size": "auto",
            "train_micro_batch_size_per_gpu": "auto", "steps_per_print": 10**6}


def trainer(options: argparse.Namespace, stage: int = 0) -> Clock:
    clock = Clock(options.warmup, options.window)
    if stage:
        import deepspeed

        # The Trainer does so on GPUs alone.
        deepspeed.init_distributed("nccl" if CUDA else "gloo", auto_mpi_discovery=False)

    class Timer(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            clock.done(state.global_step)

    arguments = transformers.TrainingArguments(
        str(options.result.with_suffix("")), per_device_train_batch_size=options.micro_batch, bf16=CUDA,
        max_steps=options.steps, save_strategy="no", report_to=[], disable_tqdm=True, logging_steps=options.steps + 1,
        learning_rate=RATE, **({"deepspeed": zero(stage)} if stage else {}), **({} if CUDA else {"use_cpu": True}))
    model, data = load_model(options), load_data(options)  # in this order: the arguments let ZeRO-3 shard the model
    table = [{name: tensor[row] for name, tensor in data.items()} for row in range(len(data["labels"]))]
    transformers.Trainer(model=model, args=arguments, train_dataset=table, callbacks=[Timer()]).train()
    return clock


PROGRAMS: dict[str, Callable[[argparse.Namespace], Clock]] = {
    "ddp": ddp, "fsdp2": fsdp2, "trainer": trainer, "trainer2": lambda options: trainer(options, 2),
    "trainer3": lambda options: trainer(options, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", choices=PROGRAMS)
    parser.add_argument("--model", required=True)
    parser.add_argument("--task", choices=CLASSES, required=True)
    parser.add_argument("--data", type=Path, required=True)
    for number in ("length", "micro-batch", "warmup", "window", "windows"):
        parser.add_argument(f"--{number}", type=int, required=True)
    parser.add_argument("--result", type=Path, required=True)
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0)  # from DeepSpeed's launcher
    options = parser.parse_args()
    options.steps = options.warmup + options.window * options.windows
    torch.manual_seed(42)
    if CUDA:
        torch.cuda.set_device(DEVICE)
    dist.init_process_group("nccl" if CUDA else "gloo")
    if not CUDA:
        gloo.complete()
        if not hasattr(torch.cpu, "set_device"):  # torch before 2.1, whose CPU the Trainer cannot choose
            torch.cpu.device_count, torch.cpu.set_device = (lambda: 1), (lambda device: None)
    clock = PROGRAMS[options.program](options)
    peak = torch.cuda.max_memory_allocated() if CUDA else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    peaks = torch.zeros(dist.get_world_size(), dtype=torch.float64, device=DEVICE)
    peaks[dist.get_rank()] = peak
    dist.all_reduce(peaks)
    samples = options.window * options.micro_batch * dist.get_world_size()
    if dist.get_rank() == 0:
        options.result.write_text(json.dumps({"windows": [samples / seconds for seconds in clock.seconds],
                                              "memory_bytes": [int(peak) for peak in peaks.tolist()]}))
    dist.destroy_process_group()  # its threads may abort a process that ends without


if __name__ == "__main__":
    main()
