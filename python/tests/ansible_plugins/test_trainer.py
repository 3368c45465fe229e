"""What the role trainer makes of trainer_jobs, and what it refuses."""
from __future__ import annotations

import pytest
import trainer

GROUPS = {"all": ["gpu1", "gpu2", "gpu3", "web"], "gpu_servers": ["gpu1", "gpu2", "gpu3"], "pair": ["gpu2", "gpu1"],
          "nobody": []}
JOB = {"model": "m", "output": "/o"}


def facts(number: int, **more: object) -> dict:
    return {"ansible_default_ipv4": {"address": f"10.0.0.{number}"}, **more}


HOSTVARS = {"gpu1": facts(1), "gpu2": facts(2), "gpu3": facts(3), "web": facts(4)}


def plan(jobs: dict, host: str = "gpu1", **changed: dict) -> dict:
    return trainer.plan(jobs, host, GROUPS, {**HOSTVARS, **changed}, 29500)


def refused(entry: dict, **changed: dict) -> list[str]:
    return plan({"bert": {**JOB, **entry}}, **changed)["problems"]


def test_a_job_without_hosts_belongs_to_every_host():
    assert plan({"bert": JOB}) == {"jobs": {"bert": JOB}, "clusters": {}, "elsewhere": [], "problems": []}


@pytest.mark.parametrize("hosts", ["pair", ["gpu2", "gpu1"]])
def test_a_job_over_hosts_belongs_to_these_in_their_order(hosts):
    jobs = {"bert": {**JOB, "hosts": hosts}, "demo": JOB}
    here, there = plan(jobs), plan(jobs, "gpu3")
    assert here["jobs"] == {"bert": JOB, "demo": JOB} and here["elsewhere"] == []
    assert here["clusters"] == {"bert": {"hosts": {"gpu2": "10.0.0.2", "gpu1": "10.0.0.1"}, "port": 29500,
                                         "host": "gpu1"}}
    assert list(here["clusters"]["bert"]["hosts"]) == ["gpu2", "gpu1"]
    assert there == {"jobs": {"demo": JOB}, "clusters": {}, "elsewhere": ["bert"], "problems": []}


def test_address_interface_and_port_can_be_set():
    mine = facts(1, trainer_address="192.168.7.1", trainer_interface="ib0")
    found = plan({"bert": {**JOB, "hosts": "pair", "port": 31000}}, gpu1=mine)
    assert found["clusters"]["bert"] == {"hosts": {"gpu2": "10.0.0.2", "gpu1": "192.168.7.1"}, "port": 31000,
                                         "host": "gpu1", "interface": "ib0"}
    assert found["problems"] == []


def test_an_interface_says_the_address_too():
    """debzero refuses an interface that has another address than `hosts` gives."""
    mine = facts(1, trainer_interface="br-lan.7", ansible_br_lan_7={"ipv4": {"address": "10.7.0.1"}})
    found = plan({"bert": {**JOB, "hosts": "pair"}}, gpu1=mine)
    assert found["clusters"]["bert"]["hosts"]["gpu1"] == "10.7.0.1" and found["problems"] == []


def test_each_job_has_ports_of_its_own():
    jobs = {name: {**JOB, "hosts": "pair"} for name in ("a", "b")}
    found = plan(jobs)
    assert [found["clusters"][name]["port"] for name in jobs] == [29500, 29500 + trainer.PORTS]
    jobs["b"]["port"] = 29507
    assert plan(jobs)["problems"] == [
        "trainer_jobs.a and trainer_jobs.b would use the same ports of gpu1: give one of them a port of its own, 8 or "
        "more from the other's"]
    jobs["b"]["port"] = 29508
    assert plan(jobs)["problems"] == []


@pytest.mark.parametrize(("entry", "reason"), [
    ({"hosts": "gpu"}, "the inventory has no group gpu"),
    ({"hosts": {"gpu1": "10.0.0.1"}}, "hosts must be a group of the inventory, or a list of its hosts"),
    ({"hosts": None}, "hosts must be a group of the inventory, or a list of its hosts"),
    ({"hosts": ["gpu1", "gpu9"]}, "the inventory has no host gpu9"),
    ({"hosts": ["gpu1", "web"]}, "web is not in the group gpu_servers, whose hosts get the trainer"),
    ({"hosts": ["gpu1", "gpu2", "gpu1"]}, "hosts names gpu1 twice"),
    ({"hosts": ["gpu1"]}, "hosts comes to gpu1, and a job over hosts needs two or more: leave hosts out for a job that "
                          "every host trains by itself"),
    ({"hosts": "nobody"}, "hosts comes to no host, and a job over hosts needs two or more: leave hosts out for a job "
                          "that every host trains by itself"),
    *(({"hosts": "pair", "port": port}, f"port must be a whole number from 1024 to 65528, not {port}")
      for port in (80, 65530, "29500", True, 29500.5, None))])
def test_what_no_job_can_be_is_refused(entry, reason):
    assert refused(entry) == [f"trainer_jobs.bert: {reason}"]


@pytest.mark.parametrize(("variables", "reason"), [
    *((its, f"the address of gpu2{at} is not known, for this run has not reached it: set trainer_address for it, or "
            "run the play without --limit once it answers") for its, at in (
        ({}, ""), ({"ansible_default_ipv4": {}}, ""), (facts(2, trainer_interface="ib0"), " at ib0"))),
    (facts(2, trainer_address="gpu2.example.org"), "trainer_address of gpu2 is gpu2.example.org, which is no IP "
                                                   "address"),
    *((facts(2, trainer_address=address),
       f"the address of gpu2 is {address}, where no other host reaches it: set trainer_address for it")
      for address in ("127.0.1.1", "::1", "0.0.0.0", "224.0.0.1")),
    (facts(1), "gpu2 and gpu1 have the same address 10.0.0.1: set trainer_address for each of them")])
def test_an_address_that_no_other_host_reaches_is_refused(variables, reason):
    assert refused({"hosts": "pair"}, gpu2=variables) == [f"trainer_jobs.bert: {reason}"]


def test_a_host_that_was_left_out_matters_to_the_hosts_of_its_job_alone():
    jobs = {"bert": {**JOB, "hosts": "pair"}, "demo": JOB}
    assert plan(jobs, "gpu3", gpu2={}) == {"jobs": {"demo": JOB}, "clusters": {}, "elsewhere": ["bert"], "problems": []}
    assert len(plan(jobs, "gpu1", gpu2={})["problems"]) == 1


@pytest.mark.parametrize("entry", [JOB, {**JOB, "hosts": "pair"}])
@pytest.mark.parametrize("name", ["../../cron.d/bert", "bert large", "bert%n", "bert\n", "bert\nx", "größe", "",
                                  ".bert", "-bert", "a:b"])
def test_a_name_that_is_no_file_s_and_no_unit_s_is_refused(name, entry):
    (problem,) = plan({name: entry})["problems"]
    assert problem.startswith(f"trainer_jobs: {name!r} names a file and a unit")


def test_all_problems_come_at_once():
    found = plan({"../bert": {**JOB, "hosts": "pair"}, "gpt": {**JOB, "hosts": ["gpu1", "gpu9"], "port": 1}})
    assert found["problems"] == [
        "trainer_jobs: '../bert' names a file and a unit, so it may have letters, digits, dots, dashes and underscores "
        "alone, and begins with a letter or a digit",
        "trainer_jobs.gpt: the inventory has no host gpu9",
        "trainer_jobs.gpt: port must be a whole number from 1024 to 65528, not 1"]


def test_a_number_is_a_name():
    assert plan({2026: JOB})["problems"] == []
