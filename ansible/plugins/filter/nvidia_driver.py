"""What the role nvidia_driver decides: filters without side effects, from facts and variables to a decision.

The facts come from the probe of the GPUs (`driver_facts` in debzero/doctor/smi.py) and from the role's own
files/list_installed.py. Versions have two spellings: a package's, 535.309.01-0+deb11u1, and upstream's, 535.309.01.
"""
from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from typing import Any, Callable, Optional

MODULE_PACKAGE = "nvidia-kernel-dkms"
OWN_VERSIONS = ("nvidia-persistenced", "nvidia-modprobe")  # tools that Debian gives versions of their own


@dataclass(frozen=True)
class Record:
    """What the role noted in its state folder when it last changed the driver; all empty where it never did."""

    version: str = ""  # of the packages that it installed or adopted
    previous: str = ""  # the version before, to which rolled_back returns
    rolled_back_from: str = ""  # the version that rolled_back left; else empty


@dataclass(frozen=True)
class Facts:
    """The host as it was found."""

    gpus: list[str] = field(default_factory=list)  # PCI addresses
    switches: list[str] = field(default_factory=list)  # of NVSwitches
    works: bool = False  # the driver lists a GPU
    answering: int = 0  # how many it lists
    running: str = ""  # upstream version that works
    smi: str = ""  # nvidia-smi's output, or why there is none
    cause: str = ""  # why no GPU answers
    advice: str = ""  # what to do about it
    helps: str = ""  # which driver would: of another branch, the same (built and loaded properly), none
    loaded: str = ""  # upstream version of the module in the kernel
    nouveau: bool = False  # nouveau is in the kernel
    held_by: list[str] = field(default_factory=list)  # other drivers that have taken GPUs
    boot_id: str = ""
    packages: dict[str, str] = field(default_factory=dict)  # {package: version} of what is installed
    run_file: bool = False  # a driver from NVIDIA's .run file is installed
    state: Record = Record()
    state_folder: str = ""  # where the role keeps it

    @staticmethod
    def read(host: dict[str, Any]) -> Facts:
        """From the dictionary that look.yml keeps."""
        known = {name: value for name, value in host.items() if name in Facts.__dataclass_fields__}
        recorded = {name: value for name, value in host.get("state", {}).items() if name in Record.__dataclass_fields__}
        return Facts(**{**known, "state": Record(**recorded)})

    @property
    def installed(self) -> str:
        """Package version of the installed driver; empty where there is none."""
        return self.packages.get(MODULE_PACKAGE, "")

    @property
    def changed_by_role(self) -> bool:
        return self.state != Record()

    @property
    def why(self) -> str:
        """Why no driver works, for a sentence."""
        return (self.cause or self.smi).strip()

    @property
    def other_drivers(self) -> str:
        return " and ".join(self.held_by or ["nouveau"] * self.nouveau)


@dataclass(frozen=True)
class Settings:
    """The role's variables that decide, less their prefix."""

    manage: bool
    state: str  # present, rolled_back, absent
    source: str  # debian, nvidia, none
    branch: str  # "535" or "535.309.01"; empty takes any

    @property
    def pattern(self) -> str:
        """What versions of this branch begin with, in both spellings."""
        return "^([0-9]+:)?" + (re.escape(self.branch) + "([.-]|$)" if self.branch else "")

    @property
    def words(self) -> str:
        return self.branch or "the newest driver that can be fetched"


@dataclass(frozen=True)
class Decision:
    action: str  # nothing, keep (what this role installed), adopt (packages that do not work yet), install, remove
    version: str  # of the packages to end with; empty where the newest that can be fetched is still to be found
    installed: str  # package version before; empty where there is none
    package: str  # whose version these are
    pattern: str  # of package versions that will do
    wanted: str  # the same in words
    reason: str  # one sentence: what was found, and what follows
    obstacles: list[str]  # each says what is wrong and how to fix it; any of them stops the role


