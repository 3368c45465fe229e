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

import link  # noqa: E402

from debzero.job.batch import Batch  # noqa: E402
from debzero.job.schema import Job  # noqa: E402
from debzero.model import flops, settings  # noqa: E402
from debzero.plan import rates  # noqa: E402
from debzero.plan.collectives import Cluster  # noqa: E402
from debzero.plan.layouts import label  # noqa: E402
from debzero.plan.model_shapes import PUBLISHED, Shapes  # noqa: E402
from debzero.plan.rates import link_text  # noqa: E402
from debzero.plan.scale import Prediction, Scale  # noqa: E402
from debzero.plan.scale_table import fastest  # noqa: E402
from debzero.plan.site import Options, find_site  # noqa: E402
from debzero.plan.step_time import Case, Engine, Work  # noqa: E402
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
    Model("A model of 7 billion parameters", {
        "type": "llama", "vocab_size": 32000, "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
        "intermediate_size": 11008}, "causal-lm", 2048, 16, True),
)


def predictions(model: Model) -> Iterator[tuple[int, Scale, dict[str, Prediction]]]:
    """Of each number of GPUs."""
    shapes: Optional[Shapes] = None
    for gpus in GPUS:
        columns = {"text": ["sentence"], "label": "label"} if model.task == "classification" else {"text": ["text"]}
        job = Job.model_validate({
            "model": model.config, "task": model.task, "output": "out",
            "data": {"dataset": "data", "max_length": model.length, **columns},
            "train": {"global_batch": model.batch * gpus, "precision": "bf16",
                      "gradient_checkpointing": model.checkpointing}})
        if shapes is None:  # tracing the model takes most of the time, and the batch does not matter to it
            shapes = Shapes(job, "scale.yml", None)
            shapes.curve = functools.cache(shapes.curve)
        shapes.job = job
        site, problems = find_site(Options(gpus // 8, 8, link=LINK, device=DEVICE, sizes=SIZES))
        assert not problems
        scale = Scale(shapes, None, site, "scale.yml")
        yield gpus, scale, {each.label: each for each in scale.predictions()}


def of_model(model: Model) -> Iterator[str]:
    found = list(predictions(model))
    scale = found[0][1]
    yield f"### {model.title}"
    yield ""
    yield (f"{scale.shapes.counts.total / 1e6:.0f} M parameters, sequences of {model.length} tokens, bf16, "
           f"{model.batch} samples a GPU and step" + (", gradient checkpointing." if model.checkpointing else "."))
    yield ""
    yield "| layout | " + " | ".join(f"{gpus} GPUs" for gpus, _, _ in found) + " |"
    yield "| --- |" + " --- |" * len(found)
    for name in dict.fromkeys(name for _, _, each in found for name in each):
        yield f"| {name} | " + " | ".join(cell(each.get(name)) for _, _, each in found) + " |"
    yield ""
    yield "The fastest that fits:"
    yield ""
    yield "| GPUs | layout | step | samples/s | link that hides communication | checkpoint, best interval | lost |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for gpus, _, each in found:
        best = fastest(list(each.values()))
        yield f"| {gpus} | {summary(best)} |" if best else f"| {gpus} | nothing fits | | | | | |"
    yield ""


def cell(one: Optional[Prediction]) -> str:
    """A layout's samples per second and GPU, and the share of the step in which the GPU computes."""
    if one is None:
        return "-"
    if not one.fits:
        return "does not fit"
    return f"{rate(one.samples_per_second / one.case.cluster.ranks)} ({one.case.step().efficiency:.0%})"


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
    second; `recorded`: its steps were CUDA graphs."""

    source: str
    model: str
    stage: int
    ranks: int
    micro: int
    batch: int
    speed: float
    recorded: bool = False
    sets_constant: bool = False

    @property
    def measured(self) -> float:
        """Seconds of a step."""
        return self.batch / self.speed

    def predicted(self) -> float:
        """The same as plan predicts it for the releases that were measured."""
        known, length, task = PUBLISHED[self.model], LENGTHS[self.model], TASKS[self.model]
        config = settings.from_scratch({**known, "num_labels": 2})
        seconds = flops.per_sample(config, float(length), task) / (rates.PEAK_SHARE * flops.peak("H200", "bf16"))
        work = Work(COUNTS[self.model], flops.layers(config), config.hidden_size, length, seconds,
                    0.0 if self.recorded else rates.LAUNCHING[self.stage], False)
        zero = {"overlap_comm": True, "reduce_bucket_size": 50_000_000} if self.stage else {}
        cluster = Cluster(1, self.ranks, 1.0, rates.local_rate("H200"), rates.HOP, rates.LOCAL_HOP)
        batch = Batch(self.batch, self.micro, self.batch // self.micro // self.ranks, self.ranks)
        return Case(Layout(self.ranks), work, Engine(self.stage, 2, zero), batch, cluster).step().total

    @property
    def is_close(self) -> bool:
        return abs(self.predicted() / self.measured - 1) <= link.WITHIN


LARGE, MEDIUM, XL = "bert-large-uncased", "gpt2-medium", "gpt2-xl"
LENGTHS, TASKS = {LARGE: 128, MEDIUM: 512, XL: 512}, {LARGE: "classification", MEDIUM: "causal-lm", XL: "causal-lm"}
COUNTS = {LARGE: 335_143_938, MEDIUM: 354_823_168, XL: 1_557_611_200}
SERIES = "a series of two H200s"
# Samples per second that debzero had in that series, by model, micro-batch and stage; accumulation 1.
IN_SERIES = {(LARGE, 64, 0): 930, (LARGE, 64, 1): 888, (LARGE, 64, 2): 705, (LARGE, 64, 3): 190,
             (MEDIUM, 16, 0): 272, (MEDIUM, 16, 2): 218, (XL, 8, 3): 14.6}


def gpu_cases() -> Iterator[GpuCase]:
    """All that debzero was measured to train on one GPU or two."""
    row = json.loads((BENCHMARKS / "speed-h200.json").read_text())["rows"]["max_length"]
    yield GpuCase("speed-h200.json", LARGE, 0, 1, 64, 64, row["samples_per_second"], True, True)
    for trial in json.loads((BENCHMARKS / "tune.json").read_text())["trials"]:
        if trial["stage"] == "none":
            micro = trial["micro_batch"]
            yield GpuCase("tune.json", LARGE, 0, 1, micro, 64, trial["samples_per_second"], micro == 64, micro == 8)
    for file, ranks, micro in (("bert-large-1.json", 1, 64), ("article-2-gpus.json", 2, 8)):
        for one in json.loads((BENCHMARKS / file).read_text())["configurations"]:
            stage, speed = 0 if one["stage"] == "none" else one["stage"], one["summary"]["samples_per_second"]["median"]
            yield GpuCase(file, LARGE, stage, ranks, micro, 64, speed, not stage and ranks == 1,
                          stage > 0 and ranks == 2)
    for (model, micro, stage), speed in IN_SERIES.items():
        yield GpuCase(SERIES, model, stage, 2, micro, 2 * micro, speed)


def on_gpus() -> Iterator[str]:
    """The table of these cases."""
    yield "| measured in | model, engine, ranks x micro-batch | measured | predicted | predicted / measured |"
    yield "| --- | --- | --- | --- | --- |"
    for case in gpu_cases():
        mark = ", sets a constant" if case.sets_constant else "" if case.is_close else " (!)"
        engine = label(case.stage, Layout(case.ranks))
        yield (f"| {case.source} | {case.model}, {engine}, {case.ranks} x {case.micro} | "
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
  launch kernels: a measured time for each layer and micro-batch, which no other processor will have exactly.
- Communication: the bytes that each engine sends, over the slowest link on their way. The backward pass hides them (at
  stage 3 both passes do), except for the last piece. Between hosts all-reduces are trees, other collectives rings.
- Tensor parallelism stays within a host, and nothing hides its all-reduces. A pipeline adds its bubble, and exchanges
  gradients at the end. Offload to the host or to NVMe is not predicted: `debzero bench` measures it.
- Checkpoints: at Daly's interval, with one failure of a host in 264 days (`--mtbf`), which is Llama 3's rate, and a
  disk that takes 1 GiB/s of each host (`--disk`).

## Measured
"""
LINK_TEXT = """
### Two ranks over a slow link

`link.json`: a BERT of 36 M parameters in fp32 over gloo, one thread a rank, in two network namespaces whose link `tc`
limits. `plan` was given what one rank trains alone (the slower of two that train at the same time), and what an
all-reduce reaches over the link as the engine sends it: plain DDP sends many tensors, which gloo copies into one and
back. Both cores had other work to do as well. (!): more than 25 % off.
"""
LINK_NOTES = """
ZeRO-3 over the fastest link was faster than predicted. Its three steps were measured while the other work changed; it
may also send less than the formula says. Neither has been examined.
"""
GPU_TEXT = """
### One and two GPUs

Models in bf16 on H200s with torch 2.11: BERT-Large on pairs padded to 128 tokens, with a global batch of 64 in the
files; GPT-2 on 512 tokens. The raw results of the series were not kept. What sets one of `plan`'s constants agrees by
construction. (!): more than 25 % off.
"""
GPU_NOTES = """
Why some are off: every step of two ranks here waited for the processor, and plain DDP was torch's
DistributedDataParallel. debzero has since come to average gradients itself and to record such steps: BERT-Large then
took 45 ms ([gpus-2.json](benchmarks/gpus-2.json)). No constant is from it yet. ZeRO-1 on one GPU: two runs of that one
job differed by 23 %. ZeRO-3's constant is from smaller layers than GPT-2 XL's. Several hosts with GPUs have never been
measured.
"""
PREDICTED = f"""
## Predicted

**Nothing below was measured.** Hosts have eight {DEVICE}s with 80 GB and NVLink, and {BETWEEN} between them. The
releases are the pinned ones, which record no CUDA graphs, so small models wait for the processor most of all. A cell
has the samples per second and GPU, and the share of the step in which the GPU computes. Tensor and pipeline layouts
shard the optimizer among their copies, as ZeRO-1 does. Communication counts as hidden where at most 5 % of a step waits
for it; where no link does that, the links within a host or the latency take more.
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
