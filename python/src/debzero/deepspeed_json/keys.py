"""The keys of DeepSpeed's JSON and what each may hold: the pinned release's and those that releases up to 0.19 added.

A key maps to "bool", "whole", "number", "text", "list", "mapping" (not looked into) or "any", to a tuple of the texts
that it may be, or to the keys of its section. They are listed here rather than imported, so that a host without
DeepSpeed can check a file.
"""
from __future__ import annotations

from typing import Any

DTYPE = ("fp32", "fp16", "bf16", "float32", "float16", "bfloat16", "float", "half", "int8")
DEVICE = ("none", "cpu", "nvme")
MONITOR = {"enabled": "bool", "output_path": "text", "job_name": "text"}

OFFLOAD_PARAM: dict[str, Any] = {
    "device": DEVICE, "nvme_path": "text", "buffer_count": "whole", "buffer_size": "whole", "max_in_cpu": "whole",
    "pin_memory": "bool",
}
OFFLOAD_OPTIMIZER: dict[str, Any] = {
    "device": DEVICE, "nvme_path": "text", "buffer_count": "whole", "pin_memory": "bool", "pipeline_read": "bool",
    "pipeline_write": "bool", "fast_init": "bool", "ratio": "number", "super_offload": "bool",
    "cpuadam_cores_perc": "number",
}
ZERO: dict[str, Any] = {
    "stage": "whole", "contiguous_gradients": "bool", "reduce_scatter": "bool", "reduce_bucket_size": "whole",
    "use_multi_rank_bucket_allreduce": "bool", "allgather_partitions": "bool", "allgather_bucket_size": "whole",
    "overlap_comm": "bool", "load_from_fp32_weights": "bool", "elastic_checkpoint": "bool",
    "offload_param": OFFLOAD_PARAM, "offload_optimizer": OFFLOAD_OPTIMIZER, "sub_group_size": "whole",
    "cpu_offload_param": "bool", "cpu_offload_use_pin_memory": "bool", "cpu_offload": "bool",
    "stage3_prefetch_bucket_size": "whole", "stage3_param_persistence_threshold": "whole",
    "stage3_model_persistence_threshold": "whole", "stage3_max_live_parameters": "whole",
    "stage3_max_reuse_distance": "whole", "stage3_gather_16bit_weights_on_model_save": "bool",
    "stage3_use_all_reduce_for_fetch_params": "bool", "stage3_gather_fp16_weights_on_model_save": "bool",
    "ignore_unused_parameters": "bool", "legacy_stage1": "bool", "round_robin_gradients": "bool",
    "zero_hpz_partition_size": "whole", "zero_quantized_weights": "bool",
    "zero_quantized_nontrainable_weights": "bool", "zero_quantized_gradients": "bool", "mics_shard_size": "whole",
    "mics_hierarchical_params_gather": "bool", "memory_efficient_linear": "bool",
    "pipeline_loading_checkpoint": "bool", "override_module_apply": "bool", "zenflow": "mapping",
    "stage3_module_granularity_threshold": "whole", "stage3_allgather_sequential": "bool",
    "zeropp_loco_param": "mapping", "log_trace_cache_warnings": "bool", "enable_sanity_checks": "bool",
    "save_muon_momentum_buffer_in_memory": "bool", "leaf_module": "mapping",
}
FP16: dict[str, Any] = {
    "enabled": "bool", "auto_cast": "bool", "loss_scale": "number", "initial_scale_power": "whole",
    "loss_scale_window": "number", "hysteresis": "whole", "consecutive_hysteresis": "bool", "min_loss_scale": "number",
    "fp16_master_weights_and_grads": "bool",
}
BF16: dict[str, Any] = {
    "enabled": "bool", "immediate_grad_update": "bool", "check_grad_overflow": "bool",
    "bf16_master_weights_and_grads": "bool", "bf16_optimizer_states": "bool",
}
AIO: dict[str, Any] = {
    "block_size": "whole", "queue_depth": "whole", "thread_count": "whole", "intra_op_parallelism": "whole",
    "single_submit": "bool", "overlap_events": "bool", "use_gds": "bool",
}
# What releases after 0.15.4 added; an older DeepSpeed refuses these within zero_optimization.
NEWER = {"zenflow", "stage3_module_granularity_threshold", "stage3_allgather_sequential", "zeropp_loco_param",
         "log_trace_cache_warnings", "enable_sanity_checks", "save_muon_momentum_buffer_in_memory", "leaf_module",
         "super_offload", "cpuadam_cores_perc", "check_grad_overflow", "bf16_master_weights_and_grads",
         "bf16_optimizer_states", "intra_op_parallelism"}
