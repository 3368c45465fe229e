"""`debzero plan`: what a job will need for each way to shard and offload it, before a GPU is touched or a weight is there."""
from __future__ import annotations

import copy
import importlib.metadata
import importlib.util
import inspect
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Optional

from debzero.activations import Curve
from debzero.base.errors import InputError, Problem, unsaid
from debzero.deepspeed_json.reader import read_deepspeed
from debzero.deepspeed_json.view import as_meant
from debzero.job import batch as batches
from debzero.job.reader import parse
from debzero.job.schema import Job
from debzero.memory import CONTEXT, Memory, Model, Setting, predict
from debzero.model import tasks
from debzero.model.checks import model_problems
from debzero.resolve import deepspeed_config
from debzero.resolve.host import Host, this_host
from debzero.resolve.micro_batch import is_fixed, with_micro
from debzero.resolve.resolve import Plan, resolve
from debzero.shapes import Shapes

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
# Where neither the command line nor this host says otherwise: two A100, as in the article that this kit began with.
ARTICLE = {"gpus": 2, "gpu_memory": 40 * 2**30, "ram": 256 * 2**30, "nvme": 2 * 2**40}
STEPS = 1000  # the schedule's, which takes no memory


class Choice(NamedTuple):
    """One way to train; in CHOICES each next one talks more to the other ranks, the host or the disk."""

    stage: int
    optimizer: str = "none"
    param: str = "none"

    def __str__(self) -> str:
        moved = [f"{part} {device}" for part, device in (("optim", self.optimizer), ("params", self.param)) if device != "none"]
        return ", ".join(["plain DDP" if not self.stage else f"ZeRO-{self.stage}", *moved])


def choice_of(plan: Plan) -> Choice:
    """The job's own."""
    return Choice(plan.stage, plan.job.zero.offload_optimizer, plan.job.zero.offload_param)


CHOICES = [Choice(0), Choice(1), Choice(2), Choice(3), Choice(1, "cpu"), Choice(2, "cpu"), Choice(3, "cpu"), Choice(3, "cpu", "cpu"),
           Choice(3, "nvme", "cpu"), Choice(3, "nvme", "nvme")]


@dataclass(frozen=True)
class Hardware:
    """What there is, in bytes; `words` says where each number comes from."""

    gpus: int
    gpu_memory: int
    ram: int
    nvme: int
    bf16: bool
    words: str


@dataclass(frozen=True)
class Row:
    """A choice, and what it comes to."""

    choice: Choice
    micro: int           # the job's; where that is auto, the largest that fits
    accumulation: int
    memory: Memory
    host: int            # bytes, all ranks together
    nvme: int
    lacks: list[str]     # what there is too little of
    largest_micro: int   # 0: not even one sample fits

    def as_dict(self) -> dict[str, Any]:
        memory = asdict(self.memory)
        return {"stage": self.choice.stage or "none", "offload_optimizer": self.choice.optimizer, "offload_param": self.choice.param,
                "micro_batch": self.micro, "accumulation": self.accumulation, "peak_bytes": memory["peak"],
                "peak_phase": memory["phase"], "parts": memory["parts"], "phases": memory["phases"],
                "context_bytes": CONTEXT, "device_bytes": memory["device"], "ram_bytes": self.host, "nvme_bytes": self.nvme,
                "fits": not self.lacks, "lacks": self.lacks, "largest_micro_batch": self.largest_micro}


