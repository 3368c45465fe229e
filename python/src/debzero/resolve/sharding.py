"""What ZeRO shards and where it offloads to: one type, with one name for people and one for files."""
from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Union

if TYPE_CHECKING:  # a bench's results are also shown where pydantic is not installed
    from debzero.job.schema import Zero

DEVICES = {"cpu": "CPU", "nvme": "NVMe"}
# The keys of a job's `zero:` section that size DeepSpeed's buffers, and the first stage that has each.
BUFFERS = {"bucket": 1, "overlap": 1, "live": 3, "prefetch": 3}
SHARDED = ["optimizer states", "gradients", "parameters"]  # stage n shards the first n


@dataclass(frozen=True)
class Sharding:
    """`stage`: 0 (plain DDP) to 3. `offload_optimizer`, `offload_param`: none, cpu or nvme."""

    stage: int
    offload_optimizer: str = "none"
    offload_param: str = "none"

    @property
    def stage_word(self) -> Union[str, int]:
        """The stage as a job file writes it: none, 1, 2 or 3."""
        return self.stage or "none"

    @property
    def on_gpus(self) -> bool:
        """Whether nothing is offloaded."""
        return self.offload_optimizer == self.offload_param == "none"

    @property
    def may_be_native(self) -> bool:
        """Whether debzero's own engine can carry it out."""
        return self.stage > 0 and self.on_gpus

    @property
    def uses_nvme(self) -> bool:
        return "nvme" in (self.offload_optimizer, self.offload_param)

    @property
    def offload(self) -> str:
        """Where the optimizer's states are."""
        return self.offload_optimizer

    @property
    def name(self) -> str:
        """For files and scripts: baseline, zero2, zero2-cpu; zero3-cpu offloads the parameters too, zero3-cpu-none does
        not."""
        stage = f"zero{self.stage}" if self.stage else "baseline"
        if self.on_gpus:
            return stage
        whole = self.stage < 3 or self.offload_optimizer == self.offload_param
        name = f"{stage}-{self.offload_optimizer}"
        return name if whole else f"{name}-{self.offload_param}"

    @property
    def label(self) -> str:
        """For people: plain DDP, ZeRO-2, ZeRO-2 + CPU (its optimizer), ZeRO-3 + CPU (its parameters too), ZeRO-3 + CPU
        optim."""
        stage = f"ZeRO-{self.stage}" if self.stage else "plain DDP"
        optimizer, param = DEVICES.get(self.offload_optimizer), DEVICES.get(self.offload_param)
        if optimizer and (self.stage < 3 or optimizer == param):
            return f"{stage} + {optimizer}"
        parts = [f"{where} {what}" for where, what in ((optimizer, "optim"), (param, "params")) if where]
        return f"{stage} + {', '.join(parts)}" if parts else stage

    @property
    def about(self) -> str:
        """What is sharded and offloaded, in a sentence without its end."""
        if not self.stage:
            return "plain PyTorch, every rank holds everything"
        parts = SHARDED[: self.stage]
        text = "shards " + (parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1])
        if self.offload_optimizer == "none":
            return text
        moved = "optimizer states" + (" and parameters" if self.offload_param != "none" else "")
        return f"{text}; {moved} on the {'host' if self.offload_optimizer == 'cpu' else 'NVMe disk'}"

    def as_dict(self) -> dict[str, Any]:
        """As a job's `zero:` section has it."""
        return {**asdict(self), "stage": self.stage_word}

    def described(self) -> dict[str, Any]:
        """As a row of results.json has it."""
        return {"name": self.name, "label": self.label, "about": self.about, **self.as_dict()}

    def in_section(self, zero: Zero) -> Zero:
        """A job's `zero:` section with this in it, and without what only other stages have."""
        impossible = not (self.may_be_native if zero.engine == "native" else self.stage)
        without = dict.fromkeys(key for key, first in BUFFERS.items() if self.stage < first)
        return zero.model_copy(update={**self.as_dict(), **without, "engine": "auto" if impossible else zero.engine})


# What plan, tune and bench compare; each moves more data than the one before, between ranks or to the host or the disk.
# NVMe offload of only one of the two parts is left out: nobody needs it.
SHARDINGS = [Sharding(0), Sharding(1), Sharding(2), Sharding(3), Sharding(1, "cpu"), Sharding(2, "cpu"),
             Sharding(3, "cpu"), Sharding(3, "cpu", "cpu"), Sharding(3, "nvme", "cpu"), Sharding(3, "nvme", "nvme")]
