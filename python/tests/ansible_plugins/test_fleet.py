"""A fleet: a host that fails is dropped and named at the end with its cause; the others are finished."""
from __future__ import annotations

import hashlib
import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from controller import ROOT, play

LOCAL = {"ansible_connection": "local", "ansible_python_interpreter": "/usr/bin/python3"}
GONE = {"ansible_host": "127.0.0.1", "ansible_port": 1}


def inventory(folder: Path, **hosts: dict) -> Path:
    file = folder / "hosts.yml"
    file.write_text(yaml.safe_dump({"gpu_servers": {"hosts": hosts}}))
    return file


FAULTS = [
    {"hosts": "all", "gather_facts": False, "name": "First", "tasks": [
        {"name": "Rescued", "block": [{"ansible.builtin.command": "false"}],
         "rescue": [{"ansible.builtin.debug": {"msg": "rescued"}}]},
        {"name": "Break", "ansible.builtin.command": "sh -c 'echo first; echo the disk is gone >&2; exit 3'",
         "when": "inventory_hostname == 'broken'"},
        {"name": "Refuse", "ansible.builtin.assert": {"that": "item == 1", "fail_msg": "{{ item }} is too many",
                                                      "quiet": True},
         "loop": [1, 2, 3], "when": "inventory_hostname == 'looped'"}]},
    {"hosts": "all", "gather_facts": False, "name": "Second", "tasks": [
        {"name": "Arrive", "ansible.builtin.debug": {"msg": "{{ inventory_hostname }} arrived"}}]}]


def test_failed_hosts_are_dropped_and_named_with_their_causes(tmp_path):
    hosts = inventory(tmp_path, good=LOCAL, broken=LOCAL, looped=LOCAL, gone=GONE)
    (tmp_path / "try.yml").write_text(yaml.safe_dump(FAULTS))
    done = play("-i", hosts, tmp_path / "try.yml")
    assert done.returncode not in (0, 1), done.stdout + done.stderr
    assert "good arrived" in done.stdout and done.stdout.count(" arrived") == 1
    lines = done.stdout.partition("HOSTS THAT WERE LEFT OUT")[2].partition("TASKS RECAP")[0].splitlines()[1:]
    assert lines[:4] == ["1 of 4 hosts succeeded: good", 'broken failed at "Break":', "  the disk is gone",
                         "gone could not be reached:"] and "Connection refused" in lines[4]
    assert lines[5:9] == ['looped failed at "Refuse":', "  2 is too many", "  3 is too many",
                          "After the repair, run the same again with --limit broken,gone,looped"]


def test_hosts_that_a_play_in_batches_did_not_reach_are_named(tmp_path):
    (tmp_path / "try.yml").write_text(yaml.safe_dump([
        {"hosts": "all", "gather_facts": False, "name": "First", "tasks": [{"ansible.builtin.debug": {"msg": "x"}}]},
        {"hosts": "all", "gather_facts": False, "name": "Second", "serial": 1, "max_fail_percentage": 0, "tasks": [
            {"name": "Break", "ansible.builtin.fail": {"msg": "no"}, "when": "inventory_hostname == 'b'"}]}]))
    done = play("-i", inventory(tmp_path, a=LOCAL, b=LOCAL, c=LOCAL), tmp_path / "try.yml")
    assert "1 of 3 hosts succeeded: a\nb failed at \"Break\":\n  no\nnot begun: c\n" in done.stdout, done.stdout
    assert done.stdout.count("with --limit b,c") == 1


def test_nothing_is_added_where_all_hosts_succeed(tmp_path):
    (tmp_path / "try.yml").write_text(yaml.safe_dump(FAULTS))
    done = play("-i", inventory(tmp_path, good=LOCAL), tmp_path / "try.yml")
    assert done.returncode == 0 and "LEFT OUT" not in done.stdout


@pytest.mark.parametrize("playbook", ["site.yml", "playbooks/doctor.yml"])
def test_an_inventory_that_nobody_edited_ends_with_a_sentence(playbook):
    done = play(playbook)
    text = " ".join(done.stdout.split())
    assert done.returncode != 0 and "The group gpu_servers of" in text and "has no hosts: name your servers" in text
    assert "inventory/hosts.yml" in text and "ansible_user" in text


