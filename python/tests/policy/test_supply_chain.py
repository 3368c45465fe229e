"""The ledger in docs/security covers what is locked, its reasons hold, and the SBOM and the page are made from it."""
from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import distributions
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from checkout import ROOT, files, refuse
from packaging.version import Version

SCRIPT = ROOT / "python/supply_chain.py"
# What reaches a host or runs on a controller.
SHIPPED = files("python/src/*.py", "roles/*", "playbooks/*", "ansible/*", "debian/*", "site.yml",
                without=("*.md", "*.lock", "*.in", "debian/changelog", "debian/sbom.cdx.json"))


def load() -> ModuleType:
    spec = spec_from_file_location("supply_chain", SCRIPT)
    assert spec and spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ledger = load()
REASONS = ledger.reasons()
FINDINGS = [(package, one) for package, listed in ledger.findings().items() for one in listed]


def unreviewed(locked: dict[str, list[str]], reviewed: dict[str, str]) -> Iterator[str]:
    for name, versions in locked.items():
        seen = reviewed.get(name, "nothing")
        if ", ".join(versions) != seen:
            yield (f"{name} is locked at {', '.join(versions)}, the ledger saw {seen}: look up its advisories (see "
                   "docs/security.md), then write that version into docs/security/reviewed.yml")
    yield from (f"{name} is in docs/security/reviewed.yml, but not locked" for name in reviewed.keys() - locked.keys())


def wrong(package: str, one: dict[str, Any], locked: dict[str, list[str]]) -> Iterator[str]:
    """What does not fit in one advisory."""
    if not re.fullmatch(r"CVE-\d{4}-\d{4,}|ZDI-CAN-\d+|\w+#\d+", one["id"]):
        yield f"{package}: {one['id']} is no number of an advisory"
    if one["because"] not in REASONS:
        yield f"{package}: {one['id']}: no reason is called {one['because']}"
    if not one["affects"]:
        yield f"{package}: {one['id']} affects nothing that is locked: delete it"
    for version in one["affects"]:
        if version not in locked.get(package, []):
            yield f"{package}: {one['id']} affects {version}, which is not locked any more: delete it"
        elif "fixed" in one and Version(version) >= Version(one["fixed"]):
            yield f"{package}: {one['id']} is fixed in {version}: delete it"


def broken(reason: dict[str, Any], texts: dict[str, str]) -> Iterator[str]:
    """What a reason rests on and is not so."""
    if reason["reachable"] not in ledger.STATES:
        yield f"reachable: {reason['reachable']}"
    for pattern, allowed in reason.get("uses", {}).items():
        found = {name for name, text in texts.items() if re.search(pattern, text, re.MULTILINE)}
        yield from (f"{name} holds `{pattern}`" for name in sorted(found - set(allowed)))
        yield from (f"{name} does not hold `{pattern}` any more" for name in sorted(set(allowed) - found))
    yield from (f"{module} is installed" for module in reason.get("missing", []) if installed(module))
    for place in reason.get("defused_by", []):
        name, _, test = place.partition("::")
        if not (ROOT / name).is_file() or test and not re.search(rf"^ *def {test}\(", (ROOT / name).read_text(), re.M):
            yield f"{place} is not there"


def installed(module: str) -> bool:
    """Whether a module is there, without importing what it is in."""
    top, *inner = module.split(".")
    spec = find_spec(top)
    if not spec or not inner:
        return spec is not None
    return any(Path(place, *inner).is_dir() or Path(place, *inner).with_suffix(".py").is_file()
               for place in spec.submodule_search_locations or [])


def test_each_locked_version_is_reviewed():
    refuse(unreviewed(ledger.locked(), ledger.reviewed()["packages"]))


def test_each_advisory_concerns_what_is_locked_and_gives_a_reason():
    numbers = [one["id"] for _, one in FINDINGS]
    assert len(numbers) > 90 and len(numbers) == len(set(numbers))
    locked = ledger.locked()
    refuse(finding for package, one in FINDINGS for finding in wrong(package, one, locked))


