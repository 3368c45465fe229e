"""The hardware of a plan: the command line's, this host's, or the defaults."""
from types import SimpleNamespace

import pytest

from debzero.plan import hardware
from debzero.plan.hardware import ARTICLE, find_hardware
from debzero.resolve.host import HostGpus

NONE = {"gpu_memory": None, "ram": None, "nvme": None}


@pytest.fixture
def gpu_host(monkeypatch):
    """A host with two GPUs, of 16 and 24 GiB."""
    import torch

    monkeypatch.setattr(hardware, "this_host", lambda: HostGpus(2, False))
    monkeypatch.setattr(torch.cuda, "get_device_properties",
                        lambda number: SimpleNamespace(total_memory=(24 - 8 * number) * 2**30))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: "NVIDIA H100 80GB HBM3")


def test_without_gpus_and_options_the_defaults_are_used():
    found, problems = find_hardware(None, NONE)
    assert {key: getattr(found, key) for key in ARTICLE} == ARTICLE and found.bf16 and not problems
    assert found.source == "the defaults, as this host has no GPU"


def test_this_hosts_smallest_gpu_counts(gpu_host):
    found, _ = find_hardware(None, NONE)
    assert (found.gpus, found.gpu_memory, found.nvme, found.bf16) == (2, 16 * 2**30, 0, False)
    assert found.ram > 0 and found.source == "this host's" and found.device == "NVIDIA H100 80GB HBM3"


def test_the_command_line_comes_first_and_is_named(gpu_host):
    found, problems = find_hardware(4, {**NONE, "gpu_memory": "80G", "nvme": "0"})
    assert (found.gpus, found.gpu_memory, found.nvme) == (4, 80 * 2**30, 0) and not problems
    assert found.source == "as given by --gpus, --gpu-memory, --nvme; the rest: this host's"
    assert found.as_dict()["words"] == found.source and "source" not in found.as_dict()


def test_with_every_option_there_is_no_rest():
    found, _ = find_hardware(1, {"gpu_memory": "8G", "ram": "16G", "nvme": "1T"})
    assert found.source == "as given by --gpus, --gpu-memory, --ram, --nvme"


def test_each_bad_size_is_a_problem_that_names_its_option():
    _, problems = find_hardware(None, {"gpu_memory": "0", "ram": "lots", "nvme": None})
    assert [(p.file, p.key) for p in problems] == [("the command line", "--gpu-memory"), ("the command line", "--ram")]
    assert "more than 0" in problems[0].reason and "'lots'" in problems[1].reason


@pytest.mark.parametrize("name", NONE)
def test_a_size_whose_unit_was_forgotten_is_refused(name):
    _, (problem,) = find_hardware(None, {**NONE, name: "40"})
    assert problem.reason == "must be a size such as 40G, and 40 is 40 bytes" and problem.fix.endswith("40G")
    assert not find_hardware(None, {**NONE, name: "500M"})[1]
