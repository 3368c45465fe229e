"""Shell scripts in playbooks and roles, with stand-ins for the commands that ask the host."""
from __future__ import annotations

import os
import subprocess
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[3]
ENVIRONMENT = "/usr/lib/debzero/runtime/env/1+a-0f"


def run(script: str, folder: Path, values: dict[str, str], **answers: str) -> str:
    """What the script prints; each of the answers is what the command of that name prints."""
    for name, value in values.items():
        script = script.replace("{{ " + name + " }}", value)
    assert "{{" not in script
    commands = folder / "commands"
    commands.mkdir()
    for name, answer in answers.items():
        (commands / f"{name}.txt").write_text(answer)
        (commands / name).write_text(f"#!/bin/sh\ncat {commands}/{name}.txt\n")
        (commands / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{commands}:{os.environ['PATH']}"}
    return subprocess.run(["bash", "-c", script], env=environment, check=True, capture_output=True, text=True).stdout


def test_trainings_of_either_environment_are_spared(tmp_path: Path) -> None:
    steps = yaml.safe_load((ROOT / "roles/base/tasks/spare_jobs.yml").read_text())
    processes = [
        "1 - /opt/venv/bin/python -I /usr/share/debzero/command.py train a.yml",
        f"2 session-1.scope {ENVIRONMENT}/bin/python -I /usr/share/debzero/command.py tune a.yml",
        f"3 debzero@a.service {ENVIRONMENT}/bin/python -I /usr/share/debzero/command.py train a.yml",
        f"4 - {ENVIRONMENT}/bin/python -I /usr/share/debzero/command.py status a",
        "5 - /usr/bin/python3 -I /usr/share/debzero/command.py train a.yml"]
    told = run(steps[0]["ansible.builtin.shell"]["cmd"], tmp_path, {"stack.venv": "/opt/venv"}, ps="\n".join(processes),
               systemctl="debzero@a.service loaded active running a\n")
    assert told.splitlines() == ["debzero@a.service", "process 1", "process 2"]


def test_an_interrupted_upgrade_s_jobs_and_those_that_run_now_train_again(tmp_path: Path) -> None:
    (play,) = [play for play in yaml.safe_load((ROOT / "playbooks/upgrade.yml").read_text())
               if play["name"] == "Upgrade host by host"]
    (script,) = [task["ansible.builtin.shell"]["cmd"] for task in play["tasks"]
                 if task["name"] == "Keep what the host has"]
    kept = tmp_path / "before"
    kept.mkdir()
    (kept / "jobs").write_text("stopped\nboth\n")
    units = "".join(f"debzero@{name}.service loaded active running\n" for name in ("both", "started"))
    run(script, tmp_path, {"__kept": str(kept), "stack.config": str(tmp_path), "stack.cache": str(tmp_path),
                           "stack.prefix": str(tmp_path)}, systemctl=units)
    assert (kept / "jobs").read_text().split() == ["both", "started", "stopped"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["before", "commands"]
