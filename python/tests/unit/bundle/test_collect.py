"""What a bundle is made of: the lists of an archive as it signed them, the wheels of a lock, an SBOM of all of it."""
from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import zipfile
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

FILES = Path(__file__).resolve().parents[4] / "roles/bundle/files"


def module(name: str) -> ModuleType:
    spec = spec_from_file_location(name, FILES / f"{name}.py")
    made = module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


@pytest.mark.parametrize(("offered", "taken"), [([".gz", ".xz", ""], ".xz"), ([".bz2", ""], ".bz2"), ([""], "")])
def test_the_list_that_apt_will_ask_for_is_taken(tmp_path, offered, taken):
    archive, suite, name = tmp_path / "archive", tmp_path / "suite", "main/binary-amd64/Packages"
    rows = []
    for ending in offered:
        file = archive / (name + ending)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"list{ending}")
        rows.append(f" {hashlib.sha256(file.read_bytes()).hexdigest()} {file.stat().st_size} {name}{ending}")
    suite.mkdir()
    (suite / "InRelease").write_text("SHA256:\n" + "\n".join(rows) + "\n")
    module("collect").copy_index(f"file:{archive}/{name}", name, suite)
    assert [path.name for path in (suite / name).parent.iterdir()] == [f"Packages{taken}"]


def test_each_python_gets_the_pins_that_are_its_own():
    lock = ("a==1 ; python_full_version < '3.11' \\\n    --hash=sha256:aa \\\n    --hash=sha256:bb\n"
            "a==2 ; python_full_version >= '3.11' \\\n    --hash=sha256:cc\n"
            "# a comment\nb==1 ; sys_platform == 'win32' \\\n    --hash=sha256:dd\nc==3 \\\n    --hash=sha256:ee\n")
    pins = module("wheels").pins
    assert pins(lock, "3.10") == ["a==1 --hash=sha256:aa --hash=sha256:bb", "c==3 --hash=sha256:ee"]
    assert pins(lock, "3.11") == ["a==2 --hash=sha256:cc", "c==3 --hash=sha256:ee"]


def test_files_have_a_source_and_a_licence(tmp_path):
    collect = module("collect")
    wheel, card = tmp_path / "controller/a_b-1.0-py3-none-any.whl", tmp_path / "models/tiny/README.md"
    for path in (wheel, card):
        path.parent.mkdir(parents=True)
    with zipfile.ZipFile(wheel, "w") as made:
        made.writestr("a_b-1.0.dist-info/METADATA", "Name: a-b\nLicense-Expression: MIT\n\nText")
    card.write_text("---\nlanguage: en\nlicense: apache-2.0\n---\n")
    config = card.with_name("config.json")
    config.write_text("{}")
    rows = [collect.described(tmp_path, path, {}) for path in (wheel, config)]
    assert [(row["source"], row["licence"]) for row in rows] == [("pkg:pypi/a-b@1.0", "MIT"),
                                                                 ("models: tiny", "apache-2.0")]
    bill = collect.bill({"metadata": {"component": {}}, "components": []}, rows, "2.0-1")
    assert bill["metadata"]["component"]["version"] == "2.0-1"
    assert [(one["type"], one["name"], one.get("purl")) for one in bill["components"]] == [
        ("library", "a-b", "pkg:pypi/a-b@1.0"), ("machine-learning-model", "tiny", None)]


def package(folder: Path, name: str, version: str, depends: str = "", licence: str = "") -> None:
    tree = folder / name
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN/control").write_text(
        f"Package: {name}\nVersion: {version}\nArchitecture: amd64\nMaintainer: Stand-in <root@localhost>\n"
        f"Description: stand-in\n" + f"Depends: {depends}\n" * bool(depends))
    (tree / f"usr/share/doc/{name}").mkdir(parents=True)
    (tree / f"usr/share/doc/{name}/copyright").write_text(licence)
    subprocess.run(["dpkg-deb", "--root-owner-group", "-Znone", "--build", tree, folder], check=True,
                   stdout=subprocess.DEVNULL)
    shutil.rmtree(tree)