OLDER = {"thread_count"}  # intra_op_parallelism took its place

CONFIG: dict[str, Any] = {
    "train_batch_size": "whole", "train_micro_batch_size_per_gpu": "whole", "gradient_accumulation_steps": "whole",
    "managed_gradient_accumulation": "bool",
    "optimizer": {"type": "text", "params": "mapping", "legacy_fusion": "bool"},
    "scheduler": {"type": "text", "params": "mapping"}, "zero_optimization": ZERO, "fp16": FP16, "bf16": BF16,
    "bfloat16": BF16, "aio": AIO, "amp": "mapping", "torch_autocast": "mapping", "gradient_clipping": "number",
    "steps_per_print": "whole", "zero_allow_untested_optimizer": "bool", "zero_force_ds_cpu_optimizer": "bool",
    "sparse_gradients": "bool", "communication_data_type": DTYPE, "seq_parallel_comm_data_type": DTYPE,
    "seq_parallel_communication_data_type": DTYPE, "prescale_gradients": "bool", "gradient_predivide_factor": "number",
    "gradient_allreduce_op": ("mean", "sum"), "disable_allgather": "bool", "dump_state": "bool",
    "wall_clock_breakdown": "bool", "memory_breakdown": "bool", "dataloader_drop_last": "bool",
    "graph_harvesting": "bool", "use_data_before_expert_parallelism": "bool",
    "checkpoint": {"tag_validation": "text", "load_universal": "bool", "use_node_local_storage": "bool",
                   "parallel_write": "mapping", "writer": "mapping"},
    "data_types": {"grad_accum_dtype": DTYPE, "param_dtype": DTYPE, "buffer_dtype": DTYPE},
    "activation_checkpointing": {"partition_activations": "bool", "number_checkpoints": "any",
                                 "contiguous_memory_optimization": "bool", "synchronize_checkpoint_boundary": "bool",
                                 "profile": "bool", "cpu_checkpointing": "bool"},
    "flops_profiler": {"enabled": "bool", "recompute_fwd_factor": "number", "profile_step": "whole",
                       "module_depth": "whole", "top_modules": "whole", "detailed": "bool", "output_file": "any"},
    "comms_logger": {"enabled": "bool", "prof_all": "bool", "prof_ops": "list", "verbose": "bool", "debug": "bool"},
    "tensorboard": MONITOR, "csv_monitor": MONITOR, "wandb": "mapping", "comet": "mapping", "pipeline": "mapping",
    "hybrid_engine": "mapping", "timers": "mapping", "compile": "mapping", "tensor_parallel": "mapping",
    "eigenvalue": "mapping", "progressive_layer_drop": "mapping", "sparse_attention": "mapping",
    "elasticity": "mapping", "autotuning": "mapping", "curriculum_learning": "mapping", "data_efficiency": "mapping",
    "quantize_training": "mapping", "compression_training": "mapping", "weight_quantization": "mapping",
    "nebula": "mapping", "vocabulary_size": "whole", "log_level": "text", "expert_parallel": "mapping",
    "sequence_parallel_size": "whole",
}
# Sections that DeepSpeed validates: an unknown key there stops the start. Elsewhere it is silently ignored.
STRICT = {"zero_optimization", "zero_optimization.offload_param", "zero_optimization.offload_optimizer", "comms_logger",
          "tensorboard", "csv_monitor"}
