"""What a rank's files hold after resharding is what DeepSpeed would have written with that many ranks."""
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from debzero.base.errors import UserError
from debzero.run import reshard, tensor_file

SHAPES = [{"a": torch.Size([3, 5]), "b": torch.Size([7])}, {"c": torch.Size([1]), "d": torch.Size([2, 2])}]


def parts(whole, ranks, zero3):
    """A group's parameters as DeepSpeed deals them to its ranks: in stage 3 each by itself, below all in a row."""
    pieces = list(whole.values()) if zero3 else [torch.cat(list(whole.values()))]
    unit = ranks if zero3 else 2 * ranks
    padded = [F.pad(piece, (0, -len(piece) % unit)).view(ranks, -1) for piece in pieces]
    return [torch.cat([piece[rank] for piece in padded]) for rank in range(ranks)]


def written(folder, ranks, zero3, prefix="", config=None):
    """A checkpoint of these ranks; the same numbers whatever their number."""
    folder.mkdir()
    dice = torch.Generator().manual_seed(0)
    wholes = [[{name: torch.randn(shape.numel(), generator=dice) for name, shape in group.items()} for group in SHAPES]
              for _ in range(3)]
    weights, first, second = ([parts(whole, ranks, zero3) for whole in groups] for groups in wholes)
    model = {"param_shapes": SHAPES, "dp_world_size": ranks, "ds_config": config or {}}
    for rank in range(ranks):
        state = {"state": {number: {"step": 4, "exp_avg": first[number][rank], "exp_avg_sq": second[number][rank]}
                           for number in range(2)}, "param_groups": [{"lr": 0.1}] * 2}
        flat = [group[rank] for group in weights]
        if not zero3 and rank == ranks - 1:  # there DeepSpeed leaves out the zeros at the end
            flat = [one[: max(0, len(one) - (ranks * len(one) - sum(shape.numel() for shape in shapes.values())))]
                    for one, shapes in zip(flat, SHAPES)]
        own = ({"fp32_flat_groups": flat, "optimizer_state_dict": state, "partition_count": ranks} if zero3 else
               {"single_partition_of_fp32_groups": flat, "base_optimizer_state": state, "partition_count": [ranks] * 2})
        tensor_file.write(folder / f"{prefix}zero_pp_rank_{rank}_mp_rank_00_optim_states.pt",
                          {"optimizer_state_dict": own, "ds_config": {}})
        if zero3 or rank == 0:
            name = f"zero_pp_rank_{rank}_mp_rank_00" if zero3 else "mp_rank_00"
            tensor_file.write(folder / f"{name}_model_states.pt", model)
    return folder


def leaves(tree, path=""):
    """{path: value} of a tree; of a flat tensor without the zeros at its end, which need not be stored."""
    if isinstance(tree, (dict, list)):
        pairs = tree.items() if isinstance(tree, dict) else enumerate(tree)
        return {key: leaf for name, value in pairs for key, leaf in leaves(value, f"{path}/{name}").items()}
    if torch.is_tensor(tree):
        return {path: np.trim_zeros(tree.numpy(), "b").tolist()}
    return {path: tree}


@pytest.mark.parametrize("prefix", ["", "bf16_"])
@pytest.mark.parametrize("zero3", [False, True], ids=["1 and 2", "3"])
@pytest.mark.parametrize(("before", "ranks"), [(2, 1), (1, 2), (2, 3), (3, 8), (11, 2)])
def test_it_is_as_if_the_new_ranks_had_written_it(tmp_path, before, ranks, zero3, prefix):
    source = written(tmp_path / "before", before, zero3, prefix)
    reshard.reshard(source, tmp_path / "after", ranks)
    expected = written(tmp_path / "expected", ranks, zero3, prefix)
    names = sorted(path.name for path in expected.iterdir())
    assert sorted(path.name for path in (tmp_path / "after").iterdir()) == names
    for name in names:
        assert leaves(tensor_file.read(tmp_path / "after" / name)) == leaves(tensor_file.read(expected / name)), name


@pytest.mark.parametrize(("config", "reason"), [
    ({"zero_optimization": {"round_robin_gradients": True}}, "round_robin_gradients"),
    ({"zero_optimization": {"elastic_checkpoint": True}}, "elastic_checkpoint")])
def test_what_cannot_be_resharded_is_refused(tmp_path, config, reason):
    with pytest.raises(UserError, match=f"{reason} cannot be resharded") as found:
        reshard.reshard(written(tmp_path / "a", 2, False, config=config), tmp_path / "b", 3)
    assert "--ranks 2" in found.value.fix and not (tmp_path / "b").exists()


def test_states_that_lie_elsewhere_are_not_taken_for_zeros(tmp_path):
    source = written(tmp_path / "a", 2, True)
    for path in source.glob("*optim*"):
        tree = tensor_file.read(path)
        tree["optimizer_state_dict"]["fp32_flat_groups"] = [torch.empty(0), torch.empty(0)]
        path.unlink()
        tensor_file.write(path, tree)
    with pytest.raises(UserError, match="NVMe offload cannot be resharded"):
        reshard.reshard(source, tmp_path / "b", 3)
