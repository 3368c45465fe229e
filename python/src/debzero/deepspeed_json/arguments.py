"""What DeepSpeed's and torch's optimizers and learning-rate schedules take: the `params` of the JSON's sections."""
from __future__ import annotations

from typing import Any

# Read in any case of letters; the first four are those that ZeRO was tested with.
OPTIMIZERS = ("Adam", "AdamW", "Adagrad", "Lion", "Lamb", "OneBitAdam", "ZeroOneAdam", "OneBitLamb", "MuAdam",
              "MuAdamW", "MuSGD", "Muon")
TESTED, ONE_BIT = {"adam", "adamw", "adagrad", "lion"}, {"onebitadam", "zerooneadam", "onebitlamb"}
# Names of classes in DeepSpeed's code, which a configuration does not take, and what it takes.
CLASSES = {"fusedadam": "AdamW", "deepspeedcpuadam": "AdamW", "cpuadam": "AdamW", "fusedlamb": "Lamb",
           "fusedlion": "Lion", "deepspeedcpulion": "Lion", "deepspeedcpuadagrad": "Adagrad", "adamw_torch": "AdamW",
           "adamw_hf": "AdamW", "adamw_torch_fused": "AdamW", "onebitadamw": "OneBitAdam", "1bitadam": "OneBitAdam"}
# Packages without which DeepSpeed stops at the optimizer's import. The 1-bit ones' depends on comm_backend_name.
PACKAGES = {"muadam": "mup", "muadamw": "mup", "musgd": "mup"}
BACKENDS = {"nccl": "cupy", "mpi": "mpi4py"}
MUON = (0, 17, 6)      # the first release of DeepSpeed that has Muon
ADAFACTOR = (2, 5)     # the first release of torch that has Adafactor
TORCH_OPTIMIZERS = ("SGD", "ASGD", "Adadelta", "Adamax", "NAdam", "RAdam", "RMSprop", "Rprop", "LBFGS", "SparseAdam",
                    "Adafactor")
OPTIMIZER_PARAMS = {"lr": "number", "betas": "list", "eps": "number", "weight_decay": "number", "torch_adam": "bool",
                    "adam_w_mode": "bool", "bias_correction": "bool", "momentum": "number", "freeze_step": "whole"}
# What any class takes that an optimizer may come to: for GPUs, for processors, and torch's own.
OF_TORCH = {"lr", "eps", "weight_decay", "foreach", "maximize", "differentiable", "capturable", "fused", "amsgrad"}
OF_ADAM = OF_TORCH | {"betas", "bias_correction", "torch_adam", "adam_w_mode", "set_grad_none", "fp32_optimizer_states"}
TAKES = {
    "adam": OF_ADAM, "adamw": OF_ADAM,
    "adagrad": OF_TORCH | {"lr_decay", "initial_accumulator_value", "fp32_optimizer_states"},
    "lion": {"lr", "betas", "weight_decay", "set_grad_none", "fp32_optimizer_states"},
    "lamb": {"lr", "betas", "eps", "weight_decay", "bias_correction", "eps_inside_sqrt", "max_coeff", "min_coeff",
             "amsgrad"},
    "sgd": OF_TORCH - {"eps", "amsgrad"} | {"momentum", "dampening", "nesterov"},
}

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
