"""Which changes of a job make another run."""
import shutil

import pytest
from support import plan_of

SAME = [{"train__epochs": 5}, {"train__max_steps": 7}, {"train__patience": 2}, {"train__metric": "f1"},
        {"train__select": "best"}, {"train__evaluate_every": 3}, {"train__log_every": 2}, {"train__micro_batch": 4},
        {"train__gradient_checkpointing": True}, {"train__compile": "never"}, {"train__precision": "fp32"},
        {"data__padding": "max_length"}, {"checkpoint": {"keep": 5}}, {"ranks": 1}, {"output": "/elsewhere"}]
OTHER = [{"train__learning_rate": 1e-3}, {"train__seed": 1}, {"train__warmup": 0.2}, {"train__global_batch": 16},
         {"data__max_length": 8}, {"data__batching": "shuffled"}, {"model__hidden_size": 16}, {"zero__stage": 1}]


@pytest.mark.parametrize("changes", SAME)
def test_what_lengthens_watches_or_speeds_up_is_the_same_run(bench, changes):
    assert plan_of(bench, **changes).fingerprint == plan_of(bench).fingerprint


@pytest.mark.parametrize("changes", OTHER)
def test_what_changes_the_weights_or_the_checkpoints_is_another(bench, changes):
    assert plan_of(bench, **changes).fingerprint != plan_of(bench).fingerprint


def with_json(bench, config, **changes):
    from debzero.resolve.host import HostGpus
    from debzero.resolve.resolve import resolve

    return resolve(plan_of(bench, **changes).job, HostGpus(0, False), 1, "job.yml", config).fingerprint


def test_the_jsons_keys_count_by_what_they_do(bench):
    base = {"zero_optimization": {"stage": 1}}
    before = with_json(bench, base)
    for same in ({"steps_per_print": 5}, {"_note": "mine"}, {"wall_clock_breakdown": True}, {"aio": {"queue_depth": 4}},
                 {"zero_optimization": {"stage": 1, "reduce_bucket_size": 1000, "overlap_comm": False}},
                 {"train_micro_batch_size_per_gpu": 4, "train_batch_size": 32}, {"gradient_clipping": 1.0},
                 {"optimizer": {"params": {"lr": 1e-2}}}, {"scheduler": {"params": {"total_num_steps": 9}}}):
        assert with_json(bench, {**base, **same}) == before, same
    for other in ({"gradient_clipping": 0.5}, {"zero_optimization": {"stage": 2}}, {"prescale_gradients": True},
                  {"zero_optimization": {"stage": 1, "round_robin_gradients": True}}, {"optimizer": {"type": "Adam"}},
                  {"optimizer": {"params": {"betas": [0.9, 0.95]}}}, {"scheduler": {"type": "WarmupLR"}}):
        assert with_json(bench, {**base, **other}) != before, other


def test_the_same_value_in_the_job_or_in_the_json_is_the_same_run(bench):
    assert with_json(bench, {"gradient_clipping": 0.5, "zero_optimization": {"stage": 2}}) == with_json(
        bench, {}, train__gradient_clipping=0.5, zero__stage=2)
    assert with_json(bench, {}) != plan_of(bench).fingerprint, "DeepSpeed without a stage has its own checkpoints"


def test_data_count_by_their_content_wherever_they_lie(bench):
    rows = bench.folder / "rows.csv"
    (bench.folder / "copy").mkdir()
    copy = shutil.copy(rows, bench.folder / "copy" / "rows.csv")
    before = plan_of(bench).identity
    moved = plan_of(bench, data__dataset=str(copy)).identity
    assert moved.fingerprint == before.fingerprint and moved.others["data.dataset"] == str(copy)
    rows.write_text(rows.read_text() + "one more,animal\n")
    assert plan_of(bench).fingerprint != before.fingerprint
