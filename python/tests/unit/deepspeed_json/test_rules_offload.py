"""One set of offload rules judges what holds: the job's `zero:` section, overruled by DeepSpeed's JSON."""
import json

import pytest
from support import JOB

from debzero.deepspeed_json import lint
from debzero.job.schema import Job
from debzero.resolve.host import HostGpus
from debzero.resolve.resolve import resolve

CPU, NVME = {"device": "cpu"}, {"device": "nvme"}
IN_FILE = "/etc/ds.json"


def job_of(zero, deepspeed=None):
    return Job.model_validate({**JOB, "zero": zero, "deepspeed": deepspeed})


# The job's section, the JSON's, and of what is found: (code, key, a piece of the fix).
CASES = [
    ({"stage": 2, "offload_param": "cpu"}, None, [("", "zero.offload_param", "set zero.stage: 3")]),
    ({"offload_optimizer": "cpu"}, None, [("", "zero.offload_optimizer", "set zero.stage: 2")]),
    ({"stage": 2, "offload_optimizer": "nvme", "nvme_path": "/n"}, None,
     [("", "zero.offload_optimizer", "set offload_optimizer: cpu, or zero.stage: 3")]),
    ({"stage": 3, "offload_optimizer": "nvme"}, None, [("", "zero.nvme_path", "nvme_path: /nvme/swap")]),
    ({"stage": 3, "offload_optimizer": "nvme", "offload_param": "nvme"}, None, [("", "zero.nvme_path", "")]),
    ({"stage": 3, "offload_optimizer": "cpu", "offload_param": "cpu"}, None, []),
    # The JSON lowers or raises the stage of the job's offload.
    ({"stage": 3, "offload_param": "cpu"}, {"stage": 2},
     [("", "zero.offload_param", "set zero_optimization.stage: 3")]),
    ({"stage": 2, "offload_param": "cpu"}, {"stage": 3}, []),
    ({"stage": 2, "offload_param": "cpu"}, {"stage": "auto"}, [("", "zero.offload_param", "set zero.stage: 3")]),
    # The JSON takes back or replaces what the job offloads.
    ({"stage": 2, "offload_param": "cpu"}, {"offload_param": {"device": "none"}}, []),
    ({"stage": 2, "offload_param": "cpu"}, {"offload_param": CPU},
     [("DZ110", "zero_optimization.offload_param", "set zero.stage: 3")]),
    ({"stage": 2, "offload_optimizer": "nvme", "nvme_path": "/n"}, {"offload_optimizer": CPU}, []),
    ({"stage": 2}, {"offload_optimizer": NVME | {"nvme_path": "/n"}},
     [("DZ111", "zero_optimization.offload_optimizer.device", "set device: cpu, or zero.stage: 3")]),
    ({}, {"cpu_offload": True}, [("DZ104", "zero_optimization.cpu_offload", ""),
                                 ("DZ113", "zero_optimization.cpu_offload", "set zero.stage: 2")]),
    # Where NVMe lies.
    ({"stage": 3}, {"offload_param": NVME}, [("DZ112", "zero_optimization.offload_param.nvme_path", "NVMe disk")]),
    ({"stage": 3, "nvme_path": "/n"}, {"offload_param": NVME}, []),
    ({"stage": 3, "offload_param": "nvme"}, {"offload_optimizer": NVME},
     [("DZ112", "zero_optimization.offload_optimizer.nvme_path", "NVMe disk")]),
    ({"stage": 3, "offload_param": "nvme"}, {"offload_optimizer": NVME | {"nvme_path": "/n"}}, []),
    ({"stage": 2, "offload_optimizer": "cpu"}, {"offload_optimizer": {"ratio": 0.5}},
     [("DZ114", "zero_optimization.offload_optimizer.ratio", "set zero.stage: 3")]),
    ({"stage": 3, "offload_optimizer": "cpu"}, {"offload_optimizer": {"ratio": 0.5}}, []),
]


@pytest.mark.parametrize(("zero", "section", "expected"), CASES, ids=[f"case-{number}" for number in range(len(CASES))])
def test_the_merged_settings_are_judged_where_they_stand(zero, section, expected):
    config = None if section is None else {"zero_optimization": section}
    job = job_of(zero, config and IN_FILE)
    found = lint.problems(config, "job.yml", 2, None, job)
    assert [(p.code, p.key) for p in found] == [(code, key) for code, key, _ in expected]
    for problem, (code, _, fix) in zip(found, expected):
        assert fix in problem.fix and problem.file == (IN_FILE if code else "job.yml")


@pytest.mark.parametrize(("zero", "section", "expected"), CASES, ids=[f"case-{number}" for number in range(len(CASES))])
def test_resolve_says_the_same_and_runs_what_passes(zero, section, expected):
    from debzero.base.errors import InputError

    config = None if section is None else {"zero_optimization": section}
    job = job_of(zero, config and IN_FILE)
    errors = [(code, key) for code, key, _ in expected if code != "DZ104"]
    if errors:
        with pytest.raises(InputError) as found:
            resolve(job, HostGpus(2, True), 2, "job.yml", config)
        assert [(p.code, p.key) for p in found.value.problems] == errors
    else:
        resolved = resolve(job, HostGpus(2, True), 2, "job.yml", config)
        zero = resolved.job.zero
        assert "nvme" not in (zero.offload_optimizer, zero.offload_param) or zero.nvme_path


def test_an_inline_json_is_named_with_its_path_in_the_job():
    config = {"zero_optimization": {"offload_param": CPU}}
    (problem,) = lint.problems(config, "job.yml", 2, None, job_of({"stage": 2}, config))
    assert (problem.file, problem.key) == ("job.yml", "deepspeed.zero_optimization.offload_param")


def test_fix_leaves_the_jobs_own_keys_alone(bench, capsys):
    from debzero.cli import main

    (bench.folder / "ds.json").write_text(json.dumps({"zero_optimization": {"stage": 2}}))
    path = bench.job(zero={"stage": 3, "offload_param": "cpu"}, deepspeed="ds.json")
    before = path.read_text()
    assert main(["check", "--fix", str(path)]) == 2
    assert path.read_text() == before and "zero.offload_param" in capsys.readouterr().err