def test_preflight_refuses_a_host_that_cannot_be_written(tmp_path):
    """/proc stands for a file system that is read-only. What needs a file on the host is not tried."""
    role = {"ansible.builtin.include_role": {"name": "preflight"}, "name": "Apply preflight"}
    (tmp_path / "try.yml").write_text(yaml.safe_dump([
        {"hosts": "all", "name": "Try", "gather_facts": False, "vars_files": [str(ROOT / "stack.yml")], "tasks": [role],
         "vars": {"preflight_writable": [str(tmp_path), "/proc/debzero/not/there"]}}]))
    done = play("-i", inventory(tmp_path, readonly=LOCAL), tmp_path / "try.yml")
    text = " ".join(done.stdout.split())
    assert done.returncode == 2 and "1 hosts examined, 1 not ready" in text, done.stdout
    assert "readonly is not ready, and nothing was changed on it: - /proc cannot be written (" in text
    assert "remount,rw" in text and "Traceback" not in text and list(tmp_path.glob(".debzero*")) == []


def test_preflight_takes_a_machine_that_has_two_names_once(tmp_path):
    role = {"ansible.builtin.include_role": {"name": "preflight"}, "name": "Apply preflight"}
    (tmp_path / "try.yml").write_text(yaml.safe_dump([
        {"hosts": "all", "name": "Try", "gather_facts": False, "vars_files": [str(ROOT / "stack.yml")], "tasks": [role],
         "vars": {"preflight_writable": ["/proc/debzero/not/there"]}}]))  # so nothing else is examined
    done = play("-i", inventory(tmp_path, one=LOCAL, two=LOCAL), tmp_path / "try.yml", "--check")
    text = " ".join(done.stdout.split())
    assert done.returncode == 2 and "two is the same machine as one: write it into the inventory once" in text, text
    assert "one is the same" not in text and "two machine fail two is the same machine as one" in text


@pytest.mark.parametrize("masked", [True, False])
def test_a_machine_whose_boot_id_is_missing_or_masked_is_none(tmp_path, masked):
    """Its root's numbers alone, such as 2049:2, are those of many machines. /dev/null is what containers mask with."""
    (task,) = [task for task in yaml.safe_load((ROOT / "roles/preflight/tasks/look.yml").read_text())
               if task["name"] == "Ask which machine it is"]
    script, known = task["ansible.builtin.shell"]["cmd"], "/proc/sys/kernel/random/boot_id"
    assert known in script
    for name, fails in ((known, False), ("/dev/null" if masked else str(tmp_path / "missing"), True)):
        done = subprocess.run(["sh", "-c", script.replace(known, name)], capture_output=True)
        assert (done.returncode != 0) == fails, name


@pytest.mark.slow
@pytest.mark.parametrize("given", ["x", 0, [], [1, "1.5"], [[2]]])
def test_a_number_of_hosts_at_once_that_is_none(tmp_path, given):
    """Ansible ends with a traceback, or takes 0 for all hosts at once. With --limit no play of localhost runs."""
    hosts = inventory(tmp_path, one={**LOCAL, "ansible_become": False}, two=LOCAL)
    done = play("-i", hosts, "playbooks/upgrade.yml", "--check", "--limit", "one",
                "-e", json.dumps({"upgrade_serial": given}))
    text = " ".join(done.stdout.split())
    assert done.returncode == 2 and f"upgrade_serial is {json.dumps(given)}, and must be" in text, text
    assert "Traceback" not in done.stdout + done.stderr and "Build the trainer" not in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("given", ["30%", [1, 5]])
def test_a_number_of_hosts_at_once(tmp_path, given):
    hosts = inventory(tmp_path, one={**LOCAL, "ansible_become": False})
    done = play("-i", hosts, "playbooks/upgrade.yml", "--check", "-e",
                json.dumps({"upgrade_serial": given, "upgrade_wait": "soon"}))
    assert "upgrade_serial is" not in done.stdout and "(soon) whole" in " ".join(done.stdout.split())


@pytest.mark.slow
def test_an_upgrade_without_a_bundle_looks_at_the_hosts(tmp_path):
    """Ansible reads an assertion's message also where the assertion holds: it must name no variable that nobody set."""
    done = play("-i", inventory(tmp_path, one={**LOCAL, "ansible_become": False}), "playbooks/upgrade.yml", "--check",
                "-e", "upgrade_wait=soon")
    assert ("torch_venv_source (locked) must be locked or apt, and upgrade_steps (3) and upgrade_wait (soon) whole "
            "numbers") in " ".join(done.stdout.split()), done.stdout
    assert "undefined" not in done.stdout


