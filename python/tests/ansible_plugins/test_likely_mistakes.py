"""What a newcomer gets wrong on the command line and in the inventory ends with a sentence, before anything changes."""
from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from controller import ROOT, play

pytestmark = pytest.mark.slow  # each test starts Ansible

HERE = {"ansible_connection": "local", "ansible_become": False, "ansible_python_interpreter": "/usr/bin/python3"}


def refusal(*words: object) -> str:
    """What a play says that is refused, on one line. It may only be a check: this machine is its host."""
    done = play(*words, "--check")
    text = re.sub(r"\s+", " ", done.stdout + done.stderr)
    assert done.returncode == 2 and "UNREACHABLE" not in text and "Traceback" not in text, text
    return text


def inventory(folder: Path, **groups: dict) -> Path:
    file = folder / "hosts.yml"
    file.write_text(yaml.safe_dump({name: {"hosts": hosts} for name, hosts in groups.items()}))
    return file


@pytest.mark.parametrize(("playbook", "group"), [("site.yml", "gpu_servers"), ("playbooks/bundle.yml", "gpu_servers"),
                                                 ("playbooks/repository.yml", "repository")])
def test_an_inventory_that_has_hosts_elsewhere_or_cannot_be_read(tmp_path, playbook, group):
    hosts = inventory(tmp_path, gpu_server={"localhost": HERE}, repositories={"apt1": HERE})
    said = refusal("-i", hosts, playbook)
    assert f"The group {group} of {hosts} has no hosts: " in said
    assert "Its groups with hosts are: gpu_server, repositories." in said
    # There is nobody to limit the next run to; --limit localhost would leave out all servers, in silence.
    assert "run the same again" in said and "--limit localhost" not in said
    assert f"There is no {tmp_path}/nosuch.yml on this controller." in refusal("-i", tmp_path / "nosuch.yml", playbook)
    hosts.write_text(f"{group}: {{hosts: [gpu1]}}\n")
    assert "If hosts stand there, the warnings above say why Ansible" in refusal("-i", hosts, playbook)


def test_a_limit_that_leaves_out_who_publishes(tmp_path):
    hosts = inventory(tmp_path, gpu_servers={"gpu1": HERE}, repository={"apt1": HERE})
    assert ("--limit leaves out the hosts of the group repository (apt1), and nothing would be published"
            in refusal("-i", hosts, "playbooks/repository.yml", "--limit", "gpu1"))


@pytest.mark.parametrize("more", [[], ["--limit", "gpu1"]])
def test_a_tag_that_no_role_has(tmp_path, more):
    hosts = inventory(tmp_path, gpu_servers={"gpu1": HERE, "gpu2": HERE})
    said = refusal("-i", hosts, "site.yml", "--tags", "preflihgt,cuda", *more)
    assert "--tags preflihgt would run nothing: the tags are preflight, bundle, base, " in said


def test_the_tags_are_those_of_the_roles():
    plays = [play for path in sorted((ROOT / "playbooks").glob("*.yml")) for play in yaml.safe_load(path.read_text())]
    roles = {role["tags"] for play in plays for role in play.get("roles", []) if isinstance(role, dict)}
    known = [task["vars"]["__tags"] for play in plays for task in play.get("tasks", [])
             if "__tags" in task.get("vars", {})]
    assert known and set(known[0]) == roles - {"repository"}  # whose playbook stands alone


def test_what_cannot_be_published_is_refused_before_the_host_changes(tmp_path):
    hosts = inventory(tmp_path, repository={"apt1": HERE})
    words = ("-i", hosts, "playbooks/repository.yml", "-e", f"repository_folder={tmp_path}/repository", "-e")
    said = refusal(*words, '{"repository_packages": []}')
    assert "(dist/ has none): `make deb` and `make runtime-debs` build them" in said and "Install aptly" not in said
    said = refusal(*words, f"repository_packages={tmp_path}/nosuch.deb")
    assert f"or one that is not there ({tmp_path}/nosuch.deb)" in said and "Install aptly" not in said
    # The way back needs no package on this controller. A path is one of the folder that the command is typed in.
    said = refusal(*words, '{"repository_packages": [], "repository_snapshot": "old", "repository_key": "nosuch.asc"}')
    assert f"repository_key is {ROOT}/nosuch.asc, and there is no such file" in said and "Install aptly" not in said


