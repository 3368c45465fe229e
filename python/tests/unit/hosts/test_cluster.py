"""The cluster file and its key: all problems at once, each with the key and the fix."""
import pytest

from debzero.base.errors import InputError
from debzero.hosts import cluster

GOOD = "hosts: {gpu1: 10.0.0.1, gpu2: gpu2.example, gpu3: 'fd00::3'}\nhost: gpu2\nport: 29510\n"


def problems_of(tmp_path, text):
    file = tmp_path / "demo.yml"
    file.write_text(text)
    with pytest.raises(InputError) as caught:
        cluster.read(file)
    return {problem.key: problem.reason for problem in caught.value.problems}


def test_a_cluster_says_who_is_who(tmp_path):
    file = tmp_path / "demo.yml"
    file.write_text(GOOD)
    found = cluster.read(file)
    assert (found.first, found.number, found.leads, found.others) == ("gpu1", 1, False, ["gpu1", "gpu3"])
    assert found.interface is None and found.key_file == tmp_path / "demo.key"


def test_all_problems_are_named_at_once(tmp_path):
    found = problems_of(tmp_path, "hosts: {gpu1: 10.0.0.1, gpu2: 10.0.0.1}\nhost: gpu7\nport: 80\nrank: 1\n"
                                  "interface: [eth0]\n")
    assert set(found) == {"hosts", "host", "port", "rank", "interface"}
    assert "gpu2 and gpu1 have the same address" in found["hosts"] and "gpu1, gpu2" in found["host"]


@pytest.mark.parametrize(("text", "key", "reason"), [
    ("", "file", "mapping"), ("hosts: [a, b]\nhost: a\nport: 2000", "hosts", "mapping of names"),
    ("hosts: {gpu1: 127.0.1.1, gpu2: 10.0.0.2}\nhost: gpu1\nport: 2000", "hosts", "is the loopback"),
    ("hosts: {gpu1: 10.0.0.1, 'gpu 2': 10.0.0.2}\nhost: gpu1\nport: 2000", "hosts", "no name of a host"),
    ("hosts: {gpu1: 10.0.0.1, gpu2: 7}\nhost: gpu1\nport: 2000", "hosts", "must be an IP address"),
    ("hosts: {gpu1: 10.0.0.1, gpu2: 10.0.0.2}\nhost: gpu1\nport: true", "port", "whole number"),
    ("hosts: {gpu1: 10.0.0.1, gpu2: 10.0.0.2}\nhost: gpu1\nport: 2000\nport: 2001", "port", "repeated"),
    *((f"hosts: {{gpu1: '{text}', gpu2: 10.0.0.2}}\nhost: gpu1\nport: 2000", "hosts", reason) for text, reason in (
        # What the name service would take for a number of its own.
        ("10.1", "must be an IP address"), ("999.1.1.1", "must be an IP address"), ("2130706433", "must be an IP"),
        ("010.0.0.1", "must be an IP address"), ("0x7f.0.0.1", "must be an IP address"), ("a..b", "must be an IP"),
        ("1.2.3.4.5", "must be an IP address"), ("0.0.0.0", "no address of one host"), ("::", "no address of one host"),
        ("224.0.0.1", "no address of one host"), ("255.255.255.255", "no address of one host"),
        ("::ffff:10.0.0.2", "the same address"), ("::ffff:127.0.0.1", "is the loopback"))),
    ("hosts: {gpu1: 'fd00::2', gpu2: 'FD00:0:0::2'}\nhost: gpu1\nport: 2000", "hosts", "the same address"),
    ("hosts: {gpu1: gpu.example, gpu2: GPU.example}\nhost: gpu1\nport: 2000", "hosts", "the same address"),
    ("{", "line 1, column 2", "not YAML")])
def test_what_cannot_be_meant_is_refused(tmp_path, text, key, reason):
    assert reason in problems_of(tmp_path, text)[key]


@pytest.mark.parametrize(("text", "mode", "reason"), [
    ("a1" * 32, 0o644, "open to other users"), ("a1" * 31, 0o640, "64 hexadecimal digits"),
    ("x" * 64, 0o600, "64 hexadecimal digits"), (None, 0, "does not exist")])
def test_a_key_that_is_none_is_refused(tmp_path, text, mode, reason):
    (tmp_path / "demo.yml").write_text(GOOD)
    if text is not None:
        (tmp_path / "demo.key").write_text(text)
        (tmp_path / "demo.key").chmod(mode)
    with pytest.raises(InputError, match=reason):
        cluster.read(tmp_path / "demo.yml").key()


def test_all_that_is_wrong_with_the_hosts_is_named_at_once(tmp_path):
    (tmp_path / "demo.yml").write_text("hosts: {gpu1: 10.1, gpu2: 0.0.0.0, gpu3: 127.0.0.1, gpu4: 10.0.0.1, "
                                       "'gpu 5': x}\nhost: gpu1\nport: 2000\n")
    with pytest.raises(InputError) as caught:
        cluster.read(tmp_path / "demo.yml")
    assert len(caught.value.problems) == 4 and {problem.key for problem in caught.value.problems} == {"hosts"}


def test_a_key_in_capitals_is_one(tmp_path):
    (tmp_path / "demo.yml").write_text(GOOD)
    (tmp_path / "demo.key").write_text("A1" * 32)
    (tmp_path / "demo.key").chmod(0o600)
    assert cluster.read(tmp_path / "demo.yml").key() == bytes.fromhex("a1" * 32)


def test_a_key_is_read_and_never_shown(tmp_path):
    (tmp_path / "demo.yml").write_text(GOOD)
    (tmp_path / "demo.key").write_text("a1" * 32 + "\n")
    (tmp_path / "demo.key").chmod(0o640)
    found = cluster.read(tmp_path / "demo.yml")
    assert found.key() == bytes.fromhex("a1" * 32) and "a1a1" not in repr(found)


def test_a_job_of_this_host_has_the_cluster_of_its_name(tmp_path, monkeypatch):
    from types import SimpleNamespace

    (tmp_path / "jobs").mkdir()
    (tmp_path / "cluster").mkdir()
    monkeypatch.setattr(cluster, "jobs_folder", lambda: tmp_path / "jobs")
    monkeypatch.setattr(cluster, "stack", lambda: SimpleNamespace(config=str(tmp_path)))
    job = tmp_path / "jobs" / "demo.yml"
    assert cluster.find(job) is None
    (tmp_path / "cluster" / "demo.yml").write_text(GOOD)
    assert cluster.find(job).host == "gpu2"
    assert cluster.find(tmp_path / "demo.yml") is None, "another file of that name is another job"
    (tmp_path / "cluster" / "demo.yml").write_text("hosts: {gpu1: 10.0.0.1}\nhost: gpu1\nport: 29510\n")
    assert cluster.find(job) is None, "one host trains as before"
    (tmp_path / "cluster" / "demo.yml").write_text(GOOD)
    monkeypatch.setenv("DEBZERO_CLUSTER", str(tmp_path / "cluster" / "demo.yml"))
    assert cluster.find(tmp_path / "demo.yml").host == "gpu2"
