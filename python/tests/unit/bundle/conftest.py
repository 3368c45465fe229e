"""The program of bundles, and one that is whole: made once for the tests of each file."""
from __future__ import annotations

import subprocess
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
from bundles import FILES, PROGRAM, fill, gpg


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    """The program as a module, with what packs bundles."""
    path = PROGRAM.with_name("collect.py")
    spec = spec_from_file_location("collect", path)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    program = module.load()
    program.pack = module.pack
    return program


@pytest.fixture(scope="module")
def keys(tmp_path_factory) -> Path:
    """A GnuPG home with the keys right, other and expired; a keyring of each beside it."""
    folder = tmp_path_factory.mktemp("keys")
    home = folder / "home"
    home.mkdir(mode=0o700)
    for name, days in (("right", "never"), ("other", "never")):
        gpg(home, "--quick-gen-key", name, "ed25519", "sign", days)
    gpg(home, "--faked-system-time", "20200101T000000", "--quick-gen-key", "expired", "ed25519", "sign", "1y")
    for name in ("right", "other", "expired"):
        gpg(home, "--output", folder / f"{name}.gpg", "--export", name)
    yield folder
    subprocess.run(["gpgconf", "--homedir", home, "--kill", "all"], check=False)


@pytest.fixture(scope="module")
def bundle(tool, keys, tmp_path_factory) -> Path:
    """Whole and signed. Tests leave it as it is."""
    folder = tmp_path_factory.mktemp("bundle")
    tool.pack(fill(folder / "tree", FILES, keys), folder / "whole.tar")
    return folder / "whole.tar"
