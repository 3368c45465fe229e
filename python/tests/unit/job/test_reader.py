"""All mistakes of a job are reported at once, in whole sentences, with the key and the fix; never as a traceback."""
import json
import signal

import pytest
from support import JOB, changed

import debzero.train.launch
from debzero import cli
from debzero.check import checks
from debzero.job.document import read_mapping
from debzero.job.reader import parse
from debzero.model import tasks
from debzero.resolve.host import HostGpus
from debzero.resolve.resolve import resolve

# The change to a valid job, the key that must be named, and a piece of the fix.
MISTAKES = [
    ({"trian": {}}, "trian", "did you mean train"),
    ({"train.max_grad_nrom": 1}, "train.max_grad_nrom", "did you mean max_grad_norm"),
    ({"train.amp": True}, "train.amp", "use train.precision"),
    ({"train.logging_stratgey": "no"}, "train.logging_stratgey", "use train.log_every"),
    ({"train.gradient_accumulation": 2}, "train.gradient_accumulation", "remove it: train.global_batch is"),
    ({"train.cls": 2}, "train.cls", "use one of"),
    ({"epochs": 3}, "epochs", "write train.epochs"),
    ({"train.ranks": 3}, "train.ranks", "move it there"),
    ({"data.stage": 3}, "data.stage", "write zero.stage"),
    ({"train.epocs": 3}, "train.epocs", "did you mean epochs"),
    ({"train.epochs": "many"}, "train.epochs", "epochs: 3"),
    ({"train.epochs": True}, "train.epochs", "epochs: 3"),
    ({"train.learning_rate": -1}, "train.learning_rate", "3e-5"),
    ({"train.precision": "fp17"}, "train.precision", "did you mean fp16"),
    ({"train.precision": "fp16"}, "train.precision", "precision: auto"),
    ({"train.global_batch": 33}, "train.global_batch", "use 32 or 34"),
    ({"train.micro_batch": 7}, "train.micro_batch", "use micro_batch 4"),
    ({"zero.stage": 4}, "zero.stage", "3"),
    ({"zero.stage": 2, "zero.offload_param": "cpu"}, "zero.offload_param", "set zero.stage: 3"),
    ({"zero.offload_optimizer": "cpu"}, "zero.offload_optimizer", "set zero.stage: 2"),
    ({"data.dataset": "missing.csv"}, "data.dataset", "relative to the job file"),
    ({"data.text": "sentence"}, "data.text", "use one of: text, label"),
    ({"data.label": "lable"}, "data.label", "did you mean label"),
    ({"data.held_out": None}, "data.held_out", "held_out: 0.1"),
    ({"model": "./nowhere"}, "model", "save_pretrained"),
    ({"model.type": "burt"}, "model.type", "did you mean bert"),
    ({"model.hidden_sise": 3}, "model.hidden_sise", "did you mean hidden_size"),
    ({"model.hidden_size": "wide"}, "model.hidden_size", "whole number"),
    ({"model.hidden_size": 30, "model.num_attention_heads": 4}, "model", "correct the setting"),
    ({"model.num_attention_heads": 0}, "model.num_attention_heads", "such as 12"),
    ({"model.num_hidden_layers": 0}, "model.num_hidden_layers", "such as 12"),
    ({"model.num_hidden_layers": 10**9}, "model.num_hidden_layers", "a smaller number"),
    ({"model.hidden_dropout_prob": 1.5}, "model.hidden_dropout_prob", "from 0 to 1"),
    ({"model.layer_norm_eps": "tiny"}, "model.layer_norm_eps", "such as 1e-12"),
    ({"model": {"type": "llama", "vocab_size": 200, "hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 8,
                "num_attention_heads": 4, "num_key_value_heads": 3}}, "model", "correct them"),
    ({"model": {"type": "encoder-decoder", "vocab_size": 200}}, "model.type", "another type"),
    ({"model.num_labels": 10**9}, "model.num_labels", ""),
    ({"model": None}, "model", "add it"),
    ({"output": None}, "output", "add it"),
    ({"output": "rows.csv"}, "output", "another output"),
    ({"output": "."}, "output", "a folder of its own"),
    ({"train.learning_rate": float("inf")}, "train.learning_rate", "3e-5"),
    ({"checkpoint.minutes": float("nan")}, "checkpoint.minutes", "10"),
    ({"train.global_batch": 2**50}, "train.global_batch", "64"),
    ({"ranks": 0}, "ranks", "auto"),
    ({"deepspeed": "none.json"}, "deepspeed", "relative to the job file"),
    ({"deepspeed": {"train_batch_size": 30, "train_micro_batch_size_per_gpu": 8}}, "deepspeed.train_batch_size",
     "set it to 32"),
    ({"deepspeed": {"gradient_acumulation_steps": 2}}, "deepspeed.gradient_acumulation_steps",
     "did you mean gradient_accumulation_steps"),
    ({"deepspeed": {"optimizer": {"params": {"lr": "1e-5"}}}}, "deepspeed.optimizer.params.lr", "1.0"),
    ({"zero.stage": 2, "deepspeed": {"zero_optimization": {"offload_param": {"device": "cpu"}}}},
     "deepspeed.zero_optimization.offload_param", "set zero.stage: 3"),
    ({"zero.stage": 2, "zero.offload_optimizer": "nvme", "zero.nvme_path": "."}, "zero.offload_optimizer",
     "offload_optimizer: cpu"),
    ({"zero.stage": 2, "zero.offload_param": "nvme"}, "zero.offload_param", "set zero.stage: 3"),
    ({"zero.engine": "native"}, "zero.engine", "set zero.stage: 2"),
    ({"zero.stage": 1, "zero.engine": "native", "zero.offload_optimizer": "cpu"}, "zero.offload_optimizer", "remove"),
    ({"zero.stage": 1, "zero.engine": "native", "deepspeed": {"gradient_clipping": 0.5}}, "deepspeed", "remove"),
    ({"zero.stage": 3, "zero.offload_optimizer": "nvme"}, "zero.nvme_path", "nvme_path: /nvme/swap"),
    ({"zero.stage": 3, "zero.offload_optimizer": "nvme", "zero.nvme_path": "nowhere"}, "zero.nvme_path", "create it"),
    ({"model": {"type": "t5", "vocab_size": 200}, "task": "text-to-text", "train.precision": "fp16"},
     "train.precision", "bf16"),
]