def archive(folder: Path, origin: str, gpg: list) -> str:
    """Sign it as NVIDIA's is, flat, and return its line of sources.list."""
    packages = subprocess.run(["dpkg-scanpackages", "."], cwd=folder, check=True, capture_output=True).stdout
    (folder / "Packages").write_bytes(packages)
    (folder / "Release").write_text(f"Origin: {origin}\nDate: Thu, 01 Jan 2026 00:00:00 UTC\nSHA256:\n "
                                    f"{hashlib.sha256(packages).hexdigest()} {len(packages)} Packages\n")
    subprocess.run([*gpg, "--output", folder / "InRelease", "--clearsign", folder / "Release"], check=True)
    return f"deb [signed-by={folder.parent}/{origin}.gpg] file:{folder} /\n"


@pytest.fixture(scope="module")
def apt(tmp_path_factory) -> Path:
    """A folder with two archives, and the configuration of an apt that knows these alone and has read them."""
    root = tmp_path_factory.mktemp("apt")
    home = root / "gnupg"
    home.mkdir(mode=0o700)
    gpg = ["gpg", "--homedir", home, "--batch", "--yes", "--quiet", "--passphrase", ""]
    subprocess.run([*gpg, "--quick-gen-key", "stand-in", "ed25519", "sign", "never"], check=True, capture_output=True)
    for name in ("nvidia", "debian", "host/state/lists/partial", "host/cache/archives/partial", "host/etc/none"):
        (root / name).mkdir(parents=True, exist_ok=True)
    for origin in ("NVIDIA", "Debian"):
        subprocess.run([*gpg, "--output", root / f"{origin}.gpg", "--export"], check=True)
    package(root / "nvidia", "cuda-nvcc-99-1", "99.1.2-1", "gcc, libcuda1", "NVIDIA's text")
    for name in ("nvidia-smi", "libcuda1"):
        package(root / "nvidia", name, "999.1-1")
    package(root / "debian", "gcc", "4:10-1", licence="License: GPL-3\n")
    for name in ("nvidia-smi", "libcuda1"):
        package(root / "debian", name, "470.1-1+deb11u1", licence="License: NVIDIA\n")
    lines = [archive(root / origin.lower(), origin, gpg) for origin in ("NVIDIA", "Debian")]
    subprocess.run(["gpgconf", "--homedir", home, "--kill", "all"], check=False)
    (root / "host/status").touch()
    (root / "host/etc/sources.list").write_text("".join(lines))
    (root / "apt.conf").write_text(
        f'Dir "{root}/host/"; Dir::State "state"; Dir::State::status "{root}/host/status"; Dir::Cache "cache";\n'
        f'Dir::Etc "etc"; Dir::Etc::parts "{root}/host/etc/none"; Dir::Bin::methods "/usr/lib/apt/methods/";\n'
        'APT::Architecture "amd64"; APT::Architectures { "amd64"; }; APT::Sandbox::User "root";\n'
        'Acquire::Languages "none";\n')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("APT_CONFIG", str(root / "apt.conf"))
        subprocess.run(["apt-get", "-qq", "update", "-oAPT::Update::Error-Mode=any"], check=True)
        yield root


NAMED = "Package: cuda-*-99-1\nPin: release o=NVIDIA\nPin-Priority: 600\n\n"
OTHERS = "Package: *\nPin: release o=NVIDIA\nPin-Priority: -1\n"
DRIVER = "Package: nvidia-smi libcuda1\nPin: release o=NVIDIA\nPin-Priority: 1002\n\n"


