"""The checkout's Ansible, for tests that start it: as users do, from the root, with its ansible.cfg."""
from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PATH = os.pathsep.join([str(ROOT / ".cache/controller/bin"), os.environ["PATH"]])


def play(*words: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """`ansible-playbook` with these words. `variables` are the environment's; PATH precedes this module's."""
    program = shutil.which("ansible-playbook", path=PATH)
    if program is None:
        pytest.fail("ansible-playbook is not installed: run `ansible/bootstrap tests` and try again", pytrace=False)
    path = os.pathsep.join([*filter(None, [variables.pop("PATH", "")]), PATH])
    return subprocess.run([program, *map(str, words)], cwd=ROOT, text=True, capture_output=True,
                          stdin=subprocess.DEVNULL,
                          env={**os.environ, "ANSIBLE_NOCOLOR": "1", **variables, "PATH": path})
