"""The predicted memory of each engine, against the papers and the engines' own rules."""
from dataclasses import replace

import numpy as np
import pytest

from debzero.plan.activations import Curve
from debzero.plan.memory import WORKSPACES, ParameterCounts, Setting, predict
from debzero.resolve.native import BUCKET, IN_FLIGHT

MODEL = ParameterCounts(decayed=(10**6,) * 100, others=(1000,) * 100, buffers_bytes=0, largest_layer=10**6, hidden=1000)
NOTHING = Curve(np.zeros(3), np.zeros(3), np.array([0.0, 0.0, MODEL.total]), 1)


def setting(stage, ranks=4, **changes):
    zero = {"stage": stage, "reduce_bucket_size": 10**6, "overlap_comm": False, "stage3_max_reuse_distance": 0,
            "stage3_prefetch_bucket_size": 0, "stage3_param_persistence_threshold": 0} if stage else {}
    return Setting(stage, ranks, 1, 1, "bf16", {**zero, **changes.pop("zero", {})}, **changes)


@pytest.mark.parametrize(("stage", "weights", "states"),
                         [(0, 4, 8), (1, 2, 12 / 4), (2, 2, 12 / 4), (3, 2 / 4, 12 / 4)])
def test_the_states_are_those_of_the_zero_paper(stage, weights, states):
    found = predict(MODEL, NOTHING, setting(stage))
    assert found.parts_bytes["parameters"] == pytest.approx(weights * MODEL.total, rel=0.01)
    assert found.parts_bytes["optimizer"] == pytest.approx(states * MODEL.total, rel=0.01)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_parts_are_the_peak_and_every_phase_is_below_it(stage):
    found = predict(MODEL, NOTHING, setting(stage))
    assert sum(found.parts_bytes.values()) == pytest.approx(found.peak_bytes, abs=10)
    assert found.phases_bytes[found.phase] == found.peak_bytes == max(found.phases_bytes.values())
    assert found.device_bytes > found.peak_bytes


def test_offloading_moves_the_states_off_the_gpu_and_says_where():
    here = predict(MODEL, NOTHING, setting(2))
    cpu = predict(MODEL, NOTHING, setting(2, zero={"offload_optimizer": {"device": "cpu", "pin_memory": False}}))
    assert cpu.parts_bytes["optimizer"] == 0 and cpu.peak_bytes < here.peak_bytes
    assert here.ram_bytes == here.nvme_bytes == 0
    assert 16 * MODEL.total / 4 <= cpu.ram_bytes <= 20 * MODEL.total / 4
    nvme = predict(MODEL, NOTHING, setting(3, zero={"offload_optimizer": {"device": "nvme"}}))
    assert nvme.nvme_bytes == pytest.approx(16 * MODEL.total / 4, rel=0.01)


def test_stage_3_gathers_as_much_as_it_may_ahead():
    """Prefetching runs ahead: with DeepSpeed's own limit of 1e9 elements, all of a small model is whole when the
    backward pass begins."""
    zero = {"stage3_prefetch_bucket_size": 1, "stage3_max_live_parameters": 10**9}
    layers = np.linspace(0.0, MODEL.total, 101)
    curve = Curve(np.zeros(101), np.zeros(101), layers, 1)
    without, whole, limited = (predict(MODEL, curve, setting(3, **changes)).phases_bytes["backward"] for changes in (
        {}, {"zero": zero}, {"zero": {**zero, "stage3_max_live_parameters": 10**7}}))
    assert whole - without == pytest.approx(2 * MODEL.total, rel=0.02)
    assert limited - without == pytest.approx(2 * 10**7, rel=0.02)


def test_accumulation_keeps_gradients_through_the_forward_pass():
    once, twice = (predict(MODEL, NOTHING, Setting(0, 4, 1, steps, "bf16", {})) for steps in (1, 2))
    assert twice.phases_bytes.get("forward", 0) > once.phases_bytes.get("forward", 0)


@pytest.mark.parametrize("steps", [1, 2])
def test_plain_training_takes_the_same_on_every_number_of_gpus(steps):
    one, four = (predict(MODEL, NOTHING, Setting(0, ranks, 1, steps, "bf16", {})) for ranks in (1, 4))
    assert one == four and one.phases_bytes["step"] == 16 * MODEL.total + WORKSPACES


def test_the_native_engine_gathers_one_layer_after_the_other_at_stage_3():
    model = replace(MODEL, layers=80 * 10**6, layer=10**6)
    root = model.total - model.layers
    complete = np.linspace(0.0, model.total, 101)
    found = predict(model, Curve(np.zeros(101), np.zeros(101), complete, 1), Setting(3, 4, 1, 1, "bf16", {}))
    sent = IN_FLIGHT * 10**6 * (1 + 1 / 4)
    gradients = root + 10**6 + sent
    assert found.phases_bytes["backward"] == pytest.approx(
        18 / 4 * model.total + 2 * (root + 2 * 10**6 + gradients) + WORKSPACES, rel=0.01)
    assert found.phases_bytes["reduce"] == pytest.approx(
        18 / 4 * model.total + 2 * (root + (root + 10**6) * (1 + 1 / 4)) + WORKSPACES, rel=0.01)
    whole = predict(replace(model, layers=0, layer=0), NOTHING, Setting(3, 4, 1, 1, "bf16", {}))
    assert whole.peak_bytes > found.peak_bytes, "a model without repeated layers is gathered whole"


@pytest.mark.parametrize("stage", [1, 2])
def test_the_native_engine_holds_a_share_of_the_states_and_a_few_buckets(stage):
    layers = np.linspace(0.0, MODEL.total, 101)
    curve = Curve(np.zeros(101), np.zeros(101), layers, 1)
    found = predict(MODEL, curve, Setting(stage, 4, 1, 1, "bf16", {}))
    assert found.parts_bytes["parameters"] == pytest.approx(2 * MODEL.total, rel=0.01)
    assert found.parts_bytes["optimizer"] == pytest.approx(12 / 4 * MODEL.total, rel=0.01)
    buckets = 2 * BUCKET * (1 + IN_FLIGHT * (1 + 1 / 4))
    assert found.parts_bytes["gradients"] + found.parts_bytes["buffers"] == pytest.approx(
        4 / 4 * MODEL.total + buckets + WORKSPACES, rel=0.01)
    more = predict(MODEL, curve, Setting(stage, 4, 1, 2, "bf16", {}))
    kept = more.phases_bytes["step"] - found.phases_bytes["step"]
    assert kept == pytest.approx(2 * MODEL.total if stage == 1 else 0, abs=10), "stage 1 sums whole gradients"
