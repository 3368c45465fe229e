"""The native engine's checkpoints are DeepSpeed's: where its shares lie in the files, fp16's loss scale, whole runs."""
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from running import end, start, step_of, wait_for

from debzero.train import native_checkpoint
from debzero.train.native_checkpoint import SCALE, Places


def flat_parts(parameters, ranks):
    """Each rank's part of the flat tensor, as DeepSpeed cuts it: a multiple of 2 elements a rank."""
    flat = torch.cat([parameter.reshape(-1) for parameter in parameters])
    return torch.nn.functional.pad(flat, (0, -len(flat) % (2 * ranks))).view(ranks, -1)


@pytest.mark.parametrize("sizes", [[3], [5, 1, 8], [40, 2, 2, 7], [1, 1, 1, 1, 1]])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_a_bucket_finds_its_elements_in_the_flat_tensor(monkeypatch, sizes, ranks):
    monkeypatch.setattr(dist, "get_world_size", lambda: ranks)
    numbers = torch.arange(1.0, sum(sizes) + 1)
    parameters = list(numbers.split(sizes))
    parts, places = flat_parts(parameters, ranks), Places(parameters)
    assert places.part == parts.shape[1]
    split = len(parameters) // 2
    for chosen in (parameters[split:], parameters[:split]):  # the last parameters come first
        bucket = SimpleNamespace(parameters=chosen[::-1], share=-(-sum(map(len, chosen)) // (8 * ranks)) * 8)
        found = torch.zeros(bucket.share * ranks)
        for own in range(ranks):
            held = range(own * bucket.share, (own + 1) * bucket.share)
            for rank in range(ranks):
                for target, source in places.overlaps(bucket, held, rank):
                    found[held.start:held.stop][target] = parts[rank][source]
        wanted = torch.cat(bucket.parameters) if chosen else torch.zeros(0)
        assert found[:len(wanted)].tolist() == wanted.tolist() and not found[len(wanted):].any()


def test_the_loss_scale_goes_both_ways(monkeypatch):
    from deepspeed.runtime.fp16 import loss_scaler
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler

    monkeypatch.setattr(loss_scaler.dist, "get_rank", lambda: 1)  # which logs nothing
    theirs = DynamicLossScaler(2.0**16, 2.0, 1000, 1.0, 1, False)
    for overflows in (False, True, False, False):
        theirs.update_scale(overflows)
    assert native_checkpoint._scale({"loss_scaler": theirs}) == (2.0**15, 2)
    other = SimpleNamespace(loss_scaler=DynamicLossScaler(2.0**16, 2.0, 1000, 1.0, 1, False),
                            optimizer=torch.optim.SGD([torch.zeros(1)], lr=0.5))
    state = {SCALE: (2.0**15, 2), "base_optimizer_state": {"state": {}}}
    native_checkpoint.complete(state, other)
    assert native_checkpoint._scale({"loss_scaler": other.loss_scaler}) == (2.0**15, 2)
    assert state["base_optimizer_state"]["param_groups"][0]["lr"] == 0.5


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after", "ranks"), [
    ("native", "native", 2), ("native", "deepspeed", 2), ("deepspeed", "native", 1)])
def test_either_engine_resumes_from_the_others_checkpoints(trained, before, after, ranks):
    whole, name = f"whole-{before}", f"{before}-{after}"
    calm = {"train__epochs": 4, "train__log_every": 5, "zero__stage": 2}  # 52 steps
    if not trained.output(whole).exists():
        trained.train(whole, **calm, zero__engine=before)
    process = start(trained, trained.job(name, **calm, zero__engine=before))
    wait_for(process, lambda: step_of(trained, name) >= 15)
    process.terminate()
    end(process)
    done = trained.quick("train", trained.job(name, **calm, zero__engine=after), "--ranks", str(ranks))
    assert done.returncode == 0 and "resuming from step" in done.stdout, done.stdout
    if (before, ranks) == (after, 2):
        one, other = ((trained.output(run) / "model" / "model.safetensors").read_bytes() for run in (name, whole))
        assert one == other
    assert np.abs(np.array(trained.losses(name)) - np.array(trained.losses(whole))).max() < 2e-4
