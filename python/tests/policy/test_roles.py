"""Roles and plays: what can be set is documented, a variable shows its owner, a failed host is dropped."""
from __future__ import annotations

import re
import subprocess
import sys

import pytest
from checkout import IMPORTS, ROLES, ROOT, files, hits, load, module, plays, refuse, tasks, without_comments

# Task lists hold imports alone, but for single steps that would make a file of one task.
INLINE = {
    ("base", "Install packages"): "one task, and the role's main one",
    ("debzero_deb", "Report where the package is"): "the role's result",
    ("trainer", "Apply changes before jobs start"): "an order, not a step",
}
# Roles that the scenario of another one tests.
SCENARIOS = {"runtime_debs": "repository"}  # it takes the packages, which take minutes to build


def spec(role):
    return (load(f"roles/{role}/meta/argument_specs.yml") or {}).get("argument_specs", {}).get("main", {})


def defaults(role):
    return load(f"roles/{role}/defaults/main.yml") or {}


def undocumented(defined, specified):
    return sorted(f"{name} is in defaults/main.yml alone" for name in set(defined) - set(specified)) \
        + sorted(f"{name} is in meta/argument_specs.yml alone" for name in set(specified) - set(defined))


def keys_named(key, value, path=""):
    """Where in nested YAML a key of this name is."""
    if not isinstance(value, dict):
        return []
    here = [path or "/"] if key in value else []
    return here + [found for inner in value for found in keys_named(key, value[inner], f"{path}/{inner}")]


def misnamed(role, task):
    """Variables that a task makes without the role's name. Only facts may be public: they can be the role's result."""
    facts = task.get("ansible.builtin.set_fact", {})
    private, public = f"__{role}_", f"{role}_"
    included = task.get("ansible.builtin.include_role", {}).get("name", "__" + role)  # these variables are that role's
    inner = [task.get("register"), task.get("loop_control", {}).get("loop_var"), *task.get("vars", {})]
    # ansible_*: how that task connects.
    return [name for name in inner if name and not name.startswith((private, f"{included}_", "ansible_"))] + [
        name for name in facts if not name.startswith((private, public))]


def steps_that_are_not_imports(role, steps):
    return [step["name"] for step in steps if module(step) not in IMPORTS and (role, step["name"]) not in INLINE]


def missing_in_message(task):
    """What an assertion expects to be missing at times and its message does not: Ansible fills the message in first."""
    asserted = task.get("ansible.builtin.assert", {})
    message = " ".join(re.findall(r"{{.+?}}", str(asserted.get("fail_msg")), re.DOTALL))
    return [name for name in re.findall(r"([\w.]+) \| default\(", str(asserted.get("that")))
            if re.search(rf"(?<![\w.]){re.escape(name)}\b(?! \| default\()", message)]


def careless(play, *, test):
    """What a play lacks: a test ends with the first failed host; for others its failure is that host's alone."""
    lacks = [] if play.get("name") else ["a name"]
    return lacks + ([] if "hosts" not in play or play.get("any_errors_fatal", False) is test else
                    [f"any_errors_fatal: {str(test).lower()}"])


@pytest.mark.parametrize("role", ROLES)
def test_every_public_variable_is_specified_and_the_reverse(role):
    assert spec(role), "no meta/argument_specs.yml with an entry point main"
    refuse(undocumented(defaults(role), spec(role).get("options", {})))


@pytest.mark.parametrize("role", ROLES)
def test_each_variable_is_described_and_its_default_is_in_one_place(role):
    options = spec(role).get("options", {})
    refuse(name for name, option in options.items() if not option.get("type") or not option.get("description"))
    refuse(name for name, option in options.items() if option.get("type") == "list" and "elements" not in option)
    refuse(keys_named("default", options))


