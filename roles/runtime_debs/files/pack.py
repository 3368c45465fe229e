"""Pack the virtual environment into Debian packages, one for each part that changes on its own.

The only argument is JSON; vars/main.yml says what it holds. The same environment makes the same bytes: every file has
one date, the order is the names', and bytecode is compiled in a way that depends on the source alone. The environment
itself stays as it is. Prints the names of the packages.
"""

import gzip
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import distributions
from pathlib import Path

# What the installer notes for itself: dates, and folders of the builder.
NOTES = {"uv_cache.json", "direct_url.json", "uv_build.json"}
LICENCES = re.compile(r"(licen[cs]e|copying|copyright|notice|authors)|^licenses/", re.IGNORECASE)


class Wheel:
    """An installed distribution: its name, version and files, as paths below the environment."""

    def __init__(self, distribution, venv):
        self.name = re.sub(r"[-_.]+", "-", distribution.metadata["Name"]).lower()
        self.version, self.metadata = distribution.version, distribution.metadata
        self.folder = Path(distribution._path)
        self.url = json.loads(distribution.read_text("direct_url.json") or "{}").get("url", "")
        self.files = {os.path.relpath(os.path.normpath(distribution.locate_file(file)), venv)
                      for file in distribution.files or [] if file.name not in NOTES}

    def licences(self):
        """The texts of its licences, by name, as the wheel brings them."""
        found = {str(path.relative_to(self.folder)): path for path in sorted(self.folder.rglob("*")) if path.is_file()}
        return {name: path.read_text(errors="replace") for name, path in found.items() if LICENCES.search(name)}


def parts_of(wanted, wheels):
    """{part: its wheels}. The first part whose pattern fits; the last one takes the rest."""
    parts = {part["part"]: [] for part in wanted}
    for wheel in wheels:
        parts[next(part["part"] for part in wanted if re.fullmatch(part["wheels"], wheel.name))].append(wheel)
    return parts


def version_of(package, wheels, revision):
    """Of the first wheel that `main` names, then of what else is in it; the time at which a wheel of ours was built."""
    if "version" in package:
        return f"{package['version']}-{revision}"
    main = next(wheel for wheel in wheels if re.fullmatch(package["main"], wheel.name))
    version = main.version if "+" in main.version or not package.get("local") else f"{main.version}+{package['local']}"
    if main.url.startswith("file://"):
        with zipfile.ZipFile(main.url[len("file://"):]) as archive:
            newest = max(entry.date_time for entry in archive.infolist())
        version += ".{:04}{:02}{:02}.{:02}{:02}".format(*newest)
    others = [f"+{re.sub('^nvidia-|-cu[0-9]+$|^cuda-|[^a-z0-9]', '', re.sub('^nvidia-(cuda-)?', '', one.name))}"
              f"{one.version}" for one in sorted(wheels, key=lambda one: one.name) if one is not main]
    return f"{version}{''.join(others)}-{revision}"


def place(venv, files, tree):
    """Hard links of the files, which takes no space; folders are new."""
    for name in sorted(files):
        source, made = venv / name, tree / name
        if not source.is_symlink() and not source.exists():
            continue  # RECORD lists bytecode, too
        made.parent.mkdir(parents=True, exist_ok=True)
        if source.is_symlink():
            made.symlink_to(os.readlink(source))
        elif source.name == "RECORD":
            lines = source.read_text().splitlines(keepends=True)
            made.write_text("".join(line for line in lines if Path(line.split(",")[0]).name not in NOTES))
        else:
            os.link(source, made)


def compile_bytecode(trees, venv):
    """Bytecode beside each source, for the environment belongs to root and a job could not write it.

    It names no date and is never compared with its source ("unchecked"): both are one package's. What compiles is a
    new process for each top-level module, with a fixed hash seed: marshal's output depends on what it has seen.
    """
    modules = [(tree, path) for tree in trees for site in tree.glob("lib/python*/site-packages")
               for path in sorted(site.iterdir()) if path.is_dir() or path.suffix == ".py"]

    def run(module):
        tree, path = module
        # Some wheels bring files for other Pythons, which do not compile; nobody imports them. Not -I: it ignores the
        # seed.
        subprocess.run([sys.executable, "-m", "compileall", "-qq", "--invalidation-mode", "unchecked-hash",
                        "-s", str(tree), "-p", str(venv), str(path)], check=False, cwd="/", env={"PYTHONHASHSEED": "0"})

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(run, modules))


def copyright_of(wheels, licenses):
    """Whose works the package holds and under which licences, with the texts that the wheels bring."""
    text = ["This package holds Python wheels, unchanged but for bytecode. debzero's own part, which joins them, is"
            " under the\nApache License 2.0; on Debian systems its text is in /usr/share/common-licenses/Apache-2.0.\n"]
    for wheel in sorted(wheels, key=lambda one: one.name):
        authors = wheel.metadata.get("Author") or wheel.metadata.get("Author-email") or ""
        address = wheel.metadata.get("Home-page") or next(iter(wheel.metadata.get_all("Project-URL") or []), "")
        text.append("\n".join([f"{'=' * 79}\n{wheel.name} {wheel.version}", f"License: {licenses[wheel.name]}",
                               *([f"Author: {' '.join(authors.split())}"] if authors.strip() else []),
                               *([f"Source: {address.split()[-1]}"] if address.strip() else [])]) + "\n")
        for name, licence in wheel.licences().items():
            text.append(f"{'-' * 79}\n{name}\n\n{licence.strip()}\n")
    return "\n".join(text)


