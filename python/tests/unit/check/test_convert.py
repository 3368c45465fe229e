"""Files of other programs are named as such, and `check --convert` makes a job of them."""
import json

import pytest
import yaml

from debzero.check import convert
from debzero.job import others
from debzero.job.schema import Job

ACCELERATE = {"compute_environment": "LOCAL_MACHINE", "distributed_type": "DEEPSPEED", "mixed_precision": "bf16",
              "num_processes": 8, "num_machines": 1, "deepspeed_config": {
                  "zero_stage": 3, "gradient_accumulation_steps": 4, "zero3_init_flag": True, "gradient_clipping": 0.5,
                  "offload_optimizer_device": "cpu", "offload_param_device": "none"}}
FSDP = {"compute_environment": "LOCAL_MACHINE", "distributed_type": "FSDP", "mixed_precision": "fp16",
        "num_processes": 2, "num_machines": 2, "fsdp_config": {"fsdp_sharding_strategy": "SHARD_GRAD_OP"}}
TRAINER = {"model_name_or_path": "bert-base-cased", "task_name": "mrpc", "output_dir": "out/mrpc", "do_train": True,
           "num_train_epochs": 2.5, "per_device_train_batch_size": 16, "gradient_accumulation_steps": 2, "fp16": True,
           "learning_rate": 2e-5, "lr_scheduler_type": "cosine", "save_steps": 500, "seed": 0,
           "load_best_model_at_end": True, "metric_for_best_model": "eval_f1", "hub_token": "x"}
AXOLOTL = {"base_model": "org/llama", "datasets": [{"path": "./corpus.jsonl", "type": "completion", "field": "body"}],
           "sequence_len": 2048, "micro_batch_size": 2, "gradient_accumulation_steps": 4, "num_epochs": 1,
           "adapter": "lora", "bf16": "auto", "output_dir": "./out", "val_set_size": 0.05, "optimizer": "adamw_torch"}
FACTORY = {"model_name_or_path": "org/llama", "stage": "sft", "finetuning_type": "full", "template": "llama3",
           "dataset": "identity", "cutoff_len": 1024, "output_dir": "saves/x", "per_device_train_batch_size": 1,
           "bf16": True, "deepspeed": "ds_z3_config.json", "warmup_steps": 10, "max_steps": 100}
FILES = {"accelerate": ACCELERATE, "axolotl": AXOLOTL, "LLaMA-Factory": FACTORY, "transformers": TRAINER}


@pytest.fixture
def converted(bench, capsys):
    """The job, and what else is printed, of a file that is converted."""
    from debzero.cli import main

    def convert(values: dict, *options: str) -> tuple[dict, str]:
        path = bench.folder / "theirs.yml"
        path.write_text(yaml.safe_dump(values))
        assert main(["check", "--convert", str(path), *options]) == 0
        printed = capsys.readouterr().out
        return yaml.safe_load(printed), printed

    return convert


def test_a_training_on_summaries_becomes_one_of_texts(converted):
    job, printed = converted({
        "model_name_or_path": "t5-small", "train_file": "news.csv", "output_dir": "out", "do_train": True,
        "text_column": "body", "summary_column": "headline", "source_prefix": "summarize: ", "max_source_length": 512,
        "max_target_length": 40, "predict_with_generate": True, "metric_for_best_model": "rougeL"})
    assert job["task"] == "text-to-text" and job["train"]["metric"] == "rouge_l"
    assert job["data"] == {"dataset": "news.csv", "text": "body", "label": "headline", "prefix": "summarize: ",
                           "max_length": 512, "max_answer_length": 40, "answers": "text"}
    Job.model_validate({"model": "x", "output": "out", **job})
    assert "debzero has no such setting" not in printed


@pytest.mark.parametrize("suffix", [".yml", ".json"])
@pytest.mark.parametrize("program", FILES)
def test_a_file_of_another_program_is_named_as_such_by_one_error(bench, capsys, program, suffix):
    from debzero.cli import main

    path = bench.folder / f"theirs{suffix}"
    path.write_text(json.dumps(FILES[program]))
    for command in (["check", str(path)], ["plan", str(path)]):
        assert main(command) == 2
        printed = capsys.readouterr().err
        assert f"this is {program}'s own configuration" in printed and printed.count("->") == 1
        assert f"--convert{path}`" in "".join(printed.split())


def test_accelerates_sharding_and_precision_become_a_jobs(converted):
    job, printed = converted(ACCELERATE)
    assert job == {"train": {"gradient_clipping": 0.5, "precision": "bf16"}, "ranks": 8,
                   "zero": {"stage": 3, "offload_optimizer": "cpu"}}
    assert [line.split(": ")[1] for line in printed.splitlines() if "Missing" in line] == [
        "model", "data.dataset", "output"]
    assert "Left out: gradient_accumulation_steps" in printed
    job, printed = converted(FSDP)
    assert job["zero"] == {"stage": 2} and job["train"] == {"precision": "fp16"}
    assert "SHARD_GRAD_OP" in printed and "num_machines: debzero trains on one host" in printed


CPU = {"offload_optimizer": "cpu"}