@pytest.mark.parametrize(("change", "key", "fix"), MISTAKES, ids=[f"{k}-{i}" for i, (_, k, _) in enumerate(MISTAKES)])
def test_each_mistake_names_its_key_and_its_fix(bench, monkeypatch, change, key, fix):
    from debzero.base.errors import InputError

    path = bench.job()
    path.write_text(json.dumps(changed(JOB, change)))  # JSON is YAML
    with pytest.raises(InputError) as found:
        checks.check(path)
    problem = {p.key: p for p in found.value.problems}
    assert key in problem, found.value.text()
    assert fix in problem[key].fix
    assert problem[key].file == str(path)


@pytest.mark.parametrize(("text", "reason"), [
    ("", "file is empty, but must hold a mapping such as `model: ...`"), ("just text", "`model: ...`, not text"),
    ("- a", "`model: ...`, not a list"), ("3", "`model: ...`, not a number"),
    ("train: {gradient_checkpointing: maybe}", "must be true or false, not 'maybe'")])
def test_a_wrong_type_is_named_in_plain_english(tmp_path, capsys, text, reason):
    path = tmp_path / "job.yml"
    path.write_text(text)
    assert cli.main(["check", str(path)]) == 2
    assert reason in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(("kind", "task"), [("marian", "text-to-text"), ("xlnet", "classification")])
def test_what_a_model_type_takes_for_granted_is_no_mistake(bench, kind, task):
    """Marian's own padding token lies beyond a small vocabulary; XLNet has no last position."""
    checks.check(bench.job(model={"type": kind, "vocab_size": 200}, task=task))


