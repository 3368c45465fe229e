"""What the role nvidia_driver decides, for every state that a host can be in."""
from __future__ import annotations

import itertools
import re

import nvidia_driver
import pytest

GPUS = ["0000:3b:00.0", "0000:af:00.0"]
OLD, NEW = "470.256.02-2~deb11u1", "535.309.01-0+deb11u1"
PACKAGES = ["nvidia-kernel-dkms", "nvidia-smi", "nvidia-persistenced"]


def host(**facts: object) -> dict:
    """A host with two GPUs and no driver, as look.yml keeps it, and what differs."""
    return {"gpus": GPUS, "switches": [], "nouveau": False, "loaded": "", "works": False,
            "smi": "nvidia-smi is not installed",
            "running": "", "boot_id": "1", "packages": {}, "kernels": [], "run_file": False, "kept": [], "state": {},
            "state_folder": "/state", **facts}


def installed(version: str, **facts: object) -> dict:
    """Installed, but not working."""
    return host(packages={"nvidia-kernel-dkms": version, "bash": "5.1"}, smi="mismatch\n", **facts)


def working(version: str, **facts: object) -> dict:
    running = nvidia_driver.upstream(version)
    return {**installed(version), "works": True, "running": running, "loaded": running, "smi": running, **facts}


def record(version: str, previous: str = "", rolled_back_from: str = "") -> dict:
    return {"version": version, "previous": previous, "rolled_back_from": rolled_back_from}


def decide(facts: dict, manage: bool = True, state: str = "present", source: str = "debian",
           branch: object = "") -> dict:
    return nvidia_driver.decide(facts, manage, state, source, branch)


WORKS = "driver 470.256.02 works on 2 GPU(s): nothing to do."
BUILD = "is installed but does not work yet (mismatch): its module will be built and loaded."
LEFT = "nvidia_driver_manage is false: the driver is left to you."
NONE = "and nvidia_driver_source is none: nothing will be installed."
# The host, the variables, and what is decided: action, version, reason.
DECISIONS = {
    "not managed": (host(), {"manage": False}, "nothing", "", LEFT),
    "not managed, to be removed": (
        installed(OLD, state=record(OLD)), {"manage": False, "state": "absent"}, "nothing", OLD, LEFT),
    "no GPU": (host(gpus=[]), {}, "nothing", "", "no NVIDIA GPU on PCI: nothing to do."),
    "no GPU, to be rolled back": (
        installed(NEW, gpus=[], state=record(NEW, OLD)), {"state": "rolled_back"}, "nothing", OLD,
        "no NVIDIA GPU on PCI: nothing to do."),
    "no driver": (
        host(), {}, "install", "",
        "2 GPU(s) and no working driver: the newest driver that can be fetched will be installed from debian."),
    "no driver, a branch": (
        host(), {"branch": "535", "source": "nvidia"}, "install", "",
        "2 GPU(s) and no working driver: 535 will be installed from nvidia."),
    "another's driver works": (working(OLD), {}, "nothing", OLD, WORKS),
    "another's driver of the branch works": (working(OLD), {"branch": 470}, "nothing", OLD, WORKS),
    "a driver without packages works": (working(OLD, packages={}), {}, "nothing", "", WORKS),
    "another's driver of another branch works": (
        working(OLD), {"branch": "535"}, "install", "",
        "2 GPU(s) and driver 470.256.02: 535 will be installed from debian."),
    "this role's driver works": (working(OLD, state=record(OLD)), {}, "keep", OLD, WORKS),
    "this role's driver of another branch works": (
        working(OLD, state=record(OLD)), {"branch": "535.309.01"}, "install", "",
        "2 GPU(s) and driver 470.256.02: 535.309.01 will be installed from debian."),
    "this role's driver does not work": (installed(OLD, state=record(OLD)), {}, "keep", OLD, f"driver {OLD} {BUILD}"),
    "another's driver does not work": (installed(OLD), {}, "adopt", OLD, f"driver {OLD} {BUILD}"),
    "a driver of another branch does not work": (
        installed(OLD), {"branch": "535"}, "install", "",
        "2 GPU(s) and no working driver: 535 will be installed from debian."),
    "packages of the branch beside another one that works": (
        working(NEW, running="470.256.02", smi="mismatch"), {"branch": "535"}, "adopt", NEW, f"driver {NEW} {BUILD}"),
    "source none, a driver works": (working(OLD), {"source": "none"}, "nothing", OLD, WORKS),
    "source none, this role's driver works": (
        working(OLD, state=record(OLD)), {"source": "none"}, "nothing", OLD, WORKS),
    "source none, no driver": (
        host(), {"source": "none"}, "nothing", "", f"2 GPU(s) and no working driver, {NONE}"),
    "source none, a driver that does not work": (
        installed(OLD), {"source": "none"}, "nothing", OLD, f"2 GPU(s) and no working driver, {NONE}"),
    "source none, another branch works": (
        working(OLD), {"source": "none", "branch": "535"}, "nothing", "",
        f"2 GPU(s) and driver 470.256.02, {NONE}"),
    "to be rolled back": (
        working(NEW, state=record(NEW, OLD)), {"state": "rolled_back"}, "install", OLD,
        f"returning from {NEW} to {OLD}."),
    "rolled back": (
        working(OLD, state=record(OLD, "", NEW)), {"state": "rolled_back"}, "keep", OLD,
        f"staying at {OLD}, the version before the last change."),
    "nothing to roll back to": (
        working(OLD, state=record(OLD)), {"state": "rolled_back"}, "nothing", OLD,
        "no earlier driver is recorded: nothing to return to."),
    "this role's driver is to be removed": (
        working(OLD, state=record(OLD)), {"state": "absent"}, "remove", OLD, f"driver {OLD} will be removed."),
    "this role's driver is to be removed, and the GPUs are gone": (
        installed(OLD, gpus=[], state=record(OLD)), {"state": "absent"}, "remove", OLD,
        f"driver {OLD} will be removed."),
    "another's driver is not removed": (
        working(OLD), {"state": "absent"}, "nothing", "", "this role installed no driver: nothing to do."),
}


