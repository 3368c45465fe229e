#!/usr/bin/env python3
"""`debzero plan` against the memory that `debzero train` really takes: each model, stage and micro-batch in a run of
its own.

Run it on a GPU host, with the Python that has debzero's libraries:

    memory.py --results memory.json                                 # all 24 cells, or those that are missing
    memory.py --results memory.json --cells bert-large-uncased/2    # only these, again
    memory.py --results memory.json --predict                       # other constants, the same measurements
    memory.py --results memory.json --show                          # the table

The models have the published sizes and random weights, and the texts are random words, so nothing is downloaded. Two
ranks share a GPU where there is one: apart from the bucket of overlapped communication, a rank's peak in the allocator
does not depend on what else uses the device. So cells also run side by side while the device has room for them. Exit
code 1: too many predictions are off.
"""
from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

SOURCE = Path(__file__).resolve().parents[1] / "src"
sys.path.insert(0, str(SOURCE))

from debzero.base.files import read_json, write_json  # noqa: E402
from debzero.check.checks import check  # noqa: E402
from debzero.measure.facts import installed  # noqa: E402
from debzero.measure.run import measure  # noqa: E402
from debzero.model.folder import no_code  # noqa: E402

STAGES = ("none", 1, 2, 3)
RANKS, STEPS = 2, 4
LIMIT = 400.0  # seconds that a cell may take
WITHIN, UNDER, SHARE = 0.10, 0.05, 0.90  # of the measured peak; of the cells


class Kind(NamedTuple):
    """A model and what it is trained on."""

    task: str
    length: int
    micros: tuple[int, int]


KINDS = {"bert-large-uncased": Kind("classification", 128, (8, 32)), "gpt2-medium": Kind("causal-lm", 512, (2, 8)),
         "t5-base": Kind("text-to-text", 256, (4, 16))}
TINY = {"bert": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
                 "vocab_size": 200},
        "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 200},
        "t5": {"d_model": 32, "d_ff": 64, "d_kv": 16, "num_layers": 2, "num_heads": 2, "vocab_size": 200}}


class Cell(NamedTuple):
    model: str
    stage: Any
    micro: int

    @property
    def name(self) -> str:
        return f"{self.model}/{self.stage}/{self.micro}"


def cells(tiny: bool) -> list[Cell]:
    return [Cell(model, stage, micro) for model, kind in KINDS.items() for micro in ((1, 2) if tiny else kind.micros)
            for stage in STAGES]


def make_model(name: str, folder: Path, tiny: bool) -> None:
    """A folder like the hub's."""
    from debzero.plan.model_shapes import PUBLISHED

    known = PUBLISHED[name]
    classes = {"bert": "AutoModelForSequenceClassification", "gpt2": "AutoModelForCausalLM",
               "t5": "AutoModelForSeq2SeqLM"}
    save_model({**known, **(TINY[known["type"]] if tiny else {})}, classes[known["type"]], folder / name)