def decide(host: dict[str, Any], manage: bool, state: str, source: str, branch: str) -> dict[str, Any]:
    """The Decision for this host, as a dictionary."""
    facts, settings = Facts.read(host), Settings(bool(manage), state, source, str(branch))
    action, version = _action(facts, settings), _version(facts, settings)
    return asdict(Decision(
        action=action, version=version, installed=facts.installed, package=MODULE_PACKAGE,
        pattern=settings.pattern, wanted=settings.words, reason=_reason(facts, settings, action, version),
        obstacles=_obstacles(facts, settings, action)))


def _has_wanted_driver(facts: Facts, settings: Settings) -> bool:
    """A driver of the branch works."""
    return facts.works and bool(re.match(settings.pattern, facts.running))


def _can_keep_packages(facts: Facts, settings: Settings) -> bool:
    """A driver of the branch is installed, whether or not it works."""
    return bool(facts.installed and re.match(settings.pattern, facts.installed))


def _in_vain(facts: Facts, settings: Settings) -> bool:
    """The driver that is to be kept is in order, or wrong for these GPUs: to build and load it again would not help."""
    if facts.works or settings.state != "present" or settings.source == "none" or not facts.gpus:
        return False
    present = facts.installed or facts.loaded
    kept = bool(present and re.match(settings.pattern, present))
    if facts.helps == "other":  # what was replaced, but still is in the kernel, says nothing about its successor
        return kept and facts.loaded in ("", upstream(present))
    return facts.helps == "none" and (kept or not present)


def _action(facts: Facts, settings: Settings) -> str:
    if not settings.manage:
        return "nothing"
    if settings.state == "absent":
        return "remove" if facts.changed_by_role else "nothing"
    if not facts.gpus:
        return "nothing"
    if settings.state == "rolled_back":
        if facts.state.rolled_back_from:  # done already
            return "keep"
        return "install" if facts.state.previous else "nothing"
    works = _has_wanted_driver(facts, settings)
    if _in_vain(facts, settings):
        return "nothing"
    if settings.source == "none" or (works and not facts.changed_by_role):
        return "nothing"
    if _can_keep_packages(facts, settings):
        return "keep" if facts.changed_by_role or works else "adopt"
    return "install"


def _version(facts: Facts, settings: Settings) -> str:
    if settings.state == "absent":
        return facts.state.version
    if settings.state == "rolled_back":
        return facts.state.previous or facts.installed
    return facts.installed if _can_keep_packages(facts, settings) else ""


def _reason(facts: Facts, settings: Settings, action: str, version: str) -> str:
    count = len(facts.gpus)
    if not settings.manage:
        return "nvidia_driver_manage is false: the driver is left to you."
    if settings.state == "absent":
        return (f"driver {version} will be removed." if facts.changed_by_role else
                "this role installed no driver: nothing to do.")
    if not count:
        return "no NVIDIA GPU on PCI: nothing to do."
    if settings.state == "rolled_back":
        if action == "install":
            return f"returning from {facts.installed} to {version}."
        return (f"staying at {facts.installed}, the version before the last change." if action == "keep" else
                "no earlier driver is recorded: nothing to return to.")
    if _has_wanted_driver(facts, settings):
        some = f"{facts.answering} of " * (0 < facts.answering < count)
        return f"driver {facts.running} works on {some}{count} GPU(s): nothing to do."
    if _in_vain(facts, settings):
        return f"no GPU answers, and the driver stays as it is: {facts.why}."
    found = f"driver {facts.running}" if facts.works else "no working driver"
    if settings.source == "none":
        return f"{count} GPU(s) and {found}, and nvidia_driver_source is none: nothing will be installed."
    if _can_keep_packages(facts, settings):
        return (f"driver {facts.installed} is installed but does not work yet ({facts.why}): its module will "
                "be built and loaded.")
    return f"{count} GPU(s) and {found}: {settings.words} will be installed from {settings.source}."


