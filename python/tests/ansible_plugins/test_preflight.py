"""What the role preflight concludes from what its scripts print."""
from __future__ import annotations

import json

import preflight
import pytest


def result(check: str, status: str = "ok", **more: object) -> dict:
    return {"check": check, "status": status, "found": "x", "advice": "do y", "data": None, **more}


HOST = [result("archives", "warn", data={"buster": "old.list"}), result("gpu", data={"0000:3b:00.0": {}}),
        result("headers"),
        result("nvidia-smi", "skip")]


def script(stdout: str, rc: int = 0, stderr: str = "") -> dict:
    return {"rc": rc, "stdout": stdout, "stderr": stderr}


def test_one_machine_is_taken_under_its_first_name_alone():
    machines = {"a": script("1"), "b": script("2"), "c": script("1"), "mute": script("", 1), "mute2": script("", 1),
                "d": script("1")}
    found = {name: preflight.machine_results(machines, name) for name in machines}
    assert {name: [result["status"] for result in results] for name, results in found.items() if results} == {
        "c": ["fail"], "d": ["fail"]}
    assert found["d"][0]["found"] == "d is the same machine as a"


@pytest.mark.parametrize("rc", [0, 1])
def test_what_the_probe_printed_is_taken_as_it_is(rc):
    assert preflight.host_results(script(json.dumps(HOST), rc)) == HOST


@pytest.mark.parametrize(("registered", "words"), [
    (script("", 127, "sh: 1: python3: not found\n"), "sh: 1: python3: not found"),
    (script("usage: host.py\r\nhost.py: error: numbers must be whole\r\n", 2), "host.py: error: numbers must be whole"),
    (script("[]", 2), "[]"), (script("Killed", 1), "Killed"), ({"msg": "unreachable"}, "")])
def test_a_probe_that_cannot_run_is_a_failure(registered, words):
    assert preflight.host_results(registered) == [
        {"check": "system", "status": "fail", "found": f"The host cannot be examined: {words}",
         "advice": "install python3 on it, or correct the variables preflight_*"}]


def test_archives_that_answer():
    assert preflight.archive_results([], HOST) == [
        {"check": "apt", "status": "ok", "found": "all archives answer", "advice": ""}]


def test_each_archive_that_does_not_answer_is_a_failure_with_its_own_advice():
    unreachable = [
        "http://mirror.example.org/debian/dists/buster/InRelease\tE: Failed to fetch http://x  404 Not Found",
        "http://mirror.example.org/debian/dists/bullseye/InRelease\tCould not resolve 'mirror.example.org'",
        "no archive\tapt has none configured"]
    found = preflight.archive_results(unreachable, HOST)
    assert [(one["check"], one["status"]) for one in found] == [("apt", "fail")] * 3
    assert [one["found"] for one in found] == [
        "apt cannot fetch http://mirror.example.org/debian/dists/buster/InRelease (404 Not Found)",
        "apt cannot fetch http://mirror.example.org/debian/dists/bullseye/InRelease (Could not resolve "
        "'mirror.example.org')",
        "apt cannot fetch no archive (apt has none configured)"]
    assert [("end of life" in one["advice"], "base_apt_mirror" in one["advice"]) for one in found] == [
        (True, False), (False, True), (False, True)]


@pytest.mark.parametrize("host", [[], [result("archives")], [result("system", "fail")]])
def test_archives_of_a_host_without_old_suites(host):
    assert "base_apt_mirror" in preflight.archive_results(["http://x/dists/buster/InRelease\tgone"], host)[0]["advice"]


DRIVER = ["nvidia-kernel-dkms", "libcuda1", "nvidia-smi"]


@pytest.mark.parametrize(("host", "installs", "driver"), [
    (HOST, True, DRIVER), (HOST, False, []), ([*HOST[:-1], result("nvidia-smi")], True, []),
    ([*HOST[:-1], result("nvidia-smi", "warn", data={"gpus": [{"index": "0"}]})], True, []),
    ([*HOST[:-1], result("nvidia-smi", "warn")], True, DRIVER),
    ([*HOST[:-1], result("nvidia-smi", "fail")], True, DRIVER),
    ([result("gpu", "skip"), result("nvidia-smi", "skip")], True, []),
    ([result("system", "fail")], True, [])])
def test_the_driver_s_packages_are_looked_for_where_it_will_be_installed(host, installs, driver):
    assert preflight.packages_to_fetch(host, ["g++"], ["nvidia-cuda-toolkit"], installs) == {
        "packages": ["g++"], "non_free": ["nvidia-cuda-toolkit", *driver]}


