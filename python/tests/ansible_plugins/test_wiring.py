"""Ansible finds the plugins by the root's ansible.cfg, and takes what they return."""
from __future__ import annotations

import doctor
import failure
import job
import nvidia_driver
import preflight
import torch_venv
import trainer
import yaml
from controller import play

FACTS = "{{ probe.stdout | from_json }}"
TASKS = [
    {"name": "Probe this machine as the roles do", "register": "probe",
     "ansible.builtin.script": {"cmd": "{{ lookup('host_probe') | quote }} --facts", "executable": "python3"}},
    {"name": "Use what the filters return", "vars": {
        "facts": FACTS,
        "decision": "{{ facts | nvidia_driver_decision(manage=true, state='present', source='debian', branch=470) }}",
        "names": "{{ facts | nvidia_driver_names('1:470.256.02-2', ['nvidia-persistenced'], '5.10') }}",
        "reboot": "{{ facts | nvidia_driver_reboot_decision('470.256.02', allowed=false, is_controller=false) }}",
        "written": "{{ {'rc': 0, 'stdout': ''} | preflight_write_results(['/etc']) }}",
        "results": "{{ {'rc': 2, 'stdout': '', 'stderr': 'no'} | preflight_host_results }}",
        "machines": "{{ {'a': {'rc': 0, 'stdout': 'x'}} | preflight_machine_results('a') }}",
        "archives": "{{ [] | preflight_archive_results(results) }}",
        "wanted": "{{ results | preflight_packages_to_fetch(['a'], [], installs_driver=false) }}",
        "packages": "{{ {'skipped': true} | preflight_package_results(wanted) }}",
         "jobs": "{{ {'a': {'hosts': 'nobody'}} | trainer_plan(inventory_hostname, groups, hostvars, 29500) }}",
         "row": "{{ {'unreachable': true, 'msg': 'no route'} | job_row({}, 'status') }}",
         "table": "{{ {'a': row} | job_table(['a']) }}",
         "reasons": "{{ {'results': [{'item': {'item': 'a', 'msg': 'no'}, 'stdout': ''}]} | failure_unit_reasons }}",
         "why": "{{ {'msg': 'no'} | failure_cause }}",
         "lacking": "{{ '' | torch_venv_debs('1') }}",
        "examined": "{{ {'a': {'unreachable': true, 'msg': 'no route'} | doctor_verdict('x')} | doctor_table }}"},
     "ansible.builtin.assert": {"that": [
         "facts.boot_id | length > 0", "decision.action in ['nothing', 'install', 'adopt']", "decision.obstacles == []",
         "names.upstream == '470.256.02'", "names.services == ['nvidia-persistenced']", "reboot.needed",
         "written[0].status == 'ok'", "results[0].status == 'fail'", "archives[0].status == 'ok'",
         "machines == []",
         "wanted.packages == ['a']",
         "packages[0].status == 'skip'", "(results | preflight_failures) | length == 1",
         "jobs.problems == ['trainer_jobs.a: the inventory has no group nobody']",
         "'no archive of the host has debzero-runtime 1' in lacking.problem",
         "row.problem == 'no route'", "table | length == 2", "examined | length == 1", "why == 'no'",
         "reasons == 'debzero@a does not train:\\nno'"]}},
]


def test_ansible_loads_the_plugins_by_the_root_s_configuration(tmp_path):
    plays = [{"name": "Try", "hosts": "localhost", "connection": "local", "gather_facts": False, "tasks": TASKS}]
    (tmp_path / "try.yml").write_text(yaml.safe_dump(plays, sort_keys=False))
    done = play("-i", "localhost,", tmp_path / "try.yml", ANSIBLE_LOCAL_TEMP=str(tmp_path / "local"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert not list((tmp_path / "local").glob("*")), "the archive is left behind"


def test_every_filter_is_used_above():
    filters = {**nvidia_driver.FilterModule().filters(), **preflight.FilterModule().filters(),
               **trainer.FilterModule().filters(), **job.FilterModule().filters(),
               **doctor.FilterModule().filters(), **failure.FilterModule().filters(),
               **torch_venv.FilterModule().filters()}
    used = yaml.safe_dump(TASKS)
    assert [name for name in filters if name not in used] == []
