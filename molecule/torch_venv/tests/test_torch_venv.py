"""The environment must be the locked one, and torch must compute."""

PYTHON = "/opt/debzero/venv/bin/python"


def test_torch_computes(host):
    assert host.check_output(f"{PYTHON} -c 'import torch; print(int((torch.ones(3, 3) @ torch.ones(3)).sum()))'") == "9"


def test_holds_exactly_what_the_lock_says(host):
    held = host.check_output(f"/opt/debzero/installer/bin/uv pip freeze --python {PYTHON}")
    lock = host.file("/opt/debzero/requirements.lock").content_string
    unlocked = [line for line in held.splitlines() if not line.startswith("deepspeed") and f"{line} " not in lock]
    assert held and not unlocked


def test_every_locked_package_has_a_hash(host):
    lock = host.file("/opt/debzero/requirements.lock").content_string
    packages = [line for line in lock.splitlines() if line and line[0].isalpha()]
    assert packages and all(line.endswith("\\") for line in packages)


def test_nobody_but_root_can_write_it(host):
    assert host.check_output("find /opt/debzero \\( -perm -o+w -o ! -user root \\) ! -type l | head") == ""
