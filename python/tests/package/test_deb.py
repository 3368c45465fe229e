"""The built .deb: what is in it, what is not, and what it says about itself.

The package is $DEBZERO_DEB, or what the scenario debzero_deb builds in a clean Bullseye container, where lintian judges
it too.
"""
from __future__ import annotations

import gzip
import io
import json
import os
import re
import shutil
import stat
import subprocess
import tarfile
from pathlib import Path

import pytest
import yaml
from debian.changelog import Changelog
from debian.deb822 import Deb822, PkgRelation
from debian.debfile import DebFile

GIVEN = os.environ.get("DEBZERO_DEB")
pytestmark = [pytest.mark.container, pytest.mark.timeout(1800), *([] if GIVEN else [pytest.mark.job("debzero_deb")])]

ROOT = Path(__file__).resolve().parents[3]
STACK = yaml.safe_load((ROOT / "stack.yml").read_text())["stack"]
SOURCES = ROOT / "python" / "src"
EXPOSURE = 18  # tenths, as systemd-analyze counts: 1.8

MUST_CONTAIN = {
    "usr/bin/debzero": 0o755,
    "lib/systemd/system/debzero@.service": 0o644,
    "lib/systemd/system/debzero-predict@.service": 0o644,
    "lib/systemd/system/debzero@demo.service.d/job.conf": 0o644,
    "usr/lib/sysusers.d/debzero.conf": 0o644,
    "usr/lib/tmpfiles.d/debzero.conf": 0o644,
    "usr/share/bash-completion/completions/debzero": 0o644,
    "usr/share/debzero/debzero/_version": 0o644,
    "usr/share/debzero/debzero/bench/page.css": 0o644,
    "usr/share/debzero/job.schema.json": 0o644,
    "usr/share/debzero/requirements-inference-gpu.lock": 0o644,
    "usr/share/debzero/requirements-inference.lock": 0o644,
    "usr/share/debzero/requirements-tensorrt.lock": 0o644,
    "usr/share/debzero/requirements.lock": 0o644,
    "usr/share/debzero/sbom.cdx.json": 0o644,
    "usr/share/debzero/stack.yml": 0o644,
    "usr/share/doc/debzero/README.Debian": 0o644,
    "usr/share/doc/debzero/changelog.Debian.gz": 0o644,
    "usr/share/doc/debzero/copyright": 0o644,
    "usr/share/man/man1/debzero.1.gz": 0o644,
}
MUST_NOT_CONTAIN = re.compile(
    r"(^|/)(tests?|__pycache__|\.[^/]+|conftest\.py|.*\.(pyc|orig|bak|in|h2m)|debian|roles|molecule)(/|$)")


@pytest.fixture(scope="session")
def deb_file(request: pytest.FixtureRequest) -> Path:
    """The package under test."""
    if GIVEN:
        return Path(GIVEN)
    request.getfixturevalue("jobs").succeed("debzero_deb")
    return max((ROOT / "dist").glob("debzero_*_all.deb"), key=lambda path: path.stat().st_mtime)


@pytest.fixture(scope="session")
def deb(deb_file: Path) -> DebFile:
    return DebFile(str(deb_file))


