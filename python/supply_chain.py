#!/usr/bin/env python3
"""Write docs/reference/advisories.md and the SBOM of the package, from the locks and the ledger in docs/security.

With --check nothing is written: stale files are named and the exit code is 1. With --audit FOLDER, a checkout of an
advisory database in the OSV format (YAML or JSON), it lists what affects a locked version and is not in the ledger.
"""
from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml
from packaging.requirements import Requirement
from packaging.version import InvalidVersion, Version

ROOT = Path(__file__).resolve().parents[1]
LEDGER = ROOT / "docs" / "security"
REQUIRED = ("python/requirements.lock", "python/installer.lock")
# On hosts that export models or predict with exported ones; the second in an environment of its own.
OPTIONAL = ("python/requirements-inference.lock", "python/requirements-tensorrt.lock")
HOST_LOCKS = (*REQUIRED, *OPTIONAL)
# The build for GPUs takes the place of one package of OPTIONAL.
LOCKS = (*HOST_LOCKS, "python/requirements-inference-gpu.lock", "ansible/requirements.lock")
FINDINGS = ("torch", "transformers", "libraries", "controller")
PAGE = ROOT / "docs" / "reference" / "advisories.md"
SBOM = ROOT / "debian" / "sbom.cdx.json"
BASIC = {"reachable", "why", "defused_by"}  # of a reason; `uses` and `missing` are checked
# What `reachable` is in the terms of CycloneDX, in a VEX statement.
STATES = {"no": "not_affected", "partly": "exploitable", "unknown": "in_triage"}


def stack() -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / "stack.yml").read_text())["stack"])


def on_a_host() -> dict[str, str]:
    """What a marker can ask about a Bullseye host."""
    python = stack()["python"]
    return {"python_version": python, "python_full_version": f"{python}.2", "sys_platform": "linux",
            "platform_machine": "x86_64", "platform_python_implementation": "CPython", "implementation_name": "cpython"}


def requirements(lock: str) -> Iterator[tuple[Requirement, list[str]]]:
    """Each pin of a lock, with its hashes."""
    for pin in re.sub(r" \\\n", " ", re.sub(r"(?m)^\s*#.*\n", "", lock)).splitlines():
        requirement, *hashes = pin.split(" --hash=")
        yield Requirement(requirement.strip()), [one.strip() for one in hashes]


def version_of(pin: Requirement) -> str:
    return next(iter(pin.specifier)).version


def locked() -> dict[str, list[str]]:
    """{package: its versions} of everything that the ledger covers; several where Pythons differ."""
    found = {"deepspeed": {stack()["deepspeed"]}}
    for name in LOCKS:
        for pin, _ in requirements((ROOT / name).read_text()):
            found.setdefault(pin.name, set()).add(version_of(pin))
    return {name: sorted(versions, key=Version) for name, versions in sorted(found.items())}


def reviewed() -> dict[str, Any]:
    return dict(yaml.safe_load((LEDGER / "reviewed.yml").read_text()))


def reasons() -> dict[str, dict[str, Any]]:
    return dict(yaml.safe_load((LEDGER / "reasons.yml").read_text()))


def findings() -> dict[str, list[dict[str, Any]]]:
    """{package: its advisories}, each with the locked versions that it `affects`."""
    versions = locked()
    return {package: [{"affects": versions.get(package, []), "also": [], **one} for one in listed]
            for name in FINDINGS for package, listed in yaml.safe_load((LEDGER / f"{name}.yml").read_text()).items()}


def anchor(reason: str) -> str:
    return f"[{reason}](#{reason})"


