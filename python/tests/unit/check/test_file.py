"""`debzero check` on DeepSpeed's own JSON: what it prints, what --fix writes, and that no text causes a traceback."""
import copy
import json
import os

import pytest

ARTICLE = {"train_batch_size": 64, "gradient_accumulation_steps": 4, "fp16": {"enabled": True}, "zero_optimization": {
    "stage": 2, "offload_optimizer": {"device": "cpu", "pin_memory": True}, "offload_param": {"device": "cpu"}}}

OLD = """{
    "optimizer": {"type": "AdamW", "params": {"betas": [0.9, 0.95], "max_grad_norm": 0.5}},
    "zero_optimization": {
        "cpu_offload": true,
        "cpu_offload_use_pin_memory": true,
        "stage": 2,
        "reduce_bucket_size": "5000",
        "stage3_max_live_parameters": 1
    },
    "bfloat16": {"enabled": true}
}"""


def test_fix_corrects_the_articles_config(bench):
    path = bench.folder / "ds.json"
    path.write_text(json.dumps(ARTICLE, indent=4) + "\n")
    path.chmod(0o640)
    refused = bench.quick_apart("check", path)
    assert refused.returncode == 2 and "DZ110" in refused.stderr and "zero_optimization.offload_param" in refused.stderr
    done = bench.quick_apart("check", path, "--fix")
    assert done.returncode == 0, done.stderr
    assert "DZ110" in done.stdout.splitlines()[0]
    good = copy.deepcopy(ARTICLE)
    del good["zero_optimization"]["offload_param"]
    assert path.read_text() == json.dumps(good, indent=4) + "\n"
    kept = bench.folder / "ds.json.bak"
    assert path.stat().st_mode & 0o777 == kept.stat().st_mode & 0o777 == 0o640
    assert kept.read_text() == json.dumps(ARTICLE, indent=4) + "\n"
    path.write_text(json.dumps(ARTICLE))
    assert bench.quick("check", path, "--fix").returncode == 0
    assert (bench.folder / "ds.json.bak.1").read_text() == json.dumps(ARTICLE) and kept.read_text().endswith("\n")


def test_fix_of_the_file_that_a_job_names_keeps_order_and_layout(bench, capsys):
    from debzero.cli import main

    path = bench.folder / "ds.json"
    path.write_text(OLD)
    # bf16 on a CPU
    assert main(["check", "--fix", str(bench.job(deepspeed="ds.json", zero__stage=2, train__precision="fp32"))]) == 2
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 7 and "as it was: ds.json.bak" in printed.out
    assert "bf16.enabled  bf16 needs a GPU" in printed.err
    values = json.loads(path.read_text())
    assert list(values) == ["optimizer", "zero_optimization", "bf16", "gradient_clipping"]
    assert list(values["zero_optimization"]) == ["offload_optimizer", "stage", "reduce_bucket_size"]
    assert values["zero_optimization"]["offload_optimizer"] == {"device": "cpu", "pin_memory": True}
    assert values["zero_optimization"]["reduce_bucket_size"] == 5000 and values["gradient_clipping"] == 0.5
    text = path.read_text()
    assert '[0.9, 0.95]' in text and text.splitlines()[1].startswith('    "') and text[-1] == "}"


def test_fix_keeps_the_owner_and_reports_its_changes_as_json(bench, capsys):
    from debzero.cli import main

    path = bench.folder / "ds.json"
    path.write_text(json.dumps({**ARTICLE, "train_batchsize": 3}))
    os.chown(path, 1234, 2345)
    path.chmod(0o640)
    assert main(["check", str(path), "--fix", "--json"]) == 2
    printed = json.loads(capsys.readouterr().out)
    assert len(printed["changes"]) == 1 and "DZ110" in printed["changes"][0]
    assert [p["code"] for p in printed["problems"]] == ["DZ101"]
    now = path.stat()
    assert (bench.folder / "ds.json.bak").stat().st_uid == 1234
    assert "offload_param" not in path.read_text() and (now.st_uid, now.st_gid, now.st_mode & 0o777) == (1234, 2345,
                                                                                                         0o640)


def test_a_repeated_key_hides_nothing_else_and_is_not_chosen_from(bench, capsys):
    from debzero.cli import main

    path = bench.folder / "ds.json"
    text = '{"steps_per_print": 5, "steps_per_print": 6, "zero_optimization": true, "train_batchsize": 3}'
    path.write_text(text)
    for options in ([], ["--fix"]):
        assert main(["check", str(path), "--json", *options]) == 2
        assert [p["code"] for p in json.loads(capsys.readouterr().out)["problems"]] == ["DZ105", "DZ101", "DZ104"]
        assert path.read_text() == text


def test_warnings_alone_pass_and_strict_refuses_them(bench, capsys):
    from debzero.cli import main

    path = bench.folder / "ds.json"
    path.write_text(json.dumps({"checkpoint": {"load_universal": True}}))
    assert main(["check", str(path)]) == 0
    assert "DZ150 warning" in capsys.readouterr().out
    assert main(["check", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["problems"][0]["severity"] == "warning"
    assert main(["check", str(path), "--strict"]) == 2
    assert "DZ150" in capsys.readouterr().err
    job = bench.job(deepspeed={"checkpoint": {"load_universal": True}})
    assert main(["check", str(job)]) == 0
    assert "deepspeed.checkpoint.load_universal" in capsys.readouterr().out
    assert main(["check", str(job), "--fix", "--strict"]) == 2
    assert "by hand" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["", "[1]", '{"a": 1 "b": 2}', '{"a": 1e400}', '{"a": NaN}', "\x00", "3",
                                  '{"a": ' * 5000, '{"fp16": {}, "fp16": {}}'])
def test_no_json_text_makes_a_traceback(bench, capsys, text):
    from debzero.cli import main

    path = bench.folder / "ds.json"
    path.write_text(text)
    for options in ([], ["--fix"]):
        assert main(["check", str(path), *options]) == 2
        assert "ds.json" in capsys.readouterr().err
    assert main(["check", str(bench.job(deepspeed="ds.json"))]) == 2
    assert path.read_text() == text
    path.write_bytes(b"\xff\xfe{}")
    for options in ([], ["--fix"]):
        assert main(["check", str(path), *options]) == 2
        assert "is no UTF-8 text" in capsys.readouterr().err


HJSON = """{
  // both kinds of comment, a text without quotes, and a comma too many
  "train_batch_size": 8,
  "zero_optimization": {"stage": 2, "offload_optimizer": {
    device: cpu
  }},  # Hjson
}
"""


def test_hjson_is_read_as_deepspeed_reads_it_and_keeps_its_comments(bench, capsys):
    from debzero.cli import main

    path = bench.folder / "ds.json"
    path.write_text(HJSON)
    assert main(["check", str(path), "--strict"]) == 0
    old = HJSON.replace('"train_batch_size": 8', '"train_batch_size": 8, "bfloat16": {"enabled": true}')
    path.write_text(old)
    capsys.readouterr()
    assert main(["check", str(path), "--fix"]) == 0
    assert path.read_text() == old
    assert "change by hand" in capsys.readouterr().out


@pytest.mark.parametrize(("text", "place"), [
    ('{\n  "a": 1,\n  "b": [2\n}', "line 4, column 1"), ('{"a": 1, # x\n "b": [1, }', "line 2"),
    ("{} }", "line 1, column 4")])
def test_what_is_no_hjson_is_refused_with_its_place(bench, capsys, text, place):
    from debzero.cli import main

    path = bench.folder / "ds.json"
    path.write_text(text)
    assert main(["check", str(path)]) == 2
    assert place in capsys.readouterr().err