def test_a_missing_job_is_looked_for_in_the_current_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["check", "none.yml"]) == 2
    assert "check the path, relative to the current folder" in capsys.readouterr().err
    assert cli.main(["check", str(tmp_path / "none.yml")]) == 2
    assert "relative" not in capsys.readouterr().err


def test_all_mistakes_at_once_with_exit_code_2_and_nothing_written(bench):
    path = bench.job(train__epocs=3, train__precision="fp17", data__dataset="missing.csv", zero__stage=7)
    done = bench.quick_apart("train", path)
    assert done.returncode == 2
    for key in ("train.epocs", "train.precision", "data.dataset", "zero.stage"):
        assert key in done.stderr
    assert "Traceback" not in done.stderr
    assert not bench.output().exists()


@pytest.mark.parametrize("text", ["", "just words", "- a list", "a: [1,", "\tx: 1", "model: {a: b: c}",
                                  "model: &a [{b: *a}]", "\x00"])
def test_no_text_at_all_makes_a_traceback(bench, text):
    path = bench.folder / "broken.yml"
    path.write_text(text)
    done = bench.quick_apart("check", path)
    assert done.returncode == 2
    assert "broken.yml" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_job_and_a_folder_are_named(bench):
    for path in (bench.folder / "none.yml", bench.folder):
        done = bench.quick_apart("check", path)
        assert done.returncode == 2
        assert str(path) in done.stderr and "Traceback" not in done.stderr


def test_check_answers_scripts_in_json(bench):
    good = bench.quick_apart("check", bench.job(), "--json")
    assert good.returncode == 0
    assert json.loads(good.stdout)["batch"] == "global batch 32 = micro-batch 8 x 2 accumulation steps x 2 ranks"
    bad = bench.quick_apart("check", bench.job(ranks=0), "--json")
    assert bad.returncode == 2
    assert [p["key"] for p in json.loads(bad.stdout)["problems"]] == ["ranks"]


def test_the_home_of_no_user_is_refused(tmp_path):
    """It would become a folder named ~nobody-here beside the job."""
    job = tmp_path / "job.yml"
    job.write_text("model: b\ndata: {dataset: x.csv}\noutput: ~nobody-here/out\nzero: {nvme_path: ~nobody-here/swap}\n")
    assert [(p.key, p.reason) for p in parse(job)[1]] == [
        (key, "~nobody-here is the home of no user of this host") for key in ("output", "zero.nvme_path")]
    job.write_text("model: b\ndata: {dataset: x.csv}\noutput: ~/out\nzero: {nvme_path: ~root/swap}\n")
    assert parse(job)[1] == []


def test_check_ends_with_a_verdict(bench):
    path = bench.job()
    assert bench.quick_apart("check", path).stdout.startswith(f"{path}: OK\n")
    done = bench.quick_apart("check", bench.job(ranks=0))
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.splitlines()[0] == f"{path}: 1 problem" and done.stderr.splitlines()[-1] == f"{path}: invalid"


def test_check_shows_a_label_only_where_the_task_has_one(bench, capsys):
    from debzero.cli import main

    assert main(["check", str(bench.job())]) == 0
    assert "rows.csv: text -> label" in capsys.readouterr().out
    assert main(["check", str(bench.job(task="causal-lm", model={"type": "gpt2", "vocab_size": 200}))]) == 0
    assert "rows.csv: text\n" in capsys.readouterr().out