@pytest.mark.parametrize("role", ROLES)
def test_variables_carry_the_role_in_their_names(role):
    internal = [name for file in files(f"roles/{role}/vars/*.yml") for name in load(file)]
    refuse(name for name in defaults(role) if not name.startswith(f"{role}_"))
    refuse(name for name in internal if not name.startswith(f"__{role}_"))
    lists = files(f"roles/{role}/tasks/*.yml", f"roles/{role}/handlers/*.yml")
    refuse(f"{file}: {name}" for file in lists for task in tasks(load(file)) for name in misnamed(role, task))


@pytest.mark.parametrize("role", ROLES)
def test_the_task_list_is_a_table_of_contents(role):
    text = (ROOT / f"roles/{role}/tasks/main.yml").read_text()
    assert text.count("\n") < 40
    refuse(steps_that_are_not_imports(role, load(f"roles/{role}/tasks/main.yml")))


def test_no_exception_outlives_its_step():
    steps = {(role, step["name"]) for role in ROLES for step in load(f"roles/{role}/tasks/main.yml")}
    assert set(INLINE) - steps == set()


@pytest.mark.parametrize("role", ROLES)
def test_the_galaxy_description_is_the_specification_s(role):
    assert load(f"roles/{role}/meta/main.yml")["galaxy_info"]["description"] == spec(role)["short_description"]


@pytest.mark.parametrize("role", ROLES)
def test_each_role_has_a_scenario_of_its_name_that_asserts(role):
    scenario = SCENARIOS.get(role, role)
    assert f"molecule/{scenario}/molecule.yml" in files("molecule/*/molecule.yml")
    verified = files(f"molecule/{scenario}/tests/test_*.py")
    assert any(re.search(r"^def test_\w+\(host", text, re.MULTILINE) for text in verified.values())


@pytest.mark.parametrize("role", ROLES)
def test_each_role_works_in_another_project(role):
    """There the plays bring no stack.yml, and only an absolute name finds a plugin of the collection."""
    assert load(f"roles/{role}/meta/main.yml")["dependencies"] == ["stack"]
    own = "|".join({name for text in files("ansible/plugins/filter/*.py").values()
                    for name in re.findall(r'"(\w+)": \w+[,}]', text.rpartition("def filters")[2])})
    short = rf"(?:\|\s*|map\('|lookup\(')(?:{own}|host_probe)\b"
    refuse(hits(short, files(f"roles/{role}/*.yml", f"roles/{role}/*.j2")))
    refuse(f"{file}: {name}" for file, text in files(f"roles/{role}/*.yml").items()
           for name in re.findall(r"groups\['gpu_servers'\](?! \| default)", text))


def test_the_collection_is_the_package_s_release():
    upstream = re.match(r"\w+ \((.+?)-\d", (ROOT / "debian/changelog").read_text())[1]
    assert load("galaxy.yml")["version"] == upstream


def test_every_play_has_a_name_and_only_a_test_stops_for_all_hosts():
    playbooks = files("site.yml", "playbooks/*.yml", "molecule/*.yml")
    found = [(file, play) for file in playbooks for play in plays(load(file))]
    assert len(found) >= 8
    refuse(f"{file}: {play.get('name', 'a play')} lacks {lack}" for file, play in found
           for lack in careless(play, test=file.startswith("molecule/")))


def test_no_message_needs_what_its_condition_does_without():
    refuse(f"{file}: {task.get('name')}: {name} has no default in fail_msg"
           for file in files("playbooks/*.yml", "roles/*/tasks/*.yml", "roles/*/handlers/*.yml")
           for task in tasks(load(file) or []) for name in missing_in_message(task))


def test_every_playbook_refuses_an_inventory_without_servers_first():
    first = {file: next(plays(load(file))) for file in files("playbooks/*.yml", without=("playbooks/tasks/*",))}
    own = ("playbooks/inventory.yml", "playbooks/repository.yml")  # the second asks for a group of its own
    refuse(file for file, play in first.items() if file not in own
           and play.get("ansible.builtin.import_playbook") != "inventory.yml")


