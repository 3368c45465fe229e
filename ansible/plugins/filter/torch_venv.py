"""Which packages make up the Python environment of a release: a filter without side effects."""
from __future__ import annotations

import re
from typing import Any, Callable


def _stanzas(shown: str) -> list[dict[str, str]]:
    """What `apt-cache show` printed, a dictionary for each version; apt prints a package's newest version first."""
    return [dict(re.findall(r"(?m)^(\S+): (.*)$", text)) for text in re.split(r"\n\s*\n", shown) if text.strip()]


def _exact(stanza: dict[str, str]) -> dict[str, str]:
    """{package: the one version of it that this one depends on}."""
    return dict(re.findall(r"(?:^|[ ,])([a-z0-9][a-z0-9.+-]+) \(= ([^)]+)\)", stanza.get("Depends", "")))


def _oldest(relations: str, package: str) -> str:
    """In what packages say of a range, which has no end but the next release."""
    found = re.search(rf"(?:^|[ ,]){package} \(>= ([^)]+)\)", relations)
    return found[1] if found else ""


def _of_release(stanza: dict[str, str], package: str, release: str) -> bool:
    return stanza.get("Package") == package and bool(re.match(rf"{re.escape(release)}([+-]|\Z)", stanza["Version"]))


def debs(shown: str, runtime: str, release: str = "", accelerator: str = "cuda", inference: bool = False
         ) -> dict[str, Any]:
    """`packages`: {name: version} of all of them, for apt takes none by itself that is older than what is installed or
    that another build of the same release replaced; and a `problem`, a sentence, where an archive lacks one.

    `shown`: `apt-cache show` of debzero and its environment's packages. `release`: the version of debzero whose
    environment is wanted in the place of `runtime`. Operators: the newest build for its PyTorch, best for this
    accelerator.
    """
    known = [one for one in _stanzas(shown) if one.keys() >= {"Package", "Version"}]
    if release:
        trainer = next((one for one in known if one["Package"] == "debzero" and one["Version"] == release), {})
        runtime = _oldest(trainer.get("Recommends", ""), "debzero-runtime")
        if not runtime:
            return {"packages": {}, "problem": f"no archive of the host has debzero {release}, with the environment "
                                               "that belongs to it: correct trainer_version, or publish it"}
    rest = next((one for one in known if _of_release(one, "debzero-runtime", runtime)
                 and "debzero-runtime-torch" in _exact(one)), None)
    if rest is None:
        return {"packages": {}, "problem": (
            f"no archive of the host has debzero-runtime {runtime}, which belongs to "
            f"{f'debzero {release}' if release else 'this checkout'}: set debzero_repository to a repository that has "
            "it (`make runtime-debs`, then playbooks/repository.yml)")}
    parts = {"debzero-runtime": rest["Version"], **_exact(rest)}
    torch = {"debzero-runtime-torch": parts["debzero-runtime-torch"]}
    wanted = _oldest(rest["Depends"], "debzero-runtime-ops")
    fitting = [one["Version"] for one in known if _of_release(one, "debzero-runtime-ops", wanted)
               and _exact(one).items() >= torch.items()]
    exports = [one["Version"] for one in known if one["Package"] == "debzero-runtime-inference"
               and _exact(one).get("debzero-runtime") == rest["Version"]]
    lacking = [name for name, found in (("debzero-runtime-ops", fitting), ("debzero-runtime-inference", exports))
               if not found and (inference or name != "debzero-runtime-inference")]
    if lacking:
        return {"packages": {}, "problem": (
            f"no archive of the host has {' and '.join(lacking)} for debzero-runtime {rest['Version']} with "
            f"debzero-runtime-torch {torch['debzero-runtime-torch']}: publish it (`make runtime-debs`, then "
            "playbooks/repository.yml)")}
    parts["debzero-runtime-ops"] = min(fitting, key=lambda version: ("+cpu." in version) != (accelerator == "cpu"))
    if inference:
        parts["debzero-runtime-inference"] = exports[0]
    return {"packages": parts, "problem": ""}


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"torch_venv_debs": debs}
