"""After site.yml on a bare host: the job is done, its model loads without debzero and is as accurate as its report."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
STACK = yaml.safe_load((ROOT / "stack.yml").read_text())["stack"]
PLAYS = yaml.safe_load((ROOT / "molecule/site/converge.yml").read_text())
ARCHITECTURES = PLAYS[0]["vars"]["deepspeed_wheel_architectures"]
PYTHON = "/opt/debzero/venv/bin/python"
ON_THE_PROCESSOR = {"cpu_adam", "cpu_adagrad", "async_io"}

# Nothing of debzero in it: what anyone would write who was handed the folder.
RELOAD = """
import json, sys
import pandas, torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1]).eval()
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
held_out = pandas.read_parquet(sys.argv[2]).query("held_out")
right = 0
with torch.no_grad():
    for start in range(0, len(held_out), 64):
        part = held_out.iloc[start:start + 64]
        inputs = tokenizer(list(part.text), padding=True, truncation=True, max_length=32, return_tensors="pt")
        answers = model(**inputs).logits.argmax(-1).tolist()
        right += sum(model.config.id2label[answer] == label for answer, label in zip(answers, part.label))
print(right / len(held_out))
"""


def test_the_job_finishes(host):
    watched = host.run("timeout 900 debzero status demo --watch")
    assert watched.rc == 0, watched.stdout + host.check_output("journalctl --unit debzero@demo --no-pager | tail -50")


def test_the_report_shows_a_real_result(host):
    report = json.loads(host.check_output("debzero status demo --json"))["report"]
    assert report["accuracy"] >= 2 * report["majority_accuracy"] > 0
    assert (report["world_size"], report["zero_stage"]) == (2, 2)
    assert report["steps_per_second"] > 0 and report["samples_per_second"] > 0


def test_plain_transformers_gives_the_reported_accuracy(host):
    report = json.loads(host.check_output("debzero status demo --json"))["report"]
    data = host.check_output("ls /var/lib/debzero/demo/data/debian-sections-*.parquet")
    accuracy = float(host.check_output("%s -c %s %s %s", PYTHON, RELOAD, "/var/lib/debzero/demo/model", data))
    assert abs(accuracy - report["accuracy"]) < 1e-9


def test_systemctl_status_shows_the_result(host):
    assert "accuracy" in host.check_output("systemctl show debzero@demo --property StatusText")


def test_a_restart_does_not_train_again(host):
    before = host.file("/var/lib/debzero/demo/report.json").sha256sum
    host.check_output("systemctl restart debzero@demo")
    assert host.run("timeout 60 debzero status demo --watch").rc == 0
    assert host.file("/var/lib/debzero/demo/report.json").sha256sum == before


def library(host, op):
    return host.check_output("find /opt/debzero/venv/lib/ -path '*/deepspeed/ops/*' -name %s", f"{op}_op.*.so")


@pytest.mark.parametrize("op", STACK["deepspeed_ops"])
def test_the_operator_holds_code_for_each_gpu_and_any_processor(host, op):
    path = library(host, op)
    assert host.run(f"objdump -d {path} | grep -q %zmm").rc == 1, "it needs AVX-512"
    # No driver here: an operator that is linked with libcuda could not even be looked at on a host without a GPU.
    assert "libcuda.so" not in host.check_output(f"objdump -p {path} | grep NEEDED")
    if op not in ON_THE_PROCESSOR:
        listed = host.check_output(f"cuobjdump --list-elf {path}")
        assert [name for name in ARCHITECTURES if f"sm_{name.replace('.', '')}" not in listed] == []


@pytest.mark.parametrize("op", STACK["deepspeed_ops"])
def test_the_operator_loads_without_a_gpu(host, op):
    program = f"import torch, importlib.util as u; s = u.spec_from_file_location('{op}_op', '{library(host, op)}'); " \
              "s.loader.exec_module(u.module_from_spec(s))"
    loaded = host.run("%s -c %s", PYTHON, program)
    assert loaded.rc == 0, loaded.stderr


def test_a_host_without_a_gpu_uses_what_was_compiled_for_others(host):
    """Where DeepSpeed finds no compiled operator for its accelerator it calls the compiler, which is not there."""
    program = "from deepspeed.ops.op_builder.cpu import CPUAdamBuilder; print(CPUAdamBuilder().load().__file__)"
    loaded = host.run("cd /var/tmp && CXX=/bin/false LOCAL_SIZE=1 %s -c %s", PYTHON, program)
    assert loaded.rc == 0 and library(host, "cpu_adam") in loaded.stdout, loaded.stderr


def check_runtime(host, architectures):
    """`ansible-playbook --check playbooks/runtime.yml` for these GPU architectures."""
    choices = {"deepspeed_wheel_architectures": architectures, "deepspeed_wheel_accelerator": "cuda"}
    done = subprocess.run(["ansible-playbook", "-i", "inventory/demo", "--check", "playbooks/runtime.yml",
                           "--tags", "deepspeed_wheel", "-e", json.dumps(choices)],
                          cwd=ROOT, text=True, capture_output=True,
                          env={**os.environ, "ANSIBLE_NOCOLOR": "1", "DEBZERO_CONTAINER": host.backend.name})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_is_built_again_only_for_other_architectures(host):
    assert "would compile" not in check_runtime(host, ARCHITECTURES)
    assert "would compile fused_adam" in check_runtime(host, STACK["gpu_architectures"])
