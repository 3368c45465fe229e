#!/usr/bin/env python3
"""The other side of `make bench-train`: fine-tuning as a DeepSpeed tutorial shows it, with its bugs fixed so that it
runs.

What such a script does is kept: every pair padded to max_length in a `datasets` table of tensors, torch's DataLoader,
micro-batch 8 with 4 accumulation steps, ZeRO-2 through deepspeed.initialize with a JSON, `engine(**batch)`,
`engine.backward`, `engine.step`, then an evaluation after each epoch. What had to be fixed: the sampler is sharded and
knows the epoch (else all ranks train on the same rows, in the same order each time), offload_param is gone (stage 2 has
none), and fp16 is off (a CPU has none). debzero.train.gloo gives DeepSpeed the two collectives that it lacks on a CPU.
Nothing is offloaded: there is no GPU to offload from. The speed is that of the training loop, after its first steps and
without the evaluation.
"""
from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import datasets
import deepspeed
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, DistributedSampler
from transformers import AutoModelForSequenceClassification, AutoTokenizer, set_seed

from debzero.model.folder import no_code
from debzero.train import gloo

MICRO_BATCH, ACCUMULATION, MAX_LENGTH = 8, 4, 128


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of the model and its tokenizer")
    parser.add_argument("--data", type=Path, required=True, help="folder with train.csv and validation.csv")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--learning-rate", type=float, default=3e-5)
    parser.add_argument("--warmup-steps", type=int, default=10, help="of the learning rate")
    parser.add_argument("--decay", action="store_true",
                        help="let the learning rate fall to zero after them (WarmupDecayLR)")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--untimed-steps", type=int, default=10, help="optimizer steps before the clock starts")
    parser.add_argument("--result", type=Path, required=True, help="JSON to write")
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0)
    return parser.parse_args()


def deepspeed_config(options: argparse.Namespace, steps: int) -> dict:
    rate = {"warmup_min_lr": 0, "warmup_max_lr": options.learning_rate, "warmup_num_steps": options.warmup_steps,
            "warmup_type": "linear"}
    return {
        "train_batch_size": MICRO_BATCH * ACCUMULATION * dist.get_world_size(),
        "gradient_accumulation_steps": ACCUMULATION,
        "optimizer": {"type": "AdamW",
                      "params": {"lr": options.learning_rate, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.01,
                                 "torch_adam": True}},
        "scheduler": ({"type": "WarmupDecayLR", "params": {**rate, "total_num_steps": steps}} if options.decay else
                      {"type": "WarmupLR", "params": rate}),
        "gradient_clipping": 1.0,
        "zero_optimization": {"stage": 2, "contiguous_gradients": True},
        "steps_per_print": 2000,
    }


def tokenised(folder: Path, tokenizer: object) -> datasets.DatasetDict:
    files = {split: str(folder / f"{split}.csv") for split in ("train", "validation")}
    rows = datasets.load_dataset("csv", data_files=files, cache_dir=str(folder / "cache"), **no_code())

    def encode(batch: dict) -> dict:
        return tokenizer(batch["sentence1"], batch["sentence2"], padding="max_length", truncation=True,
                         max_length=MAX_LENGTH)

    encoded = rows.map(encode, batched=True).rename_column("label", "labels")
    encoded.set_format("torch", columns=["input_ids", "attention_mask", "token_type_ids", "labels"])
    return encoded


@torch.no_grad()
def accuracy(engine: object, loader: DataLoader, device: torch.device) -> float:
    engine.eval()
    counts = torch.zeros(2, device=device)
    for batch in loader:
        batch = {name: tensor.to(device) for name, tensor in batch.items()}
        answers = engine(**batch).logits.argmax(-1)
        counts += torch.tensor([(answers == batch["labels"]).sum(), len(answers)], device=device)
    dist.all_reduce(counts)
    return float(counts[0] / counts[1])


def main() -> None:
    options = arguments()
    dist.init_process_group("gloo")
    gloo.complete()
    deepspeed.init_distributed()
    set_seed(options.seed)
    device = torch.device("cpu")
    tokenizer = AutoTokenizer.from_pretrained(options.model, **no_code())
    if dist.get_rank() == 0:
        tokenised(options.data, tokenizer)
    dist.barrier()  # the other ranks find the rows in the cache
    data = tokenised(options.data, tokenizer)
    sampler = DistributedSampler(data["train"], seed=options.seed)
    loader = DataLoader(data["train"], batch_size=MICRO_BATCH, sampler=sampler)
    held_out = DataLoader(data["validation"], batch_size=MICRO_BATCH,
                          sampler=DistributedSampler(data["validation"], shuffle=False))

    model = AutoModelForSequenceClassification.from_pretrained(options.model, num_labels=2, use_safetensors=True,
                                                               **no_code())
    steps = options.epochs * len(loader) // ACCUMULATION
    engine, _, _, _ = deepspeed.initialize(model=model, model_parameters=model.parameters(),
                                           config=deepspeed_config(options, steps))
    seconds, samples, batches, scores = 0.0, 0, 0, []
    for epoch in range(options.epochs):
        sampler.set_epoch(epoch)
        engine.train()
        started = time.perf_counter()
        for batch in loader:
            batch = {name: tensor.to(device) for name, tensor in batch.items()}
            loss = engine(**batch).loss
            engine.backward(loss)
            engine.step()
            samples, batches = samples + len(batch["labels"]) * dist.get_world_size(), batches + 1
            if batches == options.untimed_steps * ACCUMULATION:
                started, seconds, samples = time.perf_counter(), 0.0, 0
        seconds += time.perf_counter() - started
        scores.append(accuracy(engine, held_out, device))
        if dist.get_rank() == 0:
            print(f"epoch {epoch + 1}/{options.epochs}  loss {float(loss):.4f}  held-out accuracy {scores[-1]:.4f}",
                  flush=True)
    if dist.get_rank() == 0:
        result = {"steps": engine.global_steps, "samples_per_second": samples / seconds, "accuracy": scores[-1],
                  "accuracies": scores}
        options.result.write_text(json.dumps(result))
    dist.destroy_process_group()  # its threads may abort a process that ends without


if __name__ == "__main__":
    main()
