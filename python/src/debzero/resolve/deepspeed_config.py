"""DeepSpeed's JSON for a resolved job; the user's own values win. The one place where ZeRO options are set."""
from __future__ import annotations

from typing import Any, Optional

from debzero.deepspeed_json.keys import without_notes
from debzero.resolve import buffers
from debzero.resolve.resolve import ResolvedJob

BETAS, EPS = [0.9, 0.999], 1e-8
TORCHS = {"lr", "betas", "eps", "weight_decay", "amsgrad"}  # what torch's Adam takes as DeepSpeed's does
# A first loss scale of 2^16, DeepSpeed's and torch's default, wastes the first steps of a short fine-tuning on
# overflows.
LOSS_SCALE_POWER = 12
SWAP_BUFFER = 200_000_000  # elements: holds the embeddings of every model here, GPT-2's 51 M and T5's too
LIVE = 24  # times hidden^2: the weights of two Transformer layers (4 hidden^2 of attention and 8 of feed-forward each)
# elements a reduction sends at once: 100 MB in fp16, where DeepSpeed's default takes 1 GB of the GPU
BUCKET = 50_000_000
# What `zero.favour: speed` sets, in elements. With these, prototypes of BERT-Large on two H200s were 1.8 times as fast
# at ZeRO-2 and, with leaf modules, 2.5 times at ZeRO-3; in debzero the two were not compared yet.
FAST_BUCKET = 100_000_000
FAST_STAGE3 = {"stage3_prefetch_bucket_size": 50_000_000, "stage3_param_persistence_threshold": 110_000,
               "stage3_max_live_parameters": 1_000_000_000}
FAST_REUSE = 1_000_000_000


def generate(resolved: ResolvedJob, hidden: int, steps: int, swap: str = "",
             aio: Optional[dict[str, Any]] = None) -> dict[str, Any]:
    """The whole configuration. `hidden`: the model's hidden size; `steps`: optimizer steps in total; `swap`: the run's
    own folder for NVMe offload, with the `aio` settings measured there."""
    ours = _ours(resolved, swap)
    if aio:
        ours["aio"] = aio
    theirs = {key: value for key, value in without_notes(resolved.deepspeed or {}).items()
              if value != "auto" or not isinstance(ours.get(key), dict)}  # a whole section is left to debzero
    if "optimizer" in theirs:
        own = ours.pop("optimizer")["params"]  # another type takes other parameters
        if "torch_adam" in own:
            theirs["optimizer"] = _of_torch(theirs["optimizer"])
    merged = _merge(ours, theirs)
    for part in ("offload_optimizer", "offload_param"):
        offload = merged["zero_optimization"].get(part) or {}
        if swap and offload.get("device") == "nvme":
            offload["nvme_path"] = swap  # also over the JSON's own: DeepSpeed empties the folder that it is given
    return _without_auto(merged, _autos(resolved, hidden, steps))


def _of_torch(optimizer: Any) -> Any:
    """Adam as torch has it, which is the same, where nothing is set that only DeepSpeed's has."""
    kind, params = (optimizer.get("type"), optimizer.get("params", {})) if isinstance(optimizer, dict) else (None, None)
    if str(kind).lower() not in ("adam", "adamw") or not isinstance(params, dict) or {*params} - TORCHS:
        return optimizer
    return {**optimizer, "params": {**params, "torch_adam": True}}