def page() -> str:
    """The ledger as a page for people."""
    why, collected = reasons(), reviewed()["collected"]
    lines = ["<!-- Written by `make docs` from docs/security/*.yml: edit those. -->", "",
             "# Known advisories of the pinned packages", "",
             f"Looked up on {collected['date']} in:", "",
             *(line for source in collected["from"] for line in wrapped(source, "- ")), "",
             "[docs/security.md](../security.md) says what this covers and how it is kept. Below the tables are the",
             "reasons, and what backs each of them.", ""]
    for package, listed in findings().items():
        lines += [f"## {package}", "", "| advisory | affects | fixed in | what it is | reached | reason |",
                  "|---|---|---|---|---|---|"]
        lines += ["| {} | {} | {} | {} | {} | {} |".format(
            ", ".join([one["id"], *one["also"]]), ", ".join(one["affects"]), one.get("fixed", "-"), one["what"],
            why[one["because"]]["reachable"], anchor(one["because"])) for one in listed]
        lines.append("")
    lines += ["## Reasons", ""]
    for name, reason in why.items():
        lines += [f"### {name}", "", *wrapped(f"Reached: {reason['reachable']}. {reason['why']}"), "", *backing(reason)]
    return "\n".join(lines).rstrip("\n") + "\n"


def backing(reason: dict[str, Any]) -> list[str]:
    """What a reason rests on, as the items of a list."""
    items = [f"`{pattern}` occurs {'only in ' + ' and '.join(files) if files else 'nowhere'} in what is shipped"
             for pattern, files in reason.get("uses", {}).items()]
    items += [f"`{module}` is not installed" for module in reason.get("missing", [])]
    items += [place.replace("::", ", ") for place in reason.get("defused_by", [])]
    return [*(line for item in items for line in wrapped(item, "- ")), ""] if items else []


def wrapped(text: str, bullet: str = "") -> list[str]:
    return textwrap.wrap(text, 118, initial_indent=bullet, subsequent_indent=" " * len(bullet), break_long_words=False,
                         break_on_hyphens=False)


def host_pins() -> list[tuple[Requirement, list[str]]]:
    """What a Bullseye host has, each version once, DeepSpeed included."""
    pins = [pin for name in HOST_LOCKS for pin in requirements((ROOT / name).read_text())]
    here = {(pin.name, version_of(pin)): (pin, hashes) for pin, hashes in reversed(pins)
            if not pin.marker or pin.marker.evaluate(on_a_host())}
    pinned = stack()
    own = Requirement(f"deepspeed=={pinned['deepspeed']}")
    return sorted([*here.values(), (own, [f"sha256:{pinned['deepspeed_sha256']}"])],
                  key=lambda pin: (pin[0].name, version_of(pin[0])))


def sbom() -> str:
    """The CycloneDX document: what a host has, with hashes and licences, and what is known against it (VEX).

    debian/rules writes the package's version into it.
    """
    pins = "\n".join(" ".join([f"{pin.name}{pin.specifier}", *(f"--hash={one}" for one in hashes)])
                     for pin, hashes in host_pins())
    # Without an environment, and so without SOURCE_DATE_EPOCH: no date.
    command = [sys.executable, "-m", "cyclonedx_py", "requirements", "-", "--output-reproducible", "--no-validate"]
    made = subprocess.run(command, input=pins, check=True, capture_output=True, text=True, env={})
    document = json.loads(made.stdout)
    licenses = reviewed()["licenses"]
    optional, required = ({(pin.name, version_of(pin)) for name in locks for pin, _ in requirements(
        (ROOT / name).read_text())} for locks in (OPTIONAL, REQUIRED))
    purls = []
    for component in document["components"]:
        purl = component["purl"]
        purls.append(purl)
        component.update({"bom-ref": purl, "licenses": [{"expression": licenses[component["name"]]}]})
        if (component["name"], component["version"]) in optional - required:
            component["scope"] = "optional"
        del component["description"]
        for reference in component["externalReferences"]:
            reference.pop("comment")
            reference["url"] = purl  # its index is the site's choice
    root = "debzero"
    document["metadata"] = {
        "component": {"bom-ref": root, "type": "application", "name": root, "version": "@version@",
                      "licenses": [{"expression": "Apache-2.0"}]},
        "properties": document["metadata"]["properties"],
        "tools": {"components": [{key: tool[key] for key in ("type", "name", "version")}
                                 for tool in document["metadata"]["tools"]["components"]]}}
    document["dependencies"] = [{"ref": root, "dependsOn": sorted(purls)}, *({"ref": purl} for purl in sorted(purls))]
    document["vulnerabilities"] = list(statements(purls))
    text = json.dumps(document, indent=1) + "\n"
    return re.sub(r'\{\s+("alg": "SHA-256"),\s+("content": "\w+")\s+\}', r"{\1, \2}", text)  # a line for each hash


