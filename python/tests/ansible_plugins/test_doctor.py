"""What playbooks/doctor.yml says of each host."""
from __future__ import annotations

import json

import doctor
import pytest


def finding(check: str, status: str, found: str = "it is so", advice: str = "do that") -> dict:
    return {"check": check, "status": status, "found": found, "advice": advice}


def answer(*findings: dict) -> dict:
    fine = all(one["status"] != "fail" for one in findings)
    return {"rc": int(not fine), "stdout": json.dumps({"ok": fine, "findings": findings}), "stderr": ""}


WARNED = [finding("clock", "warn", "The clock is not synchronized", "timedatectl set-ntp true"),
          finding("updates", "warn", "the kernel is held", "apt-mark unhold x")]
NAMED = ["clock: The clock is not synchronized -> timedatectl set-ntp true",
         "updates: the kernel is held -> apt-mark unhold x"]


@pytest.mark.parametrize(("registered", "verdict"), [
    (answer(finding("gpu", "ok")), ("ok", "", "", [])),
    (answer(*WARNED), ("ok", "", "", NAMED)),
    (answer(*WARNED, finding("gpu", "fail", "No GPU", "add one"), finding("smi", "fail")),
     ("broken", "gpu: No GPU", "add one", NAMED)),
    ({"stdout": "skipped, since /etc/x does not exist", "rc": 0}, ("no part", "there is no /etc/x", "", [])),
    ({"unreachable": True, "msg": "Task failed: no\n  route"},
     ("unreachable", "no route", "check its power, network and SSH key", [])),
    ({"stderr": "first\nlast\n", "rc": 2}, ("unknown", "last", "run site.yml, which installs debzero", [])),
    ({"msg": "no such file"}, ("unknown", "/usr/bin/debzero cannot be run", "run site.yml, which installs debzero", []))
])
def test_a_host_s_verdict(registered, verdict):
    found = doctor.verdict(registered, "/etc/x")
    assert (found["status"], found["cause"], found["advice"], found["warnings"]) == verdict


def test_the_table_names_every_warning_with_its_advice():
    assert doctor.table({"gpu1": doctor.verdict(answer(*WARNED)),
                         "second": doctor.verdict({"unreachable": True, "msg": "no route"})}) == [
        "gpu1    ok", *(f"        warning      {warning}" for warning in NAMED),
        "second  unreachable  no route -> check its power, network and SSH key"]
