"""What checkpoints are made of: read as it was written, by code that runs nothing of the file's."""
import json
import os
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from debzero.base import own_files
from debzero.run import tensor_file


def again(tmp_path, tree):
    tensor_file.write(tmp_path / "file", tree)
    return tensor_file.read(tmp_path / "file")


def test_a_tree_is_read_as_it_was_written(tmp_path):
    dtypes = [getattr(torch, name) for name in tensor_file.DTYPES]
    tied = torch.randn(3, 4)
    tree = {
        "tensors": [torch.arange(5).to(dtype) for dtype in dtypes], "none": torch.empty(0, 3), "one": torch.tensor(2.5),
        "view": torch.arange(12.0).reshape(3, 4).t()[1:], "tied": [tied, tied], "parameter": torch.nn.Parameter(tied),
        "state": {0: {"step": 3, "exp_avg": tied.clone()}, (1, "a"): {}}, "number": np.float32(0.5),
        "plain": [None, True, 1, -0.0, float("inf"), "é\0"], "shapes": [OrderedDict(a=torch.Size([3, 4]))],
        "set": {1}, "tuple": (0.9, (0.999,)), "dtype": torch.bfloat16, "a/b": tied[:1], "a": {"b": tied[1:]}}
    found = again(tmp_path, tree)
    assert list(found) == list(tree)
    for before, now in zip(tree["tensors"], found["tensors"]):
        assert now.dtype == before.dtype and torch.equal(now, before)
    for name in ("none", "one", "view", "a/b"):
        assert torch.equal(found[name], tree[name]) and found[name].shape == tree[name].shape
    assert torch.equal(found["a"]["b"], tied[1:]) and torch.equal(found["parameter"], tied)
    assert found["tied"][0] is found["tied"][1] and torch.equal(found["tied"][0], tied)
    assert found["state"][0]["step"] == 3 and found["state"][(1, "a")] == {}
    for name in ("plain", "shapes", "set", "tuple", "number", "dtype"):
        assert found[name] == tree[name]
    assert type(found["shapes"][0]["a"]) is torch.Size


def test_deepspeeds_own_objects_come_back(tmp_path):
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    scaler = DynamicLossScaler(init_scale=2**10, scale_factor=2.0, scale_window=10, min_scale=1, delayed_shift=2,
                               consecutive_hysteresis=False, raise_error_at_min_scale=True, dtype=torch.half)
    scaler.cur_scale, scaler.cur_iter = 512.0, 7
    found = again(tmp_path, [scaler, ZeroStageEnum.weights, fragment_address(numel=3, start=5)])
    assert type(found[0]) is DynamicLossScaler and vars(found[0]) == vars(scaler)
    assert found[1] is ZeroStageEnum.weights and found[2] == fragment_address(numel=3, start=5)


def test_other_programs_can_read_it(tmp_path):
    from safetensors.torch import load_file

    tensor_file.write(tmp_path / "file", {"model": {"w": torch.ones(2, 2)}, "step": 1})
    assert torch.equal(load_file(tmp_path / "file")["model/w"], torch.ones(2, 2))


@pytest.mark.parametrize("value", [object(), print, Path("x"), torch.ones(2).to_sparse(), torch.tensor(1j), b"x"])
def test_what_has_no_place_in_a_checkpoint_is_named(tmp_path, value):
    with pytest.raises(TypeError, match="cannot hold here/0"):
        tensor_file.write(tmp_path / "file", {"here": [value]})
    assert not (tmp_path / "file").exists()


class Planted:
    def __reduce__(self):
        return os.mkdir, ("planted",)


def test_nothing_in_a_file_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pickle").write_bytes(pickle.dumps(Planted()))
    torch.save({"model": Planted()}, tmp_path / "torch")
    with pytest.raises(Exception, match="[Hh]eader"):
        tensor_file.read(tmp_path / "pickle")
    with pytest.raises(Exception, match="[Hh]eader"):
        tensor_file.read(tmp_path / "torch")
    for kind in ("os.mkdir", "mkdir", "builtins", "Popen", "SimpleNamespace"):
        header = json.dumps({"__metadata__": {"tree": json.dumps({kind: ["planted"]})}}).encode()
        (tmp_path / "named").write_bytes(len(header).to_bytes(8, "little") + header)
        with pytest.raises(KeyError):
            tensor_file.read(tmp_path / "named")
    assert not (tmp_path / "planted").exists()


def test_only_ones_own_files_are_read(tmp_path):
    tensor_file.write(tmp_path / "file", [1])
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe"):
        with pytest.raises(own_files.ForeignFileError, match="no regular file"):
            tensor_file.read(tmp_path / name)
    os.chmod(tmp_path / "file", 0o664)
    with pytest.raises(own_files.ForeignFileError, match="other users"):
        tensor_file.read(tmp_path / "file")
    os.chmod(tmp_path / "file", 0o644)
    assert tensor_file.read(tmp_path / "file") == [1]
    if os.geteuid() == 0:
        os.chown(tmp_path / "file", 65534, -1)
        with pytest.raises(own_files.ForeignFileError, match="nobody, not to the user root"):
            tensor_file.read(tmp_path / "file")
