"""The packages of the environment: the same bytes each time, and joined so that no process loses what it runs from."""
from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from debian.debfile import DebFile

ROOT = Path(__file__).resolve().parents[3]
ROLE = ROOT / "roles/runtime_debs"
SITE = f"lib/python3.{sys.version_info.minor}/site-packages"
LICENCE = "Permission is granted to everybody."


def wheel(venv: Path, name: str, version: str, files: dict[str, str]) -> None:
    """An installed wheel, as uv leaves it."""
    folder = f"{name.replace('-', '_')}-{version}.dist-info"
    files = {**files, f"{folder}/METADATA": f"Name: {name}\nVersion: {version}\nAuthor: {name}'s people\n",
             f"{folder}/licenses/LICENSE": LICENCE, f"{folder}/uv_cache.json": json.dumps({"at": os.urandom(4).hex()})}
    for path, text in files.items():
        (venv / SITE / path).parent.mkdir(parents=True, exist_ok=True)
        (venv / SITE / path).write_text(text)
    record = "".join(f"{path},,\n" for path in [*files, f"{folder}/RECORD"])
    (venv / SITE / folder / "RECORD").write_text(record)


def packed(folder: Path, umask: int) -> dict[str, Path]:
    """An environment of two wheels, made now, and its packages by name."""
    venv = folder / "venv"
    wheel(venv, "torch", "1.0", {"torch/__init__.py": "KINDS = {'a', 'b', 'c'}\nname = 'x' in {'p', 'q', 'r', 's'}\n"})
    wheel(venv, "other.thing", "2.5", {"other/__init__.py": "", "other/old.py": "print 'Python 2'\n"})
    (venv / "bin").mkdir()
    (venv / "bin/python").symlink_to(sys.executable)
    (venv / "pyvenv.cfg").write_text("home = /usr/bin\n")
    (venv / SITE / "torch/__pycache__").mkdir()
    (venv / SITE / "torch/__pycache__/__init__.cpython-39.pyc").write_text("of another kind")
    scripts = {"postinst": "#!/bin/sh\n", "triggers": "interest-noawait /parts\n"}
    for name, text in scripts.items():
        (folder / name).write_text(text)
    packages: list[dict[str, Any]] = [
        {"name": "x-torch", "part": "torch", "wheels": "torch", "main": "torch", "local": "gpu", "control": {},
         "description": "torch\nIt is.\n\nIndeed.\n"},
        {"name": "x-none", "part": "none", "wheels": "nothing", "main": "nothing", "control": {}, "description": "no"},
        {"name": "x", "part": "rest", "wheels": ".*", "version": "7", "description": "rest",
         "control": {"Depends": "x-torch (= @torch@), x-torch (<< @torch~@.)"},
         "scripts": {name: str(folder / name) for name in scripts}}]
    wanted = {"venv": str(venv), "target": str(folder / "made"), "parts": "/usr/lib/x/parts", "revision": 3,
              "date": 1704067200, "compression": ["-Zgzip", "-z1"], "maintainer": "M <m@example.org>", "overrides": [],
              "licenses": {"torch": "BSD-3-Clause", "other-thing": "MIT"}, "packages": packages}
    subprocess.run([sys.executable, str(ROLE / "files/pack.py"), json.dumps(wanted)], check=True, capture_output=True,
                   umask=umask)
    return {path.name: path for path in (folder / "made").glob("*.deb")}


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Path]]:
    """At the same path, as tracebacks name it; the second one by a root with a strict umask."""
    made = []
    for number, umask in (("1", 0o022), ("2", 0o077)):
        folder = tmp_path_factory.mktemp("packing", numbered=False)
        packages = packed(folder, umask)
        kept = folder.rename(folder.with_name(f"packed-{number}"))
        made.append({name: kept / path.relative_to(folder) for name, path in packages.items()})
    return made


def test_the_same_environment_makes_the_same_bytes(twice: list[dict[str, Path]]) -> None:
    first, second = twice
    assert sorted(first) == sorted(second) == ["x-torch_1.0+gpu-3_amd64.deb", "x_7-3_amd64.deb"]
    assert [name for name in first if first[name].read_bytes() != second[name].read_bytes()] == []


def test_a_package_holds_its_part_with_bytecode_and_licences(twice: list[dict[str, Path]]) -> None:
    torch, rest = (DebFile(twice[0][name]) for name in ("x-torch_1.0+gpu-3_amd64.deb", "x_7-3_amd64.deb"))
    names = {str(name).lstrip("./") for name in torch.data if "/parts/torch/" in str(name)}
    assert f"usr/lib/x/parts/torch/{SITE}/torch/__init__.py" in names
    (compiled,) = [name for name in names if name.endswith(".pyc")]
    assert torch.data.get_content(compiled)[4:8] == b"\1\0\0\0"  # by hash, never compared: PEP 552
    assert not [name for name in names if "uv_cache" in name]
    assert b"uv_cache" not in torch.data.get_content(f"usr/lib/x/parts/torch/{SITE}/torch-1.0.dist-info/RECORD")
    told = torch.data.get_content("usr/share/doc/x-torch/copyright").decode()
    assert all(part in told for part in ("torch 1.0", "License: BSD-3-Clause", "torch's people", LICENCE))
    assert rest.debcontrol()["Depends"] == "x-torch (= 1.0+gpu-3), x-torch (<< 1.0.)"
    assert rest.data.get_content("usr/lib/x/parts/rest/versions/rest") == b"7-3\n"
    assert {"usr/lib/x/parts/rest/bin/python", f"usr/lib/x/parts/rest/{SITE}/other/old.py"} <= {
        str(name).lstrip("./") for name in rest.data}
    assert "triggers" in {str(name).lstrip("./") for name in rest.control}


