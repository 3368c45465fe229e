"""After site.yml on a bare host: the job is done, its model is real, and it answers what its report says."""

import json

PYTHON = "/opt/debzero/venv/bin/python"

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