def write(path, text, mode=0o644):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


def relations(value, versions):
    """@part@ is the version of that part's package; @part~@ is the same less what follows its release."""
    return re.sub(r"@(\w+)(~?)@", lambda part: re.split(r"[+-]", versions[part[1]])[0] if part[2] else
                  versions[part[1]], value)


def describe(wanted, package, versions, root, wheels):
    """All of the package that is no file of the environment."""
    name, documents = package["name"], root / "usr/share/doc" / package["name"]
    write(documents / "copyright", copyright_of(wheels, wanted["licenses"]))
    date = time.strftime("%a, %d %b %Y %H:%M:%S +0000", time.gmtime(wanted["date"]))
    changelog = (f"{name} ({versions[package['part']]}) bullseye; urgency=medium\n\n"
                 f"  * Built from {len(wheels)} locked wheels.\n\n -- {wanted['maintainer']}  {date}\n")
    (documents / "changelog.Debian.gz").write_bytes(gzip.compress(changelog.encode(), mtime=0))
    write(root / "usr/share/lintian/overrides" / name, "".join(f"{name}: {tag}\n" for tag in wanted["overrides"]))
    for path, source in package.get("files", {}).items():
        runs = Path(source).stat().st_mode & 0o100
        write(root / path.lstrip("/"), Path(source).read_text(), 0o755 if runs else 0o644)
    for path, destination in package.get("links", {}).items():
        (root / path.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
        (root / path.lstrip("/")).symlink_to(destination)
    files = sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    control = {"Package": name, "Version": versions[package["part"]], "Architecture": "amd64",
               "Maintainer": wanted["maintainer"], "Section": "contrib/science", "Priority": "optional",
               "Installed-Size": str(sum(path.stat().st_size // 1024 + 1 for path in files)),
               **{key: relations(value, versions) for key, value in package["control"].items()},
               "Description": package["description"].strip().replace("\n", "\n ").replace("\n \n", "\n .\n")}
    write(root / "DEBIAN/control", "".join(f"{key}: {value}\n" for key, value in control.items()))
    for script, source in package.get("scripts", {}).items():
        write(root / "DEBIAN" / script, Path(source).read_text(), 0o644 if script == "triggers" else 0o755)
    sums = (f"{hashlib.md5(path.read_bytes()).hexdigest()}  {path.relative_to(root)}\n" for path in files)
    write(root / "DEBIAN/md5sums", "".join(sums))


def normalise(root):
    for path in [root, *root.rglob("*")]:
        if not path.is_symlink():
            mode = 0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644
            if path.stat().st_mode & 0o7777 != mode:
                path.chmod(mode)


def main():
    os.umask(0o022)  # files and folders get the same modes under a stricter one
    wanted = json.loads(sys.argv[1])
    venv, target = Path(wanted["venv"]), Path(wanted["target"])
    if venv.is_symlink():
        sys.exit(f"{venv} is the environment of installed packages: build on a host that has none")
    shutil.rmtree(target, ignore_errors=True)
    packages = wanted["packages"]
    site = next(venv.glob("lib/python*/site-packages"))
    parts = parts_of(packages, [Wheel(one, venv) for one in distributions(path=[str(site)])])
    packages = [package for package in packages if parts[package["part"]]]
    owners = {name: part for part, wheels in parts.items() for wheel in wheels for name in wheel.files}
    files = {part: {name for name, owner in owners.items() if owner == part} for part in parts}
    last = packages[-1]["part"]
    files[last] |= {name for path in venv.rglob("*") if (path.is_symlink() or not path.is_dir())
                    and (name := str(path.relative_to(venv))) not in owners and path.name not in {*NOTES, ".lock"}
                    and "__pycache__" not in path.parts}
    versions = {one["part"]: version_of(one, parts[one["part"]], wanted["revision"]) for one in packages}
    roots = {one["part"]: target / one["name"] for one in packages}
    trees = {part: root / wanted["parts"].lstrip("/") / part for part, root in roots.items()}
    for part, tree in trees.items():
        place(venv, {name for name in files[part] if "__pycache__" not in name}, tree)
        write(tree / "versions" / part, f"{versions[part]}\n")
    compile_bytecode(trees.values(), venv)

    def build(package):
        root = roots[package["part"]]
        normalise(root)
        describe(wanted, package, versions, root, parts[package["part"]])
        made = target / f"{package['name']}_{versions[package['part']]}_amd64.deb"
        subprocess.run(["dpkg-deb", "--root-owner-group", *wanted["compression"], "--build", root, made], check=True,
                       stdout=subprocess.DEVNULL, env={**os.environ, "SOURCE_DATE_EPOCH": str(wanted["date"])})
        shutil.rmtree(root)
        return made.name

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        print(json.dumps(list(pool.map(build, packages))))


if __name__ == "__main__":
    main()
