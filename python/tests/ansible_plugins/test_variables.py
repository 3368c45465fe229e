"""What variables of roles come to, where they depend on other settings or on what the host has."""
from __future__ import annotations

import json

import pytest
import yaml
from controller import ROOT, play

pytestmark = pytest.mark.long  # it starts Ansible


@pytest.fixture(scope="module")
def values(tmp_path_factory) -> dict:
    """Both plays in one run: {host: what it wrote}."""
    folder = tmp_path_factory.mktemp("play")
    hosts = {"locked": {}, "apt": {"torch_venv_source": "apt"},
             "bundled": {"torch_venv_source": "apt", "bundle": "a.tar"}}
    environments = {"plain": ["torch-9.0"], "export": ["onnx-9.0", "torch-9.0"]}
    stack = yaml.safe_load((ROOT / "stack.yml").read_text())["stack"]
    for name, wheels in environments.items():
        for wheel in wheels:
            (folder / f"{name}/lib/python{stack['python']}/site-packages/{wheel}.dist-info").mkdir(parents=True)
    inventory = {"sized": {"hosts": hosts}, "packed": {
        "hosts": {name: {"stack": {**stack, "venv": f"{folder}/{name}"}} for name in environments}}}
    (folder / "hosts.yml").write_text(yaml.safe_dump(inventory))

    def write(expression: str) -> dict:
        return {"ansible.builtin.copy": {"dest": f"{folder}/{{{{ inventory_hostname }}}}.json", "mode": "0644",
                                         "content": f"{{{{ {{'it': {expression}}} | to_json }}}}"}}

    every = {"connection": "local", "gather_facts": False, "vars": {"ansible_python_interpreter": "/usr/bin/python3"}}
    plays = [{**every, "hosts": "sized", "vars_files": [str(ROOT / "roles/preflight/defaults/main.yml")],
              "tasks": [write("preflight_min_free_mb")]},
             {**every, "hosts": "packed", "tasks": [
                 {"ansible.builtin.import_role": {"name": "runtime_debs", "tasks_from": "compare"},
                  "vars": {"runtime_debs_builder": "{{ inventory_hostname }}"}},
                 {**write("__runtime_debs_digest"), "vars": {"role_path": str(ROOT / "roles/runtime_debs")}}]}]
    (folder / "play.yml").write_text(yaml.safe_dump(plays))
    done = play("-i", folder / "hosts.yml", folder / "play.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    return {name: json.loads((folder / f"{name}.json").read_text())["it"] for name in (*hosts, *environments)}


def test_room_is_asked_for_where_the_environment_goes(values):
    """Wheels to /opt; packages to /usr, by way of apt's cache where they are downloaded. The role bundle asks for its
    own room, as it knows the bundle's size."""
    assert values["locked"] == {"/opt": 7000, "/var": 3000}
    assert values["apt"] == {"/usr": 5000, "/var": 5500}
    assert values["bundled"] == {"/usr": 5000, "/var": 3000}


def test_packages_of_another_environment_are_not_taken_for_this_one_s(values):
    """Such as one that can export, and one that cannot: whatever the settings say, what is installed counts."""
    assert values["plain"] != values["export"]
