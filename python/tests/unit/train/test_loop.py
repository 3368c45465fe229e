"""Real runs: two processes, gloo, the pinned torch and DeepSpeed, on the CPU."""
import json
import os
import subprocess
import sys
import tempfile
import textwrap
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
from support import POWERLESS, SOURCE, rows

from debzero.data import tokens
from debzero.resolve import deepspeed_config
from debzero.train import torch_imports

# Summing gradients in another order is all that differs between stages, in fp32; over some dozen steps it stays this
# small.
TOLERANCE = 2e-4

STAGES = {
    "none": {},
    "one": {"zero__stage": 1},
    "two": {"zero__stage": 2},
    "three": {"zero__stage": 3},
    "native-one": {"zero__stage": 1, "zero__engine": "native"},
    "native-two": {"zero__stage": 2, "zero__engine": "native"},
}
OFFLOADED = {
    "two-offloaded": {"zero__stage": 2, "zero__offload_optimizer": "cpu"},
    "three-offloaded": {"zero__stage": 3, "zero__offload_optimizer": "cpu"},
}


@pytest.fixture(scope="session")
def runs(trained):
    """Each stage's report, trained when first asked for."""
    made = {}

    def run(name):
        if name not in made:
            made[name] = trained.train(name, **{**STAGES, **OFFLOADED}[name])
        return made[name]

    return run


def compare(trained, runs, name):
    baseline, report = runs("none"), runs(name)
    assert report["world_size"] == 2
    ours, theirs = np.array(trained.losses(name)), np.array(trained.losses("none"))
    assert len(ours) == report["steps"] == baseline["steps"] > 10
    assert np.abs(ours - theirs).max() < TOLERANCE
    assert theirs[-1] < 0.6 * theirs[0], "the baseline must have learned something"
    assert report["accuracy"] == pytest.approx(baseline["accuracy"], abs=0.03)


@pytest.mark.parametrize("name", [name for name in STAGES if name != "none"])
def test_each_stage_has_the_loss_curve_of_plain_ddp(trained, runs, name):
    compare(trained, runs, name)


@pytest.mark.prebuilt
@pytest.mark.parametrize("name", list(OFFLOADED))
def test_offloading_keeps_the_loss_curve(trained, runs, name):
    compare(trained, runs, name)


@pytest.mark.parametrize("name", list(STAGES))
def test_plain_transformers_gives_the_reported_accuracy(trained, runs, name):
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    report = runs(name)
    folder = trained.output(name) / "model"
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.config.id2label == {0: "animal", 1: "tool"}
    held_out = tokens.read(next((trained.output(name) / "data").glob("tokenised-*")) / "held_out", limit=16)
    right = 0
    for start, length, label in zip(held_out.offsets, held_out.lengths, held_out.labels):
        text = tokenizer.decode(held_out.ids[start : start + length].tolist(), skip_special_tokens=True)
        with torch.no_grad():
            right += int(model(**tokenizer(text, return_tensors="pt")).logits.argmax()) == label
    assert right / len(held_out) == pytest.approx(report["accuracy"])
    assert report["accuracy"] > report["majority_accuracy"]


def test_stage_3_never_holds_much_more_than_two_layers(bench):
    """DeepSpeed's prefetching would gather the whole model before the backward pass begins."""
    path = bench.job(zero__stage=3, train__max_steps=3, model__num_hidden_layers=12, model__max_position_embeddings=16)
    done = bench.run("--job", path, module=("-c", textwrap.dedent("""
        import os

        os.environ.update(OMP_NUM_THREADS="1", DS_ACCELERATOR="cpu", LOCAL_SIZE="2", WORLD_SIZE="2")
        import deepspeed

        from debzero.train import engine_zero, loop, rank, setup

        class Spied(engine_zero.ZeroEngine):
            def __init__(self, model, *others):
                super().__init__(model, *others)
                weights = [p for p in self.model.parameters() if not p.ds_persist]

                def look(*_):
                    self.most = max(self.most, sum(p.data.numel() for p in weights))

                for module in self.model.modules():
                    module.register_forward_hook(look)
                self.all = sum(p.ds_numel for p in weights)

            def step(self, *given):
                self.most = 0
                loss = super().step(*given)
                os.write(1, f"gathered {self.most} {self.all}\\n".encode())  # whole, beside the other rank's
                return loss

        setup.ZeroEngine = Spied
        number = str(int(os.fork() == 0))  # both ranks share the imports
        os.environ.update(RANK=number, LOCAL_RANK=number)
        rank.main()
    """)), DEBZERO_MEETING=tempfile.mkdtemp(dir=bench.folder))
    assert done.returncode == 0, done.stdout + done.stderr
    counts = [tuple(map(int, line.split()[1:])) for line in done.stdout.splitlines() if line.startswith("gathered")]
    assert len(counts) == 6
    hidden, embeddings = 32, (200 + 16) * 32
    for most, whole in counts[2:]:  # the first step shows DeepSpeed the order, which prefetching follows
        assert 0 < most <= deepspeed_config.LIVE * hidden**2 + embeddings < whole / 2


