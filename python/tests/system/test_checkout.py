"""Two clones on one machine leave each other alone, and the controller trusts what its machine trusts."""
import os
import shutil
import subprocess

import pytest
from background import ROOT

PODMAN = """echo "podman $*" >>{log}
case "$1" in ps) echo debzero-demo-1; echo debzero-demo-1-second;; network) [ "$2" != exists ];; images) echo abc;; esac
"""


@pytest.fixture
def clone(tmp_path):
    """Makes a checkout with these scripts of ours, and programs by path that note what they are called with."""
    def make(name: str, scripts: list[str], **programs: str):
        root = tmp_path / name
        for path in scripts:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / path, root / path)
        for path, script in programs.items():
            file = root / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"#!/bin/sh\n{script}\n")
            file.chmod(0o755)
        return root
    return make


def run(root, script, *words, **variables):
    environment = {name: value for name, value in os.environ.items() if name not in ("SSL_CERT_FILE", "PIP_CERT")}
    return subprocess.run([root / script, *words], text=True, capture_output=True, check=True,
                          env={**environment, "PATH": f"{root}/bin:{os.environ['PATH']}", **variables}).stdout


def test_a_container_s_name_belongs_to_its_clone(clone):
    names = [run(clone(name, ["ansible/container"]), "ansible/container", "demo") for name in ("one", "two", "one")]
    assert names[0] == names[2] != names[1]


def test_clean_removes_the_containers_of_its_clone_alone(clone, tmp_path):
    log = tmp_path / "log"
    root = clone("one", ["ansible/clean"], **{"bin/podman": PODMAN.format(log=log), "bin/id": "echo 0"})
    (root / ".cache").mkdir()
    run(root, "ansible/clean")
    calls = log.read_text().splitlines()
    assert calls[0] == f"podman ps --all --filter label=debzero.checkout={root.resolve()} --format {{{{.Names}}}}"
    assert [call for call in calls if " rm" in call and "network" not in call] == [
        "podman rm --force --volumes debzero-demo-1", "podman rm --force --volumes debzero-demo-1-second",
        "podman rmi abc"]  # no --force: it would take the containers of others with it
    assert not (root / ".cache").exists()


NOTE = 'echo "$(basename "$0") $1 $SSL_CERT_FILE $PIP_CERT" >>{log}'


@pytest.mark.parametrize(("variables", "bundle"), [
    ({}, "/etc/ssl/certs/ca-certificates.crt"), ({"SSL_CERT_FILE": "/srv/own.pem"}, "/srv/own.pem")])
def test_the_controller_trusts_the_machine_s_certificates(clone, tmp_path, variables, bundle):
    log = tmp_path / "log"
    note = NOTE.format(log=log)
    root = clone("one", ["ansible/bootstrap"], **{
        ".cache/installer/bin/pip": note, ".cache/installer/bin/uv": note, "bin/dpkg-query": "echo installed",
        ".cache/controller/bin/python": "true"})
    run(root, "ansible/bootstrap", **variables)
    assert log.read_text().splitlines() == [f"pip install {bundle} {bundle}", f"uv pip {bundle} {bundle}"]
