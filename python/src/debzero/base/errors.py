"""What a user can mend is said in one sentence with its fix, never as a traceback."""
from __future__ import annotations

import errno
import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal, Optional


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a job: where it is, why it cannot work, and what to do. `code` names the rule, where one found it;
    a warning is a job that runs, but hardly as meant."""

    file: str
    key: str
    reason: str
    fix: str
    code: str = ""
    severity: Literal["error", "warning"] = "error"

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


def as_text(problems: list[Problem]) -> str:
    """All problems as aligned text for people, file by file."""
    lines: list[str] = []
    for file in dict.fromkeys(p.file for p in problems):
        mine = [p for p in problems if p.file == file]
        counts = {word: sum(p.severity == kind for p in mine) for word, kind in (("problem", "error"),
                                                                                 ("warning", "warning"))}
        said = [f"{count} {word}{'s' if count > 1 else ''}" for word, count in counts.items() if count]
        lines.append(f"{file}: {', '.join(said)}")
        width = max(len(p.key) for p in mine) + 2
        for p in mine:
            pad = " " * (width + 2)
            label = " ".join(filter(None, [p.code, "warning" if p.severity == "warning" else ""]))
            reason = f"{label}: {p.reason}" if label else p.reason
            lines += textwrap.wrap(f"  {p.key:<{width}}{reason}", 116, subsequent_indent=pad, break_long_words=False)
            lines += textwrap.wrap(f"{pad}-> {p.fix}", 116, subsequent_indent=pad + "   ", break_long_words=False)
    return "\n".join(lines)


def unsaid(found: list[Problem], said: list[Problem]) -> list[Problem]:
    """Those of `found` that are about other keys, and no part of a key, than the problems `said` before."""
    keys = {p.key for p in said}
    return [p for p in found if p.key not in keys and p.key.split(".")[0] not in keys]


class InputError(Exception):
    """A job that cannot run as written, with all its problems. Exit code 2: trying again does not help. `changes`: what was mended
    all the same."""

    changes: Sequence[str] = ()

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("; ".join(f"{p.key}: {p.reason}" for p in problems))
        self.problems = problems

    def __reduce__(self) -> tuple[type, tuple[list[Problem]]]:  # it travels between ranks
        return InputError, (self.problems,)

    def text(self) -> str:
        return as_text(self.problems)


class UserError(Exception):
    """Something outside the code stopped the run (disk, network, memory, data): a reason and a fix. Exit code 1."""

    def __init__(self, reason: str, fix: str) -> None:
        super().__init__(f"{reason}\n  -> {fix}")
        self.reason, self.fix = reason, fix

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.reason, self.fix)


class OutOfMemory(UserError):  # noqa: N818 - as torch names it
    """A rank could not have the memory that it asked for."""


def full(error: BaseException, folder: str) -> Optional[UserError]:
    """The sentence for a full disk or quota, in whose words ever it is told."""
    text = f"{type(error).__name__}: {error}"
    codes = {getattr(e, "errno", None) for e in (error, error.__cause__, error.__context__)}
    # torch.save and safetensors report a full disk in their own words, and torch.save not even as an OSError.
    if codes & {errno.ENOSPC, errno.EDQUOT, errno.EFBIG} or any(words in text for words in (
            "No space left", "File too large", "PytorchStreamWriter", "inline_container")):
        free = shutil.disk_usage(folder).free / 2**20
        return UserError(
            f"the disk that holds {folder} is full ({free:.0f} MiB free); what was half-written has been removed",
            "make room there, or set `output:` to a folder on a larger disk, then start the job again: "
            "it goes on from its newest checkpoint",
        )
    return None


def explain(error: BaseException, folder: str) -> Optional[UserError]:
    """The sentence for errors that libraries raise in many shapes, or None for a defect (which keeps its traceback)."""
    if isinstance(error, UserError):
        return error
    text = f"{type(error).__name__}: {error}"
    if later := full(error, folder):
        return later
    if isinstance(error, PermissionError):
        return UserError(f"no permission: {error}",
                         "give the user that runs the job access, or change the path in the job")
    if isinstance(error, MemoryError) or any(words in text for words in (
            "out of memory", "DefaultCPUAllocator: can't allocate memory", "std::bad_alloc")):
        return OutOfMemory(
            f"out of memory: {str(error).splitlines()[0][:160]}",
            "set a smaller train.micro_batch (the global batch stays), a higher zero.stage or zero.offload_optimizer: "
            "cpu",
        )
    hub = ("couldn't connect to", "LocalEntryNotFound", "OfflineMode", "Max retries exceeded", "ConnectionError",
           "Couldn't reach", "Temporary failure in name resolution", "offline mode", "ConnectTimeout", "ProxyError")
    if any(words in text for words in hub):
        return UserError(
            f"the model hub cannot be reached from this host: {str(error).splitlines()[0][:200]}",
            "check the network or proxy (HTTPS_PROXY in /etc/default/debzero), or give a local folder for `model:` "
            "and a local file for `data.dataset:`",
        )
    if "DatasetNotFoundError" in text or "RepositoryNotFound" in text or "is not a valid model identifier" in text:
        return UserError(
            f"the hub does not know it: {str(error).splitlines()[0][:200]}",
            "check the spelling of `model:` and `data.dataset:`; a private one needs HF_TOKEN",
        )
    return None
