"""The prebuilt operators must load and work, without a compiler; and the wheel must be portable."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[3]
STORE = PROJECT / ".cache/wheelhouse"
PYTHON = "/opt/debzero/venv/bin/python"
ADAM = """
import torch
from deepspeed.ops.adam import DeepSpeedCPUAdam
mine, theirs = (torch.nn.Parameter(torch.ones(1000)) for _ in "ab")
choices = {"lr": 0.1, "weight_decay": 0.1}
steps = DeepSpeedCPUAdam([mine], adamw_mode=True, **choices), torch.optim.AdamW([theirs], **choices)
for optimizer, parameter in zip(steps, (mine, theirs)):
    for _ in range(5):
        parameter.grad = parameter.detach() * 2 + 1
        optimizer.step()
assert (mine - theirs).abs().max() < 1e-5, (mine, theirs)
"""
AIO = """
import os, torch
from deepspeed.ops.op_builder import AsyncIOBuilder
handle = AsyncIOBuilder().load().aio_handle(1 << 20, 8, False, False, 1)
wrote, read = torch.arange(1 << 20, dtype=torch.uint8), torch.zeros(1 << 20, dtype=torch.uint8)
handle.sync_pwrite(wrote, "/var/tmp/aio")
handle.sync_pread(read, "/var/tmp/aio")
os.remove("/var/tmp/aio")
assert torch.equal(wrote, read)
"""


def run(host, program):
    # Without a compiler in PATH: what is not prebuilt fails here instead of being compiled.
    result = host.run("cd /var/tmp && PATH=/opt/debzero/venv/bin:/bin CXX=/bin/false %s -c %s", PYTHON, program)
    assert result.rc == 0, result.stderr


def test_cpu_adam_equals_torch(host):
    run(host, ADAM)


def test_async_io_reads_what_it_wrote(host):
    run(host, AIO)


def test_no_operator_needs_more_than_avx2(host):
    libraries = host.check_output("find /opt/debzero/venv/lib/ -path '*/deepspeed/*_op*.so'").split()
    assert len(libraries) == 2
    for library in libraries:
        assert host.run(f"objdump -d {library} | grep -q %ymm").rc == 0, f"{library} is not vectorised"
        assert host.run(f"objdump -d {library} | grep -q %zmm").rc == 1, f"{library} needs AVX-512"


def test_the_build_leaves_nothing_behind(host):
    assert not [name for name in host.file("/var/cache/debzero").listdir() if name.startswith("deepspeed")]


@pytest.fixture
def wheel(host):
    """The host's copy; tests may change it."""
    path = host.check_output("ls $(dirname $(ls -t /opt/debzero/wheelhouse/*/wheel.lock | head -1))/*.whl")
    host.check_output(f"cp --preserve {path} {path}.kept")
    yield path
    host.check_output(f"mv {path}.kept {path}")


def apply(host, **variables):
    """The role in check mode, and what it printed."""
    done = subprocess.run(["ansible-playbook", "-i", "inventory/demo", "--check", "playbooks/runtime.yml",
                           "--tags", "deepspeed_wheel", "-e", json.dumps(variables)],
                          cwd=PROJECT, text=True, capture_output=True,
                          env={**os.environ, "ANSIBLE_NOCOLOR": "1", "DEBZERO_CONTAINER": host.backend.name})
    return done.returncode, " ".join(done.stdout.split())


def test_a_wheel_that_was_changed_on_the_controller_is_refused(host, tmp_path):
    shutil.copytree(STORE, tmp_path / "store")
    for copy in (tmp_path / "store").glob("*/*.whl"):
        with copy.open("ab") as file:
            file.write(b"\0")
    code, text = apply(host, deepspeed_wheel_store=str(tmp_path / "store"))
    assert code and ".whl on the controller is not the wheel that was built: its SHA-256 is" in text, text


def test_a_wheel_that_was_changed_on_the_host_is_refused(host, wheel):
    assert apply(host)[0] == 0
    host.check_output("python3 -c %s %s", "import sys, zipfile; "
                      "zipfile.ZipFile(sys.argv[1], 'a').writestr('deepspeed/planted.py', '')", wheel)
    code, text = apply(host)
    assert code and f"{wheel} on the host is not the wheel that was built: its SHA-256 is" in text, text
    install = host.run("/opt/debzero/installer/bin/uv pip install --python %s --offline --no-deps --reinstall "
                       "--require-hashes --requirement %s/wheel.lock", PYTHON, os.path.dirname(wheel))
    assert install.rc and "ash mismatch" in install.stderr, install.stderr


def test_offloaded_training_has_the_loss_curve_of_plain_ddp(host):
    """The unit tests that need the operators, with the pinned stack of the host."""
    for name in ("python", "stack.yml", "debian", "README.md"):  # what the unit tests read
        subprocess.run(["podman", "cp", PROJECT / name, f"{host.backend.name}:/var/tmp/{name}"], check=True)
    prepare = host.run(
        "cd /var/tmp && python3 -m venv --without-pip tests && packages=$(echo tests/lib/*/site-packages) && "
        "echo /opt/debzero/venv/${packages#tests/} >$packages/host.pth && "
        "SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt UV_CACHE_DIR=/var/cache/debzero/uv "
        "/opt/debzero/installer/bin/uv pip install --quiet --python tests/bin/python --require-hashes "
        "-r python/requirements-test.lock")
    assert prepare.rc == 0, prepare.stderr
    tests = host.run(
        "cd /var/tmp && tests/bin/python -m pytest -c python/pyproject.toml python/tests/unit/train -m prebuilt -q")
    assert tests.rc == 0 and "2 passed" in tests.stdout, tests.stdout + tests.stderr