@pytest.mark.parametrize("name", REASONS)
def test_a_reason_holds_and_is_given(name):
    assert name in {one["because"] for _, one in FINDINGS}
    refuse(broken(REASONS[name], SHIPPED))


def test_the_page_and_the_sbom_are_fresh():
    check = subprocess.run([sys.executable, SCRIPT, "--check"], capture_output=True, text=True)
    assert check.returncode == 0, check.stderr


def test_the_sbom_is_valid_and_lists_what_a_host_has():
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    text = (ROOT / "debian/sbom.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    parts = {part["name"]: part for part in json.loads(text)["components"]}
    assert {"torch", "deepspeed", "uv", "importlib-metadata"} <= parts.keys()
    assert not {"colorama", "ansible", "pytest"} & parts.keys()
    assert all(part["externalReferences"][0]["hashes"] for part in parts.values())
    statements = json.loads(text)["vulnerabilities"]
    assert {"CVE-2025-32434", "CVE-2026-24747"} <= {statement["id"] for statement in statements}
    assert {target["ref"] for statement in statements for target in statement["affects"]} <= {
        part["bom-ref"] for part in parts.values()}


def test_licences_are_those_that_the_packages_declare():
    declared = {re.sub(r"[-_.]+", "-", package.metadata["Name"]).lower(): package.metadata.get("License-Expression")
                for package in distributions()}
    listed = ledger.reviewed()["licenses"]
    assert sum(bool(declared.get(name)) for name in listed) > 20
    refuse(f"{name}: {listed[name]}, and it says {declared[name]}" for name in listed
           if declared.get(name) and declared[name] != listed[name])


def test_the_audit_names_what_the_ledger_lacks(tmp_path):
    def advisory(number: str, package: str, **affected: Any) -> None:
        affected["package"] = {"ecosystem": "PyPI", "name": package}
        (tmp_path / f"{number}.json").write_text(json.dumps({"id": number, "affected": [affected]}))

    def events(*edges: dict[str, str]) -> list[dict[str, Any]]:
        return [{"type": "ECOSYSTEM", "events": list(edges)}]

    known = next(one for package, one in FINDINGS if package == "torch")
    (pinned,) = known["affects"]
    advisory(known["id"], "torch", versions=[pinned])
    advisory("CVE-2999-0001", "Torch", ranges=events({"introduced": "0"}, {"last_affected": f"{pinned}-NA"}))
    advisory("CVE-2999-0002", "torch", ranges=events({"introduced": "0"}, {"fixed": pinned}))
    advisory("CVE-2999-0003", "torch", ranges=events({"introduced": "0"}, {"fixed": "0.1"}, {"introduced": "0.2"}))
    advisory("CVE-2999-0004", "torchvision", versions=[pinned])
    assert list(ledger.audit(tmp_path)) == [f"torch {pinned}: CVE-2999-0001", f"torch {pinned}: CVE-2999-0003"]


def test_the_checks_see_what_is_wrong():
    assert [line.split(" ")[0] for line in unreviewed({"a": ["1"], "b": ["1", "2"], "c": ["1"]},
                                                      {"a": "1", "b": "1", "d": "1"})] == ["b", "c", "d"]
    one = {"id": "CVE-2999-0001", "because": "no-rpc", "affects": ["1"], "fixed": "2"}
    assert not list(wrong("a", one, {"a": ["1"]}))
    assert len(list(wrong("a", one, {"a": ["3"]}))) == len(list(wrong("a", {**one, "affects": []}, {}))) == 1
    assert len(list(wrong("a", {**one, "id": "x", "because": "x", "fixed": "1"}, {"a": ["1"]}))) == 3
    reason = {"reachable": "no", "uses": {"a": ["x"], "b": []}, "missing": ["json.no"], "defused_by": ["README.md"]}
    assert not list(broken(reason, {"x": "a", "y": "c"}))
    bad = {"reachable": False, "missing": ["json.decoder"], "defused_by": ["README.md::test_x", "no.md"]}
    assert len(list(broken({**reason, **bad}, {"x": "b", "y": "a"}))) == 7