@pytest.fixture(scope="session")
def members(deb_file: Path) -> list[tarfile.TarInfo]:
    """Every member of the data archive, names without the leading `./`."""
    data = subprocess.run(["dpkg-deb", "--fsys-tarfile", str(deb_file)], check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        found = archive.getmembers()
    for member in found:
        member.name = member.name[2:] if member.name.startswith("./") else member.name
    return found


@pytest.fixture(scope="session")
def tree(deb_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package's files, extracted."""
    folder = tmp_path_factory.mktemp("deb")
    subprocess.run(["dpkg-deb", "--extract", str(deb_file), str(folder)], check=True)
    return folder


def unit_values(tree: Path, key: str) -> list[str]:
    unit = (tree / "lib/systemd/system/debzero@.service").read_text()
    return re.findall(rf"^{key}=(.*)$", unit, re.MULTILINE)


def test_holds_what_it_must(members: list[tarfile.TarInfo]) -> None:
    found = {m.name: stat.S_IMODE(m.mode) for m in members if m.isfile()}
    assert {name: oct(mode) for name, mode in MUST_CONTAIN.items()} == {
        name: oct(found[name]) if name in found else "missing" for name in MUST_CONTAIN}


def test_holds_every_source_file_unchanged(tree: Path) -> None:
    wanted, shipped = ({str(p.relative_to(top)): p.read_bytes() for p in top.rglob("*.py")}
                       for top in (SOURCES, tree / "usr/share/debzero"))
    assert sorted(shipped) == sorted(wanted)
    assert [name for name, text in wanted.items() if shipped[name] != text] == []


@pytest.mark.parametrize("source", ["stack.yml", "python/requirements.lock", "python/requirements-inference.lock",
                                    "python/requirements-inference-gpu.lock", "python/requirements-tensorrt.lock",
                                    "debian/job.schema.json"])
def test_ships_the_one_copy_of_a_shared_file(tree: Path, source: str) -> None:
    assert (tree / "usr/share/debzero" / Path(source).name).read_bytes() == (ROOT / source).read_bytes()


def test_holds_nothing_that_it_must_not(members: list[tarfile.TarInfo]) -> None:
    assert [m.name for m in members if MUST_NOT_CONTAIN.search(m.name)] == []


def test_must_not_list_catches_what_it_names() -> None:
    for name in ("usr/share/debzero/tests/test_job.py", "usr/share/debzero/debzero/__pycache__/job.cpython-39.pyc",
                 "usr/share/debzero/.cache/x", "etc/debzero/jobs/demo.yml.bak"):
        assert MUST_NOT_CONTAIN.search(name), name


def test_belongs_to_root_and_is_writable_by_nobody_else(members: list[tarfile.TarInfo]) -> None:
    assert [m.name for m in members if (m.uid, m.gid) != (0, 0)] == []
    assert [m.name for m in members if not m.issym() and m.mode & 0o022] == []
    assert [m.name for m in members if m.mode & 0o7000] == []


def test_names_no_path_of_the_machine_that_built_it(tree: Path) -> None:
    foreign = re.compile(rb"(?<![\w}*])/(?:home|root|build|tmp)/\w[^\s\"']*|" + re.escape(str(ROOT).encode()) + rb"\b")
    hits = {str(p.relative_to(tree)): foreign.findall(gzip.decompress(p.read_bytes()) if p.suffix == ".gz"
                                                      else p.read_bytes()) for p in tree.rglob("*") if p.is_file()}
    assert {name: found for name, found in hits.items() if found} == {}


def test_jobs_are_examples_and_no_conffiles(deb: DebFile, tree: Path, members: list[tarfile.TarInfo]) -> None:
    """An upgrade that changed a conffile in use would archive its run."""
    assert not deb.control.has_file("conffiles") and [m.name for m in members if m.name.startswith("etc")] == []
    jobs = {path.name: path.read_bytes() for path in (ROOT / "debian/jobs").glob("*.yml")}
    assert jobs == {path.name: path.read_bytes() for path in (tree / "usr/share/doc/debzero/examples").iterdir()}


def test_control_fields(deb: DebFile) -> None:
    control = deb.debcontrol()
    fixed = {"Package": "debzero", "Architecture": "all", "Section": "contrib/science", "Priority": "optional"}
    assert {key: control[key] for key in fixed} == fixed
    assert re.fullmatch(r"debzero developers <\S+@\S+>", control["Maintainer"])
    needs = {choice["name"] for group in PkgRelation.parse_relations(control["Depends"]) for choice in group}
    assert {"libaio1", "numactl", "python3", "systemd"} <= needs
    assert "${" not in control.dump()


def test_the_source_package_and_what_was_built_with_are_kept(deb_file: Path) -> None:
    release, upstream = deb_file.name.rpartition("_")[0], deb_file.name.rpartition("-")[0]
    names = {path.name.replace(f"_{subprocess.getoutput('dpkg --print-architecture')}", "")
             for path in deb_file.parent.iterdir()}
    assert {f"{release}.dsc", f"{release}.debian.tar.xz", f"{release}.changes", f"{release}.buildinfo",
            f"{upstream}.orig.tar.xz"} <= names


def test_version_is_the_changelogs(deb: DebFile, tree: Path) -> None:
    version = str(Changelog((ROOT / "debian/changelog").read_text()).version)
    stamp = (tree / "usr/share/debzero/debzero/_version").read_text().strip()
    said = subprocess.run(["python3", "-B", "-m", "debzero", "--version"], check=True, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(tree / "usr/share/debzero")}).stdout.split()
    assert (deb.debcontrol()["Version"], stamp, said) == (version, version, ["debzero", version])


def test_the_sbom_is_this_package_s(deb: DebFile, tree: Path) -> None:
    made = (ROOT / "debian/sbom.cdx.json").read_text().replace("@version@", deb.debcontrol()["Version"])
    assert (tree / "usr/share/debzero/sbom.cdx.json").read_text() == made


def test_python_package_has_no_third_place_for_the_version() -> None:
    assert "Version" not in Deb822((ROOT / "debian/control").read_text())


@pytest.fixture
def bare_command(tree: Path, tmp_path: Path) -> list[str]:
    """The wrapper as shipped, but for its paths: this machine may have an environment."""
    wrapper = (tree / "usr/bin/debzero").read_text()
    assert f"{STACK['venv']}/bin/python\n" in wrapper
    command = tmp_path / "debzero"
    wrapper = wrapper.replace(STACK["venv"], str(tmp_path / "venv"))
    command.write_text(wrapper.replace("/usr/share", f"{tree}/usr/share"))
    return ["sh", str(command)]


def test_command_explains_a_missing_environment(bare_command: list[str]) -> None:
    run = subprocess.run([*bare_command, "train", "x.yml"], capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (2, "")
    said = " ".join(run.stderr.split())
    assert f"{STACK['venv']} is missing" in said and "apt install debzero-runtime" in said
    assert "ansible" not in said  # one command
    assert len(run.stderr.splitlines()) <= 4


def test_the_doctor_needs_no_environment_to_say_that_it_is_missing(bare_command: list[str]) -> None:
    run = subprocess.run([*bare_command, "doctor", "--fast", "--json"], capture_output=True, text=True)
    found = {finding["check"]: finding for finding in json.loads(run.stdout)["findings"]}
    assert (run.returncode, found["environment"]["status"]) == (1, "fail")
    assert "is missing" in found["environment"]["found"]
    assert found["torch"]["found"] == found["deepspeed"]["found"] == "because of environment"


def test_command_hands_its_arguments_and_exit_code_through(tree: Path, tmp_path: Path) -> None:
    python = tmp_path / "venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\nprintf "%s|" "$@"\nexit 7\n')
    python.chmod(0o755)
    command = tmp_path / "debzero"
    command.write_text((tree / "usr/bin/debzero").read_text().replace(STACK["venv"], str(tmp_path / "venv")))
    run = subprocess.run(["sh", str(command), "check", "a b.yml"], capture_output=True, text=True,
                         env={"PATH": os.environ["PATH"]})
    assert (run.returncode, run.stdout) == (7, "-I|/usr/share/debzero/command.py|check|a b.yml|")


def test_completion_is_silent_without_the_environment(tree: Path) -> None:
    script = f". {tree}/usr/share/bash-completion/completions/debzero; complete -p debzero; " \
             f"COMP_LINE='debzero ' COMP_POINT=8 _python_argcomplete debzero; echo \"(${{COMPREPLY[*]}})\""
    run = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=20)
    assert run.stderr == ""
    assert re.fullmatch(r"complete .* debzero\n\(.*\)\n", run.stdout)


def test_manual_covers_every_command_and_key_of_a_job(tree: Path) -> None:
    from debzero.job.reference import is_section, job_schema, keys

    page = gzip.decompress((tree / "usr/share/man/man1/debzero.1.gz").read_bytes()).decode()
    found = dict(re.findall(r"^\.TP\n\\fB([\w.]+)\\fR\n.*\n\.br\n\\&(.*)$", page, re.MULTILINE))
    schema = job_schema()
    wanted = {key.path: key.meaning for key in keys(schema) if not is_section(schema, key.path)}
    assert {path: text.replace("\\-", "-") for path, text in found.items()} == {
        path: text.replace("`", "") for path, text in wanted.items()}
    assert [c for c in ("train", "check", "status", "doctor") if f".SS {c}\n" not in page] == []


def test_packaged_jobs_name_the_schema_that_is_installed(tree: Path) -> None:
    jobs = list((tree / "usr/share/debzero/examples").glob("*.yml"))
    assert jobs
    for job in jobs:
        (schema,) = re.findall(r"^# yaml-language-server: \$schema=/(.+)$", job.read_text(), re.MULTILINE)
        assert json.loads((tree / schema).read_text())["properties"]["model"]["description"]


def test_unit_and_shared_paths_agree(tree: Path) -> None:
    assert unit_values(tree, "ExecStart") == [f"/usr/bin/debzero train --doctor {STACK['config']}/jobs/%i.yml"]
    assert unit_values(tree, "EnvironmentFile")[0] == f"-{STACK['config']}/host.env"
    assert unit_values(tree, "User") == [STACK["user"]]
    assert [f"/var/lib/{name}" for name in unit_values(tree, "StateDirectory")] == [STACK["state"]]
    assert unit_values(tree, "RestartPreventExitStatus") == ["2 3"]
    assert f"u {STACK['user']} - " in (tree / "usr/lib/sysusers.d/debzero.conf").read_text()
    (mode,) = unit_values(tree, "StateDirectoryMode")
    assert f"d {STACK['state']} {mode} {STACK['user']}" in (tree / "usr/lib/tmpfiles.d/debzero.conf").read_text()


def test_jobs_run_in_an_empty_folder_of_root(tree: Path) -> None:
    """Not one of the package: dh_python3 drops empty folders."""
    (folder,) = unit_values(tree, "WorkingDirectory")
    assert f"\nd {folder} 0555 root root -\n" in (tree / "usr/lib/tmpfiles.d/debzero.conf").read_text()


@pytest.fixture(params=["debzero", "debzero-predict"])
def demo_unit(request: pytest.FixtureRequest, tree: Path, tmp_path: Path) -> Path:
    """An instance of a unit with a command and a user that are here: the package need not be installed."""
    assert shutil.which("systemd-analyze"), "systemd-analyze is missing: apt install systemd"
    unit = tmp_path / f"{request.param}@demo.service"
    text = (tree / f"lib/systemd/system/{request.param}@.service").read_text()
    unit.write_text(re.sub(r"(?m)^User=.*", "User=daemon", text.replace("/usr/bin/debzero ", "/bin/true ")))
    return unit


def test_unit_loads_without_a_remark(demo_unit: Path) -> None:
    run = subprocess.run(["systemd-analyze", "--man=no", "verify", str(demo_unit)], capture_output=True, text=True)
    remarks = [line for line in run.stderr.splitlines() if "debzero" in line]
    assert (run.returncode, remarks) == (0, [])


def test_unit_is_sandboxed(demo_unit: Path) -> None:
    """A systemd without --offline (Bullseye's 247) measures the installed unit instead: the trainer role's tests do."""
    run = subprocess.run(["systemd-analyze", "security", "--offline=true", f"--threshold={EXPOSURE}", "--no-pager",
                          str(demo_unit)], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-400:] + run.stderr


def test_an_upgrade_leaves_running_jobs_alone(deb: DebFile) -> None:
    scripts = {name: deb.control.get_content(name, encoding="utf-8")
               for name in ("preinst", "postinst", "prerm", "postrm") if deb.control.has_file(name)}
    touching = [(name, line.strip()) for name, text in scripts.items() for line in text.splitlines()
                if re.search(r"(systemctl|invoke)\s+(re)?(start|stop|try-restart)\b", line)]
    assert touching == [(
        "prerm", "deb-systemd-invoke stop 'debzero@*.service' 'debzero-predict@*.service' || true")]
    assert '[ "$1" = remove ]' in scripts["prerm"].split("deb-systemd-invoke")[0]


def test_maintainer_scripts_stay_short() -> None:
    """What people write in them; debhelper adds its snippets at #DEBHELPER#."""
    lengths = {p.name: len(p.read_text().splitlines()) for p in (ROOT / "debian").glob("debzero.p*")}
    assert lengths
    assert max(lengths.values()) < 23, lengths
