#!/usr/bin/python3
"""Make a bundle on the builder: what apt would fetch for a bare host, beside what the controller brought.

The only argument is a file of JSON; vars/main.yml says what it holds. Prints the bundle's path.
"""
from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urlsplit

FIELDS = ("REPO_URI", "RELEASE", "COMPONENT", "SIGNED_BY", "METAKEY", "FILENAME", "URI", "SOURCESENTRY")
# apt as it would be on a host that has nothing at all: whatever a bare one has, the rest is in the bundle.
BARE = ["-oDir::State::status={folder}/status", "-oDir::Cache::archives={folder}/{cache}", "-oAPT::Sandbox::User=root",
        "-oDir::Etc::Preferences={folder}/pins", "-oDir::Etc::PreferencesParts={folder}/none.d",
        "-oDir::Cache::pkgcache=", "-oDir::Cache::srcpkgcache=", "-oAcquire::ForceHash=SHA256", "--yes",
        "--no-install-recommends"]
NVIDIA = {"vendor": "nvidia", "licence": "LicenseRef-NVIDIA-Proprietary"}  # as in the SBOM of the wheels


def load() -> ModuleType:
    """The program beside this one, which knows what a bundle looks like."""
    loader = SourceFileLoader("debzero_bundle", str(Path(__file__).with_name("debzero-bundle")))
    module = module_from_spec(spec_from_loader(loader.name, loader))
    sys.modules[loader.name] = module  # NamedTuple asks for it
    exec(compile(Path(loader.path).read_bytes(), loader.path, "exec"), module.__dict__)  # noqa: S102 - no bytecode
    return module