def size(text: str) -> int:
    """Bytes of 40G, 256GiB, 1.5T or 123: powers of 1024, as GPUs and memory are sold."""
    found = re.fullmatch(r"(\d{1,15}(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if not found:
        raise ValueError(f"must be a size such as 40G or 2T, not {text[:40]!r}")
    return int(float(found[1]) * UNITS[found[2].upper()])


def hardware(gpus: Optional[int], sizes: dict[str, Optional[str]]) -> tuple[Hardware, list[Problem]]:
    """What the command line says, else this host's where it has GPUs, else the article's box."""
    import torch

    given: dict[str, int] = {}
    problems = []
    for name, text in sizes.items():
        if text is None:
            continue
        try:
            given[name] = size(text)
            if name == "gpu_memory" and not given[name]:
                raise ValueError("must be more than nothing")
        except ValueError as error:
            option = f"--{name.replace('_', '-')}"
            problems.append(Problem("the command line", option, str(error), f"for example {option} 40G"))
    host = this_host()
    values, words = dict(ARTICLE), "the article's, as this host has no GPU"
    if host.gpus:
        import psutil

        memory = min(torch.cuda.get_device_properties(number).total_memory for number in range(host.gpus))
        values = {"gpus": host.gpus, "gpu_memory": memory, "ram": psutil.virtual_memory().total, "nvme": 0}
        words = "this host's"
    said = {**given, **({"gpus": gpus} if gpus else {})}
    if said:
        named = ", ".join(f"--{name.replace('_', '-')}" for name in values if name in said)
        words = f"as given by {named}" + (f"; the rest {words}" if len(said) < len(values) else "")
    return Hardware(**{**values, **said}, bf16=host.bf16 or not host.gpus, words=words), problems


def _variant(job: Job, config: Optional[dict[str, Any]], choice: Choice) -> tuple[Job, Optional[dict[str, Any]]]:
    """The job and the user's DeepSpeed JSON with another choice in them."""
    # Where the job names no disk, any path will do: nothing is written.
    update = {"stage": choice.stage or "none", "offload_optimizer": choice.optimizer, "offload_param": choice.param,
              "nvme_path": job.zero.nvme_path or "/"}
    if config is not None:
        config = as_meant(copy.deepcopy(config))
        section = config.get("zero_optimization")
        for key in ("stage", "offload_optimizer", "offload_param"):
            if isinstance(section, dict):
                section.pop(key, None)
        if not choice.stage:
            config = None  # the baseline knows no DeepSpeed
    return job.model_copy(update={"zero": job.zero.model_copy(update=update)}), config


def _setting(plan: Plan, hidden: int) -> Setting:
    import torch

    zero: dict[str, Any] = {}
    if plan.uses_deepspeed:
        zero = deepspeed_config.generate(plan, hidden, STEPS, plan.job.zero.nvme_path or "/")["zero_optimization"]
    return Setting(plan.stage, plan.batch.ranks, plan.batch.micro, plan.batch.accumulation, plan.precision, zero,
                   fused="fused" in inspect.signature(torch.optim.AdamW).parameters, release=_deepspeed())


def _deepspeed() -> tuple[int, int]:
    """The installed release, else the one that debzero installs."""
    try:
        version = importlib.metadata.version("deepspeed")
    except importlib.metadata.PackageNotFoundError:
        from debzero.base.stack import stack

        version = str(stack()["deepspeed"])
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


def _compiles(plan: Plan) -> bool:
    """What engine.py does: layers are compiled by the torch releases that speed.can_compile names, but in stage 3."""
    import torch

    release = tuple(int(part) for part in torch.__version__.split(".")[:2])
    return plan.job.train.compile == "auto" and plan.stage < 3 and release >= (2, 4) and importlib.util.find_spec("triton") is not None


class Planner:
    """A job on some hardware. The traces, which take most of the time, are made once for each kind."""

    def __init__(self, job: Job, config: Optional[dict[str, Any]], hardware: Hardware, file: str, shapes: Shapes) -> None:
        self.job, self.config, self.hardware, self.file, self.shapes = job, config, hardware, file, shapes
        self.model: Model = shapes.model()
        self.curves: dict[tuple[str, bool], Curve] = {}

    def plan(self, choice: Optional[Choice]) -> Plan:
        """The job with this choice, or its own."""
        job, config = _variant(self.job, self.config, choice) if choice else (self.job, self.config)
        return resolve(job, Host(self.hardware.gpus, self.hardware.bf16), None, self.file, config)

    def memory(self, plan: Plan) -> Memory:
        compiled = _compiles(plan)
        kind = plan.precision if plan.uses_deepspeed or plan.precision == "fp32" else f"autocast {plan.precision}"
        if (kind, compiled) not in self.curves:
            self.curves[kind, compiled] = self.shapes.curve(kind, compiled)
        return predict(self.model, self.curves[kind, compiled], _setting(plan, self.shapes.hidden), compiled)

    def choices(self) -> list[Choice]:
        """CHOICES, and the job's own where it is none of them."""
        own = choice_of(self.plan(None))
        return CHOICES + [own] * (own not in CHOICES)

    def row(self, choice: Choice) -> Row:
        plan = self.plan(choice)
        largest = self._largest(plan)
        if largest and plan.job.train.micro_batch == "auto":  # as fit.at_start does
            plan = with_micro(plan, largest)
        memory = self.memory(plan)
        return Row(choice, plan.batch.micro, plan.batch.accumulation, memory, memory.host * plan.batch.ranks,
                   memory.nvme * plan.batch.ranks, self._lacks(memory, plan.batch), largest)

    def _lacks(self, memory: Memory, batch: batches.Batch) -> list[str]:
        there = self.hardware
        sharing = -(-batch.ranks // there.gpus)  # ranks on one GPU
        needs = {"GPU memory": (memory.device * sharing, there.gpu_memory), "RAM": (memory.host * batch.ranks, there.ram),
                 "NVMe": (memory.nvme * batch.ranks, there.nvme)}
        return [name for name, (need, have) in needs.items() if need > have]

    def _largest(self, own: Plan) -> int:
        """The largest micro-batch that fits and keeps the global batch: a divisor of a rank's share of it."""
        batch = own.batch
        sizes = [batch.micro] if is_fixed(own) else reversed(batches.divisors(batch.total // batch.ranks))
        for micro in sizes:
            plan = with_micro(own, micro)
            if not self._lacks(self.memory(plan), plan.batch):
                return micro
        return 0


def recommend(rows: list[Row]) -> tuple[Optional[Row], str]:
    """The choice that fits with the least communication, and why it is that one."""
    fitting = [row for row in rows if not row.lacks]
    if fitting:
        first, earlier = fitting[0], rows[:rows.index(fitting[0])]
        why = "it fits, and nothing has to be sharded or offloaded" if not earlier else (
            f"it talks the least of those that fit: {earlier[-1].choice} lacks {' and '.join(earlier[-1].lacks)}")
        return first, why
    smaller = [row for row in rows if row.largest_micro]
    if smaller:
        return smaller[0], f"only with a smaller micro-batch: set train.micro_batch to {smaller[0].largest_micro} or less"
    return None, "not even one sample at a time fits in any way: use more or larger GPUs, more RAM or NVMe, or a smaller model"


def plan(path: Path, gpus: Optional[int], sizes: dict[str, Optional[str]], config: Optional[Path], as_json: bool) -> int:
    """The command. `sizes`: the texts of --gpu-memory, --ram and --nvme."""
    there, problems = hardware(gpus, sizes)
    job, wrong = parse(path)
    problems += wrong
    shapes = None
    if job is not None:
        settings, found = read_deepspeed(job, str(path))
        found += tasks.problems(job, str(path))
        try:
            resolve(job, Host(there.gpus, there.bf16), None, str(path), settings)
        except InputError as error:
            found += error.problems
        # A folder or a hub's model is Shapes' to judge, which wants less of it than a training does.
        if config is None and isinstance(job.model, dict):
            found += model_problems(job, str(path))
        if not any(p.key.startswith("model") for p in found):
            try:
                shapes = Shapes(job, str(path), config)
            except InputError as error:
                found += error.problems
        problems += unsaid(found, wrong)
    if problems or job is None or shapes is None:
        raise InputError(problems)
    try:
        planner = Planner(job, settings, there, str(path), shapes)
        rows = [planner.row(choice) for choice in planner.choices()]
    except InputError:
        raise
    except Exception as error:  # anybody's model may come, and its code is run as it is
        raise InputError([Problem(str(path), "model", f"{shapes.name} cannot be followed: {type(error).__name__}: {error}",
                                  "plan a model of a usual architecture; `debzero tune` measures any")]) from error
    best, why = recommend(rows)
    if as_json:
        print(json.dumps({
            "ok": True, "job": str(path), "model": {"parameters": planner.model.total, **shapes.facts()}, "notes": shapes.notes,
            "hardware": asdict(there), "precision": planner.plan(CHOICES[0]).precision, "ranks": planner.plan(CHOICES[0]).batch.ranks,
            "choices": [row.as_dict() for row in rows],
            "recommended": {**best.as_dict(), "why": why} if best else {"why": why}}, indent=2))
    else:
        print("\n".join(_text(planner, rows, best, why)))
    return 0


def _gib(value: float) -> str:
    return f"{value / 2**30:.2f}" if value < 100 * 2**30 else f"{value / 2**30:.0f}"


def _text(planner: Planner, rows: list[Row], best: Optional[Row], why: str) -> Iterator[str]:
    """The table for people, at most 100 columns wide."""
    there, first = planner.hardware, planner.plan(CHOICES[0])
    train = first.job.train
    yield (f"{planner.shapes.name}: {planner.model.total / 1e6:.1f} M parameters, {first.precision}, sequences of "
           f"{first.job.data.max_length} tokens" + (", gradient checkpointing" if train.gradient_checkpointing else ""))
    yield (f"  global batch {first.batch.total} on {first.batch.ranks} rank{'s' if first.batch.ranks > 1 else ''}, each way with the "
           "largest micro-batch that fits" if train.micro_batch == "auto" and not is_fixed(planner.plan(None)) else f"  {first.batch}")
    yield (f"  on {there.gpus} GPU{'s' if there.gpus > 1 else ''} of {_gib(there.gpu_memory)} GiB, {_gib(there.ram)} GiB RAM, "
           f"{_gib(there.nvme)} GiB NVMe")
    yield f"  ({there.words})"
    yield from (f"  note: {note}" for note in planner.shapes.notes)
    yield ""
    yield "GiB per rank at the peak; host RAM and NVMe of all ranks together"
    yield (f"{'':<34}{'param':>6}{'grad':>6}{'optim':>7}{'activ':>7}{'buffer':>7}{'temp':>6}{'peak':>7}{'RAM':>6}{'NVMe':>6}"
           f"{'micro':>6}")
    for row in rows:
        parts = row.memory.parts
        mark = "*" if best is row else " " if not row.lacks else "x"
        yield (f"{mark} {row.choice!s:<32}{_gib(parts['parameters']):>6}{_gib(parts['gradients']):>6}{_gib(parts['optimizer']):>7}"
               f"{_gib(parts['activations']):>7}{_gib(parts['buffers']):>7}{_gib(parts['temporary']):>6}{_gib(row.memory.peak):>7}"
               f"{row.host / 2**30:>6.0f}{row.nvme / 2**30:>6.0f}{row.largest_micro:>6}")
    yield ""
    yield "x: does not fit. micro: the largest micro-batch that fits. The peak is the allocator's; the device"
    yield f"needs {_gib(rows[0].memory.device - rows[0].memory.peak)} GiB more for {rows[0].choice} (CUDA context, NCCL, fragments)."
    yield ""
    yield f"Recommended: {best.choice}, {why}" if best else f"Nothing fits: {why}"
    if best:
        lines = {"stage": best.choice.stage or "none", "offload_optimizer": best.choice.optimizer, "offload_param": best.choice.param}
        yield "  zero: {" + ", ".join(f"{key}: {value}" for key, value in lines.items() if key == "stage" or value != "none") + "}"
