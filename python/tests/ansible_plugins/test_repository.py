"""What a second run of the role repository makes of a first one that ended halfway. aptly is a stand-in."""
from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import yaml
from controller import ROOT, play

APTLY = """#!/bin/sh
cd "$(dirname "${1#-config=}")"
case "$2 $3" in
    "repo list") if [ -e made ]; then echo debzero; fi ;;
    "repo create") touch made ;;
    "repo search") if [ -e made ]; then echo "ERROR: no results" >&2; fi; exit 1 ;;
    "repo add") for last; do :; done; ls "$last" >added; rm "$last"/* ;;
esac
"""


def deb(folder: Path, name: str, version: str) -> str:
    control = folder / "root/DEBIAN/control"
    control.parent.mkdir(parents=True, exist_ok=True)
    control.write_text(f"Package: debzero\nVersion: {version}\nArchitecture: all\nMaintainer: x <x@example.org>\n"
                       "Description: x\n")
    (folder / "root/data").write_bytes(os.urandom(9000))
    subprocess.run(["dpkg-deb", "--build", control.parents[1], folder / name], check=True, capture_output=True)
    return str(folder / name)


def add(folder: Path, *packages: str) -> subprocess.CompletedProcess:
    (folder / "try.yml").write_text(yaml.safe_dump([
        {"name": "Try", "hosts": "localhost", "connection": "local", "gather_facts": False,
         "vars_files": [str(ROOT / "stack.yml")], "tasks": [
             {"ansible.builtin.include_role": {"name": "repository", "tasks_from": part}}
             for part in ("refuse", "add_packages")]}]))
    values = {"repository_folder": str(folder / "repository"), "repository_packages": packages,
              "ansible_python_interpreter": "/usr/bin/python3"}
    return play("-i", "localhost,", folder / "try.yml", "-e", json.dumps(values), PATH=str(folder))


@pytest.mark.long  # it starts Ansible
def test_a_run_that_ended_halfway_keeps_no_later_one_from_publishing(tmp_path: Path) -> None:
    (tmp_path / "aptly").write_text(APTLY)
    (tmp_path / "aptly").chmod(0o755)
    private = tmp_path / "repository/aptly"
    (private / "db").mkdir(parents=True)  # aptly was interrupted before it had made the repository
    cut = Path(deb(tmp_path, "debzero_3_all.deb", "3"))
    cut.write_bytes(cut.read_bytes()[:300])
    short = Path(deb(tmp_path, "debzero_4_all.deb", "4"))
    short.write_bytes(short.read_bytes()[:-4000])  # dpkg-deb still shows its fields
    refused = add(tmp_path, str(cut), str(short), deb(tmp_path, "debzero_7_all.deb", "1"))
    text = " ".join(refused.stdout.split())
    assert refused.returncode == 2 and "debzero_3_all.deb is damaged" in text, refused.stdout
    assert "debzero_4_all.deb is damaged: dpkg-deb" in text
    assert "debzero_7_all.deb is damaged, or has another name than its own: debzero_1_all.deb" in text
    assert not (private / "added").exists()
    done = add(tmp_path, deb(tmp_path, "debzero_1_all.deb", "1"))
    assert done.returncode == 0, done.stdout
    assert (private / "added").read_text().split() == ["debzero_1_all.deb"]