def _obstacles(facts: Facts, settings: Settings, action: str) -> list[str]:
    idle, changes = not settings.manage or not facts.gpus, action in ("install", "adopt")
    found = []
    if (settings.state == "present" and settings.source == "none" and not idle
            and not _has_wanted_driver(facts, settings)):
        branch = f" of branch {settings.branch}" if settings.branch else ""
        found.append(f"nvidia_driver_source is none, and no driver{branch} works here "
                     f"({facts.running or facts.why}): install it, or set nvidia_driver_source to debian or nvidia.")
    if settings.manage and _in_vain(facts, settings):
        found.append(f"{facts.why}, and building the same driver again would not help: {facts.advice}.")
    if changes and facts.run_file:
        found.append("A driver from NVIDIA's .run file is installed, and packages would conflict with it: run "
                     "nvidia-uninstall on the host and start again, or set nvidia_driver_source to none and keep it.")
    if changes and settings.source == "debian" and facts.switches:
        found.append("GPUs behind NVSwitch compute only with the fabric manager, which Debian does not have: set "
                     "nvidia_driver_source to nvidia.")
    if settings.state == "rolled_back" and not idle and action == "nothing":
        found.append(f"nvidia_driver_state is rolled_back, but no earlier version is recorded in {facts.state_folder}: "
                     "name the version to return to with nvidia_driver_branch, and leave nvidia_driver_state at "
                     "present.")
    return found


def upstream(version: str) -> str:
    """A package's version as the driver itself spells it: 535.309.01 of 1:535.309.01-0+deb11u1."""
    return re.sub("^[0-9]+:|-[^-]*$", "", version)


@dataclass(frozen=True)
class Names:
    """What goes by the name of one version."""

    upstream: str
    packages: list[str]  # to install
    installed_packages: list[str]  # what of this version is installed: to hold, or to remove
    services: list[str]
    dkms: str  # pattern of the line in which `dkms status` says that the module is built for the kernel


def names(host: dict[str, Any], version: str, packages: list[str], kernel: str) -> dict[str, Any]:
    """The Names of a package version for a kernel release. `packages` are those that the role is to install."""
    facts, own = Facts.read(host), upstream(version)
    # Fabric managers are packaged for a branch, and serve one version.
    wanted = [*packages, *([f"nvidia-fabricmanager-{own.split('.')[0]}"] if facts.switches else [])]
    of_version = [name for name, installed in facts.packages.items()
                  if re.match(rf"([0-9]+:)?{re.escape(own)}(-|$)", installed)]
    present = dict.fromkeys([*of_version, *(name for name in OWN_VERSIONS if name in facts.packages)])
    services = [re.sub("-[0-9]+$", "", name) for name in wanted
                if re.match("nvidia-(persistenced|fabricmanager)", name)]
    # "nvidia-current, 470.256.02, 5.10.0-30-amd64, x86_64: installed"; later releases of DKMS write a slash.
    dkms = rf"nvidia[\w-]*[,/] ?{re.escape(own)}, {re.escape(kernel)}, \w+: installed"
    return asdict(Names(own, wanted, list(present), services, dkms))


@dataclass(frozen=True)
class Reboot:
    needed: bool  # the module that was installed cannot be loaded otherwise
    allowed: bool
    message: str  # why it is needed, and who must do it; empty where it is not needed or the role may do it


def reboot(host: dict[str, Any], version: str, allowed: bool, is_controller: bool,
           modprobe: Optional[dict[str, Any]] = None) -> dict[str, Any]:
    """The Reboot for this host. `version`: upstream's, of the installed driver; `modprobe`: the result of that task."""
    facts = Facts.read(host)
    needed, may = bool(facts.other_drivers) or facts.loaded != version, bool(allowed) and not is_controller
    if facts.other_drivers:
        why = f"{facts.other_drivers} drives them."
    elif facts.loaded:
        why = f"module {facts.loaded} is loaded and in use, and {version} is installed."
    else:
        why = f"the module cannot be loaded ({(modprobe or {}).get('stderr', '').strip()})."
    who = ("It is the machine that Ansible runs on, which is never rebooted" if is_controller else
           "nvidia_driver_reboot is false")
    message = f"must be rebooted before its GPUs can compute: {why} {who}: reboot it yourself, and run this play again."
    return asdict(Reboot(needed, may, message if needed and not may else ""))


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"nvidia_driver_decision": decide, "nvidia_driver_names": names, "nvidia_driver_reboot_decision": reboot}
