"""Every Molecule scenario, one test each; the log of a failed one is shown from its end."""
import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
# Roles in the order in which a host meets them: later scenarios find in the cache what earlier ones built.
ORDER = ["preflight", "base", "nvidia_driver", "cuda", "torch_venv", "deepspeed_wheel", "debzero_deb", "trainer", "site", "self"]


def test_the_order_names_every_scenario():
    assert sorted(ORDER) == sorted(path.parent.name for path in ROOT.glob("molecule/*/molecule.yml"))


@pytest.mark.container
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("scenario", ORDER)
def test_scenario(scenario):
    log = ROOT / ".cache" / "logs" / f"molecule-{scenario}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as stream:
        run = subprocess.run(["molecule", "-c", "molecule/base.yml", "test", "-s", scenario], cwd=ROOT, stdout=stream,
                             stderr=subprocess.STDOUT, env={**os.environ, "NO_COLOR": "1", "ANSIBLE_NOCOLOR": "1"})
    assert run.returncode == 0, f"{log}:\n" + "".join(log.read_text().splitlines(keepends=True)[-150:])