def statements(purls: list[str]) -> Iterator[dict[str, Any]]:
    """A VEX statement for each advisory of a host's packages."""
    why = reasons()
    for package, listed in findings().items():
        for one in listed:
            named = {f"pkg:pypi/{package}@{version}" for version in one["affects"]}
            affected = [purl for purl in purls if purl in named]
            if affected:
                reason = why[one["because"]]
                analysis = {"state": STATES[reason["reachable"]], "detail": reason["why"]}
                if reason["reachable"] == "no":
                    absent = reason.keys() - BASIC == {"missing"}
                    analysis["justification"] = "code_not_present" if absent else "code_not_reachable"
                yield {"bom-ref": one["id"], "id": one["id"], "description": one["what"], "analysis": analysis,
                       "affects": [{"ref": purl} for purl in affected]}


def within(version: Version, events: Iterable[dict[str, str]]) -> bool:
    """Whether a version is in a range of the OSV format."""
    inside = False
    for event in events:
        kind, text = next(iter(event.items()))
        try:
            edge = Version(re.sub(r"[-+].*", "", text))  # some say 2.6.0-NA
        except InvalidVersion:
            continue
        if version > edge or version == edge and kind != "last_affected":
            inside = kind == "introduced"
    return inside


def affects(advisory: dict[str, Any], package: str, version: str) -> bool:
    for affected in advisory.get("affected", []):
        of = affected.get("package", {})
        if of.get("ecosystem") == "PyPI" and re.sub(r"[-_.]+", "-", of["name"]).lower() == package:
            ranges = [one["events"] for one in affected.get("ranges", []) if one["type"] == "ECOSYSTEM"]
            if version in affected.get("versions", []) or any(within(Version(version), events) for events in ranges):
                return True
    return False


def audit(folder: Path) -> Iterator[str]:
    """Advisories of the folder that affect a locked version and that the ledger lacks."""
    known = {name for listed in findings().values() for one in listed for name in (one["id"], *one["also"])}
    packages = locked()
    quoted = re.compile(r"name\"?: \"?(" + "|".join(map(re.escape, packages)) + r")\b", re.IGNORECASE)
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    for path in sorted([*folder.rglob("*.yaml"), *folder.rglob("*.json")]):
        text = path.read_text(errors="replace")
        if not quoted.search(re.sub(r"[_.]", "-", text)):
            continue
        try:
            advisory = json.loads(text) if path.suffix == ".json" else yaml.load(text, Loader=loader)
        except (ValueError, yaml.YAMLError):
            continue
        if not isinstance(advisory, dict) or advisory.get("withdrawn"):
            continue
        names = [advisory.get("id", path.stem), *advisory.get("aliases", [])]
        hit = {f"{package} {version}" for package, versions in packages.items() for version in versions
               if affects(advisory, package, version)}
        if hit and not known & set(names):
            yield f"{', '.join(sorted(hit))}: {', '.join(names)}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only name the files that are stale")
    parser.add_argument("--audit", metavar="FOLDER", type=Path, help="only list advisories that the ledger lacks")
    given = parser.parse_args()
    if given.audit:
        lacking = list(audit(given.audit))
        print("\n".join(lacking) or "the ledger has every advisory of the folder that affects a locked version")
        return 1 if lacking else 0
    texts = {PAGE: page(), SBOM: sbom()}
    stale = [path for path, text in texts.items() if not path.is_file() or path.read_text() != text]
    for path in stale:
        if given.check:
            print(f"{path.relative_to(ROOT)} is stale: run `make docs`", file=sys.stderr)
        else:
            path.write_text(texts[path])
    return 1 if given.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
