"""Engines of TensorRT, built, judged and asked on a stand-in of TensorRT: what runs on a GPU is not shown here."""
import json
import shutil

import pytest
import tensorrt_host
from exported_runs import run_of

from debzero.base.files import read_json
from debzero.cli import main


@pytest.fixture(autouse=True)
def host(monkeypatch):
    tensorrt_host.install(monkeypatch)


@pytest.fixture(scope="module")
def run(trained):
    return run_of(trained, "engines")


@pytest.fixture(scope="module")
def export(run):
    """Its export in fp32."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        tensorrt_host.install(monkeypatch)
        assert main(["export", str(run.folder), "--to", "tensorrt"]) == 0
    return run.folder / "export" / "tensorrt-fp32"


def test_the_record_says_for_what_it_was_built(run, export):
    record = read_json(export / "export.json")
    found = record["verification"]
    assert record["to"] == "tensorrt" and record["precision"] == "fp32"
    assert record["built_for"] == {"gpu": "NVIDIA Stand-in", "capability": "8.0", "driver": record["built_for"]["driver"],
                                   "tensorrt": "8.5.3.1"}
    assert found["samples"] == found["answers"] == 100 and found["differing"] == found["not_finite"] == 0
    assert 0 < found["largest_difference"] < 1e-4
    assert sorted(path.name for path in export.glob("*.on*")) == [] and (export / "model.engine").is_file()
    assert [name.name for name in export.glob(".*")] == []