def run(*words: object) -> str:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, errors="replace",
                          env={**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"})
    if done.returncode:
        sys.exit(f"{words[0]} failed: {done.stderr.strip() or done.stdout.strip()[-2000:]}")
    return done.stdout


def sources(tree: Path, own: str) -> list[dict]:
    """The archives of the builder's apt, each with its signed index in apt/NAME of the tree, as it was signed.

    `own`: the address of debzero's.
    """
    wanted = "|".join(f"$({field})" for field in FIELDS)
    rows = [dict(zip(FIELDS, line.split("|")))
            for line in run("apt-get", "indextargets", "--format", wanted, "Created-By: Packages").splitlines()]
    names = {f"{own}/": "debzero"}
    found: dict[tuple[str, str], dict] = {}
    for row in rows:
        uri, release = row["REPO_URI"], row["RELEASE"]
        name = re.sub(r"[^a-z0-9-]+", "-", Path(urlsplit(uri).path).name.lower()).strip("-") or "archive"
        name = names.setdefault(uri, name if name not in names.values() else f"{name}-{len(names)}")
        flat = not release or release.endswith("/")  # an archive without suites and components, such as NVIDIA's
        suite = tree / "apt" / name / (release.strip("/") if flat else f"dists/{release}")
        base = row["FILENAME"][:row["FILENAME"].rindex(row["METAKEY"].replace("/", "_"))]
        if not (suite / "InRelease").exists():
            suite.mkdir(parents=True, exist_ok=True)
            shutil.copy(f"{base}InRelease", suite / "InRelease")
        copy_index(row["URI"], row["METAKEY"], suite)
        source = found.setdefault((uri, release), {"name": name, "suite": release or "/", "components": [], "key": "",
                                                   "origin": origin_of(suite / "InRelease"), "uri": uri})
        if not flat and row["COMPONENT"] not in source["components"]:
            source["components"].append(row["COMPONENT"])
        key = urlsplit(own).path + "/debzero-archive-keyring.gpg" if name == "debzero" else key_of(row)
        if key.startswith("/"):
            source["key"] = f"keys/{Path(key).name}"
            (tree / "keys").mkdir(exist_ok=True)
            shutil.copy(key, tree / source["key"])
    return list(found.values())


def key_of(row: dict) -> str:
    """The keyring that apt verifies an archive with, where its entry names one. Of a flat archive apt does not say."""
    file, _, line = row["SOURCESENTRY"].rpartition(":")
    if row["SIGNED_BY"].startswith("/") or not file.endswith(".list"):
        return row["SIGNED_BY"]
    named = re.search(r"signed-by=(/[^\s\]]+)", Path(file).read_text().splitlines()[int(line) - 1])
    return named[1] if named else ""


def origin_of(index: Path) -> str:
    """Who says to have signed the index of an archive."""
    stated = re.search(r"^Origin: *(.+?) *$", index.read_text(errors="replace"), re.MULTILINE)
    return stated[1] if stated else ""


def copy_index(uri: str, name: str, suite: Path) -> None:
    """A list of packages as the archive has it: apt asks for the compressed one that the signed index names."""
    sums = {file: digest for digest, file in re.findall(r"^ ([0-9a-f]{64}) +\d+ (\S+)$",
                                                        (suite / "InRelease").read_text(), re.MULTILINE)}
    ending = next((one for one in (".xz", ".bz2", ".gz") if name + one in sums), "")
    index = suite / (name + ending)
    index.parent.mkdir(parents=True, exist_ok=True)
    if uri.startswith("file:"):
        shutil.copy(unquote(urlsplit(uri).path) + ending, index)
    else:
        run("/usr/lib/apt/apt-helper", "-oAPT::Sandbox::User=root", "-oAcquire::Retries=3", "download-file",
            uri + ending, index, f"SHA256:{sums[name + ending]}")


def fetch(tree: Path, folder: Path, archives: list[dict], sets: list[dict]) -> None:
    """All packages that bare hosts need, into the archives they come from. Hosts with other settings are another set:
    what each takes its packages from is said by its pins alone, as on the host, and not by the builder's."""
    (folder / "status").touch()
    (folder / "none.d").mkdir(exist_ok=True)
    for cache in ("archives", "empty"):
        (folder / cache / "partial").mkdir(parents=True, exist_ok=True)
    options = [option.format(folder=folder, cache="archives") for option in BARE]
    unfetched = [option.format(folder=folder, cache="empty") for option in BARE]  # only those have an address
    for package in Path("/var/cache/apt/archives").glob("*.deb"):  # apt compares what is here with its index
        with_link(package, folder / "archives" / package.name)
    uris = {archive["uri"]: archive["name"] for archive in archives}
    for wanted in sets:
        (folder / "pins").write_text(wanted["pins"])
        plan = run("apt-get", *unfetched, "--print-uris", "install", *wanted["packages"])
        run("apt-get", *options, "--download-only", "install", *wanted["packages"])
        for uri, file, digest in re.findall(r"^'([^']+)' (\S+) \d+ SHA256:(\w+)", plan, re.MULTILINE):
            begin = max((one for one in uris if uri.startswith(one)), key=len)
            local = Path(unquote(urlsplit(uri).path)) if uri.startswith("file:") else folder / "archives" / file
            if sha256(local) != digest:
                sys.exit(f"{local} is not what the archive's index says: remove it, and run this again")
            with_link(local, tree / "apt" / uris[begin] / unquote(uri[len(begin):]))


def with_link(source: Path, made: Path) -> None:
    """A hard link, which takes no space, or a copy where that cannot be."""
    made.parent.mkdir(parents=True, exist_ok=True)
    if not made.exists():
        try:
            os.link(source, made)
        except OSError:
            shutil.copyfile(source, made)


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        for piece in iter(lambda: stream.read(1 << 20), b""):
            digest.update(piece)
    return digest.hexdigest()


def described(tree: Path, path: Path, stated: dict[str, dict]) -> dict:
    """A row of the manifest. `stated`: what is known beforehand of a file or a folder, by its path."""
    name = path.relative_to(tree).as_posix()
    row = {"path": name, "size": path.stat().st_size, "sha256": sha256(path), "source": "debzero",
           "licence": "Apache-2.0"}
    if name in stated:
        row.update(stated[name])
    elif path.suffix == ".deb":
        row.update(of_package(path, **stated.get("/".join(name.split("/")[:2]), {})))
    elif path.suffix == ".whl":
        row.update(of_wheel(path))
    elif name.startswith(("apt/", "keys/")):
        row.update(source=f"apt: {name.split('/')[1]}", licence="none: an index, or a key")
    elif name.startswith(("models/", "datasets/")):
        card = tree.joinpath(*Path(name).parts[:2], "README.md")
        said = re.search(r"^---\n.*?^license: *(\S+)", card.read_text(errors="replace"), re.MULTILINE | re.DOTALL) \
            if card.is_file() else None
        row.update(source=f"{Path(name).parts[0]}: {Path(name).parts[1]}", licence=said[1] if said else "not stated")
    return row


def of_package(path: Path, vendor: str = "debian", licence: str = "") -> dict:
    """`licence`: where its copyright has the text alone, as NVIDIA's have."""
    name, version, architecture = run("dpkg-deb", "--show", "--showformat=${Package}|${Version}|${Architecture}",
                                      path).split("|")
    script = 'dpkg-deb --fsys-tarfile "$1" | tar --extract --to-stdout --wildcards "./usr/share/doc/*/copyright"'
    text = subprocess.run(["bash", "-c", script, "-", path], capture_output=True, text=True, errors="replace").stdout
    short = dict.fromkeys(re.findall(r"^License: *(\S.*?)\s*$", text, re.MULTILINE))
    return {"source": f"pkg:deb/{vendor}/{name}@{version}?arch={architecture}",
            "licence": ", ".join(short) or licence or f"/usr/share/doc/{name}/copyright"}


def of_wheel(path: Path) -> dict:
    with zipfile.ZipFile(path) as wheel:
        (metadata,) = [name for name in wheel.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name)]
        text = wheel.read(metadata).decode(errors="replace").split("\n\n", 1)[0]
    name, version = path.name.split("-")[:2]
    stated = re.search(r"^License-Expression: (.+)", text, re.MULTILINE)
    classed = re.findall(r"^Classifier: License :: (?:OSI Approved :: )?(.+)", text, re.MULTILINE)
    return {"source": f"pkg:pypi/{name.lower().replace('_', '-')}@{version}",
            "licence": stated[1].strip() if stated else ", ".join(classed) or "not stated"}


