"""Every Molecule scenario, one test each; the log of a failed one is shown from its end."""
import pytest
from background import COMMANDS, IMAGE, ROOT

SCENARIOS = sorted(path.parent.name for path in ROOT.glob("molecule/*/molecule.yml"))


def test_every_scenario_is_a_job():
    assert sorted([*SCENARIOS, IMAGE, "deb"]) == sorted(COMMANDS)


@pytest.mark.container
@pytest.mark.timeout(7200)  # each job has a limit of its own, and waits for its turn
@pytest.mark.parametrize("scenario", [pytest.param(name, marks=pytest.mark.job(name)) for name in SCENARIOS])
def test_scenario(scenario, jobs):
    jobs.succeed(scenario)
