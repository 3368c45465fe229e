"""Hosts whose GPUs have trouble: what doctor says first, and whether the role nvidia_driver touches their driver."""
import nvidia_driver
import pytest
from fake_host import DRIVER, GPUS, healthy
from host_states import FAILED, NO_DEVICES, ROW0, ROW1, STATES, smi

from debzero.doctor.probe import HostProbe
from debzero.doctor.smi import driver_facts

INSTALLED = {"packages": {"nvidia-kernel-dkms": f"{DRIVER}-2~deb11u1"}, "state_folder": "/state"}
BY_ROLE = {**INSTALLED, "state": {"version": f"{DRIVER}-2~deb11u1"}}


@pytest.fixture
def machine(tmp_path, monkeypatch):
    return healthy(tmp_path, monkeypatch)


def first(results: list):
    return next((one for status in ("fail", "warn") for one in results if one.status == status), None)


def decide(facts: dict, **variables: str) -> dict:
    return nvidia_driver.decide(facts, **{"manage": True, "state": "present", "source": "debian", "branch": "",
                                          **variables})


@pytest.mark.parametrize("name", STATES)
def test_the_first_line_names_the_cause_and_the_role_leaves_a_driver_that_works_alone(machine, name):
    state = STATES[name]
    state.breaks(machine)
    results = machine.results()
    cause = first(results)
    assert cause is not None and (cause.check, cause.status) == (state.check, state.status), results
    assert state.found in cause.found and state.advice in cause.advice, cause
    assert state.without not in cause.advice
    assert "{" not in cause.found + cause.advice

    facts = driver_facts(HostProbe(machine.root))
    assert (facts["works"], facts["helps"]) == (state.works, state.helps), facts
    mine, others = decide({**facts, **BY_ROLE}), decide({**facts, **INSTALLED})
    if state.works:
        assert (mine["action"], others["action"], mine["obstacles"]) == ("keep", "nothing", [])
    elif state.helps == "same":
        assert (mine["action"], others["action"], mine["obstacles"]) == ("keep", "adopt", [])
    else:  # building the same driver again changes nothing
        assert (mine["action"], others["action"]) == ("nothing", "nothing")
        assert len(mine["obstacles"]) == 1 and facts["advice"] in mine["obstacles"][0]
        assert decide({**facts, **INSTALLED}, branch="535")["action"] == "install"  # what somebody asks for


def test_n_a_and_not_supported_are_no_errors(machine):
    smi(ROW0, ROW1.replace("40536, Enabled, 0", "[N/A], [Not Supported], [N/A]"))(machine)
    assert first(machine.results()) is None


def test_the_journal_is_asked_where_the_kernel_s_own_buffer_has_nothing(machine):
    smi(NO_DEVICES, code=6)(machine)
    machine.command("dmesg", "dmesg: read kernel buffer failed: Operation not permitted", 1)
    machine.command("journalctl", "\n".join(FAILED))
    assert "RmInitAdapter failed" in first(machine.results()).found


def test_a_driver_that_works_on_one_gpu_of_two_is_said_to(machine):
    machine.smi(GPUS[0])
    assert decide({**driver_facts(HostProbe(machine.root)), **INSTALLED})["reason"] == (
        f"driver {DRIVER} works on 1 of 2 GPU(s): nothing to do.")


def test_a_successor_is_not_judged_by_what_its_predecessor_said(machine):
    STATES["an older driver"].breaks(machine)
    facts = driver_facts(HostProbe(machine.root))
    upgraded = {"packages": {"nvidia-kernel-dkms": "535.309.01-0+deb11u1"}, "state_folder": "/state"}
    assert decide({**facts, **upgraded})["action"] == "adopt"
    assert decide({**facts, **upgraded})["obstacles"] == []


def test_no_driver_is_put_under_gpus_that_virtual_machines_have(machine):
    STATES["vfio-pci has both"].breaks(machine)
    facts = driver_facts(HostProbe(machine.root))
    assert decide({**facts, "packages": {}, "loaded": ""})["action"] == "nothing"


def test_before_provisioning_nvidiafb_is_no_obstacle(machine):
    STATES["nvidiafb"].breaks(machine)
    results = machine.results(stage="preflight", driver_managed=True)
    assert first(results).check == "nouveau" and first(results).status == "warn"
    facts = driver_facts(HostProbe(machine.root))
    assert nvidia_driver.reboot(facts, DRIVER, True, False)["needed"]
    assert "nvidiafb drives them" in nvidia_driver.reboot(facts, DRIVER, False, False)["message"]


@pytest.mark.parametrize(("name", "status"), [
    ("module not loaded", "warn"), ("another library", "warn"), ("a module that does not stay", "fail"),
    ("an older driver", "fail"), ("no address space", "fail"), ("requires reset", "fail")])
def test_before_provisioning_only_what_the_role_fixes_is_a_warning(machine, name, status):
    (STATES[name].breaks if name in STATES else type(machine).not_loaded)(machine)
    cause = first(machine.results(stage="preflight", driver_managed=True))
    assert cause.status == status, cause
    assert ("nothing to do" in cause.advice) == (status == "warn")