def test_facts_that_a_role_promises_exist():
    made = {(role, fact) for role in ROLES for text in files(f"roles/{role}/tasks/*.yml")
            for task in tasks(load(text)) for fact in task.get("ansible.builtin.set_fact", {})}
    promised = [(role, fact) for role in ROLES for fact in re.findall(r"[Ff]act (\w+)", str(spec(role)))]
    assert promised
    refuse(f"{role}: nothing makes the fact {fact}" for role, fact in promised if (role, fact) not in made)


# On the command line a variable is text: a condition refuses that, an expression takes "false" for true, and a list is
# its letters.
SWITCHES = [name for role in ROLES for name, option in spec(role)["options"].items() if option["type"] == "bool"]
# What people name there.
LISTS = ["bundle_kernels", "bundle_packages", "deepspeed_wheel_architectures", "repository_packages", "trainer_start"]
DEFAULT = r"( \| default\([^)]*\))?"
AS_TEXT = (rf"\b({'|'.join(SWITCHES)})\b(?!{DEFAULT} \| bool|\s+to |:)"
           rf"|(?<!\[)\b({'|'.join(LISTS)})\b(?! names|:)|\[({'|'.join(LISTS)})\b(?!{DEFAULT}\] \| flatten)")


def test_what_is_set_on_the_command_line_is_read_as_it_is_meant():
    texts = files("roles/*/tasks/*.yml", "roles/*/vars/*.yml", "roles/*/defaults/*.yml", "playbooks/*.yml", "site.yml")
    assert len(SWITCHES) >= 9
    refuse(hits(AS_TEXT, {name: without_comments(text) for name, text in texts.items()}))
    wrong = {"x": "a: b if trainer_start else c\nwhen: inference_manage\nloop: [trainer_start]"}
    assert [hit.partition(" ")[0] for hit in hits(AS_TEXT, wrong)] == ["x:1:", "x:2:", "x:3:"]


def test_the_roles_readmes_are_fresh():
    check = subprocess.run([sys.executable, ROOT / "ansible/role_docs.py", "--check"], capture_output=True, text=True)
    assert check.returncode == 0, check.stderr
    refuse(role for role in ROLES if not (ROOT / "roles" / role / "README.md").is_file())


def test_the_checks_see_what_is_wrong():
    assert undocumented({"a_x": 1, "a_y": 1}, {"a_y": {}, "a_z": {}}) == [
        "a_x is in defaults/main.yml alone", "a_z is in meta/argument_specs.yml alone"]
    assert keys_named("default", {"a_x": {"options": {"b": {"default": 1}}}}) == ["/a_x/options/b"]
    task = {"register": "result", "vars": {"a_x": 1, "__a_x": 1}, "ansible.builtin.set_fact": {"b": 1, "a_path": 1}}
    assert misnamed("a", task) == ["result", "a_x", "b"]
    assert misnamed("a", {"ansible.builtin.include_role": {"name": "c"}, "vars": {"c_x": 1, "a_x": 1}}) == ["a_x"]
    steps = [{"name": "Do", "ansible.builtin.command": "x"}, {"name": "Go", "ansible.builtin.import_tasks": "x.yml"}]
    assert steps_that_are_not_imports("a", steps) == ["Do"]
    assert careless({"hosts": "all", "any_errors_fatal": False}, test=True) == ["a name", "any_errors_fatal: true"]
    assert careless({"name": "a", "hosts": "all", "any_errors_fatal": True}, test=False) == ["any_errors_fatal: false"]
    asserted = {"that": ["a | default('')", "b.c | default('') != d"], "fail_msg": "a: {{ a | default('') }}{{ b.c }}"}
    assert missing_in_message({"ansible.builtin.assert": asserted}) == ["b.c"]
    block = {"name": "Try", "block": [{"name": "A"}], "rescue": [{"name": "B"}]}
    assert [found["name"] for found in tasks([{"hosts": "all", "tasks": [block]}])] == ["A", "B"]
