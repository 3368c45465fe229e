"""All packages of an environment are named with their versions, whichever way the host goes."""
from __future__ import annotations

import torch_venv

# As apt-cache show prints them: several versions of each, the newest first.
TRAINERS = """Package: debzero
Version: 2.0-1
Depends: libaio1
Recommends: debzero-runtime (>= 2+bb), debzero-runtime (<< 2+bb.), g++

Package: debzero
Version: 1.0-1
Recommends: debzero-runtime (>= 1+aa), debzero-runtime (<< 1+aa.), g++
"""
RUNTIMES = """Package: debzero-runtime
Version: 2+bb-1
Depends: debzero-runtime-nvidia (= 11-1), debzero-runtime-torch (= 1.14-1), debzero-runtime-ops (>= 0.16), libaio1
Description-en: x
 Package: none of this

Package: debzero-runtime
Version: 1+aa-2
Depends: debzero-runtime-nvidia (= 11-1), debzero-runtime-torch (= 1.13-1), debzero-runtime-ops (>= 0.15),
 debzero-runtime-ops (<< 0.15.), libaio1

Package: debzero-runtime
Version: 1+aa-1
Depends: debzero-runtime-nvidia (= 11-1), debzero-runtime-torch (= 1.13-1), debzero-runtime-ops (>= 0.15)

Package: debzero-runtime-inference
Version: 1+aa-2
Depends: debzero-runtime (= 1+aa-2)
"""
OPERATORS = "".join(
    f"\nPackage: debzero-runtime-ops\nVersion: {version}\nDepends: debzero-runtime-torch (= {torch}), x\n"
    for version, torch in (("0.16+cpu.2027-1", "1.14-1"), ("0.15.9+cpu.2027-1", "1.13-1"),
                           ("0.15+cu99.2026-1", "1.13-1"), ("0.15+cpu.2028-1", "1.14-1"),
                           ("0.15+cpu.2027-1", "1.13-1"), ("0.15+cpu.2026-1", "1.13-1")))
SHOWN = f"{TRAINERS}\n{RUNTIMES}{OPERATORS}"
PARTS = {"debzero-runtime": "1+aa-2", "debzero-runtime-nvidia": "11-1", "debzero-runtime-torch": "1.13-1",
         "debzero-runtime-ops": "0.15+cpu.2027-1"}


def test_the_newest_build_of_a_release_is_named_with_all_its_parts():
    assert torch_venv.debs(SHOWN, "1+aa", accelerator="cpu") == {"packages": PARTS, "problem": ""}
    assert torch_venv.debs(SHOWN, "1+aa")["packages"]["debzero-runtime-ops"] == "0.15+cu99.2026-1"
    with_onnx = torch_venv.debs(SHOWN, "1+aa", accelerator="cpu", inference=True)
    assert with_onnx["packages"] == {**PARTS, "debzero-runtime-inference": "1+aa-2"}


def test_a_release_brings_the_environment_that_belongs_to_it_across_pytorch():
    newer = torch_venv.debs(SHOWN, "1+aa", release="2.0-1")["packages"]
    assert newer == {"debzero-runtime": "2+bb-1", "debzero-runtime-nvidia": "11-1", "debzero-runtime-torch": "1.14-1",
                     "debzero-runtime-ops": "0.16+cpu.2027-1"}
    assert torch_venv.debs(SHOWN, "2+bb", release="1.0-1", accelerator="cpu")["packages"] == PARTS


def test_what_no_archive_has_is_named():
    assert "no archive of the host has debzero-runtime 3+cc" in torch_venv.debs(SHOWN, "3+cc")["problem"]
    assert "no archive of the host has debzero-runtime 1+a," in torch_venv.debs(SHOWN, "1+a")["problem"]
    assert "no archive of the host has debzero 3.0" in torch_venv.debs(SHOWN, "1+aa", release="3.0")["problem"]
    assert torch_venv.debs("", "1+aa") == {"packages": {}, "problem": torch_venv.debs("", "1+aa")["problem"]}
    problem = torch_venv.debs(f"{TRAINERS}\n{RUNTIMES}", "1+aa")["problem"]
    assert "debzero-runtime-ops for debzero-runtime 1+aa-2 with debzero-runtime-torch 1.13-1" in problem
    assert "debzero-runtime-inference" in torch_venv.debs(SHOWN, "2+bb", inference=True)["problem"]


def test_what_an_archive_says_oddly_is_no_traceback():
    for text in ("Package: debzero-runtime\nVersion: 1+aa-1\n", "Package: debzero-runtime\n", "Version: 1+aa-1\n",
                 "Package: debzero-runtime\nVersion: 1+aa-1\nDepends: libx (= 1)\n", "nonsense"):
        assert "no archive of the host has debzero-runtime 1+aa" in torch_venv.debs(text, "1+aa")["problem"]
    odd = SHOWN.replace("(= 11-1)", "(= 11-1), libstdc++6 (= 12)")
    assert torch_venv.debs(odd, "1+aa", accelerator="cpu")["packages"] == {**PARTS, "libstdc++6": "12"}
