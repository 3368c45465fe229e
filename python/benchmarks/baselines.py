#!/usr/bin/env python3
"""The programs that `make bench-gpu` compares debzero with, each in its own process: one GPU, every pair padded to 128.

    hf       transformers' Trainer with its defaults, bf16, 64 samples a step
    plain    a short loop in PyTorch: torch.compile, bf16 autocast, fused AdamW, no clipping; its data is on the GPU
             from the start
    article  the tutorial's settings in plain PyTorch: fp16 autocast with a loss scale, micro-batch 8 with 4
             accumulation steps

Without a GPU, for a smoke test, all of them run in fp32 on the CPU, uncompiled. The clock starts after the untimed
steps. At both ends it waits until the device has finished.
"""
from __future__ import annotations

import argparse
import csv
import json
import resource
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from common import samples_done
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from debzero.model.folder import no_code

MAX_LENGTH, BATCH, MICRO, ACCUMULATION = 128, 64, 8, 4
CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")


class Clock:
    """Seconds from step `first` to step `last`, with the device's work in them done."""

    def __init__(self, first: int, last: int) -> None:
        self.first, self.last = first, last
        self.started, self.seconds = 0.0, 0.0

    def done(self, step: int) -> None:
        """Optimizer step number `step` (from 1) has been handed to the device."""
        if step in (self.first, self.last):
            if CUDA:
                torch.cuda.synchronize()
            now = time.perf_counter()
            self.started, self.seconds = now, now - self.started


def load(options: argparse.Namespace) -> tuple[Any, dict[str, torch.Tensor]]:
    """The model, and the training pairs as padded tensors, int64[rows, 128] and labels int64[rows]."""
    with open(options.data / "train.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    tokenizer = AutoTokenizer.from_pretrained(options.model, **no_code())
    data = tokenizer([row["sentence1"] for row in rows], [row["sentence2"] for row in rows], padding="max_length",
                     truncation=True, max_length=MAX_LENGTH, return_tensors="pt")
    labels = torch.tensor([int(row["label"]) for row in rows])
    model = AutoModelForSequenceClassification.from_pretrained(
        options.model, num_labels=2, use_safetensors=True, **no_code())
    return model, {**data, "labels": labels}


def batches(data: dict[str, torch.Tensor], size: int, steps: int) -> Any:
    """`steps` shuffled batches of exactly `size` rows; an epoch's remainder is dropped (torch.compile wants one
    shape)."""
    rows = len(data["labels"])
    order = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        if len(order) < size:
            order = torch.randperm(rows, device="cpu")
        chosen, order = order[:size].to(DEVICE), order[size:]
        yield {name: tensor[chosen] for name, tensor in data.items()}


def hf(options: argparse.Namespace) -> tuple[Clock, int]:
    from transformers import Trainer, TrainerCallback, TrainingArguments

    model, data = load(options)
    rows = len(data["labels"])
    clock = Clock(options.untimed_steps, options.steps)

    class Timer(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            clock.done(state.global_step)

    arguments = TrainingArguments(str(options.result.with_suffix("")), per_device_train_batch_size=BATCH, bf16=CUDA,
                                  max_steps=options.steps, save_strategy="no", report_to=[], use_cpu=not CUDA,
                                  disable_tqdm=True)
    table = [{name: tensor[row] for name, tensor in data.items()} for row in range(rows)]
    Trainer(model=model, args=arguments, train_dataset=table, callbacks=[Timer()]).train()
    return clock, samples_done(options.steps, rows, BATCH) - samples_done(options.untimed_steps, rows, BATCH)


def plain(options: argparse.Namespace) -> tuple[Clock, int]:
    model, data = load(options)
    model.to(DEVICE).train()
    run = torch.compile(model) if CUDA else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-5, **({"fused": True} if CUDA else {}))
    clock = Clock(options.untimed_steps, options.steps)
    data = {name: tensor.to(DEVICE) for name, tensor in data.items()}
    for step, batch in enumerate(batches(data, BATCH, options.steps), 1):
        with torch.autocast("cuda", torch.bfloat16) if CUDA else nullcontext():
            loss = run(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        clock.done(step)
    return clock, (options.steps - options.untimed_steps) * BATCH


def article(options: argparse.Namespace) -> tuple[Clock, int]:
    model, data = load(options)
    model.to(DEVICE).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-5)
    scaler = (getattr(torch.amp, "GradScaler", None) or torch.cuda.amp.GradScaler)(enabled=CUDA)  # by torch
    clock = Clock(options.untimed_steps, options.steps)
    data = {name: tensor.to(DEVICE) for name, tensor in data.items()}
    for number, batch in enumerate(batches(data, MICRO, options.steps * ACCUMULATION), 1):
        with torch.autocast("cuda", torch.float16) if CUDA else nullcontext():
            loss = model(**batch).loss / ACCUMULATION
        scaler.scale(loss).backward()
        if number % ACCUMULATION == 0:
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            clock.done(number // ACCUMULATION)
    return clock, (options.steps - options.untimed_steps) * MICRO * ACCUMULATION


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", choices=["hf", "plain", "article"])
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--untimed-steps", type=int, required=True)
    parser.add_argument("--result", type=Path, required=True)
    options = parser.parse_args()
    torch.manual_seed(42)
    clock, samples = {"hf": hf, "plain": plain, "article": article}[options.program](options)
    peak = torch.cuda.max_memory_allocated() if CUDA else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    options.result.write_text(json.dumps({
        "samples_per_second": samples / clock.seconds,
        "step_ms": 1000 * clock.seconds / (options.steps - options.untimed_steps), "peak_memory_bytes": [peak],
        "device": torch.cuda.get_device_name() if CUDA else "CPU"}))


if __name__ == "__main__":
    main()
