"""The rules of offload. They judge the settings that hold: a job's `zero:` section, overruled by DeepSpeed's JSON.

So they serve a job with or without a JSON, and a JSON alone; each names the key where the value stands.
"""
from __future__ import annotations

from collections.abc import Iterator

from debzero.deepspeed_json.view import ZERO, ConfigView, Violation, removal


def _here(view: ConfigView) -> str:
    stage = "none" if view.stage == 0 and view.stage_key == "zero.stage" else view.stage
    return f"the stage here is {stage}"


def offload_param(view: ConfigView) -> Iterator[Violation]:
    offload = view.offload("offload_param")
    if offload.device and view.below(3):
        yield Violation("DZ110", offload.path,
                        f"needs ZeRO stage 3 ({_here(view)}): below it every rank keeps all parameters on its GPU, and "
                        "DeepSpeed silently ignores this", f"remove it, or set {view.stage_key}: 3 to have it",
                        removal(*offload.path), in_job=offload.in_job)


def offload_optimizer(view: ConfigView) -> Iterator[Violation]:
    offload = view.offload("offload_optimizer")
    if offload.device and view.below(1):
        yield Violation("DZ113", offload.path, f"needs ZeRO stage 1, 2 or 3 ({_here(view)})",
                        f"set {view.stage_key}: 2, or remove it", in_job=offload.in_job)
    elif offload.device == "nvme" and view.below(3):
        path = offload.path if offload.in_job else (*offload.path, "device")
        cpu = "offload_optimizer: cpu" if offload.in_job else "device: cpu"
        yield Violation("DZ111", path, f"nvme needs ZeRO stage 3 ({_here(view)})",
                        f"set {cpu}, or {view.stage_key}: 3", in_job=offload.in_job)
    ratio = view.number(ZERO, "offload_optimizer", "ratio")
    if view.below(3) and ratio is not None and 0 <= ratio < 1:
        yield Violation("DZ114", (ZERO, "offload_optimizer", "ratio"),
                        f"needs ZeRO stage 3 ({_here(view)}); below it all is offloaded",
                        f"remove it, or set {view.stage_key}: 3", removal(ZERO, "offload_optimizer", "ratio"))


def nvme_path(view: ConfigView) -> Iterator[Violation]:
    """In a job, its own zero.nvme_path serves every part; without a job each part of the JSON needs its own."""
    offloads = {part: view.offload(part) for part in ("offload_param", "offload_optimizer")}
    on_nvme = {part: offload.in_job for part, offload in offloads.items() if offload.device == "nvme"}
    if view.job is not None and view.job.zero.nvme_path:
        return
    paths = {part: view.get(ZERO, part, "nvme_path") for part in offloads}
    lacking = [part for part, in_job in on_nvme.items() if not in_job and not paths[part]]
    for part in lacking:
        yield Violation("DZ112", (ZERO, part, "nvme_path"), "is missing, and device is nvme",
                        "set it to a folder on a local NVMe disk")
    if any(on_nvme.values()) and not any(paths.values()) and not lacking:
        yield Violation("DZ112", ("zero", "nvme_path"), "is missing, and parts are offloaded to nvme",
                        "set it to a folder on a local NVMe disk, for example `nvme_path: /nvme/swap`", in_job=True)


RULES = (offload_param, nvme_path, offload_optimizer)
