"""`zero.favour: speed`: other buffers and hooks of DeepSpeed, and the same training."""
import numpy as np
import pytest
from support import JOB, changed, plan_of

from debzero.deepspeed_json import releases
from debzero.job.schema import Job
from debzero.plan.memory import predict
from debzero.plan.model_shapes import Shapes
from debzero.plan.planner import setting_of
from debzero.resolve import deepspeed_config
from debzero.resolve.host import HostGpus
from debzero.resolve.resolve import resolve

LAYERS = {"model__num_hidden_layers": 2}
T5 = {"task": "text-to-text", "model": {"type": "t5", "vocab_size": 200, "d_model": 32, "d_ff": 64, "d_kv": 16,
                                        "num_layers": 2, "num_heads": 2, "dropout_rate": 0.0}}
GPT2 = {"model": {"type": "gpt2", "vocab_size": 200, "n_embd": 32, "n_layer": 2, "n_head": 2, "resid_pdrop": 0.0,
                  "embd_pdrop": 0.0, "attn_pdrop": 0.0}}


@pytest.mark.parametrize(("stage", "changes"), [
    *(pytest.param(stage, LAYERS, marks=pytest.mark.slow) for stage in (1, 2, 3)),
    *(pytest.param(3, changes, marks=pytest.mark.long) for changes in (
        T5, GPT2, {**LAYERS, "train__gradient_checkpointing": True}))],
    ids=["one", "two", "three", "three, T5", "three, GPT-2", "three, checkpointing"])
def test_speed_trains_as_memory_does(bench, stage, changes):
    for favour in ("memory", "speed"):  # by the environment: without a GPU the job's own word does not count
        done = bench.quick("train", bench.job(favour, zero__stage=stage, train__max_steps=4, **changes),
                           DEBZERO_FAVOUR=favour)
        assert done.returncode == 0, done.stdout + done.stderr
    memory, speed = (np.array(bench.losses(favour)) for favour in ("memory", "speed"))
    assert len(memory) == 4 and memory[-1] < memory[0]
    assert np.abs(memory - speed).max() < 1e-5


def on_gpus(stage, favour, config=None, **changes):
    """The section zero_optimization that DeepSpeed gets on a host with two GPUs."""
    job = Job.model_validate(changed(JOB, {"zero.stage": stage, "zero.favour": favour, **changes}))
    resolved = resolve(job, HostGpus(2, True), None, "job.yml", config)
    return deepspeed_config.generate(resolved, 1024, 100)["zero_optimization"]


def test_speed_takes_the_measured_prototypes_settings_and_the_users_own_json_wins():
    fast = on_gpus(3, "speed")
    assert {name: fast[name] for name in (*deepspeed_config.FAST_STAGE3, "reduce_bucket_size")} == {
        "stage3_prefetch_bucket_size": 5e7, "stage3_param_persistence_threshold": 1.1e5,
        "stage3_max_live_parameters": 1e9, "reduce_bucket_size": 1e8}
    assert fast["stage3_max_reuse_distance"] == 1e9 and on_gpus(3, "memory")["stage3_max_reuse_distance"] == 0
    assert on_gpus(2, "speed")["reduce_bucket_size"] == 2 * on_gpus(2, "memory")["reduce_bucket_size"] == 1e8
    own = {"zero_optimization": {"stage": 3, "reduce_bucket_size": 12345, "stage3_prefetch_bucket_size": "auto"}}
    mixed = on_gpus(3, "speed", own)
    assert mixed["reduce_bucket_size"] == 12345 and mixed["stage3_prefetch_bucket_size"] == 5e7


@pytest.mark.parametrize(("deepspeed", "torch", "overlaps"), [
    ("0.16.9", "2.3.0", {3}), ("0.18.9", "2.11.0", set()), ("0.19.0", "2.3.0", {1, 2, 3}),
    ("0.19.2", "2.11.0", {3}), ("0.19.3", "2.11.0", {1, 2, 3})])
def test_speed_overlaps_where_the_release_does_it_right(monkeypatch, deepspeed, torch, overlaps):
    monkeypatch.setattr(releases, "here", lambda: releases.Releases(deepspeed, torch))
    assert {stage for stage in (1, 2, 3) if on_gpus(stage, "speed")["overlap_comm"]} == overlaps


@pytest.mark.parametrize("changes", [LAYERS, T5, GPT2], ids=["BERT", "T5", "GPT-2"])
def test_every_repeated_layer_is_gathered_whole(bench, changes):
    from deepspeed.utils import get_z3_leaf_modules
    from transformers import AutoModel

    from debzero.model.compiled import blocks
    from debzero.model.settings import from_scratch
    from debzero.train.engine_zero import _gather_whole_layers

    model = AutoModel.from_config(from_scratch(plan_of(bench, **changes).job.model))
    _gather_whole_layers(model)
    assert len(blocks(model)) >= 2 and get_z3_leaf_modules(model) == blocks(model)


def test_the_plan_counts_what_stage_3_gathers_and_keeps(bench):
    found = {}
    for favour in ("memory", "speed"):
        resolved = plan_of(bench, zero__stage=3, model__num_hidden_layers=12).favouring(favour)
        shapes = Shapes(resolved.job, "job.yml", None)
        setting = setting_of(resolved, 32)
        assert setting.whole_layers == (favour == "speed")
        found[favour] = predict(shapes.counts, shapes.curve("fp32", False), setting), shapes.counts
    (small, counts), (fast, whole) = found["memory"], found["speed"]
    layer = 4 * 32 * 32 + 2 * 32 * 64 + 9 * 32 + 64  # weights, biases and norms of a layer
    assert whole == counts and counts.layer == layer > counts.largest_layer
    grown = fast.parts_bytes["buffers"] - small.parts_bytes["buffers"]
    assert grown == pytest.approx(4 * deepspeed_config.FAST_BUCKET, rel=0.01)