def test_files_are_named_as_on_any_command_line(tmp_path):
    """Ansible's own look-up would take a file of the role's for a relative path, and know no ~."""
    hosts = inventory(tmp_path, gpu_servers={"gpu1": HERE})
    words = ("-i", hosts, "playbooks/upgrade.yml", "-e", "torch_venv_source=apt", "-e", "debzero_repository=file:///x",
             "-e")
    given, meant = "nosuch.gpg", ROOT / "nosuch.gpg"
    assert f"and {meant}, the key that signs it, is not on this controller" in refusal(
        *words, f"base_repository_keyring={given}")
    name = "debzero_0.0.1_all.deb"
    for given, meant in ((name, ROOT / name), (f"~/{name}", Path.home() / name)):
        assert f"{meant} is not on the controller: correct trainer_deb" in refusal(*words[:3], "-e",
                                                                                   f"trainer_deb={given}")


def test_a_bundle_is_refused_before_anything_is_built(tmp_path):
    hosts = inventory(tmp_path, gpu_servers={"gpu1": {"ansible_host": "gpu.invalid"}}, collector={"build1": HERE})
    words = ("-i", hosts, "playbooks/bundle.yml", "-e", "bundle_builder=build1", "-e", f"bundle_store={tmp_path}")
    assert "--limit leaves out gpu1: run it without --limit." in refusal(*words, "--limit", "build1")
    said = refusal(*words)
    assert f"{tmp_path} has no debzero-runtime " in said and "run `make runtime-debs` first" in said
    assert "Prepare the builder" not in said and "TASK [base : " not in said.partition("Make the bundle")[2]
    runtime = yaml.safe_load((ROOT / "stack.yml").read_text())["stack"]["runtime"]
    (tmp_path / f"debzero-runtime_{runtime}-1_amd64.deb").touch()
    assert 'bundle_models is "bert" and' in refusal(*words, "-e", "bundle_models=bert")
    said = refusal(*words, "-e", '{"bundle_models": {"bert": "nosuch"}, "bundle_datasets": {"x": "~/nosuch"}}')
    assert f"name {ROOT}/nosuch, {Path.home()}/nosuch, and there is no such file or folder on this controller" in said


@pytest.mark.parametrize(("words", "said"), [
    (["runtime-debs", "CUDA=yes"], "CUDA is 'yes', and must be nvidia or debian"),
    (["runtime-debs", "CUDA=nvidia debian"], "CUDA is 'nvidia debian', and must be"),
    (["bundle", "CUDA=nvidia"], "make bundle is for hosts without GPUs: leave CUDA out"),
    (["bundle", "KEY=nosuch.asc"], "KEY is 'nosuch.asc', and there is no such file"),
    (["runtime-debs", "CUDA=debian"], ""), (["runtime-debs"], ""), (["bundle", "KEY=LICENSE"], "")])
def test_what_make_is_given_is_refused_before_a_container_is_made(words, said):
    variables = {name: value for name, value in os.environ.items() if name not in ("CUDA", "KEY")}
    done = subprocess.run(["make", "--dry-run", *words], cwd=ROOT, text=True, capture_output=True, env=variables)
    assert (done.returncode != 0) == bool(said) and said in done.stderr
    assert ("create.yml" in done.stdout) != bool(said)


def test_a_job_that_no_host_has_a_part_in(tmp_path):
    hosts = inventory(tmp_path, gpu_servers={"gpu1": HERE})
    said = refusal("-i", hosts, "playbooks/doctor.yml", "-e", "job=nosuch")
    assert "no part: there is no /etc/debzero/cluster/nosuch.yml -> correct -e job, or name hosts for that job" in said
    table = said.partition("[Show all hosts]")[2].partition("TASK [")[0]
    assert "no part" in table and "-> correct" not in table, "it is fine beside hosts that have one"
    assert 'job is "", and must be the name of a file in' in refusal("-i", hosts, "playbooks/job.yml")