def _ours(resolved: ResolvedJob, swap: str) -> dict[str, Any]:
    """What debzero sets, "auto" values among it."""
    train, zero = resolved.job.train, resolved.job.zero
    optimizer: dict[str, Any] = {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}
    if not resolved.host.gpus and zero.offload_optimizer == "none":
        # DeepSpeed's fused one would be compiled at the first start, and is not faster here
        optimizer["torch_adam"] = True
    fast = resolved.favours_speed
    sharding: dict[str, Any] = {"stage": resolved.stage}
    if resolved.stage:
        bucket = FAST_BUCKET if fast else BUCKET
        sharding.update(overlap_comm=_overlaps(resolved), contiguous_gradients=True, reduce_bucket_size=bucket,
                        allgather_bucket_size=bucket)
    if resolved.stage == 3:
        sharding.update(reduce_bucket_size="auto", stage3_prefetch_bucket_size="auto",
                        stage3_param_persistence_threshold="auto",
                        # By default every gathered layer stays until the backward pass, where the model has under 1e9
                        # parameters: for its next use is near enough, and as prefetching runs ahead until so many are
                        # there.
                        stage3_max_reuse_distance=FAST_REUSE if fast else 0,
                        stage3_max_live_parameters="auto",
                        stage3_gather_16bit_weights_on_model_save=True)
    sharding.update({option: value for option, value in buffers.sizes(zero).items() if option != "overlap_comm"})
    for part, device in (("offload_optimizer", zero.offload_optimizer), ("offload_param", zero.offload_param)):
        if device != "none":
            sharding[part] = {"device": device, "pin_memory": resolved.host.gpus > 0}
        if device == "nvme":
            sharding[part]["nvme_path"] = swap
            # Buffers hold whole tensors; the largest of a Transformer is its embedding.
            sharding[part].update({"buffer_count": 5, "buffer_size": SWAP_BUFFER} if part == "offload_param"
                                  else {"buffer_count": 4})
    return {
        "train_batch_size": resolved.batch.total,
        "train_micro_batch_size_per_gpu": resolved.batch.micro,
        "gradient_accumulation_steps": resolved.batch.accumulation,
        "gradient_clipping": train.gradient_clipping,
        "steps_per_print": 2**31,  # the progress lines are debzero's
        "optimizer": {"type": "AdamW", "params": optimizer},
        "zero_optimization": sharding,
        "fp16": {"enabled": resolved.precision == "fp16", "initial_scale_power": LOSS_SCALE_POWER},
        "bf16": {"enabled": resolved.precision == "bf16"},
    }


def _overlaps(resolved: ResolvedJob) -> bool:
    """Overlapping hangs when two ranks share a GPU (one stream waits for the other's kernel), and needs streams at
    all."""
    possible = resolved.host.gpus > 0 and not resolved.shares_gpus and resolved.job.zero.overlap is not False
    return possible and not buffers.overlap_fault(resolved.job, resolved.stage)


def _autos(resolved: ResolvedJob, hidden: int, steps: int) -> dict[str, Any]:
    """What "auto" stands for, key by key: transformers' convention."""
    train = resolved.job.train
    sizes = {"reduce_bucket_size": hidden * hidden, "stage3_prefetch_bucket_size": int(0.9 * hidden * hidden),
             "stage3_param_persistence_threshold": 10 * hidden, "stage3_max_live_parameters": LIVE * hidden * hidden}
    if resolved.favours_speed:
        sizes = {"reduce_bucket_size": FAST_BUCKET, **FAST_STAGE3}
    return {
        "train_batch_size": resolved.batch.total, "train_micro_batch_size_per_gpu": resolved.batch.micro,
        "gradient_accumulation_steps": resolved.batch.accumulation, "gradient_clipping": train.gradient_clipping,
        "lr": train.learning_rate, "betas": BETAS, "eps": EPS, "weight_decay": train.weight_decay,
        "warmup_min_lr": 0, "warmup_max_lr": train.learning_rate, "warmup_num_steps": round(train.warmup * steps),
        "total_num_steps": steps, **sizes, **buffers.sizes(resolved.job.zero),
        "fp16.enabled": resolved.precision == "fp16", "bf16.enabled": resolved.precision == "bf16",
        "zero_optimization.stage": resolved.stage,
    }


def _without_auto(values: dict[str, Any], autos: dict[str, Any], section: str = "") -> dict[str, Any]:
    """`values` with each "auto" replaced. One without a meaning here is left out, so that DeepSpeed's default holds."""
    filled: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            filled[key] = _without_auto(value, autos, key)
        elif value != "auto":
            filled[key] = value
        elif f"{section}.{key}" in autos or key in autos:
            filled[key] = autos.get(f"{section}.{key}", autos.get(key))
    return filled


def _merge(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    merged = dict(ours)
    for key, value in theirs.items():
        inner = merged.get(key)
        merged[key] = _merge(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return merged