def test_each_host_s_packages_come_from_where_its_pins_say(apt, tmp_path):
    """One bundle for a host with NVIDIA's compiler and Debian's driver, and for one with NVIDIA's driver."""
    collect, tree = module("collect"), tmp_path / "tree"
    found = collect.sources(tree, "file:///nowhere/public")
    assert [(one["name"], one["suite"], one["components"], one["origin"]) for one in found] == [
        ("nvidia", "/", [], "NVIDIA"), ("debian", "/", [], "Debian")]
    collect.fetch(tree, tmp_path, found, [{"packages": ["cuda-nvcc-99-1", "nvidia-smi"], "pins": NAMED + OTHERS}])
    held = sorted(str(path.relative_to(tree)) for path in tree.rglob("*.deb"))
    assert held == ["apt/debian/gcc_10-1_amd64.deb", "apt/debian/libcuda1_470.1-1+deb11u1_amd64.deb",
                    "apt/debian/nvidia-smi_470.1-1+deb11u1_amd64.deb", "apt/nvidia/cuda-nvcc-99-1_99.1.2-1_amd64.deb"]
    collect.fetch(tree, tmp_path, found, [{"packages": ["nvidia-smi"], "pins": OTHERS},
                                          {"packages": ["nvidia-smi"], "pins": DRIVER + OTHERS}])
    more = {str(path.relative_to(tree)) for path in tree.rglob("*.deb")} - set(held)
    assert more == {"apt/nvidia/nvidia-smi_999.1-1_amd64.deb"}
    row = collect.described(tree, tree / held[3], {"apt/nvidia": collect.NVIDIA})
    assert (row["source"], row["licence"]) == ("pkg:deb/nvidia/cuda-nvcc-99-1@99.1.2-1?arch=amd64",
                                               "LicenseRef-NVIDIA-Proprietary")
    assert collect.described(tree, tree / held[0], {"apt/nvidia": collect.NVIDIA})["licence"] == "GPL-3"
    (component,) = collect.bill({"metadata": {"component": {}}, "components": []}, [row], "1")["components"]
    assert (component["name"], component["version"]) == ("cuda-nvcc-99-1", "99.1.2-1")
    on_a_host(apt, tree, tmp_path / "client", found)


def on_a_host(apt: Path, tree: Path, client: Path, found: list[dict]) -> None:
    """As debzero-bundle.list.j2 lists it there, apt reads it: flat as it is, with NVIDIA's own signature."""
    (client / "lists/partial").mkdir(parents=True)
    (client / "sources").write_text("".join(
        f"deb [arch=amd64 check-valid-until=no signed-by={tree}/{one['key']}] file:{tree}/apt/{one['name']} "
        f"{one['suite']} {' '.join(one['components'])}\n" for one in found))
    shutil.move(apt / "nvidia", apt / "gone")  # nothing is read from where it came from
    words = [f"-oDir::Etc::sourcelist={client}/sources", f"-oDir::State::lists={client}/lists",
             "-oDir::Cache::pkgcache=", "-oDir::Cache::srcpkgcache="]
    try:
        subprocess.run(["apt-get", "-qq", *words, "update", "-oAPT::Update::Error-Mode=any"], check=True)
        (client / "pins").write_text(NAMED + OTHERS)
        done = subprocess.run(["apt-get", *words, f"-oDir::Etc::Preferences={client}/pins", "--simulate", "install",
                               "cuda-nvcc-99-1"], check=True, capture_output=True, text=True).stdout
    finally:
        shutil.move(apt / "gone", apt / "nvidia")
    assert "Inst cuda-nvcc-99-1 (99.1.2-1 " in done and "Inst libcuda1 (470.1-1+deb11u1 " in done


def test_a_driver_that_lies_on_the_host_s_own_disk_is_kept_as_one_that_was_downloaded(apt, tmp_path):
    """apt copies nothing of an archive whose address is file:, and the role gives the driver back from its copy."""
    script = FILES.parents[2] / "roles/nvidia_driver/files/fetch.sh"

    def fetch(pin: str) -> subprocess.CompletedProcess:
        return subprocess.run(["sh", script, tmp_path / "kept", "nvidia-smi"], capture_output=True, text=True,
                              env={**os.environ, "PIN": pin, "PIN_FILE": "00driver"})

    assert fetch(DRIVER + OTHERS).returncode == 0
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["nvidia-smi_999.1-1_amd64.deb"]
    shutil.rmtree(tmp_path / "kept")
    assert fetch(OTHERS).returncode == 0
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["nvidia-smi_470.1-1+deb11u1_amd64.deb"]
    shutil.rmtree(tmp_path / "kept")
    lost = apt / "nvidia/nvidia-smi_999.1-1_amd64.deb"
    lost.rename(apt / "lost.deb")
    done = fetch(DRIVER + OTHERS)  # the next version is tried
    (apt / "lost.deb").rename(lost)
    assert done.returncode == 3 and "nvidia-smi_999" in done.stderr and list(tmp_path.iterdir()) == []