NULLABLE = {"train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps",
            "communication_data_type", "aio", "data_types.grad_accum_dtype", "zero_optimization.offload_param",
            "zero_optimization.offload_optimizer", "zero_optimization.overlap_comm",
            "zero_optimization.offload_param.nvme_path", "zero_optimization.offload_optimizer.nvme_path",
            "zero_optimization.zenflow", "zero_optimization.zeropp_loco_param"}
# Keys also read without their prefix.
UNPREFIXED = {key[len("stage3_"):] for key in ZERO if key.startswith("stage3_")} - {"gather_fp16_weights_on_model_save"}

# Where "auto" stands for a value of the job or the model: resolve/deepspeed_config fills these in.
AUTO = {"train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping", "lr",
        "betas", "eps", "weight_decay", "warmup_min_lr", "warmup_max_lr", "warmup_num_steps", "total_num_steps",
        "reduce_bucket_size", "stage3_prefetch_bucket_size", "stage3_param_persistence_threshold", "fp16.enabled",
        "bf16.enabled", "zero_optimization.stage", "stage3_max_live_parameters"}

# Read in any case of letters; the first four are those that ZeRO was tested with.
OPTIMIZERS = ("Adam", "AdamW", "Adagrad", "Lion", "Lamb", "OneBitAdam", "ZeroOneAdam", "OneBitLamb", "MuAdam",
              "MuAdamW", "MuSGD", "Muon")
TESTED, ONE_BIT = {"adam", "adamw", "adagrad", "lion"}, {"onebitadam", "zerooneadam", "onebitlamb"}
TORCH_OPTIMIZERS = ("SGD", "ASGD", "Adadelta", "Adamax", "NAdam", "RAdam", "RMSprop", "Rprop", "LBFGS", "SparseAdam",
                    "Adafactor")
OPTIMIZER_PARAMS = {"lr": "number", "betas": "list", "eps": "number", "weight_decay": "number", "torch_adam": "bool",
                    "adam_w_mode": "bool", "bias_correction": "bool", "momentum": "number", "freeze_step": "whole"}

WARMUP = {"warmup_min_lr": "number", "warmup_max_lr": "number", "warmup_num_steps": "whole",
          "warmup_type": ("log", "linear"), "last_batch_iteration": "whole"}
# What each learning-rate schedule takes, and what it cannot do without.
SCHEDULERS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "WarmupLR": (WARMUP, ()),
    "WarmupDecayLR": ({**WARMUP, "total_num_steps": "whole"}, ("total_num_steps",)),
    "WarmupCosineLR": ({"total_num_steps": "whole", "warmup_min_ratio": "number", "warmup_num_steps": "whole",
                        "cos_min_ratio": "number", "warmup_type": ("log", "linear"), "last_batch_iteration": "whole"},
                        ("total_num_steps",)),
    "LRRangeTest": ({"lr_range_test_min_lr": "any", "lr_range_test_step_size": "whole",
                     "lr_range_test_step_rate": "number", "lr_range_test_staircase": "bool",
                     "last_batch_iteration": "whole"}, ()),
    "OneCycle": ({"cycle_min_lr": "any", "cycle_max_lr": "any", "decay_lr_rate": "number",
                  "cycle_first_step_size": "whole", "cycle_second_step_size": "whole",
                  "cycle_first_stair_count": "whole", "cycle_second_stair_count": "whole", "decay_step_size": "whole",
                  "cycle_momentum": "bool", "cycle_min_mom": "number", "cycle_max_mom": "number",
                  "decay_mom_rate": "number", "last_batch_iteration": "whole"}, ("cycle_min_lr", "cycle_max_lr")),
}
