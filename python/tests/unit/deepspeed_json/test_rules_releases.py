"""Keys and faults of other releases of DeepSpeed, each from its first release to its last."""
import pytest
from support import JOB

from debzero.deepspeed_json import lint, releases
from debzero.deepspeed_json.reference import PINNED
from debzero.deepspeed_json.releases import Releases
from debzero.job.schema import Job
from debzero.resolve import deepspeed_config
from debzero.resolve.host import HostGpus
from debzero.resolve.resolve import resolve

ZERO2, OVERLAP = {"zero_optimization": {"stage": 2}}, {"zero_optimization": {"stage": 2, "overlap_comm": True}}
PIPELINE = {"pipeline": {"stages": 2}, "zero_optimization": {"stage": 1}, "gradient_accumulation_steps": 4}


def found(config: dict, deepspeed: str, torch: str = "2.6.0", job=None, gpus=None) -> set:
    """(code, key, severity) of what is found with these releases."""
    return {(f.problem.code, f.problem.key, f.problem.severity)
            for f in lint.lint(config, "ds.json", None, gpus, job, Releases(deepspeed, torch))}


@pytest.mark.parametrize(("config", "key", "first", "last", "before", "after"), [
    (ZERO2, "zero_optimization.stage", "0.18.5", "0.18.6", "0.18.4", "0.18.7"),
    (PIPELINE, "pipeline", "0.18.3", "0.19.2", "0.18.2", "0.19.3"),
    (OVERLAP, "zero_optimization.overlap_comm", PINNED.deepspeed, "0.19.2", None, "0.19.3")])
def test_a_fault_is_found_in_the_releases_that_have_it(config, key, first, last, before, after):
    for release in (first, last):
        assert ("DZ160", key, "warning") in found(config, release)
    for release in filter(None, (before, after)):
        assert ("DZ160", key, "warning") not in found(config, release)


def test_pipelines_are_wrong_only_where_gradients_are_accumulated():
    config = {**PIPELINE, "gradient_accumulation_steps": 1}
    wrong = ("DZ160", "pipeline", "warning")
    assert wrong in found(PIPELINE, "0.19.0") - found(config, "0.19.0") and wrong in found(config, "0.18.4")


def test_overlapping_is_refused_in_a_job_that_compiles():
    def job(**train: object) -> Job:
        return Job.model_validate({**JOB, "deepspeed": OVERLAP, "train": {**JOB["train"], **train}})

    key = "deepspeed.zero_optimization.overlap_comm"
    assert ("DZ160", key, "error") in found(OVERLAP, "0.19.2", job=job(), gpus=2)
    for here in (found(OVERLAP, "0.19.2", job=job(compile="never"), gpus=2),
                 found(OVERLAP, "0.19.2", job=job(), gpus=0), found(OVERLAP, "0.19.3", job=job(), gpus=2),
                 found(OVERLAP, PINNED.deepspeed, PINNED.torch, job(), 2)):
        assert not any(code == "DZ160" for code, *_ in here)


def test_debzero_itself_overlaps_only_where_that_works(monkeypatch):
    job = Job.model_validate({**JOB, "zero": {"stage": 2, "favour": "memory"}})
    for deepspeed, torch, overlaps in ((PINNED.deepspeed, PINNED.torch, True), ("0.19.2", "2.6.0", False),
                                       ("0.19.3", "2.6.0", True)):
        monkeypatch.setattr(releases, "here", lambda deepspeed=deepspeed, torch=torch: Releases(deepspeed, torch))
        made = deepspeed_config.generate(resolve(job, HostGpus(2, True), 2, "job.yml", None), 32, 10)
        assert made["zero_optimization"]["overlap_comm"] is overlaps


def test_a_key_says_since_when_or_until_when_it_is_known():
    zenflow = {"zero_optimization": {"stage": 2, "zenflow": {"topk_ratio": 0.1}}}
    cases = [(zenflow, PINNED.deepspeed, "DZ107", "since 0.17.5"), (zenflow, "0.18.0", "DZ109", "ZenFlow"),
             ({"tensor_parallel": {"autotp_size": 2}}, "0.16.3", "DZ107", "since 0.16.4"),
             ({"tensor_parallel": {"autotp_size": 2}}, "0.16.4", "DZ109", "same samples"),
             ({"aio": {"thread_count": 2}}, "0.19.0", "DZ107", "up to 0.16.3"),
             ({"bf16": {"enabled": True, "loss_scale": 128}}, PINNED.deepspeed, "DZ108", "for fp16"),
             ({"bf16": {"enabled": True, "loss_scale": 128}}, "0.17.1", "DZ107", "refuses"),
             ({"managed_gradient_accumulation": False}, "0.19.5", "DZ109", "accumulation steps")]
    for config, release, code, text in cases:
        (finding,) = lint.lint(config, "ds.json", releases=Releases(release, PINNED.torch))
        assert finding.problem.code == code and text in finding.problem.reason, finding.problem
    strict = lint.lint({"fp16": {"enabled": False, "opt_level": "O1"}}, "", releases=Releases("0.17.1", "2.6.0"))
    assert [f.problem.severity for f in strict] == ["error"]


def test_a_host_without_deepspeed_checks_for_the_pinned_release(monkeypatch):
    import importlib.metadata

    def missing(package: str) -> str:
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert releases.here() == PINNED