@pytest.mark.parametrize(("theirs", "zero"), [
    ({"fsdp_config": {"fsdp_version": 2, "fsdp_reshard_after_forward": False}}, {"stage": 2}),
    ({"fsdp_config": {"fsdp_version": 2, "fsdp_reshard_after_forward": True, "fsdp_offload_params": True}},
     {"stage": 3, "offload_param": "cpu", **CPU}),
    ({"fsdp_config": {"reshard_after_forward": "SHARD_GRAD_OP", "offload_params": True}}, {"stage": 2, **CPU}),
    ({"fsdp_config": {"fsdp_sharding_strategy": "NO_SHARD"}}, {"stage": "none"}),
    ({"fsdp_config": {"fsdp_sharding_strategy": 2, 3: 4}}, {"stage": 2}), ({"fsdp_config": {}}, {"stage": 3}),
    ({"fsdp": "shard_grad_op auto_wrap"}, {"stage": 2}),
    ({"fsdp": ["full_shard", "offload"], "fsdp_config": {"xla": False}}, {"stage": 3, "offload_param": "cpu", **CPU})])
def test_fsdp_of_either_version_becomes_a_stage(converted, theirs, zero):
    job, printed = converted({**TRAINER, **theirs})
    assert job["zero"] == zero and "Left out: fsdp: ZeRO stage" in printed and "Left out: fsdp_config" not in printed


def test_trainers_arguments_become_a_job_that_check_accepts(converted):
    job, printed = converted(TRAINER, "--ranks", "2")
    made = Job.model_validate(job)
    assert made.data.dataset == "glue/mrpc" and made.data.text == ["sentence1", "sentence2"] and made.ranks == 2
    train = made.train
    assert (train.global_batch, train.micro_batch, train.epochs, train.precision) == (64, 16, 3, "fp16")
    assert (train.learning_rate, train.weight_decay, train.warmup, train.seed) == (2e-5, 0, 0, 0)
    assert (train.metric, train.select, made.checkpoint.steps) == ("f1", "best", 500)
    left_out = [line.split(": ")[1] for line in printed.splitlines() if "Left out" in line]
    assert sorted(left_out) == ["hub_token", "lr_scheduler_type", "num_train_epochs"]


def test_language_models_of_axolotl_and_llama_factory_keep_their_texts_and_batch(converted):
    job, printed = converted(AXOLOTL)
    made = Job.model_validate(job)
    assert (made.task, made.data.text, made.data.held_out, made.train.global_batch) == ("causal-lm", ["body"], 0.05, 8)
    assert "adapter: debzero trains all weights" in printed and "optimizer" not in printed
    job, printed = converted(FACTORY)
    assert "stage" not in printed.replace("zero.stage", "")
    assert "Left out: stage: debzero learns to continue texts" in converted({**FACTORY, "stage": "dpo"})[1]
    assert "Left out: optimizer: debzero" in converted({**AXOLOTL, "optimizer": "adamw_bnb_8bit"})[1]
    assert job["deepspeed"] == "ds_z3_config.json" and job["train"]["warmup"] == 0.1
    assert "Missing, and not in that file: data.dataset" in printed and "finetuning_type" not in printed


def test_what_no_job_can_hold_is_left_out_with_its_value(converted):
    job, printed = converted({**TRAINER, "weight_decay": -1, "num_train_epochs": "many"})
    assert "weight_decay: -1 cannot be train.weight_decay" in printed and "weight_decay" not in job["train"]
    assert 'num_train_epochs: "many"' in printed


def test_what_is_left_out_is_there_as_json_too(bench, capsys):
    from debzero.cli import main

    path = bench.folder / "theirs.yml"
    path.write_text(yaml.safe_dump(AXOLOTL))
    assert main(["check", "--convert", str(path), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["program"] == "axolotl" and "adapter" in printed["left_out"] and printed["missing"] == []


def test_a_job_and_deepspeeds_json_are_no_other_programs(bench, capsys):
    from debzero.cli import main

    job = bench.job()
    assert main(["check", "--convert", str(job)]) == 2
    assert "no configuration of accelerate, axolotl" in capsys.readouterr().err
    assert others.program_of({"fp16": {}, "bf16": {}, "gradient_accumulation_steps": 1, "optimizer": {}}) is None
    assert others.program_of({"model": "x", "data": {}, "output_dir": "x", "do_train": 1, "save_steps": 3}) is None


def test_each_name_is_a_key_of_a_job():
    for path in others.NAMES.values():
        section, _, name = path.rpartition(".")
        model = Job.model_fields[section].annotation if section else Job
        assert name in model.model_fields, path


def test_names_of_other_programs_in_a_job_are_answered_with_a_jobs(bench, capsys):
    from debzero.cli import main

    assert main(["check", str(bench.job(train__num_train_epochs=1, train__lr=0.1, train__fp16=True))]) == 2
    printed = capsys.readouterr().err
    for text in ("here it is train.epochs", "here it is train.learning_rate", "write train.precision: fp16"):
        assert text in printed
    assert "use one of" not in printed


def test_numbers_in_quotes_and_without_end_are_converted_as_what_they_are(tmp_path):
    path = tmp_path / "arguments.yml"
    path.write_text("output_dir: o\nlearning_rate: 1e-5\nper_device_train_batch_size: '8'\nmax_steps: '100'\n"
                    "gradient_accumulation_steps: '2'\nnum_processes: '4'\nnum_train_epochs: .inf\n")
    made = convert.convert(path)
    assert made.job["train"]["global_batch"] == 64 and made.job["ranks"] == 4 and "num_train_epochs" in made.left_out
    path.write_text("distributed_type: FSDP\nnum_processes: 2\nfsdp_config: {fsdp_sharding_strategy: NO_SHARD}\n")
    assert convert.convert(path).job["zero"]["stage"] == "none"