def save_model(shape: dict[str, Any], kind: str, target: Path) -> None:
    """A model of this shape and of this class of transformers, with random weights and a tokenizer of as many words as
    it knows. One that is there already stays."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    if (target / "config.json").is_file():
        return
    part, settings = target.with_name(f"{target.name}.part"), dict(shape)
    family = settings.pop("type")
    config = transformers.AutoConfig.for_model(family, **settings)
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]",
               "eos_token": "[EOS]"}
    words = [*special.values(), *(f"w{number}" for number in range(config.vocab_size - len(special)))]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = ["input_ids", "token_type_ids", "attention_mask"] if family == "bert" else ["input_ids", "attention_mask"]
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_input_names=names, **special)
    config.pad_token_id = config.decoder_start_token_id = fast.pad_token_id
    config.bos_token_id = config.eos_token_id = fast.eos_token_id
    getattr(transformers, kind).from_config(config, **no_code()).save_pretrained(part)
    fast.save_pretrained(part)
    part.rename(target)


def make_job(cell: Cell, folder: Path, model: Path, precision: str, zero: dict[str, str], tiny: bool) -> Path:
    """The job file of one cell: every row is as long as a sample may be, so every batch is the largest. `zero`: its
    settings beside the stage, where there is one."""
    kind = KINDS[cell.model]
    length = 16 if tiny else kind.length
    folder.mkdir(parents=True)
    dice, rows = random.Random(7), (STEPS + 2) * cell.micro * RANKS
    lines = [" ".join(f"w{dice.randrange(100)}" for _ in range(2 * length)) + f",w{row % 2}" for row in range(rows)]
    (folder / "rows.csv").write_text("\n".join(["text,label", *lines]) + "\n")
    job = {"model": str(model), "task": kind.task,
           "data": {"dataset": str(folder / "rows.csv"), "held_out": 0.2, "max_length": length},
           "train": {"epochs": 1, "max_steps": STEPS, "global_batch": cell.micro * RANKS, "micro_batch": cell.micro,
                     "log_every": 1, "precision": precision},
           "zero": {"stage": cell.stage, **({} if cell.stage == "none" else zero)}, "ranks": RANKS,
           "output": str(folder / "runs" / "1" / "out")}
    path = folder / "job.yml"
    path.write_text(json.dumps(job))  # JSON is YAML
    return path


def debzero(*arguments: object) -> str:
    """What the command printed; raises RuntimeError with the end of it where it failed."""
    environment = {**os.environ,
                   "PYTHONPATH": os.pathsep.join(filter(None, [str(SOURCE), os.environ.get("PYTHONPATH")])),
                   "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-m", "debzero", *map(str, arguments)], capture_output=True, text=True,
                          env=environment)
    if done.returncode:
        raise RuntimeError(f"debzero {arguments[0]}: {(done.stdout + done.stderr).strip()[-2000:]}")
    return done.stdout


class MemoryPool:
    """Memory in bytes that cells share: a cell waits until its part is free. One that needs more than all of it runs
    alone."""

    def __init__(self, size: float) -> None:
        self.size, self.taken, self.users, self.turn = size, 0.0, 0, threading.Condition()

    def take(self, need: float) -> None:
        with self.turn:
            self.turn.wait_for(lambda: not self.users or self.taken + need <= self.size)
            self.taken, self.users = self.taken + need, self.users + 1

    def give(self, need: float) -> None:
        with self.turn:
            self.taken, self.users = self.taken - need, self.users - 1
            self.turn.notify_all()


class Bench:
    """Runs cells, and keeps each result as it comes."""

    def __init__(self, results: Path, scratch: Path, tiny: bool, precision: str, zero: dict[str, str],
                 again: bool) -> None:
        """`again`: only predict, for the host that the results are from, and what they were measured with. Raises
        SystemExit where the results' facts differ from this call's."""
        import torch

        self.results, self.scratch, self.tiny = results, scratch, tiny
        before = read_json(results)
        self.gpus = before["facts"]["gpus"] if again else torch.cuda.device_count()
        self.precision = before["facts"]["precision"] if again else precision if self.gpus else "fp32"
        self.zero = before["facts"].get("zero", {}) if again else zero
        self.found: dict[str, Any] = before.get("cells", {})
        self.facts = before.get("facts", {})
        if not again:
            self.pool = MemoryPool(0.9 * sum(torch.cuda.get_device_properties(n).total_memory for n in range(self.gpus))
                                   or 2**34)
            facts = {"gpu": torch.cuda.get_device_name(0) if self.gpus else "none", "gpus": self.gpus, **installed(),
                     "ranks": RANKS, "precision": self.precision, "zero": zero, "tiny": tiny}
            other = [name for name, value in facts.items() if self.facts and self.facts.get(name, False) != value]
            if other:
                print(f"{results}: its cells differ from this call in {', '.join(other)}: name another file",
                      file=sys.stderr)
                raise SystemExit(2)
            self.facts = {**facts, "command": shlex.join(["python", *sys.argv])}
        self.writing = threading.Lock()

    def job(self, cell: Cell) -> Path:
        folder = self.scratch / cell.name.replace("/", "-")
        shutil.rmtree(folder, ignore_errors=True)
        return make_job(cell, folder, self.scratch / cell.model, self.precision, self.zero, self.tiny)

    def predict(self, cell: Cell, job: Path) -> dict[str, Any]:
        """plan's row for the cell, as if the ranks had the GPUs that are here (without any: one for each rank)."""
        rows = json.loads(debzero("plan", job, "--json", "--gpus", self.gpus or RANKS))["choices"]
        row = next(row for row in rows if row["stage"] == cell.stage and row["offload_optimizer"] == "none")
        return {"predicted": row["peak_bytes"], "device": row["device_bytes"], "phase": row["peak_phase"],
                "parts": row["parts"], "phases": row["phases"]}

    def run(self, cell: Cell) -> None:
        started, job = time.monotonic(), self.job(cell)
        try:
            result = self.predict(cell, job)
            need = 1.2 * RANKS * result["device"]
            self.pool.take(need)
            try:
                run = measure(check(job).job, job.parent / "runs" / "1", STEPS - 1, LIMIT)
            finally:
                self.pool.give(need)
            if run.reason:
                raise RuntimeError(run.reason)
            result.update(measured=max(run.memory_bytes), peaks=run.memory_bytes)
        except (RuntimeError, OSError, KeyError, ValueError) as error:
            result = {"error": str(error)}
        self.keep(cell, {**result, "seconds": round(time.monotonic() - started, 1)})
        shutil.rmtree(job.parent, ignore_errors=True)

    def predict_again(self, cell: Cell) -> None:
        job = self.job(cell)
        self.keep(cell, {**self.found[cell.name], **self.predict(cell, job)})
        shutil.rmtree(job.parent, ignore_errors=True)

    def keep(self, cell: Cell, result: dict[str, Any]) -> None:
        with self.writing:
            self.found[cell.name] = result
            write_json(self.results, {"facts": self.facts, "cells": self.found})
            print(line(cell.name, result), flush=True)


