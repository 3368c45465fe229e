"""`debzero plan --hosts`: what it prints, and what it refuses."""
import pytest
from planning import TINY, job

from debzero import cli

SMALL = {**TINY["classification"], "max_position_embeddings": 512}
CLUSTER = ("--hosts", "4", "--gpus", "8", "--link", "200G", "--device", "H100", "--gpu-memory", "80G")


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """The job file of a model that the hub need not be asked for."""
    from types import SimpleNamespace

    return job(SimpleNamespace(folder=tmp_path_factory.mktemp("scale")), model="bert-large-uncased",
               train={"global_batch": 2048, "precision": "bf16"})


def test_the_tables_are_narrow_and_name_the_fastest(large, capsys):
    assert cli.main(["plan", str(large), *CLUSTER]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100 and lines[-1].startswith("Fastest that fits: ")
    label = lines[-1].partition(": ")[2].partition(",")[0]
    assert [line[2:24].strip() for line in lines if line.startswith("* ")] == [label, label]
    text = " ".join(" ".join(lines).split())
    for part in ("4 hosts x 8 H100s, 200 Gbit/s between hosts", "37.2% of the peak of the H100", "once in 264 days",
                 "checkpoint.minutes (10)"):
        assert part in text


def test_json_has_what_the_tables_show(large, planned):
    found = planned(large, *CLUSTER)
    assert found["cluster"]["ranks"] == 32 and found["cluster"]["link_bits_per_second"] == 200e9
    layouts = {each["label"]: each for each in found["layouts"]}
    assert {"plain DDP", "ZeRO-1", "ZeRO-3", "tensor 8", "pipeline 8", "tensor 8 x pipeline 2"} <= set(layouts)
    for each in layouts.values():
        assert each["micro_batch"] * each["accumulation"] * each["copies"] == 2048
        assert each["step_seconds"] == pytest.approx(sum(each[part] for part in (
            "compute_seconds", "launching_seconds", "bubble_seconds", "exposed_seconds")))
        assert each["samples_per_second"] == pytest.approx(2048 / each["step_seconds"])
        assert 0 < each["checkpoint"]["lost_share"] <= each["checkpoint"]["own_lost_share"] < 0.1
    assert found["fastest"] == max((label for label, each in layouts.items() if each["trains"]),
                                   key=lambda label: layouts[label]["samples_per_second"])
    assert layouts["pipeline 8"]["accumulation"] >= 4 * 8  # a pipeline is kept full
    needs = {label: each["device_bytes"] for label, each in layouts.items()}
    assert needs["pipeline 8"] < needs["pipeline 2"] < needs["ZeRO-1"], "parts of a model take less memory"
    assert {label for label, each in layouts.items() if not each["trains"]} == {
        label for label in layouts if label[0] in "tp" and label != "plain DDP"}, "on one host so far"


def test_memory_is_that_of_the_plan_for_one_host(large, planned):
    """One truth: a host with eight GPUs gives the same either way."""
    one = planned(large, "--hosts", 1, "--gpus", 8, "--gpu-memory", "80G", "--device", "H100")
    same = planned(large, "--gpus", 8, "--gpu-memory", "80G")
    whole = {each["stage"]: each for each in one["layouts"] if each["tensor"] == each["pipeline"] == 1}
    for row in same["choices"][:4]:
        mine = whole[0 if row["stage"] == "none" else row["stage"]]
        assert (mine["device_bytes"], mine["micro_batch"]) == (row["device_bytes"], row["micro_batch"])
    assert one["cluster"]["link_bits_per_second"] is None
    assert all(each["smallest_link_bits_per_second"] is None and each["trains"] for each in one["layouts"])


def test_a_divided_models_memory_is_that_of_its_own_plan(bench, planned):
    values = {"model": SMALL, "train": {"global_batch": 64, "micro_batch": 8, "precision": "bf16"}}
    found = {each["label"]: each for each in planned(
        job(bench, **values), "--hosts", 1, "--gpus", 2, "--device", "H100", "--gpu-memory", "80G")["layouts"]}
    own = planned(job(bench, "own", **values, parallel={"pipeline": 2}), "--gpus", 2, "--gpu-memory", "80G")
    assert found["pipeline 2"]["device_bytes"] == own["device_bytes"]
    own = planned(job(bench, "own", **values, parallel={"tensor": 2}), "--gpus", 2, "--gpu-memory", "80G")
    assert found["tensor 2"]["device_bytes"] == own["device_bytes"]


def test_a_model_that_cannot_be_divided_says_so(bench, planned):
    llama = {"type": "llama", "vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2,
             "intermediate_size": 64, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    found = planned(job(bench, model=llama, task="causal-lm", train={"global_batch": 64, "precision": "bf16"},
                        data={"dataset": "rows.csv", "held_out": 0.2, "max_length": 16, "text": ["text"]}),
                    "--hosts", 1, "--gpus", 2, "--device", "H100", "--gpu-memory", "80G")
    reasons = {each["label"]: each["reason"] for each in found["refused"]}
    assert "llama models cannot be divided" in reasons["tensor 2"] and "plain DDP" not in reasons


def test_a_measured_rate_replaces_flops(bench, planned):
    path = job(bench, model=SMALL, train={"global_batch": 16, "micro_batch": 4})
    found = planned(path, "--hosts", 2, "--gpus", 1, "--link", "100M", "--device", "cpu", "--samples-per-second", 4)
    plain = found["layouts"][0]
    assert plain["compute_seconds"] == 2.0 and plain["launching_seconds"] == 0 and plain["device_bytes"] is None
    assert found["precision"] == "fp32" and found["peak_share"] is None
    sent = 4 * found["model"]["parameters"]  # 2 (2 - 1) / 2 of the fp32 gradients
    assert plain["transfers"][0]["sent"] == sent
    assert plain["transfers"][0]["seconds"] == pytest.approx(sent * 8 / 100e6, rel=0.05)


def test_a_layout_that_the_batch_does_not_allow_says_why(bench, planned, capsys):
    path = job(bench, model=SMALL, train={"global_batch": 24})
    options = ("--hosts", 2, "--gpus", 8, "--link", "10G", "--gpu-memory", "40G")
    found = planned(path, *options)
    assert {each["label"] for each in found["refused"]} >= {"plain DDP", "ZeRO-3"}
    assert all("24 samples cannot be divided equally among 16 ranks" in each["reason"] for each in found["refused"])
    assert "tensor 2" in {each["label"] for each in found["layouts"]}
    assert cli.main(["plan", str(path), *map(str, options)]) == 0
    assert "not possible: plain DDP: 24 samples cannot" in capsys.readouterr().out


def test_what_deepspeeds_json_sets_counts(bench, planned):
    """Its micro-batch and its overlap; and tensor parallelism, which is debzero's own, reads none."""
    json = {"train_micro_batch_size_per_gpu": 2, "zero_optimization": {"stage": 2, "overlap_comm": False}}
    path = job(bench, model=SMALL, train={"global_batch": 64, "precision": "bf16"}, deepspeed=json)
    found = planned(path, "--hosts", 2, "--gpus", 2, "--link", "10G")
    assert {each["micro_batch"] for each in found["layouts"]} == {2}
    sharded = next(each for each in found["layouts"] if each["label"] == "ZeRO-2")
    assert all(transfer["exposed_seconds"] == transfer["seconds"] for transfer in sharded["transfers"])
    reasons = {each["label"]: each["reason"] for each in found["refused"]}
    assert "reads no DeepSpeed JSON" in reasons["tensor 2"]


@pytest.mark.parametrize(("options", "key", "reason"), [
    (("--hosts", 2), "--link", "is missing"),
    (("--hosts", 2, "--link", "25GB/s"), "--link", "bits per second"),
    (("--hosts", 2, "--link", "1G", "--disk", "0"), "--disk", "more than 0"),
    (("--hosts", 2, "--link", "1G", "--device", "cpu"), "--samples-per-second", "is missing"),
    (("--hosts", 2, "--link", "1G", "--device", "abacus"), "--device", "'abacus' is not known"),
    (("--hosts", 2, "--link", "1G", "--device", ""), "--device", "'' is not known"),
    (("--hosts", 2, "--link", ""), "--link", "bits per second"),
    (("--link", "1G"), "--link", "many hosts"),
])
def test_bad_options_are_one_sentence(bench, refused, options, key, reason):
    (problem,) = refused(job(bench, model=SMALL, train={"global_batch": 64, "precision": "fp32"}), *options)
    assert (problem["file"], problem["key"]) == ("the command line", key) and reason in problem["reason"]


def test_an_old_gpu_does_not_compute_in_bf16(bench, refused):
    (problem,) = refused(job(bench, model=SMALL, train={"global_batch": 64, "precision": "bf16"}), "--hosts", 1,
                         "--device", "V100")
    assert problem["key"] == "--device" and "V100 does not compute in bf16" in problem["reason"]


def test_an_unknown_model_and_a_batch_that_no_layout_allows_are_the_jobs_problems(bench, refused):
    (problem,) = refused(job(bench, model="/no/such/folder"), "--hosts", 2, "--link", "1G")
    assert problem["key"] == "model"
    problems = refused(job(bench, model={**SMALL, "num_hidden_layers": 3, "num_attention_heads": 1}), "--hosts", 3,
                       "--gpus", 1, "--link", "1G")
    assert problems[0]["key"] == "train.global_batch" and "3 ranks" in problems[0]["reason"]


@pytest.mark.parametrize("options", [("--hosts", "0"), ("--hosts", "2", "--peak-share", "1.5"),
                                     ("--hosts", "2", "--mtbf", "inf"), ("--hosts", "2", "--latency", "-1"),
                                     ("--hosts", "2", "--mtbf", "1e300"), ("--hosts", "2", "--latency", "1e308"),
                                     ("--hosts", "2", "--peak-share", "1e-320"), ("--hosts", "9" * 5000),
                                     ("--hosts", "2", "--samples-per-second", "1e-320"),
                                     ("--hosts", "2", "--samples-per-second", "1e300"),
                                     ("--hosts", "2", "--peak-share", "0.4", "--samples-per-second", "3")])
def test_numbers_that_cannot_be_are_refused_by_the_parser(bench, capsys, options):
    with pytest.raises(SystemExit) as left:
        cli.main(["plan", str(bench.folder / "any.yml"), *options])
    error = capsys.readouterr().err.splitlines()[-1]
    assert left.value.code == 2 and f"argument {options[-2]}" in error and "invalid" not in error
    assert len(error) < 300, "what was given is quoted, not repeated"
