"""The environment must be the locked one, and the stand-ins of the tests as TensorRT is."""
import json

PYTHON = "/opt/debzero/tensorrt/bin/python"
WORKER = "/opt/debzero-worker"


def test_holds_exactly_what_the_lock_says(host):
    held = host.check_output(f"/opt/debzero/installer/bin/uv pip freeze --python {PYTHON}")
    lock = host.file("/opt/debzero/requirements-tensorrt.lock").content_string
    assert held and [line for line in held.splitlines() if f"{line} " not in lock] == []


def test_nobody_but_root_can_write_it(host):
    assert host.check_output("find /opt/debzero \\( -perm -o+w -o ! -user root \\) ! -type l | head") == ""


def test_the_stand_ins_have_no_name_and_no_parameter_that_the_real_packages_lack(host):
    compared = host.run(f"{PYTHON} -IB {WORKER}/stand_ins/compare.py")
    assert compared.rc == 0, compared.stdout + compared.stderr
    assert " names agree, 0 differ" in compared.stdout


def test_the_worker_starts_there_and_says_what_is_missing(host):
    asked = json.dumps({"op": "start", "device": 0, "arrays": []})
    answer = host.check_output(f"echo '{asked}' | {PYTHON} -IB {WORKER}/tensorrt_worker.py")
    assert json.loads(answer)["error"].startswith("CUDA: ")