def line(name: str, found: dict[str, Any]) -> str:
    if "measured" not in found:
        return f"{name:<30}failed: {str(found.get('error', '?')).splitlines()[-1][:200]}"
    ratio = found["predicted"] / found["measured"]
    mark = "under" if ratio < 1 - UNDER else f"more than {WITHIN:.0%} off" if abs(ratio - 1) > WITHIN else ""
    return (f"{name:<30}{found['measured'] / 2**30:>9.3f}{found['predicted'] / 2**30:>10.3f}{ratio:>8.3f}  "
            f"{found['phase']:<9}{mark}").rstrip()


def verdict(found: dict[str, Any]) -> tuple[str, bool]:
    """The sentence that the prediction is judged by."""
    ratios = [cell["predicted"] / cell["measured"] for cell in found.values() if "measured" in cell]
    failed = len(found) - len(ratios)
    near = sum(abs(ratio - 1) <= WITHIN for ratio in ratios)
    under = sum(ratio < 1 - UNDER for ratio in ratios)
    missing = max(0, len(cells(False)) - len(found))
    good = not missing and not failed and near >= SHARE * len(ratios) and not under
    return (f"{near} of {len(ratios)} cells within {WITHIN:.0%}, {under} more than {UNDER:.0%} under, {missing} "
            f"missing, {failed} failed: {'OK' if good else 'not OK'}"), good


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--results", type=Path, required=True, help="the JSON to write, and to continue")
    options.add_argument("--cells", nargs="+", metavar="PART",
                         help="only those whose model/stage/micro begins with PART; they are measured again")
    options.add_argument("--scratch", type=Path, help="a folder with 30 GB of room (default: a temporary one)")
    options.add_argument("--at-once", type=int, default=2, metavar="N",
                         help="cells side by side, memory allowing (default: 2)")
    options.add_argument("--precision", default="bf16", choices=["bf16", "fp16", "fp32"])
    options.add_argument("--engine", choices=["native", "deepspeed"], help="of ZeRO (default: debzero's choice)")
    options.add_argument("--favour", choices=["speed", "memory"], help="DeepSpeed's buffers (default: debzero's)")
    options.add_argument("--tiny", action="store_true",
                         help="tiny models, for trying this program: the numbers mean nothing")
    options.add_argument("--predict", action="store_true", help="only predict again what has been measured")
    options.add_argument("--show", action="store_true", help="only print the table of the results")
    given = options.parse_args()
    given.results.parent.mkdir(parents=True, exist_ok=True)
    print(f"{'model/stage/micro-batch':<30}{'measured':>9}{'predicted':>10}{'ratio':>8}  (GiB, of the rank that needs "
          "most)")
    if given.show:
        found = read_json(given.results).get("cells", {})
        print("\n".join(line(name, cell) for name, cell in found.items()))
    else:
        with tempfile.TemporaryDirectory(prefix="debzero-memory-") as temporary:
            bench = Bench(given.results, (given.scratch or Path(temporary)).absolute(), given.tiny, given.precision,
                          {key: value for key in ("engine", "favour") if (value := getattr(given, key))},
                          given.predict)
            found = bench.found
            measured = {name for name, cell in found.items() if "measured" in cell}
            chosen = [c for c in cells(given.tiny) if not given.cells
                      or any(c.name.startswith(part) for part in given.cells)]
            todo = [c for c in chosen
                    if (c.name in measured if given.predict else given.cells or c.name not in measured)]
            for model in dict.fromkeys(cell.model for cell in todo):
                make_model(model, bench.scratch, given.tiny)
            with ThreadPoolExecutor(max(1, given.at_once)) as pool:
                list(pool.map(bench.predict_again if given.predict else bench.run, todo))
    text, good = verdict(found)
    print(text)
    return 0 if good or given.tiny else 1


if __name__ == "__main__":
    sys.exit(main())