@pytest.mark.parametrize("name", DECISIONS)
def test_what_is_decided(name):
    facts, variables, action, version, reason = DECISIONS[name]
    decision = decide(facts, **variables)
    assert (decision["action"], decision["version"], decision["reason"]) == (action, version, reason)
    assert decision["installed"] == facts["packages"].get("nvidia-kernel-dkms", "")


def test_every_action_is_tested_and_no_other_exists():
    variables = [dict(zip(("manage", "state", "source", "branch"), values)) for values in itertools.product(
        (True, False), ("present", "rolled_back", "absent"), ("debian", "nvidia", "none"), ("", "470", "535"))]
    hosts = [facts for facts, *_ in DECISIONS.values()]
    possible = {decide(facts, **some)["action"] for facts in hosts for some in variables}
    assert possible == {action for _, _, action, *_ in DECISIONS.values()} == {"nothing", "keep", "adopt", "install",
                                                                               "remove"}


@pytest.mark.parametrize(("branch", "version", "fits"), [
    ("", OLD, True), ("470", OLD, True), ("470", "1:" + OLD, True), ("470.256", OLD, True), ("470.256.02", OLD, True),
    (OLD, OLD, True), ("470.256.02", "470.256.02", True), ("47", OLD, False), ("470.25", OLD, False),
    ("470.256.02", NEW, False),
    ("4.0", "470.256.02", False), (470, OLD, True)])
def test_which_versions_are_of_a_branch(branch, version, fits):
    assert bool(re.match(decide(host(), branch=branch)["pattern"], version)) is fits


# The host, the variables, and words of each obstacle.
OBSTACLES = {
    "no driver where none is to be installed": (host(), {"source": "none"}, [
        "nvidia_driver_source is none, and no driver works here (nvidia-smi is not installed): install it, or set "
        "nvidia_driver_source to debian or nvidia."]),
    "another branch where none is to be installed": (working(OLD), {"source": "none", "branch": "535"}, [
        "nvidia_driver_source is none, and no driver of branch 535 works here (470.256.02): install it, or set "
        "nvidia_driver_source to debian or nvidia."]),
    "a .run file's driver, to be replaced": (host(run_file=True), {},
                                             ["run nvidia-uninstall on the host and start again"]),
    "a .run file's driver, to be adopted": (installed(OLD, run_file=True), {},
                                            ["run nvidia-uninstall on the host and start again"]),
    "switches without a fabric manager": (host(switches=["0000:c1:00.0"]), {}, ["set nvidia_driver_source to nvidia."]),
    "both": (host(run_file=True, switches=["0000:c1:00.0"]), {}, ["run nvidia-uninstall", "fabric manager"]),
    "nothing to roll back to": (working(OLD), {"state": "rolled_back"}, [
        "nvidia_driver_state is rolled_back, but no earlier version is recorded in /state: name the version to return "
        "to with nvidia_driver_branch, and leave nvidia_driver_state at present."]),
}


@pytest.mark.parametrize("name", OBSTACLES)
def test_what_stands_in_the_way(name):
    facts, variables, expected = OBSTACLES[name]
    obstacles = decide(facts, **variables)["obstacles"]
    assert len(obstacles) == len(expected), obstacles
    assert [words for words, obstacle in zip(expected, obstacles) if words not in obstacle] == []


