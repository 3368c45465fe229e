"""The native engine's checkpoints are DeepSpeed's: where its shares lie in the files, fp16's loss scale, whole runs."""
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from running import end, start, step_of, wait_for

from debzero.run.reshard import deal_parameters
from debzero.train import native_checkpoint
from debzero.train.native_checkpoint import SCALE, Places, Stage3, overlaps


def flat_parts(parameters, ranks):
    """Each rank's part of the flat tensor, as DeepSpeed cuts it: a multiple of 2 elements a rank."""
    flat = torch.cat([parameter.reshape(-1) for parameter in parameters])
    return torch.nn.functional.pad(flat, (0, -len(flat) % (2 * ranks))).view(ranks, -1)


@pytest.mark.parametrize("sizes", [[3], [5, 1, 8], [40, 2, 2, 7], [1, 1, 1, 1, 1]])
@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("kind", [Places, Stage3])
def test_a_bucket_finds_its_elements_in_the_flat_tensors(monkeypatch, sizes, ranks, kind):
    monkeypatch.setattr(dist, "get_world_size", lambda: ranks)
    numbers = torch.arange(1.0, sum(sizes) + 1)
    parameters = list(numbers.split(sizes))
    split = len(parameters) // 2
    groups = [parameters[:split], parameters[split:]] if kind is Stage3 and split else [parameters]
    places = [kind(group) for group in groups]
    parts = [flat_parts(group, ranks) if kind is Places else deal_parameters(
        [torch.cat(group)], list(map(len, group)), ranks) for group in groups]
    assert [place.part for place in places] == [len(part[0]) for part in parts]
    # Of stage 3 a bucket has parameters of both groups; of stages 1 and 2 the last parameters come first.
    for chosen in (parameters[1::2], parameters[::2]) if kind is Stage3 else (parameters[split:], parameters[:split]):
        chosen, starts, end = chosen[::-1], [], 0
        for parameter in chosen:
            starts.append(end)
            end += -(-len(parameter) // 4) * 4
        bucket = SimpleNamespace(parameters=chosen, starts=starts, share=-(-end // (8 * ranks)) * 8)
        found = torch.zeros(bucket.share * ranks)
        for own in range(ranks):
            held = range(own * bucket.share, (own + 1) * bucket.share)
            for rank in range(ranks):
                for number, target, source in overlaps(places, bucket, held, rank):
                    found[held.start:held.stop][target] = parts[number][rank][source]
        wanted = torch.zeros_like(found)
        for parameter, start_ in zip(chosen, starts):
            wanted[start_:start_ + len(parameter)] = parameter
        assert found.tolist() == wanted.tolist()


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
@pytest.mark.parametrize(("before", "after", "ranks", "stage"), [
    ("native", "native", 2, 3), ("native", "deepspeed", 2, 2), ("deepspeed", "native", 1, 3),
    *(pytest.param(*case, marks=pytest.mark.long) for case in (
        ("native", "native", 2, 2), ("native", "deepspeed", 2, 3), ("deepspeed", "native", 1, 2)))])
def test_either_engine_resumes_from_the_others_checkpoints(trained, before, after, ranks, stage):
    whole, name = f"whole-{before}-{stage}", f"{before}-{after}-{stage}"
    calm = {"train__epochs": 4, "train__log_every": 5, "zero__stage": stage, "model__num_hidden_layers": 2}  # 52 steps
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