def bill(base: dict, rows: list[dict], version: str) -> dict:
    """The SBOM of the trainer's package with what else is in the bundle."""
    base["metadata"]["component"]["version"] = version
    known = {component["bom-ref"] for component in base["components"]}
    for row in rows:
        purl = row["source"]
        kind = {"models": "machine-learning-model", "datasets": "data"}.get(row["path"].split("/")[0], "library")
        if purl in known or not (purl.startswith("pkg:") or kind != "library"):
            continue
        known.add(purl)
        name = re.sub(r"^pkg:(deb/\w+|\w+)/|[@?].*|^\w+: ", "", purl)
        made = {"bom-ref": purl, "type": kind, "name": name, "licenses": [{"license": {"name": row["licence"]}}]}
        if purl.startswith("pkg:"):
            made.update(purl=purl, version=re.sub(r".*@|\?.*", "", purl),
                        hashes=[{"alg": "SHA-256", "content": row["sha256"]}])
        base["components"].append(made)
    return base


def pack(folder: Path, file: Path) -> None:
    """A bundle of a folder that has its manifest and signature. It gets its name when it is whole."""
    program = load()
    sizes = {name: (folder / name).stat().st_size for name in (program.MANIFEST, program.SIGNATURE)}
    try:
        for name, size in sizes.items():
            program.check_size(file, name, size)
        _, entries = program.entries_of((folder / program.MANIFEST).read_bytes())
    except program.RefusedError as refused:
        sys.exit("\n".join(map(str, refused.problems)))
    sizes.update({entry.path: entry.size for entry in entries})
    part = file.with_name(f"{file.name}.part")
    with part.open("wb") as sink:
        for name, size in sizes.items():
            sink.write(program.header(name, size))
            with (folder / name).open("rb") as source:
                shutil.copyfileobj(source, sink, 1 << 20)
            sink.write(bytes(program.padding(size)))
        sink.write(bytes(2 * program.BLOCK))
        sink.write(bytes(program.padding(sink.tell(), program.RECORD)))
        sink.flush()
        os.fsync(sink.fileno())
    part.rename(file)


def main(folder: Path, sets: list[dict], files: list[dict], sbom: dict, facts: dict, repository: str) -> None:
    """`folder`/tree holds what the controller brought; `sets` are the packages of hosts with their pins, `files` what
    lies in downloads/, `facts` the manifest's first lines, `repository` the folder of debzero's own."""
    tree, file = folder / "tree", folder / "bundle.tar"
    archives = sources(tree, f"file://{repository}/public")
    fetch(tree, folder, archives, sets)
    stated = {f"apt/{archive['name']}": NVIDIA for archive in archives if archive["origin"] == "NVIDIA"}
    stated.update({f"downloads/{one['name']}": {"source": one["source"], "licence": one["licence"]} for one in files})
    paths = sorted(path for path in tree.rglob("*") if path.is_file())
    with ThreadPoolExecutor(4) as pool:
        rows = list(pool.map(lambda path: described(tree, path, stated), paths))
    (tree / "sbom.cdx.json").write_text(json.dumps(bill(sbom, rows, facts["debzero"]), indent=1) + "\n")
    rows.append(described(tree, tree / "sbom.cdx.json", stated))
    for archive in archives:
        del archive["uri"]  # a site's mirror, perhaps with a password
    packages = sorted({package for wanted in sets for package in wanted["packages"]})
    manifest = {"format": load().FORMAT, **facts, "packages": packages, "apt": archives, "files": rows}
    (tree / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    run("gpg", "--homedir", f"{repository}/aptly/gnupg", "--batch", "--yes", "--digest-algo", "SHA512",
        "--output", tree / "manifest.json.sig", "--detach-sign", tree / "manifest.json")
    pack(tree, file)
    print(file)


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text())
    main(Path(given.pop("folder")), **given)
