"""The benchmark of two ranks over a slow link: its results and their predictions, and a rehearsal with a tiny model."""
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[3] / "benchmarks"
sys.path.insert(0, str(BENCH))

import link  # noqa: E402

from debzero.base.files import read_json  # noqa: E402

RESULTS = BENCH.parents[1] / "docs" / "benchmarks" / "link.json"
SHAPE = {"vocab_size": 200, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
         "intermediate_size": 64}


def results(alone, together):
    """Of plain DDP, with a link of 100 Mbit/s."""
    there = {"bits_per_second": 100e6, "hop_seconds": 0.0}
    return {"runs": {"none/alone": {"link": None, "steps": alone}, "none/100M": {"link": there, "steps": [together]}}}


def test_a_prediction_takes_the_slower_of_two_that_train_alone(monkeypatch, capsys):
    monkeypatch.setattr(link, "SHAPE", SHAPE)
    monkeypatch.setattr(link, "BATCH", 8)
    (cell,) = link.predicted_seconds(results([[1.0, 4.0, 1.0], [2.0, 3.0, 1.0]], [2.0, 2.1, 9.0]))
    assert (cell.label, cell.alone, cell.measured) == ("plain DDP", 2.0, 2.1)
    assert 2.0 < cell.predicted < 2.1 and cell.is_close  # 40,000 parameters more to send than to compute
    assert link.show(results([[2.0], [2.0]], [2.0])) == 0 and link.show(results([[1.0], [1.0]], [2.0])) == 1
    assert "none/100M" in capsys.readouterr().out


def test_every_published_run_is_of_two_ranks_and_has_its_like_alone():
    runs = read_json(RESULTS)["runs"]
    assert {name.split("/")[0] for name in runs} <= set(link.STAGES) and runs
    for name, run in runs.items():
        assert len(run["steps"]) == (1 if run["link"] else 2) and len({*map(len, run["steps"])}) == 1
        assert bool(run["link"]) != name.endswith(link.ALONE)


def namespaces():
    """Whether this process may make one."""
    if os.geteuid() or not (shutil.which("ip") and shutil.which("tc")):
        return False
    name = f"debzero-{os.getpid()}-try"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True).returncode == 0
    return made and subprocess.run(["ip", "netns", "del", name]).returncode == 0


@pytest.mark.long
@pytest.mark.skipif(not namespaces(), reason="needs root and iproute2")
def test_two_ranks_train_over_a_link_that_is_as_slow_as_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(link, "SHAPE", SHAPE)
    monkeypatch.setattr(link, "BUCKET", 250_000)
    monkeypatch.setattr(link, "end_on_signals", lambda: None)
    file = tmp_path / "link.json"
    monkeypatch.setattr(sys, "argv", ["link.py", "--results", str(file), "--folder", str(tmp_path), "--stages", "none",
                                      "--rates", "20M", "--steps", "2"])
    link.main()
    runs = read_json(file)["runs"]
    assert [len(steps) for run in runs.values() for steps in run["steps"]] == [2, 2, 2]
    assert 10e6 < runs["none/20M"]["link"]["bits_per_second"] < 21e6
    assert str(os.getpid()) not in subprocess.check_output(["ip", "netns", "list"], text=True)
