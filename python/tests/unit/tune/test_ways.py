"""What `debzero tune --search` tries for a job on a host, and what it writes of it."""
from __future__ import annotations

import json
from dataclasses import replace

import pytest
import yaml
from support import plan_of

from debzero.check import checks
from debzero.cli import main
from debzero.deepspeed_json import releases
from debzero.measure.records import MeasuredRun, Segment
from debzero.resolve import native
from debzero.resolve.host import HostGpus
from debzero.resolve.sharding import Sharding
from debzero.tune import job_file, tuning, ways
from debzero.tune.dimensions import DIMENSIONS, asked
from debzero.tune.job_file import with_values
from debzero.tune.search import Best, Unfit, Way, refine

FILE = "job.yml"


@pytest.fixture
def host(bench, monkeypatch):
    """A job on two GPUs with the newest releases, on which the plan expects 8 samples to fit, and 4 beside buffers for
    speed. The plan's answers can be changed."""
    fits = {"memory": 8, "speed": 4}
    monkeypatch.setattr(releases, "here", lambda: releases.Releases("0.19.3", "2.11.0"))
    monkeypatch.setattr(ways, "predicted", lambda resolved, file, for_speed=False: fits["speed" if for_speed
                                                                                        else "memory"])
    monkeypatch.setattr(ways, "at_first_start", lambda resolved, file: (resolved, ""))
    monkeypatch.setattr(ways, "compiles_layers", lambda resolved: resolved.job.train.compile == "auto")

    def of(**changes):
        own = plan_of(bench, train__global_batch=16, train__micro_batch=4, **changes)
        own = replace(own, host=HostGpus(2, True), batch=replace(own.batch, total=16, micro=4, accumulation=2, ranks=2))
        return own.favouring(changes.get("zero__favour", "speed"))

    of.fits = fits
    return of


def test_all_is_every_dimension_and_only_known_settings_are_written():
    assert asked(["all"]) == asked(list(reversed(DIMENSIONS))) == list(DIMENSIONS)
    assert asked(["live", "stage"]) == ["stage", "live"]
    assert {"zero.engine", "train.compile", "zero.bucket", "zero.overlap", "zero.live", "zero.prefetch",
            *ways.DEPENDENT} <= job_file.KEYS
    assert set(ways.VALUES) == set(ways.REFINED)


def test_both_engines_are_tried_where_either_can_train(host, monkeypatch):
    for pays in (False, True):
        monkeypatch.setattr(native, "pays", lambda pays=pays: pays)
        found = ways.ways(host(), FILE, ["stage", "offload", "engine"])
        engines = {}
        for way in found:
            there = ways.with_way(host(), way, 4)
            engines.setdefault(way.sharding, []).append("native" if there.is_native else "deepspeed")
        assert engines.pop(Sharding(0)) == ["deepspeed"], "which plain DDP does not use"
        for sharding, tried in engines.items():
            both = ["native", "deepspeed"] if pays else ["deepspeed", "native"]
            assert tried == (both if sharding.on_gpus else ["deepspeed"]), "the job's own first"


def test_what_the_buffers_favour_is_searched_where_the_plan_has_room(host):
    def found(**changes):
        return [(str(way), way.sizes, way.first) for way in ways.ways(host(zero__stage=3, zero__engine="deepspeed",
                                                                           **changes), FILE, ["favour"])]

    speed, memory = ((1, 2, 4), 4), ((1, 2, 4, 8), 8)
    assert found() == [("ZeRO-3", *speed), ("ZeRO-3, favour: memory", *memory)]
    assert found(zero__favour="memory") == [("ZeRO-3", *memory), ("ZeRO-3, favour: speed", *speed)]
    host.fits["speed"] = 0
    assert found() == [("ZeRO-3, favour: memory", *memory)], "the other way would be the same"
    host.fits["memory"] = 0
    assert found() == [("ZeRO-3, favour: memory", (1, 2, 4, 8), 1)], "its own way stays, whatever the plan says"
    host.fits.update(speed=None, memory=None)
    assert found() == [("ZeRO-3, favour: memory", (1, 2, 4, 8), 4)]
    for zero in ({}, {"zero__stage": 2, "zero__engine": "native"}):
        (own,) = ways.ways(host(**zero), FILE, ["favour"])
        assert own.others == (), "it has no such buffers"


def test_a_host_without_gpus_has_one_kind_of_buffers(bench):
    resolved = checks.check(bench.job(zero__stage=2))
    assert [way.others for way in ways.ways(resolved, FILE, ["favour"])] == [()]


def refined(resolved, dimension, others=(), micro=4):
    way = Way(resolved.sharding, False, (1, 2, 4, 8), micro, others)
    return [dict(one.others) for one in ways.refinements(resolved, FILE, dimension, Best(way, micro, 1.0))]


def test_each_setting_gets_the_other_values_that_do_something(host):
    own = host(zero__stage=3, zero__engine="deepspeed")
    assert refined(own, "buckets") == [{"zero.bucket": size} for size in (25_000_000, 50_000_000, 200_000_000)]
    assert refined(own, "live") == [{"zero.live": size} for size in (50_000_000, 200_000_000)]
    assert refined(own, "prefetch") == [{"zero.prefetch": size} for size in (0, 10_000_000)]
    assert refined(own, "overlap") == [{"zero.overlap": False}]
    assert refined(own, "compile") == [{"train.compile": "never"}]
    kept = (("zero.favour", "memory"), ("zero.bucket", 25_000_000))
    assert refined(own, "buckets", kept)[0] == {"zero.favour": "memory", "zero.bucket": 50_000_000}
    assert refined(own, "overlap", kept) == [{**dict(kept), "zero.overlap": False}]
    small = host(zero__stage=3, zero__engine="deepspeed", zero__favour="memory", train__compile="never")
    assert len(refined(small, "live")) == 3 and refined(small, "compile") == [{"train.compile": "auto"}]