def test_a_package_that_names_the_runtime_s_version_has_it() -> None:
    """Otherwise a new lock changes its control file, and not its version."""
    packages = yaml.safe_load((ROLE / "vars/main.yml").read_text())["__runtime_debs_packages"]
    bound = [package for package in packages if "@rest" in package["control"]["Depends"]]
    assert [package["part"] for package in bound] == ["inference"]
    assert {package.get("version") for package in bound} == {"{{ stack.runtime }}"}


class Host:
    """A host with installed parts, and the script of debzero-runtime that joins them."""

    def __init__(self, root: Path) -> None:
        self.venv, self.home = root / "opt/venv", root / "runtime"
        text = (ROLE / "templates/activate.j2").read_text()
        for name, value in (('{% include "used.j2" %}', (ROLE / "templates/used.j2").read_text()),
                            ("{{ stack.venv }}", str(self.venv)), ("{{ __runtime_debs_home }}", str(self.home))):
            text = text.replace(name, value)
        assert "{{" not in text
        self.script = root / "activate"
        self.script.write_text(text)

    def install(self, part: str, version: str, **files: str) -> None:
        """As dpkg does: each new file beside the old one, and then in its place."""
        for name, content in {f"versions/{part}": f"{version}\n", **files}.items():
            path = self.home / "parts" / part / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_name("dpkg-new").write_text(content)
            path.with_name("dpkg-new").rename(path)

    def activate(self, *words: str) -> str:
        return subprocess.run(["sh", str(self.script), *words], check=True, capture_output=True, text=True).stderr

    def trees(self) -> list[str]:
        return sorted(path.name for path in (self.home / "env").glob("*"))


@pytest.fixture
def installed(tmp_path: Path) -> Host:
    host = Host(tmp_path)
    host.install("torch", "1.0", library="one")
    host.install("rest", "7", module="one")
    host.activate()
    return host


def test_parts_are_joined_once(installed: Host) -> None:
    assert (installed.venv / "library").samefile(installed.home / "parts/torch/library")
    assert (installed.venv / "module").read_text() == "one"
    before = os.readlink(installed.venv)
    installed.activate()
    assert os.readlink(installed.venv) == before and len(installed.trees()) == 1
    assert installed.trees()[0].startswith("7-")


@pytest.mark.parametrize("version", ["8", "7"])  # of the same version: a damaged package was installed again
def test_a_process_keeps_the_environment_that_it_started_with(installed: Host, version: str) -> None:
    before = Path(os.readlink(installed.venv))
    with (before / "library").open():
        installed.install("rest", version, module="two")
        installed.activate()
        assert (installed.venv / "module").read_text() == "two" and (before / "module").read_text() == "one"
        assert len(installed.trees()) == 2
        installed.activate("remove")
        assert not installed.venv.is_symlink() and installed.trees() == [before.name]
    installed.activate("remove")
    assert installed.trees() == []


def test_a_command_that_names_the_environment_keeps_it(installed: Host) -> None:
    before = Path(os.readlink(installed.venv))
    with subprocess.Popen(["sh", "-c", "read line", f"{before}/bin/python"], stdin=subprocess.PIPE) as process:
        installed.install("rest", "8", module="two")
        installed.activate()
        assert before.is_dir()
        process.communicate(b"\n")
    installed.activate()
    assert not before.exists()


@pytest.mark.parametrize("trace", ["cmdline", "maps", "fd/3"])
def test_the_environment_of_one_among_very_many_processes_is_kept(installed: Host, tmp_path: Path, trace: str) -> None:
    """All their files, as one command's words, took more than the kernel lets a command have. A small stack lowers that
    limit to 128 KiB, which stands for the 2 MiB of a host with 40000 processes."""
    processes, before = tmp_path / "proc", Path(os.readlink(installed.venv))
    for number in range(1000, 3000):
        (processes / str(number) / "fd").mkdir(parents=True)
        for name in ("cmdline", "maps"):
            (processes / str(number) / name).write_text("of another\n")
    text = installed.script.read_text()
    assert "/proc/" in text
    installed.script.write_text("ulimit -s 512\n" + text.replace("/proc/", f"{processes}/"))
    last = processes / "2999" / trace
    if trace == "fd/3":
        last.symlink_to(before / "library")
    else:
        last.write_text(f"{before}/library\n")
    installed.install("rest", "8", module="two")
    installed.activate()
    assert before.is_dir()
    last.unlink()
    installed.activate()
    assert not before.exists()


def test_a_folder_that_no_package_made_is_left_alone(installed: Host) -> None:
    installed.venv.unlink()
    installed.venv.mkdir()
    assert f"rm -r {installed.venv} && " in installed.activate()
    installed.activate("remove")
    assert installed.venv.is_dir() and not installed.venv.is_symlink()


def test_an_administrator_s_link_to_such_a_folder_is_left_alone(installed: Host, tmp_path: Path) -> None:
    installed.venv.unlink()
    installed.venv.symlink_to(tmp_path / "disk")
    installed.activate()
    assert (installed.venv / "module").exists(), "it led nowhere"
    (tmp_path / "disk").mkdir()
    installed.venv.unlink()
    installed.venv.symlink_to(tmp_path / "disk")
    assert f"rm -r {installed.venv} && " in installed.activate()
    installed.activate("remove")
    assert os.readlink(installed.venv) == str(tmp_path / "disk")
