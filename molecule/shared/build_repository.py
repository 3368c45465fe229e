"""Build a signed apt repository of tiny packages, as one that cannot be reached from here would look.

The only argument is JSON; serve_repository.yml says what it holds. Keys are created once and kept in the folder's
keys/; what is served is in www/, which is filled again each time.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

# Creation and end of the expired key, and a day between them on which it signs.
EXPIRED = {"created": "20200101T000000", "signs": "20200601T000000", "validity": "1y"}


def run(*command, **options):
    words = [str(word) for word in command]
    return subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True, **options).stdout


def gpg(keys, *words):
    return run("gpg", "--homedir", keys, "--batch", "--yes", "--quiet", "--passphrase", "", *words)


def make_keys(keys):
    """Three keys: `right`, `other`, and one that expired years ago. Clients get key.gpg: all but `other`."""
    keys.mkdir(mode=0o700)
    for name in ("right", "other"):
        gpg(keys, "--quick-gen-key", name, "rsa2048", "sign", "never")
    gpg(keys, "--faked-system-time", EXPIRED["created"],
        "--quick-gen-key", "expired", "rsa2048", "sign", EXPIRED["validity"])
    gpg(keys, "--output", keys.parent / "key.gpg", "--export", "right", "expired")


def write(path, entry):
    """A file of a package: its text, or a dict with `content`, `copy` (a file or folder here) or `link`, and `mode`."""
    entry = entry if isinstance(entry, dict) else {"content": entry}
    path.parent.mkdir(parents=True, exist_ok=True)
    if "link" in entry:
        path.symlink_to(entry["link"])
        return
    if Path(entry.get("copy", "/nowhere")).is_dir():
        shutil.copytree(entry["copy"], path)
        return
    path.write_bytes(Path(entry["copy"]).read_bytes() if "copy" in entry else entry.get("content", "").encode())
    path.chmod(int(entry.get("mode", "0644"), 8))


def add(package, folder):
    """Put the package's .deb into www/. It is built once and kept in built/, unless it copies what may have changed."""
    built = folder / "built" / hashlib.sha256(json.dumps(package, sort_keys=True).encode()).hexdigest()
    copies = any("copy" in entry for entry in package.get("files", {}).values() if isinstance(entry, dict))
    if copies or not built.exists():
        shutil.rmtree(built, ignore_errors=True)
        built.mkdir(parents=True)
        build(package, built)
    for deb in built.iterdir():
        os.link(deb, folder / "www" / deb.name)


def build(package, target):
    """One .deb in the folder `target`: what is no field of debian/control is files and maintainer scripts."""
    architecture = package.get("architecture", "amd64")
    fields = {"Package": package["name"], "Version": package["version"], "Architecture": architecture,
              "Maintainer": "Stand-in <root@localhost>", "Description": "stand-in"}
    relations = ("depends", "conflicts", "replaces", "provides", "pre-depends")
    fields.update({key.title(): package[key] for key in relations if key in package})
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "root")
        for name, entry in package.get("files", {}).items():
            write(root / name.lstrip("/"), entry)
        write(root / "DEBIAN/control", "".join(f"{key}: {value}\n" for key, value in fields.items()))
        for script in ("preinst", "postinst", "prerm", "postrm"):
            if script in package:
                write(root / "DEBIAN" / script, {"content": f"#!/bin/sh\nset -e\n{package[script]}\n", "mode": "0755"})
        root.chmod(0o755)
        # Without dates the same input makes the same file, with the same checksum.
        run("dpkg-deb", "--root-owner-group", "-Zgzip", "--build", root,
            target / f"{package['name']}_{package['version'].replace(':', '%3a')}_{architecture}.deb",
            env={**os.environ, "SOURCE_DATE_EPOCH": "1660000000"})


def sign(folder, www, wanted):
    options = [f"-oAPT::FTPArchive::Release::{key}={wanted[key.lower()]}" for key in ("Origin", "Label")]
    release = run("apt-ftparchive", *options, "release", ".", cwd=www)
    if wanted["broken"] == "expired_release":
        release = "Valid-Until: Wed, 01 Jan 2020 00:00:00 UTC\n" + release
    (www / "Release").write_text(release)
    key = {"other_key": "other", "expired_key": "expired"}.get(wanted["broken"], "right")
    then = ["--faked-system-time", EXPIRED["signs"]] if key == "expired" else []
    gpg(folder / "keys", *then, "--local-user", key, "--output", www / "InRelease", "--clearsign", www / "Release")


def main():
    wanted = json.loads(sys.argv[1])
    folder = Path(wanted["folder"])
    www = folder / "www"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "keys").exists():
        make_keys(folder / "keys")
    shutil.rmtree(www, ignore_errors=True)
    www.mkdir()
    for package in wanted["packages"]:
        add(package, folder)
    (www / "Packages").write_text(run("apt-ftparchive", "packages", ".", cwd=www))
    sign(folder, www, wanted)
    for name in wanted["missing"]:
        for file in www.glob(f"{name}_*.deb"):
            file.unlink()


if __name__ == "__main__":
    main()
