"""playbooks/bench.yml: one host's failure is not the others' end, and what was measured is fetched and compared."""
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from debzero.bench.page import FILES

ROOT = Path(__file__).resolve().parents[4]
PATH = os.pathsep.join([str(ROOT / ".cache/controller/bin"), os.environ["PATH"]])

# In systemd-run's place: notes how it was called, and writes invented results into the bench's --output, except on the
# host `broken`; on `small` nothing could be measured.
STAND_IN = """#!{python}
import sys
from pathlib import Path
arguments = sys.argv[1:]
folder = Path(arguments[arguments.index("--output") + 1])
Path({log!r}).open("a").write(" ".join(arguments) + "\\n")
if folder.name == "broken":
    sys.exit("job.yml: 1 problem")
sys.path[:0] = {sources!r}
from bench_results import sample
from debzero.bench import page
folder.mkdir()
page.write(sample(folder.name), folder / page.FILES[0])
sys.exit(folder.name == "small")
"""
# In systemctl's place: reports once that a bench is running.
BUSY = """#!/bin/sh
rm {busy} 2>/dev/null
"""


def test_the_playbook_fetches_and_compares_what_could_be_measured(tmp_path):
    playbook = shutil.which("ansible-playbook", path=PATH)
    if playbook is None:
        pytest.fail("ansible-playbook is not installed: run `ansible/bootstrap tests` and try again", pytrace=False)
    stand_in, log = tmp_path / "bin" / "systemd-run", tmp_path / "log"
    stand_in.parent.mkdir()
    sources = [str(ROOT / "python/src"), str(Path(__file__).parents[1])]
    stand_in.write_text(STAND_IN.format(python=sys.executable, log=str(log), sources=sources))
    busy = tmp_path / "busy"
    busy.touch()
    (stand_in.parent / "systemctl").write_text(BUSY.format(busy=busy))
    for program in stand_in.parent.iterdir():
        program.chmod(0o755)
    host = {"ansible_connection": "local", "ansible_python_interpreter": "/usr/bin/python3"}
    inventory = tmp_path / "hosts.yml"
    inventory.write_text(yaml.safe_dump({"gpu_servers": {"hosts": dict.fromkeys(("one", "two", "small", "broken"),
                                                                                host)}}))
    results = tmp_path / "results"
    choices = {"ansible_become": "false", "bench_folder": f"{tmp_path}/{{{{ inventory_hostname }}}}",
               "bench_results": str(results), "bench_options": "--ranks 2 --repeats 1", "bench_poll": "1"}
    extra = [word for name, value in choices.items() for word in ("-e", f"{name}='{value}'")]
    done = subprocess.run([playbook, "-i", str(inventory), "playbooks/bench.yml", *extra], cwd=ROOT,
                          capture_output=True, text=True,
                          env={**os.environ, "PATH": f"{stand_in.parent}{os.pathsep}{PATH}", "NO_COLOR": "1"})
    assert done.returncode != 0 and "broken: job.yml: 1 problem" in done.stdout, done.stdout + done.stderr
    assert not busy.exists(), "it waits for a bench that runs"
    assert {path.name for path in results.iterdir()} == {"one", "two", "small", "comparison.html"}
    for host in ("one", "small"):
        assert {path.name for path in (results / host).iterdir()} == {*FILES}
    page = (results / "comparison.html").read_text()
    assert ">one<" in page and ">two<" in page and ">small<" not in page
    calls = log.read_text().splitlines()
    assert len(calls) == 4
    assert all("--uid=debzero" in call and "/etc/debzero/jobs/mrpc.yml" in call and "--ranks 2 --repeats 1" in call
               for call in calls)