def test_settings_that_do_not_apply_are_not_tried(host, monkeypatch):
    sharded = host(zero__stage=2, zero__engine="deepspeed")
    assert refined(sharded, "live") == refined(sharded, "prefetch") == [] != refined(sharded, "buckets")
    for other in (host(), host(zero__stage=3, zero__engine="native")):
        assert [refined(other, name) for name in ("buckets", "overlap", "live", "prefetch")] == [[]] * 4
    monkeypatch.setattr(ways, "compiles_layers", lambda resolved: False)
    assert refined(sharded, "compile") == [], "this torch compiles nothing"
    monkeypatch.setattr(releases, "here", lambda: releases.Releases("0.16.9", "2.3.0"))
    assert refined(sharded, "overlap") == [], "this release loses gradients"


def test_what_the_plan_does_not_expect_to_fit_is_left_out(host):
    own = host(zero__stage=3, zero__engine="deepspeed")
    assert refined(own, "live", micro=4)
    host.fits["speed"] = 2
    assert refined(own, "live", micro=4) == []
    host.fits["memory"] = 2
    assert refined(host(zero__stage=3, zero__engine="deepspeed", zero__favour="memory"), "live", micro=4) == []
    host.fits.update(speed=None, memory=None)
    assert refined(own, "live", micro=4), "without a prediction it is tried"


def test_one_setting_follows_the_other_from_the_fastest_way():
    tried = []

    def others(name, values):
        return lambda best: [replace(best.way, others=(*best.way.others, (name, value)), first=best.micro)
                             for value in values]

    def trial(way, micro):
        tried.append((way.others, micro))
        if dict(way.others).get("b") == 9:
            raise Unfit
        return 100.0 + 20 * dict(way.others).get("a", 0) + 20 * dict(way.others).get("b", 0) + micro / 100

    start = Best(Way(Sharding(2), False, (1, 2, 4), 4), 4, 100.0)
    found = refine(start, [others("a", (-1, 1)), others("b", (9, -1, 1))], trial)
    assert found.way.others == (("a", 1), ("b", 1)) and found.micro == 4 and found.speed > 140
    assert ((("a", -1),), 2) not in tried, "a slower one is tried once"
    assert all(dict(way).get("a") == 1 for way, _ in tried if "b" in dict(way))


def test_a_key_that_goes_leaves_the_rest():
    text = "# Mine.\nzero: {stage: 3, live: 5}  # large\n"
    changed = with_values(text, {"zero.live": None, "zero.stage": 1, "zero.overlap": None})
    assert changed.startswith("# Mine.\nzero: {stage: 1} ") and changed.endswith("# large\n")


@pytest.fixture
def measured(monkeypatch):
    """Trials whose speed is that of the fastest setting so many times as the job has of it; and their jobs."""
    jobs, fastest = [], {}

    def measure(job, *_):
        jobs.append(job)
        zero = job.zero.model_dump()
        speed = 10.0 * 2 ** sum(zero[key] == value for key, value in fastest.items())
        return MeasuredRun(segments=(Segment(steps=1, samples=speed, seconds=1.0),), memory_bytes=(1,))

    monkeypatch.setattr(tuning, "measure", measure)
    return jobs, fastest


def test_the_whole_search_writes_a_job_that_still_checks(bench, measured, capsys):
    jobs, fastest = measured
    fastest.update(stage=3, offload_optimizer="none", offload_param="none", bucket=200_000_000, prefetch=10_000_000)
    path = bench.job(train__global_batch=8, train__micro_batch=4)
    assert main(["tune", str(path), "--search", "all", "--json"]) == 0
    chosen = json.loads(capsys.readouterr().out)["chosen"]
    assert (chosen["zero.stage"], chosen["zero.bucket"], chosen["zero.prefetch"]) == (3, 200_000_000, 10_000_000)
    assert "zero.live" not in chosen and "train.compile" not in chosen, "nothing was faster than what favour gives"
    assert {job.zero.engine for job in jobs} == {"auto", "native"}
    written = yaml.safe_load(path.read_text())["zero"]
    assert (written["stage"], written["bucket"], written["prefetch"]) == (3, 200_000_000, 10_000_000)
    assert main(["check", str(path)]) == 0


def test_keys_that_the_found_stage_does_not_have_go(bench, measured, capsys):
    measured[1].update(stage="none")
    path = bench.job(train__global_batch=8, train__micro_batch=4, zero={"stage": 3, "live": 10**6, "bucket": 10**6})
    assert main(["tune", str(path), "--search", "stage,checkpointing"]) == 0
    printed = capsys.readouterr().out
    assert "zero.live: removed" in printed and "train.gradient_checkpointing: false" in printed, "as the file has them"
    assert yaml.safe_load(path.read_text())["zero"] == {"stage": "none"}
    assert main(["check", str(path)]) == 0


def test_the_engine_that_was_found_is_written_without_the_others_keys(bench, measured):
    measured[1].update(engine="native")
    path = bench.job(train__global_batch=64, train__micro_batch=4, zero={"stage": 2, "bucket": 10**6})
    assert main(["tune", str(path), "--search", "engine"]) == 0
    assert yaml.safe_load(path.read_text())["zero"] == {"stage": 2, "engine": "native"}
    assert main(["check", str(path)]) == 0
