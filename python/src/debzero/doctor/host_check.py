"""What a check of the host takes and gives: a probe and the requirements in, one `CheckResult` out.

Standard library only: this travels to bare hosts with host.py.
"""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Callable, NamedTuple, Optional, Union

from debzero.doctor.probe import HostProbe


class CheckResult(NamedTuple):
    """One line of the report. `doctor --json` prints these fields under these names."""

    check: str
    status: str  # ok, warn, fail, or skip (not examined)
    found: str
    advice: str = ""  # what to do: every warn and every fail has it
    data: Optional[dict[str, Any]] = None


def ok(found: str, **data: Any) -> CheckResult:
    return CheckResult("", "ok", found, data=data or None)


def skip(found: str) -> CheckResult:
    return CheckResult("", "skip", found)


def warn(found: str, advice: str, **data: Any) -> CheckResult:
    return CheckResult("", "warn", found, advice, data or None)


def fail(found: str, advice: str, **data: Any) -> CheckResult:
    return CheckResult("", "fail", found, advice, data or None)


@dataclass(frozen=True)
class Requirements:
    """What the host must have. `stage` is preflight (it will be provisioned) or doctor (it should work)."""

    stage: str = "doctor"
    gpus: int = 0  # at least; 0 takes what the PCI bus shows
    memory_mb: int = 0
    offload_parameters: int = 0  # of the largest model whose optimizer state goes to this host's memory
    free_mb: dict[str, int] = field(default_factory=dict)  # {path: MB}
    shm_mb: int = 0  # 0 takes what NCCL needs for the GPUs that are there
    epoch: Optional[float] = None  # seconds since 1970 by the controller's clock
    driver_managed: bool = False  # the role nvidia_driver runs next

    def __post_init__(self) -> None:
        """Raise TypeError for numbers that are not whole."""
        numbers = (self.gpus, self.memory_mb, self.offload_parameters, self.shm_mb, *self.free_mb.values())
        if not all(isinstance(number, int) for number in numbers):
            raise TypeError(f"numbers must be whole: {self}")


class HostCheck(NamedTuple):
    """A check's place in the chain of causes."""

    name: str
    run: Callable[[HostProbe, Requirements], CheckResult]
    needs: tuple[str, ...] = ()  # checks whose failure leaves nothing for this one to examine
    # By the role nvidia_driver: only a warning before that role runs. A function, where it depends on the host.
    fixed_by_role: Union[bool, Callable[[HostProbe], bool]] = False
