"""Every Molecule scenario, one test each; the log of a failed one is shown from its end."""
import os
import subprocess
from pathlib import Path

import pytest
import yaml
from background import COMMANDS, IMAGE, LINTERS, ROOT

# Too long for each change: "cluster" disturbs two hosts in many ways, "repository" builds and installs the environment
# as packages again and again, "tensorrt" downloads 1.3 GB, "bundle" packs and copies 2.5 GB.
LONG = ("trainer_long", "bundle", "cluster", "repository", "tensorrt")
SCENARIOS = sorted(path.parent.name for path in ROOT.glob("molecule/*/molecule.yml"))
SHORT = [name for name in SCENARIOS if name not in LONG]


def test_every_scenario_is_a_job():
    assert sorted({*SCENARIOS, *LINTERS, IMAGE, *LONG}) == sorted(COMMANDS)


def test_make_runtime_debs_builds_in_a_container_of_its_own():
    printed = subprocess.run(["make", "--dry-run", "runtime-debs", "CUDA=nvidia"], cwd=ROOT, check=True,
                             capture_output=True, text=True).stdout
    plays = [word for word in printed.split() if word.endswith(".yml")]
    assert plays == ["molecule/shared/destroy.yml", "molecule/shared/create.yml", "playbooks/runtime_debs.yml",
                     "molecule/shared/destroy.yml"]
    assert "ansible/container runtime-debs" in printed and "cuda_source=nvidia" in printed


def test_make_deb_builds_and_judges_as_the_scenario_does():
    printed = subprocess.run(["make", "--dry-run", "deb"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    scenario = yaml.safe_load((ROOT / "molecule/debzero_deb/molecule.yml").read_text())
    playbook = Path("molecule/debzero_deb", scenario["ansible"]["playbooks"]["side_effect"])
    plays = [word for word in printed.split() if word.endswith(".yml")]
    assert plays == [*(f"molecule/shared/{name}.yml" for name in ("destroy", "create")), os.path.normpath(playbook),
                     "molecule/shared/destroy.yml"]
    assert [name for name in plays if not (ROOT / name).is_file()] == []


@pytest.mark.container
@pytest.mark.timeout(7200)  # each job has a limit of its own, and waits for its turn
@pytest.mark.parametrize("scenario", [pytest.param(name, marks=pytest.mark.job(name)) for name in SHORT])
def test_scenario(scenario, jobs):
    jobs.succeed(scenario)


@pytest.mark.container
@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.job("repository")
def test_packages_and_their_repository(jobs):
    jobs.succeed("repository")


@pytest.mark.container
@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("job", [pytest.param(name, marks=pytest.mark.job(name)) for name in LONG])
def test_a_disturbed_job_survives_everything(job, jobs):
    jobs.succeed(job)
