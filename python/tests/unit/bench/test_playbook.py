"""playbooks/bench.yml: one host's failure is not the others' end, and what was measured is fetched and compared."""
import sys
from pathlib import Path

import pytest
import yaml
from controller import ROOT, play

from debzero.bench.page import FILES

# In systemctl's place. The first question finds a bench running; each host has a job of its name, and starting its unit
# writes invented results. On `broken` the job has a problem; on `small` nothing could be measured; on `planted` the
# results are a link to a secret.
SYSTEMCTL = """#!{python}
import re, shlex, sys
from pathlib import Path
units, busy = Path({units!r}), Path({busy!r})
command, unit = sys.argv[1], sys.argv[-1]
if command == "is-active":
    running = busy.exists()
    busy.unlink(missing_ok=True)
    sys.exit(0 if running else 3)
code = units / (unit + ".code")
if command == "show":
    print(code.read_text() if "--property=ExecMainStatus" in sys.argv else unit)
if command != "start":
    sys.exit()
settings = (units / (unit + ".d/zz-bench.conf")).read_text()
(units / (unit + ".log")).write_text(settings)
words = shlex.split(re.findall("^ExecStart=(.+)$", settings, re.M)[0])
folder = Path(words[words.index("--output") + 1])
host = folder.name
sys.path[:0] = {sources!r}
from bench_results import sample
from debzero.bench import page
results = folder / page.FILES[0]
if host != "broken":
    folder.mkdir()
    page.write(sample(host), results)
if host == "planted":
    results.unlink()
    results.symlink_to({secret!r})
code.write_text({{"broken": "2", "small": "1"}}.get(host, "0"))
sys.exit(host in ("broken", "small"))
"""
STAND_INS = {"journalctl": "#!/bin/sh\necho job.yml: 1 problem\n",
             "runuser": '#!/bin/sh\n[ "$1 $2 $3" = "-u debzero --" ] || exit 9\nshift 3\nexec "$@"\n'}


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """The folder in which the playbook measured five hosts, and what it printed."""
    folder = tmp_path_factory.mktemp("bench")
    for name in ("bin", "units"):
        (folder / name).mkdir()
    (folder / "busy").touch()
    (folder / "secret").write_text('{"secret": "of root"}')
    sources = [str(ROOT / "python/src"), str(Path(__file__).parents[1])]
    names = {"python": sys.executable, "sources": sources,
             **{name: str(folder / name) for name in ("units", "busy", "secret")}}
    for name, text in {"systemctl": SYSTEMCTL.format(**names), **STAND_INS}.items():
        (folder / "bin" / name).write_text(text)
        (folder / "bin" / name).chmod(0o755)
    host = {"ansible_connection": "local", "ansible_python_interpreter": "/usr/bin/python3"}
    inventory = folder / "hosts.yml"
    hosts = dict.fromkeys(("one", "two", "small", "broken", "planted"), host)
    inventory.write_text(yaml.safe_dump({"gpu_servers": {"hosts": hosts}}))
    choices = {"ansible_become": "false", "bench_job": "{{ inventory_hostname }}",
               "bench_folder": f"{folder}/{{{{ inventory_hostname }}}}", "bench_units": str(folder / "units"),
               "bench_results": str(folder / "results"), "bench_options": "--ranks 2 --name 100%", "bench_poll": "1"}
    extra = [word for name, value in choices.items() for word in ("-e", f"{name}='{value}'")]
    done = play("-i", inventory, "playbooks/bench.yml", *extra, PATH=str(folder / "bin"))
    return folder, done


def test_the_playbook_fetches_and_compares_what_could_be_measured(bench):
    folder, done = bench
    results = folder / "results"
    assert done.returncode != 0 and "broken: job.yml: 1 problem" in done.stdout, done.stdout + done.stderr
    assert not (folder / "busy").exists(), "it waits for a bench that runs"
    assert {path.name for path in results.iterdir()} == {"one", "two", "small", "comparison.html"}
    for host in ("one", "small"):
        assert {path.name for path in (results / host).iterdir()} == {*FILES}
    page = (results / "comparison.html").read_text()
    assert ">one<" in page and ">two<" in page and ">small<" not in page


def test_it_starts_the_jobs_own_unit_and_leaves_nothing_in_it(bench):
    folder, _ = bench
    (settings,) = folder.glob("units/debzero@bench:one.service.log")
    words = f'"bench" "/etc/debzero/jobs/one.yml" "--output" "{folder}/one" "--ranks" "2" "--name" "100%%"'
    assert f"ExecStart=\nExecStart=/usr/bin/debzero {words}" in settings.read_text()
    assert "EnvironmentFile=-/etc/default/debzero-one\n" in settings.read_text()
    assert list(folder.glob("units/*.d")) == []


def test_nothing_reaches_the_controller_through_a_link(bench):
    folder, done = bench
    assert f"planted: {folder}/planted/results.json is not a plain file with results" in done.stdout, done.stdout
    assert "of root" not in done.stdout + done.stderr
    assert not [path for path in (folder / "results").rglob("*") if path.is_file() and "of root" in path.read_text()]