def test_the_printed_article_config_is_refused_for_its_offload(bench):
    """offload_param at stage 2: DeepSpeed silently ignores it."""
    config = {"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}}
    done = bench.quick_apart("check", bench.job(deepspeed=config))
    assert done.returncode == 2
    assert "zero_optimization.offload_param" in done.stderr and "zero_optimization.stage: 3" in done.stderr


def test_train_prints_the_warnings_of_check_and_continues(bench, monkeypatch, capsys):
    from debzero import cli

    monkeypatch.setattr(debzero.train.launch, "train", lambda plan, job, again: 0)
    monkeypatch.chdir(bench.folder)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    try:
        assert cli.main(["train", str(bench.job(deepspeed={"zero_optimization": {"stage": 2},
                                                           "of_our_own": True}))]) == 0
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    printed = capsys.readouterr().err
    assert "1 warning" in printed and "of_our_own" in printed


def test_a_repeated_key_is_refused_with_its_line(bench, capsys):
    """YAML would train with the second `train:` alone."""
    from debzero.cli import main

    path = bench.job()
    path.write_text(path.read_text() + "train: {epochs: 1, epochs: 2}\nranks: 1\n")
    lines = path.read_text().splitlines()
    assert main(["check", str(path), "--json"]) == 2
    problems = {p["key"]: p["reason"] for p in json.loads(capsys.readouterr().out)["problems"]}
    assert problems.keys() == {"train", "train.epochs", "ranks"}
    assert all(reason == f"is repeated on line {len(lines) - (key != 'ranks')}; YAML silently keeps the last"
               for key, reason in problems.items()), problems


def test_fix_leaves_a_file_alone_that_a_job_may_not_mean(bench):
    from debzero.cli import main

    config = {"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}}
    for name in ("a", "b"):
        (bench.folder / f"{name}.json").write_text(json.dumps(config))
    path = bench.job()
    path.write_text(path.read_text() + "deepspeed: a.json\ndeepspeed: b.json\n")
    assert main(["check", str(path), "--fix"]) == 2
    assert all("offload_param" in (bench.folder / f"{name}.json").read_text() for name in ("a", "b"))


def test_anchors_and_merged_mappings_repeat_no_key(bench):
    path = bench.folder / "job.yml"
    path.write_text("""
base: &base {epochs: 1, seed: 3}
more: &more {warmup: 0.5}
train: {<<: *base, <<: *more, epochs: 2}
""")
    assert read_mapping(path)["train"] == {"epochs": 2, "seed": 3, "warmup": 0.5}
    assert not any("repeated" in problem.reason for problem in parse(path)[1])


@pytest.mark.parametrize(("data", "moves"), [
    ("out-job/model/rows.csv", True), ("out-job/data/rows.csv", False), ("out-job/rows.csv", False),
    ("out-job/../rows.csv", False), ("link.csv", True)])
def test_an_output_that_holds_what_the_job_reads_is_refused(bench, capsys, data, moves):
    """It would move to archive/ with the results before."""
    from debzero.cli import main

    for folder in (bench.output(), bench.output() / "data", bench.output() / "model"):
        folder.mkdir()
        (folder / "rows.csv").write_text((bench.folder / "rows.csv").read_text())
    (bench.output() / "status.json").touch()
    (bench.folder / "link.csv").symlink_to(bench.output() / "model" / "rows.csv")
    assert main(["check", str(bench.job(data__dataset=data))]) == (2 if moves else 0)
    assert ("holds data.dataset, and" in " ".join(capsys.readouterr().err.split())) is moves


def test_a_batch_of_any_size_is_shared_out_at_once(bench):

    batch = checks.check(bench.job(train__global_batch=10**10, train__micro_batch="auto")).batch
    assert (batch.micro, batch.accumulation) == (32, 10**10 // 64)


def test_packaged_jobs_are_valid():
    """Read without problems, right for their task, and with the batch of two GPUs in a comment as it is computed."""
    from pathlib import Path


    folder = Path(__file__).resolve().parents[4] / "debian" / "jobs"
    found = sorted(folder.glob("*.yml"))
    assert {path.stem for path in found} >= {"demo", "mrpc", "gpt2-medium", "t5-base"}
    for path in found:
        parsed, problems = parse(path)
        assert parsed is not None and not problems
        assert not tasks.problems(parsed, str(path))
        batch = resolve(parsed, HostGpus(2, True), None, str(path), None).batch
        assert f"{batch.total} samples per step = {str(batch).partition('= ')[2]}" in path.read_text()
        assert Path(parsed.output).name == path.stem
