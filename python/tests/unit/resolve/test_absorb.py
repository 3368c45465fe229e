"""What DeepSpeed's JSON sets counts, and is blamed where the user wrote it: in the JSON, by its own key."""
import pytest
from support import JOB, changed

from debzero.base.errors import InputError
from debzero.job.schema import Job
from debzero.resolve import deepspeed_config
from debzero.resolve.host import HostGpus
from debzero.resolve.resolve import resolve

CPU, VOLTA, AMPERE = HostGpus(0, False), HostGpus(2, bf16=False), HostGpus(2, bf16=True)
T5 = {"type": "t5", "vocab_size": 200}


def resolved(config, inline=False, host=CPU, **changes):
    job = changed(JOB, {"deepspeed": config if inline else "/etc/ds.json",
                        **{key.replace("__", "."): value for key, value in changes.items()}})
    return resolve(Job.model_validate(job), host, 2, "job.yml", config)


@pytest.mark.parametrize(("config", "changes", "key", "fix"), [
    ({"fp16": {"enabled": True}}, {}, "fp16.enabled", 'fp16.enabled: "auto", and in the job precision: auto'),
    ({"bf16": {"enabled": True}}, {}, "bf16.enabled", 'bf16.enabled: "auto"'),
    ({"bf16": {"enabled": True}}, {"host": VOLTA}, "bf16.enabled", 'bf16.enabled: "auto"'),
    ({"fp16": {"enabled": True}}, {"host": AMPERE, "model": T5, "task": "text-to-text"}, "fp16.enabled", "bf16"),
    ({"bfloat16": {"enabled": True}}, {"host": VOLTA}, "bfloat16.enabled", 'bfloat16.enabled: "auto"'),
    ({"train_micro_batch_size_per_gpu": 7}, {}, "train_micro_batch_size_per_gpu",
     "use train_micro_batch_size_per_gpu in /etc/ds.json 4 (or auto), or train.global_batch 28 or 42"),
    ({"gradient_accumulation_steps": 3}, {"train__micro_batch": None}, "gradient_accumulation_steps",
     "use train.global_batch 30 or 36, or a gradient_accumulation_steps in /etc/ds.json that divides 16"),
    ({"gradient_accumulation_steps": 4}, {}, "gradient_accumulation_steps",
     "use train.global_batch 64, or train.micro_batch: auto"),
    ({"optimizer": {"type": "AdamW", "params": {"lr": 0}}}, {}, "optimizer.params.lr", "use train.learning_rate"),
    ({"gradient_clipping": 2, "optimizer": {"type": "AdamW", "params": {"lr": 0, "weight_decay": 0.1}}}, {},
     "optimizer.params.lr", "correct it"),
    ({"zero_optimization": {"offload_param": {"device": "cpu"}}}, {"zero__stage": 2},
     "zero_optimization.offload_param", "zero.stage: 3"),
])
@pytest.mark.parametrize("inline", [False, True])
def test_an_error_names_the_key_that_the_user_wrote(config, changes, key, fix, inline):
    with pytest.raises(InputError) as caught:
        resolved(config, inline, **changes)
    (problem,) = caught.value.problems
    assert (problem.file, problem.key) == (("job.yml", f"deepspeed.{key}") if inline else ("/etc/ds.json", key))
    assert inline or fix in problem.fix, problem.fix


def test_an_error_of_the_jobs_own_value_names_the_job():
    with pytest.raises(InputError) as caught:
        resolved({"gradient_clipping": 1}, train__precision="fp16", train__micro_batch=7)
    assert {(p.file, p.key) for p in caught.value.problems} == {("job.yml", "train.precision"),
                                                                ("job.yml", "train.micro_batch")}


@pytest.mark.parametrize(("off", "wanted", "host", "expected"), [
    ("bf16", "auto", AMPERE, "fp16"), ("bf16", "bf16", AMPERE, "fp16"), ("fp16", "auto", VOLTA, "fp32"),
    ("fp16", "fp16", AMPERE, "bf16"), ("fp16", "fp32", AMPERE, "fp32"), ("bfloat16", "auto", AMPERE, "fp16")])
def test_a_precision_that_the_json_switches_off_is_not_chosen(off, wanted, host, expected):
    """DeepSpeed would train in fp32, and the report would say otherwise."""
    assert resolved({off: {"enabled": False}}, host=host, train__precision=wanted).precision == expected


def test_the_old_names_that_deepspeed_takes_count(bench):
    """DeepSpeed takes its bf16 for bfloat16, and debzero writes a bf16 of its own."""
    old = resolved({"bfloat16": {"enabled": True}, "zero_optimization": {"stage": 2, "cpu_offload": True}},
                   host=AMPERE, train__precision="fp16")
    assert (old.precision, old.job.zero.offload_optimizer) == ("bf16", "cpu")
    assert old.origins.key("zero.offload_optimizer") == "zero_optimization.cpu_offload"
    made = deepspeed_config.generate(old, 8, 10)
    assert made["bf16"]["enabled"] and "bfloat16" not in made and not made["fp16"]["enabled"]
    assert made["zero_optimization"]["offload_optimizer"]["device"] == "cpu"
    assert "cpu_offload" not in made["zero_optimization"]
    zero = {"stage": 3, "cpu_offload": False, "cpu_offload_param": True,
            "stage3_gather_fp16_weights_on_model_save": False}
    made = deepspeed_config.generate(resolved({"zero_optimization": zero}, host=AMPERE), 8, 10)["zero_optimization"]
    assert made["offload_param"]["device"] == "cpu" and "offload_optimizer" not in made
    assert made["stage3_gather_16bit_weights_on_model_save"] is False and not set(zero) - {"stage"} & set(made)


@pytest.mark.parametrize("section", ["optimizer", "fp16", "zero_optimization"])
def test_a_section_that_is_auto_is_debzeros_own(section):
    """It was left out: DeepSpeed then had no optimizer, or trained in fp32, and ZeRO ended in a traceback."""
    auto, empty = (deepspeed_config.generate(resolved(config, host=VOLTA, zero__stage=2), 8, 10)
                   for config in ({section: "auto"}, {}))
    assert auto == empty


def test_a_swap_folder_of_the_json_is_blamed_there(bench):
    from debzero.check.checks import check

    path = bench.job(deepspeed={"zero_optimization": {"stage": 3, "offload_optimizer": {
        "device": "nvme", "nvme_path": str(bench.folder / "none")}}})
    with pytest.raises(InputError) as caught:
        check(path)
    assert [p.key for p in caught.value.problems if "none" in p.reason] == [
        "deepspeed.zero_optimization.offload_optimizer.nvme_path"]


def test_an_adam_of_the_json_is_torchs_where_deepspeeds_would_be_compiled_first():
    def params(host=HostGpus(0, False), **optimizer):  # noqa: B008
        made = deepspeed_config.generate(resolved({"optimizer": optimizer}, host=host, zero__stage=2), 8, 10)
        return made["optimizer"].get("params", {})

    plain = {"lr": 0.1, "betas": [0.9, 0.99]}
    assert params(type="AdamW", params=plain) == {**plain, "torch_adam": True}
    assert params(type="Adam") == {"torch_adam": True}
    for more in ({"torch_adam": False}, {"bias_correction": False}):
        assert params(type="AdamW", params={**plain, **more}) == {**plain, **more}
    assert params(type="Lion", params={"lr": 0.1}) == {"lr": 0.1}
    assert params(host=VOLTA, type="AdamW", params=plain) == plain
