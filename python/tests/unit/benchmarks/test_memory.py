"""python/benchmarks/memory.py: one cell is measured with a tiny model, and the published cells are all good."""
import importlib.util
import json
import sys
from pathlib import Path

import pytest

from debzero.job.schema import Job
from debzero.resolve.host import HostGpus
from debzero.resolve.resolve import resolve

PROGRAM = Path(__file__).resolve().parents[3] / "benchmarks" / "memory.py"
PUBLISHED = [PROGRAM.parents[2] / "docs" / "benchmarks" / f"memory-{name}.json" for name in ("h200", "2")]


@pytest.fixture
def program():
    specification = importlib.util.spec_from_file_location("memory_bench", PROGRAM)
    program = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(program)
    return program


@pytest.fixture
def memory_bench(monkeypatch, program):
    """python/benchmarks/memory.py with command-line arguments, in this process; returns its exit code."""
    def start(*arguments):
        monkeypatch.setattr(sys, "argv", [str(PROGRAM), *map(str, arguments)])
        return program.main()

    return start


@pytest.mark.slow
def test_the_bench_measures_a_cell_and_judges_it(tmp_path, memory_bench, capsys):
    results = tmp_path / "memory.json"
    assert memory_bench("--tiny", "--results", results, "--cells", "bert-large-uncased/none/1") == 0
    cell = json.loads(results.read_text())["cells"]["bert-large-uncased/none/1"]
    assert cell["predicted"] > 0 and len(cell["peaks"]) == 2 and cell["measured"] == max(cell["peaks"])
    assert "23 missing, 0 failed: not OK" in capsys.readouterr().out
    found = json.loads(results.read_text())
    results.write_text(json.dumps({**found, "facts": {**found["facts"], "gpu": "another"}}))
    with pytest.raises(SystemExit) as ended:
        memory_bench("--tiny", "--results", results)
    assert ended.value.code == 2 and "differ from this call in gpu" in capsys.readouterr().err


@pytest.mark.parametrize("zero", [{"engine": "native"}, {"engine": "deepspeed", "favour": "speed"}])
def test_each_cell_is_a_job_that_can_run_with_the_engine_that_is_asked_for(tmp_path, program, zero):
    for stage in program.STAGES:
        cell = program.Cell("bert-large-uncased", stage, 1)
        file = program.make_job(cell, tmp_path / str(stage), tmp_path, "fp32", zero, tiny=True)
        job = Job.model_validate(json.loads(file.read_text()))
        found = resolve(job, HostGpus(2, True), None, str(file), None)
        assert (found.is_native, found.uses_deepspeed) == (stage != "none" and zero["engine"] == "native",
                                                           stage != "none" and zero["engine"] == "deepspeed")


@pytest.mark.parametrize("published", PUBLISHED, ids=lambda path: path.stem)
def test_the_published_cells_are_all_there_and_good(memory_bench, capsys, published):
    assert memory_bench("--show", "--results", published) == 0
    assert "0 missing, 0 failed: OK" in capsys.readouterr().out