def applying(*roles: str) -> list[dict]:
    """A play for each role that ends with its refusal as a message of the host that it refuses."""
    return [{"hosts": "builder:gpu_servers", "name": f"Apply {role}", "gather_facts": False,
             "vars_files": [str(ROOT / "stack.yml")], "tasks": [
                 {"name": "Try", "block": [{"name": "Apply", "ansible.builtin.include_role": {"name": role}}],
                  "rescue": [{"name": "Keep", "ansible.builtin.debug": {"msg": "REFUSED {{ ansible_failed_result.msg }}"
                                                                        }}]}]} for role in roles]


def refusals(done: subprocess.CompletedProcess) -> list[str]:
    found = [" ".join(text.split()).partition(" TASK [")[0].partition(" PLAY ")[0].rstrip("' ")
             for text in re.findall(r"REFUSED (.*?)(?:\n\S|\Z)", done.stdout, re.DOTALL)]
    assert len(found) == 2, done.stdout
    return found


@pytest.mark.slow
def test_a_limit_without_the_builder_is_explained_where_something_must_be_built(tmp_path):
    """The builder is not there at all: nobody asks it. What is installed would land in the test's folder."""
    hosts = tmp_path / "hosts.yml"
    hosts.write_text(yaml.safe_dump({"gpu_servers": {"hosts": {"one": LOCAL}}, "builder": {"hosts": {"hub": GONE}}}))
    stack = {**yaml.safe_load((ROOT / "stack.yml").read_text())["stack"], "cache": str(tmp_path),
             "prefix": str(tmp_path / "opt"), "venv": str(tmp_path / "opt/venv")}
    settings = {"stack": stack, "deepspeed_wheel_store": str(tmp_path / "wheels"), "debzero_deb_store": str(tmp_path),
                "deepspeed_wheel_accelerator": "cpu", "deepspeed_wheel_jobs": 1}
    (tmp_path / "try.yml").write_text(yaml.safe_dump(applying("deepspeed_wheel", "debzero_deb")))
    words = ["-i", hosts, "-e", json.dumps(settings), tmp_path / "try.yml"]
    version = re.search(r"\((.+?)\)", (ROOT / "debian/changelog").read_text())[1]
    deb, other = tmp_path / f"debzero_{version}_all.deb", "name another host with "

    part = "has no part in this run: add it (--limit one,hub), "
    assert refusals(play(*words, "--limit", "one")) == [
        f"The DeepSpeed wheel for these settings is not in {tmp_path}/wheels, and hub, which compiles it, {part}or "
        f"{other}deepspeed_wheel_builder.",
        f"{deb} is not there, and hub, which builds it, {part}{other}debzero_deb_builder, or a package with "
        "trainer_deb."]

    # An older package, as an earlier checkout left it: never deployed as if it were this one.
    deb.write_text("old")
    deb.with_name(f"{deb.name}.sources").write_text("of another checkout\n")
    wheel, package = refusals(play(*words))  # the builder is dropped, for it cannot be reached
    assert f"and hub, which compiles it, has failed: repair it, or {other}" in wheel
    assert package.startswith(f"{deb} was built from other sources than these, and hub")

    # Without a group of builders the first host builds that is there, and check mode says so.
    hosts.write_text(yaml.safe_dump({"gpu_servers": {"hosts": {"gone": GONE, "one": LOCAL}}}))
    done = play(*words, "--check")
    named = re.search(rf"one would compile cpu_adam, async_io into ({tmp_path}/wheels/\S+[.]whl)",
                      " ".join(done.stdout.split()))
    assert named and f"one would build {deb}" in done.stdout, done.stdout

    # With that wheel, and the compiler that it says it is from, there is nothing to build.
    wheel = Path(named[1])
    wheel.parent.mkdir(parents=True)
    wheel.write_text("a wheel")
    wheel.with_name(f"{wheel.name}.sha256").write_text(hashlib.sha256(b"a wheel").hexdigest())
    gcc = subprocess.run(["gcc", "--version"], text=True, capture_output=True, check=True).stdout
    for compiler, word in ((gcc, "get"), ("gcc 1\n", "compile cpu_adam, async_io into")):
        wheel.with_name(f"{wheel.name}.compilers").write_text(compiler)
        done = play(*words, "--check")
        assert f"one would {word} {wheel}" in " ".join(done.stdout.split()), done.stdout
