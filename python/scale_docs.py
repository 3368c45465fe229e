#!/usr/bin/env python3
"""Write docs/scale.md: what `debzero plan --hosts` predicts, beside what was measured.

Its figures depend on the installed releases of torch and DeepSpeed, so run it with the pinned ones. With --check
nothing is written: if the page is stale, the exit code is 1.
"""
from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Optional

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "python" / "src"), str(ROOT / "python" / "benchmarks")]

import gpus  # noqa: E402
import gpus_page  # noqa: E402
import link  # noqa: E402

from debzero.job.batch import Batch  # noqa: E402
from debzero.job.schema import Job  # noqa: E402
from debzero.model import flops, settings  # noqa: E402
from debzero.plan import rates  # noqa: E402
from debzero.plan.collectives import Cluster  # noqa: E402
from debzero.plan.divided import DividedMemory  # noqa: E402
from debzero.plan.layouts import label  # noqa: E402
from debzero.plan.model_shapes import PUBLISHED, Shapes  # noqa: E402
from debzero.plan.rates import link_text  # noqa: E402
from debzero.plan.scale import Prediction, Scale  # noqa: E402
from debzero.plan.scale_table import fastest  # noqa: E402
from debzero.plan.site import Options, find_site  # noqa: E402
from debzero.plan.step_time import Case, Engine, Work  # noqa: E402
from debzero.resolve.deepspeed_config import BUCKET, FAST_BUCKET, FAST_STAGE3, LIVE  # noqa: E402
from debzero.resolve.layout import Layout  # noqa: E402

PAGE, BENCHMARKS = ROOT / "docs" / "scale.md", ROOT / "docs" / "benchmarks"
GPUS, LINK, DEVICE = (8, 64, 256, 1024), "400G", "H100"
BETWEEN = link_text(rates.parse_link(LINK))
SIZES = {"gpu_memory": "80G", "ram": "2T", "nvme": "0"}


class Model(NamedTuple):
    """A model, and how it is trained: `batch` samples a GPU and step of `length` tokens."""

    title: str
    config: Any  # of the job's key `model`
    task: str
    length: int
    batch: int
    checkpointing: bool


MODELS = (
    Model("BERT-Large", "bert-large-uncased", "classification", 128, 64, False),
    Model("GPT-2 XL", "gpt2-xl", "causal-lm", 1024, 16, True),
    # Brown et al. 2020, "Language Models are Few-Shot Learners", table 2.1
    Model("GPT-3 with 7 billion parameters", {
        "type": "gpt2", "vocab_size": 50257, "n_embd": 4096, "n_layer": 32, "n_head": 32,
        "n_positions": 2048}, "causal-lm", 2048, 16, True),
)


