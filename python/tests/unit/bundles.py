"""Tiny bundles, and the keys that sign them; the fixtures are in bundle/conftest.py."""
from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = ROOT / "roles/bundle/files/debzero-bundle"
FILES = {
    "debian/pool/a_1_all.deb": b"a" * 700,
    "apt/debzero/pool/main/d/debzero-runtime-nvidia/debzero-runtime-nvidia_11.7.99+cublas11.10.3.66-1.deb": b"b" * 512,
    "models/tiny/config.json": b"{}",
    "sbom.cdx.json": b"",
}


def gpg(home: Path, *words: object, **options) -> None:
    subprocess.run(["gpg", "--homedir", home, "--batch", "--yes", "--quiet", "--passphrase", "", *map(str, words)],
                   check=True, capture_output=True, **options)


def fill(folder: Path, files: dict[str, bytes], keys: Path, key: str = "right", **changes) -> Path:
    """A folder to pack: the files, a manifest of them, its signature."""
    rows = [{"path": name, "size": len(text), "sha256": hashlib.sha256(text).hexdigest()}
            for name, text in files.items()]
    manifest = {"format": 1, "debzero": "1.0-1", "created": "2026-01-01", "files": rows, **changes}
    for name, text in {**files, "manifest.json": json.dumps(manifest).encode()}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text)
    when = ["--faked-system-time", "20200601T000000!"] if key == "expired" else []
    gpg(keys / "home", *when, "--local-user", key, "--output", folder / "manifest.json.sig", "--detach-sign",
        folder / "manifest.json")
    return folder


def run(*words: object, **options) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, PROGRAM, *map(str, words)], text=True, capture_output=True, **options)