def test_torchs_loggers_keep_their_names():
    """They are named in a quicker way; torch's own takes seconds of each start."""
    from torch.distributed.elastic.utils import logging

    slowly = logging.get_logger().name
    torch_imports.speed_up_imports()
    assert logging.get_logger().name == slowly == __name__


def test_a_finished_job_is_not_trained_twice_and_status_shows_it(trained, runs):
    runs("two")
    before = (trained.output("two") / "report.json").stat().st_mtime_ns
    again = trained.quick("train", trained.folder / "two.yml")
    assert again.returncode == 0 and "accuracy" in again.stdout
    assert (trained.output("two") / "report.json").stat().st_mtime_ns == before
    shown = trained.run("status", trained.folder / "two.yml", "--json")
    assert json.loads(shown.stdout)["state"] == "finished"


def test_the_outcome_of_another_job_in_the_same_folder_is_kept(bench):
    first = bench.train(train__max_steps=2)
    path = bench.job(train__max_steps=2, train__seed=7)
    second = bench.quick("train", path)
    assert second.returncode == 0, second.stdout
    assert f"the run that was in {bench.output()} is now in {bench.output()}/archive/" in second.stdout
    kept = list((bench.output() / "archive").glob("*/report.json"))
    assert len(kept) == 1
    assert json.loads(kept[0].read_text())["samples_per_second"] == first["samples_per_second"]


def test_deepspeeds_own_launcher_works_with_deepspeeds_own_json(bench):
    """The article's launch line: deepspeed --num_gpus=N SCRIPT --deepspeed CONFIG."""
    config = bench.folder / "deepspeed_config.json"
    config.write_text(json.dumps({"train_batch_size": 16, "gradient_accumulation_steps": "auto",
                                  "zero_optimization": {"stage": 1}, "fp16": {"enabled": "auto"}}))
    done = bench.run("--num_gpus=2", "--master_port=29533", SOURCE / "train.py", "--deepspeed", config, "--job",
                     bench.job(train__epochs=1), LOCAL_SIZE="2",
                     module=("-c", "from deepspeed.launcher.runner import main; main()"),
                     PATH=f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}")
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((bench.output() / "report.json").read_text())
    assert (report["world_size"], report["zero_stage"]) == (2, 1)
    assert report["train_samples"] == 400  # four fifths of the rows
    assert report["steps"] == 400 // 16


def test_two_runs_cannot_share_a_folder(bench):
    from debzero.run.folder import RunFolder

    job = bench.job()
    RunFolder(str(bench.output())).lock()
    done = bench.quick("train", job)
    assert done.returncode == 2
    assert str(os.getpid()) in done.stderr and "output" in done.stderr


def test_a_full_disk_is_named_and_nothing_half_written_stays(bench):
    """On a real file system of four megabytes."""
    disk = bench.output("full")
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], check=True)
    try:
        refused = bench.quick("train", bench.job("full", model__hidden_size=64, model__intermediate_size=1024,
                                                 model__num_hidden_layers=2))
        assert refused.returncode == 2 and "MiB free" in refused.stderr, refused.stdout + refused.stderr
        # Small enough for the estimate of the checkpoints; but the data, tokenised, fills the disk.
        (bench.folder / "rows.csv").write_text(rows(120_000))
        done = bench.quick("train", bench.job("full"))
        assert done.returncode == 1, done.stdout + done.stderr
        assert "is full" in done.stderr and "Traceback" not in done.stderr
        assert not list((disk / "data").glob("tokenised-*")) and not (disk / "model").exists()
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_hub_that_cannot_be_reached_is_named(bench):
    """The hub's library tries again and again, with pauses that are cut short here."""
    (bench.folder / "sitecustomize.py").write_text(
        "import time\nsleep = time.sleep\ntime.sleep = lambda seconds: sleep(min(seconds, 0.05))\n")
    job = bench.job(model="nobody/such-model", ranks=1)
    done = bench.run("train", job, HF_HUB_OFFLINE="0", HF_ENDPOINT="http://127.0.0.1:9",
                     PYTHONPATH=os.pathsep.join(map(str, [bench.folder, SOURCE])))
    assert done.returncode == 1
    assert "hub" in done.stderr and "local folder" in done.stderr and "Traceback" not in done.stderr


