"""Every packaged job trains under its unit, unchanged. Only what it asks the hub for is a small stand-in in the hub's
cache, and nothing reaches the network. Without a GPU the precision `auto` is fp32 and jobs have one rank, but for demo.
"""

import json
import re
import subprocess
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[3]
JOBS = sorted(path.stem for path in (PROJECT / "debian/jobs").glob("*.yml"))
PAIRS = ("mrpc", "t5-base")  # jobs whose samples are two texts
FILL = "/usr/local/share/fill_hub_cache.py"


@pytest.fixture(scope="module")
def hub(host):
    """The hub's cache, filled once."""
    if host.run("test -d /var/cache/debzero/jobs/huggingface/hub/models--t5-base").rc:
        script = PROJECT / "molecule/trainer/files/fill_hub_cache.py"
        subprocess.run(["podman", "cp", script, f"{host.backend.name}:{FILL}"], check=True)
        host.check_output(f"runuser -u debzero -- env HOME=/nonexistent XDG_CACHE_HOME=/var/cache/debzero/jobs "
                          f"/opt/debzero/venv/bin/python {FILL}")


@pytest.mark.parametrize("job", JOBS)
def test_the_packaged_job_trains_under_its_unit(host, hub, job):
    if job != "demo":  # whose unit does it
        host.check_output(f"cp /usr/share/doc/debzero/examples/{job}.yml /etc/debzero/jobs/")
    host.check_output(f"echo HF_HUB_OFFLINE=1 >/etc/default/debzero-{job}")
    start = host.run(f"systemctl start debzero@{job}")
    journal = host.run(f"journalctl --unit debzero@{job} --no-pager | tail -40").stdout
    assert start.rc == 0, start.stderr + journal
    watched = host.run(f"timeout 600 debzero status {job} --watch")
    assert watched.rc == 0, watched.stdout + host.run(f"journalctl --unit debzero@{job} --no-pager | tail -40").stdout
    report = json.loads(host.check_output(f"debzero status {job} --json"))["report"]
    assert report["zero_stage"] == 2 and report["steps"] >= 3, report
    texts = '"GNU compiler for C++"' + ' "a pair"' * (job in PAIRS)
    asked = host.run(f"bash -c 'TIMEFORMAT=%U; time debzero predict {job} {texts} --json'")
    assert asked.rc == 0 and "answer" in json.loads(asked.stdout), asked.stderr
    assert float(re.findall(r"^[0-9.]+$", asked.stderr, re.MULTILINE)[-1]) < 10 or job != "demo", "seconds of CPU time"