@pytest.mark.parametrize(("facts", "variables"), [
    (host(), {}), (installed(OLD), {}), (working(OLD), {"source": "none"}), (host(gpus=[]), {"source": "none"}),
    (host(), {"source": "none", "manage": False}), (host(), {"source": "none", "state": "absent"}),
    (working(OLD, run_file=True), {}), (working(OLD, state=record(OLD), switches=["c1"]), {}),
    (host(switches=["c1"]), {"source": "nvidia"}), (host(run_file=True), {"manage": False}),
    (working(NEW, state=record(NEW, OLD)), {"state": "rolled_back"}),
    (working(OLD, state=record(OLD, "", NEW)), {"state": "rolled_back"}),
    (host(gpus=[]), {"state": "rolled_back"}), (host(), {"state": "rolled_back", "manage": False})])
def test_what_does_not(facts, variables):
    assert decide(facts, **variables)["obstacles"] == []


def test_a_state_file_of_another_release_is_read():
    decision = decide(working(OLD, state={"version": OLD, "colour": "red"}), state="absent")
    assert (decision["action"], decision["version"]) == ("remove", OLD)


@pytest.mark.parametrize(("version", "upstream"), [
    (NEW, "535.309.01"), ("1:470.256.02-2", "470.256.02"), ("590.10.01-1", "590.10.01"), ("595.10.01", "595.10.01"),
    ("", "")])
def test_upstream_s_spelling_of_a_version(version, upstream):
    assert nvidia_driver.upstream(version) == upstream


def names(facts: dict, version: str = NEW) -> dict:
    return nvidia_driver.names(facts, version, PACKAGES, "5.10.0-30-amd64")


def test_the_names_of_a_version():
    packages = {"nvidia-kernel-dkms": NEW, "libcuda1": "1:" + NEW, "nvidia-smi": OLD,
                "nvidia-persistenced": "535.171.04-1",
                "nvidia-modprobe": NEW, "bash": "5.1", "other": "535.309.010-1"}
    found = names(host(packages=packages))
    assert (found["upstream"], found["packages"], found["services"]) == ("535.309.01", PACKAGES,
                                                                         ["nvidia-persistenced"])
    assert found["installed_packages"] == ["nvidia-kernel-dkms", "libcuda1", "nvidia-modprobe", "nvidia-persistenced"]


def test_switches_add_the_branch_s_fabric_manager():
    found = names(host(switches=["0000:c1:00.0"]))
    assert found["packages"] == [*PACKAGES, "nvidia-fabricmanager-535"]
    assert found["services"] == ["nvidia-persistenced", "nvidia-fabricmanager"]


@pytest.mark.parametrize(("line", "built"), [
    ("nvidia-current, 535.309.01, 5.10.0-30-amd64, x86_64: installed", True),
    ("nvidia-current/535.309.01, 5.10.0-30-amd64, x86_64: installed", True),
    ("nvidia, 535.309.01, 5.10.0-30-amd64, x86_64: installed (original_module exists)", True),
    ("nvidia-current, 535.309.01, 5.10.0-30-amd64, x86_64: built", False), ("nvidia-current, 535.309.01: added", False),
    ("nvidia-current, 535.309.01, 5.10.0-31-amd64, x86_64: installed", False),
    ("nvidia-current, 470.256.02, 5.10.0-30-amd64, x86_64: installed", False)])
def test_when_dkms_has_built_the_module(line, built):
    assert bool(re.search(names(host())["dkms"], line)) is built


def reboot(facts: dict, allowed: bool = True, is_controller: bool = False, **modprobe: str) -> dict:
    return nvidia_driver.reboot(facts, "535.309.01", allowed, is_controller, modprobe)


def test_a_loaded_module_needs_no_reboot():
    for allowed, is_controller in itertools.product((True, False), (True, False)):
        decision = reboot(working(NEW), allowed, is_controller)
        assert (decision["needed"], decision["message"]) == (False, "")


@pytest.mark.parametrize(("facts", "why"), [
    (host(nouveau=True), "nouveau drives them."),
    (working(OLD), "module 470.256.02 is loaded and in use, and 535.309.01 is installed."),
    (host(), "the module cannot be loaded (No such device).")])
@pytest.mark.parametrize(("allowed", "is_controller", "who"), [
    (True, True, "It is the machine that Ansible runs on, which is never rebooted: reboot it yourself"),
    (False, True, "It is the machine that Ansible runs on, which is never rebooted: reboot it yourself"),
    (False, False, "nvidia_driver_reboot is false: reboot it yourself"), (True, False, "")])
def test_who_reboots_and_why(facts, why, allowed, is_controller, who):
    decision = reboot(facts, allowed, is_controller, stderr=" No such device\n")
    assert (decision["needed"], decision["allowed"]) == (True, not who)
    assert bool(decision["message"]) is bool(who)
    assert not who or (why in decision["message"] and who in decision["message"])


def test_a_module_that_nobody_tried_to_load():
    assert "cannot be loaded ()" in nvidia_driver.reboot(host(), "1", False, False)["message"]