def predictions(model: Model) -> Iterator[tuple[int, Scale, dict[str, Prediction]]]:
    """Of each number of GPUs."""
    shapes: Optional[Shapes] = None
    divided: dict[tuple[int, int], DividedMemory] = {}
    for count in GPUS:
        columns = {"text": ["sentence"], "label": "label"} if model.task == "classification" else {"text": ["text"]}
        job = Job.model_validate({
            "model": model.config, "task": model.task, "output": "out",
            "data": {"dataset": "data", "max_length": model.length, **columns},
            "train": {"global_batch": model.batch * count, "precision": "bf16",
                      "gradient_checkpointing": model.checkpointing}})
        if shapes is None:  # tracing the model takes most of the time, and the batch does not matter to it
            shapes = Shapes(job, "scale.yml", None)
            shapes.curve = functools.cache(shapes.curve)
        shapes.job = job
        site, problems = find_site(Options(count // 8, 8, link=LINK, device=DEVICE, sizes=SIZES))
        assert not problems
        scale = Scale(shapes, None, site, "scale.yml", divided)
        yield count, scale, {each.label: each for each in scale.predictions()}


def of_model(model: Model) -> Iterator[str]:
    found = list(predictions(model))
    scale = found[0][1]
    yield f"### {model.title}"
    yield ""
    yield (f"{scale.shapes.counts.total / 1e6:.0f} M parameters, sequences of {model.length} tokens, bf16, "
           f"{model.batch} samples a GPU and step" + (", gradient checkpointing." if model.checkpointing else "."))
    yield ""
    yield "| layout | " + " | ".join(f"{count} GPUs" for count, _, _ in found) + " |"
    yield "| --- |" + " --- |" * len(found)
    for name in dict.fromkeys(name for _, _, each in found for name in each):
        yield f"| {name} | " + " | ".join(cell(each.get(name)) for _, _, each in found) + " |"
    yield ""
    yield "The fastest that fits:"
    yield ""
    yield "| GPUs | layout | step | samples/s | link that hides communication | checkpoint, best interval | lost |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for count, _, each in found:
        best = fastest(list(each.values()))
        yield f"| {count} | {summary(best)} |" if best else f"| {count} | nothing fits | | | | | |"
    yield ""


def cell(one: Optional[Prediction]) -> str:
    """A layout's samples per second and GPU, and the share of the step in which the GPU computes."""
    if one is None:
        return "-"
    if not one.fits:
        return "does not fit"
    shown = f"{rate(one.samples_per_second / one.case.cluster.ranks)} ({one.case.step().efficiency:.0%})"
    return shown if one.trains else f"*{shown}*"


def rate(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def summary(one: Prediction) -> str:
    smallest, cost = one.case.smallest_link(), one.checkpoint
    asked = "-" if one.case.cluster.hosts == 1 else link_text(smallest) if smallest else "none does"
    return " | ".join([one.label, f"{1000 * one.case.step().total:.0f} ms", rate(one.samples_per_second), asked,
                       f"{cost.seconds:.0f} s, every {cost.best_interval / 60:.0f} min", f"{cost.lost_share:.2%}"])


def over_a_link() -> Iterator[str]:
    """The table of link.json."""
    results = json.loads((BENCHMARKS / "link.json").read_text())
    yield "| stage | link | alone | measured | predicted | predicted / measured |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for each in link.predicted_seconds(results):
        yield (f"| {each.label} | {each.bits_per_second / 1e6:.0f} Mbit/s | "
               f"{each.alone:.2f} s | {each.measured:.2f} s | {each.predicted:.2f} s | {each.ratio:.2f}"
               f"{'' if each.is_close else ' (!)'} |")


class GpuCase(NamedTuple):
    """A training on H200s in bf16. `model`: a name of PUBLISHED; `batch`: the global one; `speed`: samples per
    second; `recorded`: its steps were CUDA graphs, else they waited for the processor; `engine`: deepspeed or
    native."""

    source: str
    model: str
    stage: int
    ranks: int
    micro: int
    batch: int
    speed: float
    recorded: bool = False
    sets_constant: bool = False
    engine: str = "deepspeed"
    favour: str = "memory"
    tensor: int = 1
    pipeline: int = 1

    @property
    def layout(self) -> Layout:
        return Layout(self.ranks // self.tensor // self.pipeline, self.tensor, self.pipeline)

    @property
    def label(self) -> str:
        name = label(self.stage, self.layout)
        who = "" if not self.stage else " of DeepSpeed" if self.engine == "deepspeed" else " of debzero"
        return name + who + (", favour: speed" if self.favour == "speed" else "")

    @property
    def measured(self) -> float:
        """Seconds of a step."""
        return self.batch / self.speed

    def predicted(self) -> float:
        """The same as plan predicts it for the releases that were measured."""
        known, length, task = PUBLISHED[self.model], LENGTHS[self.model], TASKS[self.model]
        config = settings.from_scratch({**known, "num_labels": 2})
        seconds = flops.per_sample(config, float(length), task) / (rates.peak_share(task) * flops.peak("H200", "bf16"))
        by_deepspeed = self.stage > 0 and self.engine == "deepspeed"
        launching = TENSORS[self.model] * rates.launching(
            self.layout, self.stage if by_deepspeed else 0, self.favour)
        work = Work(COUNTS[self.model], flops.layers(config), config.hidden_size, length, seconds,
                    0.0 if self.recorded else launching, False,
                    config.vocab_size * config.hidden_size if rates.predicts_tokens(task) else 0, ROOTS[self.model])
        bucket = FAST_BUCKET if self.favour == "speed" else BUCKET
        live = FAST_STAGE3["stage3_max_live_parameters"] if self.favour == "speed" else LIVE * config.hidden_size**2
        zero = {"overlap_comm": True, "reduce_bucket_size": bucket, "stage3_max_live_parameters": live}
        cluster = Cluster(1, self.ranks, 1.0, rates.local_rate("H200"), rates.HOP, rates.LOCAL_HOP)
        copies = self.layout.data
        batch = Batch(self.batch, self.micro, self.batch // self.micro // copies, copies)
        engine = Engine(self.stage, 2, zero if by_deepspeed else {}, divided=self.layout.each > 1)
        return Case(self.layout, work, engine, batch, cluster).step().total

    @property
    def is_close(self) -> bool:
        return abs(self.predicted() / self.measured - 1) <= link.WITHIN

    @property
    def fits_constant(self) -> bool:
        """Whether a constant is made from it, so that it does not test the prediction."""
        return self.sets_constant or not self.recorded


LARGE, MEDIUM, XL = "bert-large-uncased", "gpt2-medium", "gpt2-xl"
LENGTHS, TASKS = {LARGE: 128, MEDIUM: 512, XL: 512}, {LARGE: "classification", MEDIUM: "causal-lm", XL: "causal-lm"}
COUNTS = {LARGE: 335_143_938, MEDIUM: 354_823_168, XL: 1_557_611_200}
ROOTS = {LARGE: 32_834_562, MEDIUM: 52_513_792, XL: 82_052_800}  # of them outside the repeated layers
TENSORS = {LARGE: 16, MEDIUM: 12, XL: 12}  # of a layer
SERIES = "an earlier series"
# Samples per second that debzero had in that series on two H200s, by model, micro-batch and stage; accumulation 1.
IN_SERIES = {(LARGE, 64, 0): 930, (LARGE, 64, 1): 888, (LARGE, 64, 2): 705, (LARGE, 64, 3): 190,
             (MEDIUM, 16, 0): 272, (MEDIUM, 16, 2): 218, (XL, 8, 3): 14.6}
# What of gpus-2.json sets the share of the peak (plan/rates).
SETTING = {(XL, "native3")}


def gpu_cases() -> Iterator[GpuCase]:
    """All that debzero was measured to train on one GPU or more."""
    row = json.loads((BENCHMARKS / "speed-h200.json").read_text())["rows"]["max_length"]
    yield GpuCase("speed-h200.json", LARGE, 0, 1, 64, 64, row["samples_per_second"], True, True)
    for trial in json.loads((BENCHMARKS / "tune.json").read_text())["trials"]:
        if trial["stage"] == "none":
            micro = trial["micro_batch"]
            yield GpuCase("tune.json", LARGE, 0, 1, micro, 64, trial["samples_per_second"], micro == 64)
    for file, ranks, micro in (("bert-large-1.json", 1, 64), ("article-2-deepspeed.json", 2, 8)):
        for one in json.loads((BENCHMARKS / file).read_text())["configurations"]:
            stage, speed = 0 if one["stage"] == "none" else one["stage"], one["summary"]["samples_per_second"]["median"]
            yield GpuCase(file, LARGE, stage, ranks, micro, 64, speed, not stage and ranks == 1)
    for (model, micro, stage), speed in IN_SERIES.items():
        yield GpuCase(SERIES, model, stage, 2, micro, 2 * micro, speed)
    for count in (2, 4):
        yield from of_series(f"gpus-{count}.json")


def of_series(file: str) -> Iterator[GpuCase]:
    """debzero's padded cells of a series of python/benchmarks/gpus.py. (Buckets have many lengths.)"""
    cells = json.loads((BENCHMARKS / file).read_text())["cells"]
    for name, row in sorted(cells.items()):
        ranks, model, padding, who = name.split("/")
        if padding != "padded" or who not in gpus.OURS or "runs" not in row:
            continue
        zero, parts, ours = gpus.ZERO.get(who, {"stage": "none"}), gpus.DIVIDED.get(who, {}), gpus.KINDS[model].micro
        native = zero.get("engine") == "native"
        yield GpuCase(file, model, 0 if zero["stage"] == "none" else zero["stage"], int(ranks),
                      gpus.micro_batch(ours, parts), ours * int(ranks), gpus_page.speed(row),
                      not parts and (native or who == "none"), (model, who) in SETTING,
                      "native" if native else "deepspeed", zero.get("favour", "memory"), **parts)


def on_gpus() -> Iterator[str]:
    """The table of these cases."""
    yield "| measured in | model, engine, ranks x micro-batch | measured | predicted | predicted / measured |"
    yield "| --- | --- | --- | --- | --- |"
    for case in gpu_cases():
        mark = ("" if case.is_close else " (!)") + (", fits a constant" if case.fits_constant else "")
        yield (f"| {case.source} | {case.model}, {case.label}, {case.ranks} x {case.micro} | "
               f"{1000 * case.measured:.0f} ms | {1000 * case.predicted():.0f} ms | "
               f"{case.predicted() / case.measured:.2f}{mark} |")


HEAD = """# Toward thousands of GPUs

`debzero plan JOB --hosts N` predicts how fast a job trains over many hosts, in each layout, before anybody has them:

```sh
debzero plan mrpc.yml --hosts 16 --gpus 8 --link 200G --device H100 --gpu-memory 80G
debzero plan mrpc.yml --hosts 2 --gpus 1 --link 1G --device cpu --samples-per-second 3.5    # ranks on processors
```

This page compares it with measurements, then shows it for three models. `python/scale_docs.py` writes it from the code
and from [the measured results](benchmarks/README.md); a test fails where it is stale.

How it predicts (the formulas and their sources are in `plan/step_time`, `plan/collectives` and `plan/failures`):

- Computing: the model's FLOPs over the share of the GPU's peak that was measured (`--peak-share`), or what one rank was
  measured to train (`--samples-per-second`). Steps that are not recorded as CUDA graphs also wait for the processor to
  launch kernels: a measured time for each weight of a layer and micro-batch, which no other processor has exactly.
- Communication: the bytes that each engine sends, over the slowest link on their way. The backward pass hides them (at
  stage 3 both passes do), except for the last piece. Between hosts all-reduces are trees, other collectives rings.
- Divided models are debzero's own: 1F1B pipelines, which add their bubble and send hidden states in fp32 while others
  compute, and tensor parallelism within a host, whose all-reduces nothing hides. Memory is that of the first or the
  last stage. Offload to the host or to NVMe is not predicted: `debzero bench` measures it.
- Checkpoints: at Daly's interval, with one failure of a host in 264 days (`--mtbf`), which is Llama 3's rate, and a
  disk that takes 1 GiB/s of each host (`--disk`).

## Measured
"""
LINK_TEXT = """
### Two ranks over a slow link

`link.json`: a BERT of 36 M parameters in fp32 over gloo, one thread a rank, in two network namespaces whose link `tc`
limits. `plan` was given what one rank trains alone (the slower of two that train at the same time), and what an
all-reduce reaches over the link as the engine sends it: plain DDP sends many tensors, which gloo copies into one and
back. The ranks had two cores before anything else. (!): more than 25 % off.
"""
LINK_NOTES = """
All depends on what a rank trains alone: measured while the cores were busy with other work, it put pipelines 95 % off
and ZeRO-3 50 %. ZeRO-3 sends less than 3(n-1)/n P (plan/step_time).
"""
GPU_TEXT = """
### One, two and four GPUs

Models in bf16 on H200s with torch 2.11: BERT-Large on pairs padded to 128 tokens, GPT-2 on 512 tokens. The raw results
of the earlier series were not kept. (!): more than 25 % off. Steps that are not recorded as CUDA graphs wait for the
processor, and one constant for each engine is fitted to them: these rows say how far hosts and models differ, and
where an engine has one row it agrees by construction. The other rows test the prediction.
"""
GPU_NOTES = """
Why one is off: plain DDP was torch's DistributedDataParallel there, with a global batch in four micro-batches. debzero
has since come to average gradients itself and to record such steps (gpus-2.json, gpus-4.json). Pipelines and
tensor parallelism were measured with two models, once each. Several hosts with GPUs have never been measured.
"""
PREDICTED = f"""
## Predicted

**Nothing below was measured.** Hosts have eight {DEVICE}s with 80 GB and NVLink, and {BETWEEN} between them. The
releases are the pinned ones, which record no CUDA graphs, so small models wait for the processor most of all. A cell
has the samples per second and GPU, and the share of the step in which the GPU computes. Tensor and pipeline layouts
shard the optimizer among their copies, as ZeRO-1 does; debzero trains them on one host so far, so those over several
are on paper (*in italics*) and are not among the fastest. Communication counts as hidden where at most 5 % of a step
waits for it; where no link does that, the links within a host or the latency take more.
"""


def page() -> str:
    lines = [HEAD, *LINK_TEXT.splitlines()[1:], "", *over_a_link(), *LINK_NOTES.splitlines(),
             *GPU_TEXT.splitlines(), "", *on_gpus(), *GPU_NOTES.splitlines(), *PREDICTED.splitlines(), ""]
    for model in MODELS:
        lines += of_model(model)
    return "\n".join(lines).rstrip() + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only say whether the page is stale")
    check, text = parser.parse_args().check, page()
    stale = not PAGE.is_file() or PAGE.read_text() != text
    if check and stale:
        print(f"{PAGE.relative_to(ROOT)} is stale: run `make docs`", file=sys.stderr)
    elif stale:
        PAGE.write_text(text)
    return int(check and stale)


if __name__ == "__main__":
    sys.exit(main())
