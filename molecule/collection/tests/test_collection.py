"""A project that knows nothing of this one installs the collection and applies the play of roles/README.md."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

PROJECT = Path(__file__).resolve().parents[3]
NO_GPU = {"nvidia_driver_manage": False, "cuda_source": "none", "cuda_gpus": 0}  # the container has none, nor its host


def run(folder, *words, **environment):
    """With no more of this checkout's settings than the programs."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "MOLECULE_"))}
    done = subprocess.run(words, cwd=folder, text=True, capture_output=True, stdin=subprocess.DEVNULL,
                          env={**kept, "ANSIBLE_NOCOLOR": "1", "ANSIBLE_PIPELINING": "1", **environment})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def collections(tmp_path_factory):
    """Where the collection is installed, from a clone of the tree as it is."""
    clone, folder = (tmp_path_factory.mktemp(name) for name in ("clone", "collections"))
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(listed, cwd=PROJECT, capture_output=True, text=True, check=True).stdout.split("\0"):
        if name and os.path.lexists(PROJECT / name):
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(PROJECT / name, clone / name, follow_symlinks=False)
    for words in (["init", "--quiet"], ["add", "--all"],
                  ["-c", "user.name=a", "-c", "user.email=a@example.org", "commit", "--quiet", "--message=a"]):
        run(clone, "git", *words)
    run(folder, "ansible-galaxy", "collection", "install", f"git+file://{clone}", "--collections-path", str(folder))
    return folder


def test_roles_of_the_collection_converge_in_a_foreign_project(host, collections, tmp_path):
    play = re.search(r"```yaml\n(.+?)```", (PROJECT / "roles/README.md").read_text(), re.DOTALL)[1]
    (tmp_path / "play.yml").write_text(play)
    box = {"ansible_connection": "containers.podman.podman", "ansible_host": host.backend.name,
           "ansible_python_interpreter": "/usr/bin/python3", "ansible_become": False}
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump({"servers": {"hosts": {"box": box}}}))
    words = ["ansible-playbook", "--inventory=hosts.yml", "play.yml", "--extra-vars", json.dumps(NO_GPU)]
    found = [run(tmp_path, *words, ANSIBLE_COLLECTIONS_PATH=str(collections)) for _ in range(2)]
    changed = [int(re.search(r"^box +: .*changed=(\d+)", text, re.MULTILINE)[1]) for text in found]
    assert changed[0] > 0 and changed[1] == 0, found
    config = yaml.safe_load((PROJECT / "stack.yml").read_text())["stack"]["config"]
    assert "DEBZERO_GPUS=0" in host.check_output(f"cat {config}/host.env")