@pytest.mark.parametrize(("kernel", "flavour"), [
    ("5.10.0-30-amd64", "amd64"), ("5.10.0-30-cloud-amd64", "cloud-amd64"), ("5.10.0-30-rt-amd64", "rt-amd64")])
def test_the_headers_of_a_cloud_s_kernel_come_with_that_kernel(kernel, flavour):
    lacking = {"packages": [[f"linux-headers-{kernel}", "apt knows no such package"]], "non_free": []}
    (found,) = preflight.package_results(script(json.dumps(lacking)), {"packages": ["x"], "non_free": []})
    assert f"linux-image-{flavour} linux-headers-{flavour} and reboot" in found["advice"]


def test_the_headers_are_looked_for_where_a_module_will_be_built():
    host = [result("headers", data={"package": "linux-headers-5.10.0-30-amd64"})]
    assert preflight.packages_to_fetch(host, ["g++"], [], False)["packages"] == ["g++", "linux-headers-5.10.0-30-amd64"]


WANTED = {"packages": ["a", "b"], "non_free": ["c"]}


def test_packages_that_can_be_fetched():
    registered = script(json.dumps({"packages": [], "non_free": []}))
    assert preflight.package_results(registered, WANTED) == [
        {"check": "packages", "status": "ok", "found": "3 can be fetched, or are installed already", "advice": ""}]


def test_packages_are_not_looked_for_without_archives():
    assert preflight.package_results({"skipped": True, "changed": False}, WANTED) == [
        {"check": "packages", "status": "skip", "found": "because of apt", "advice": ""}]


@pytest.mark.parametrize(("registered", "words"), [
    (script("Traceback\nKeyError: 'x'\n", 1), "KeyError: 'x'"),
    (script("", 127, "python3: not found"), "python3: not found"), ({}, "")])
def test_packages_that_cannot_be_examined_are_a_failure(registered, words):
    found, = preflight.package_results(registered, WANTED)
    assert (found["status"], found["found"]) == ("fail", f"apt's packages cannot be examined: {words}")
    assert "apt-get check" in found["advice"]


@pytest.mark.parametrize(("group", "name", "status", "advice"), [
    ("packages", "hello", "fail", "base_apt_components"),
    ("packages", "linux-headers-5.10.0-1-amd64", "fail", "linux-image-amd64"),
    ("non_free", "nvidia-cuda-toolkit_11.2.2-3.deb", "warn", "cuda_source"),
    ("non_free", "libcuda1", "warn", "an older driver")])
def test_a_package_that_cannot_be_fetched(group, name, status, advice):
    registered = script(json.dumps({"packages": [], "non_free": [], group: [[name, "404 Not Found"]]}))
    found, = preflight.package_results(registered, WANTED)
    assert (found["check"], found["status"]) == ("packages", status)
    assert found["found"] == f"apt cannot fetch {name} (404 Not Found)" and advice in found["advice"]


def test_failures_are_sentences_with_what_to_do():
    results = [result("a"), result("b", "warn"), result("c", "skip"), result("d", "fail"),
               result("e", "fail", found="z")]
    assert preflight.failures(results) == ["x: do y.", "z: do y."]


FOLDERS = ["/etc", "/opt", "/var"]
READ_ONLY = "mktemp: failed to create file via template '/etc/.debzero-XXXXXX': Read-only file system"


def test_folders_that_can_be_written():
    assert preflight.write_results(script(""), FOLDERS) == [
        {"check": "writable", "status": "ok", "found": "/etc, /opt, /var can be written", "advice": ""}]


def test_folders_that_cannot_be_written_are_named_with_the_reason():
    found = preflight.write_results(script(f"/etc\t{READ_ONLY}\n/opt\t{READ_ONLY}\n/var\tx: No space left on device\n"),
                                    FOLDERS)
    assert [(one["status"], one["found"]) for one in found] == [
        ("fail", "/etc, /opt cannot be written (Read-only file system)"),
        ("fail", "/var cannot be written (No space left on device)")]
    assert all("dmesg" in one["advice"] for one in found)


@pytest.mark.parametrize(("registered", "words"), [(script("", 127, "sh: not found"), "sh: not found"), ({}, "")])
def test_a_host_on_which_that_cannot_be_tried_is_refused(registered, words):
    (found,) = preflight.write_results(registered, FOLDERS)
    assert (found["status"], found["found"]) == (
        "fail", f"It cannot be tried whether the host can be written: {words}")