def test_an_output_that_may_not_be_written_is_named(bench):
    closed = bench.folder / "closed"
    closed.mkdir(mode=0o555)
    done = bench.run("check", bench.job(output=str(closed / "out")), through=POWERLESS)
    assert done.returncode == 2
    assert "may not write" in done.stderr and "install -d" in done.stderr


def test_a_gather_that_returns_is_done(bench):
    """DeepSpeed starts several and waits for the last alone, which orders them on NCCL's one stream; gloo has two
    threads."""
    script = textwrap.dedent(f"""
        import os, time
        import torch
        import torch.distributed as dist
        from debzero.train.gloo import all_gather_into_tensor

        read, write = os.pipe()
        child = os.fork()
        rank = 0 if child else 1
        dist.init_process_group("gloo", init_method="file://{bench.folder}/store", rank=rank, world_size=2)
        time.sleep(rank)  # one of the ranks comes a second late
        output = torch.full((4,), float("nan"))
        all_gather_into_tensor(output, torch.full((2,), float(rank)), async_op=True)
        assert output.tolist() == [0, 0, 1, 1], output
        os.close(write)
        if child:
            assert os.waitpid(child, 0)[1] == 0
        else:
            os.read(read, 1)  # its end would cut off what the other has not received yet
            os._exit(0)  # an interpreter that ends may meet gloo's threads, which then abort it
    """)
    done = bench.run(module=("-c", script))
    assert done.returncode == 0, done.stderr


def test_a_step_that_cannot_be_recorded_leaves_the_gradients_as_they_were(monkeypatch):
    """What a recording made was never computed: the next step would add to it."""
    import torch

    from debzero.model.compiled import StepGraphs

    weight = torch.nn.Parameter(torch.ones(1))
    sums, said = [], []

    def work(batch, weights):
        (weight * batch["x"].sum()).backward()
        sums.append(weight.grad.item())
        return weight.detach()

    def record(self, *_):
        weight.grad = torch.full((1,), float("nan"))
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(StepGraphs, "_record", record)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    graphs = StepGraphs([weight], said.append)
    for _ in range(3):
        graphs.run(work, {"x": torch.ones(2)}, torch.ones(1))
    assert sums == [2.0, 4.0, 6.0], "gradients that accumulate are kept"
    assert said == ["runs without CUDA graphs from here on, which is slower: "
                    "operation not permitted when stream is capturing more"]


def test_a_recording_begins_when_the_device_has_nothing_left_to_do(monkeypatch):
    """What the step before sent would stay in memory: all gradients once more."""
    import torch

    from debzero.model.compiled import StepGraphs

    done = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: done.append("waited"))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(pool=lambda: 0, replay=lambda: None))
    monkeypatch.setattr(torch.cuda, "graph", lambda *_, **__: nullcontext())
    monkeypatch.setattr(torch.Tensor, "clone", lambda tensor: (done.append("allocated"), tensor.detach())[1])
    graphs = StepGraphs([], print)
    for _ in range(2):
        graphs.run(lambda batch, weights: done.append("worked") or weights, {"x": torch.ones(2)}, torch.ones(1))
    assert done == ["worked", "waited", "allocated", "allocated", "worked", "allocated"]


def test_the_masks_of_transformers_do_not_depend_on_whether_a_step_is_recorded(monkeypatch):
    """They did: a layer got a mask, for which it was not compiled, in a recording alone."""
    import types

    from debzero.model import compiled

    masks = types.ModuleType(compiled.MASKS[0])
    masks.is_tracing = lambda tensor=None: False
    masks.find_packed_sequence_indices = list
    monkeypatch.setitem(sys.modules, compiled.MASKS[0], masks)
    with compiled.one_kind_of_mask():
        assert masks.is_tracing([1]) and not masks.is_tracing() and not masks.is_tracing(None)
        assert masks.find_packed_sequence_indices([0, 1]) is None
    assert not masks.is_tracing([1]) and masks.find_packed_sequence_indices is list
