"""The linter's codes: what each means, with a configuration that has the fault and the same one corrected.

docs/reference/codes.md is generated from here, and the tests run every example through the rules. Codes are stable:
never reuse or renumber one.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Optional

from debzero.deepspeed_json.releases import Releases


@dataclass(frozen=True)
class Code:
    """`example` is JSON text with this fault alone, `fixed` the same corrected. `severity`: of most of its findings.
    `releases`: those that the example needs, if not the pinned ones."""

    code: str
    title: str
    explanation: str
    example: str
    fixed: str
    severity: Literal["error", "warning"] = "error"
    releases: Optional[Releases] = None


_CODES = (
    Code("DZ101", "a key that DeepSpeed does not know",
         "DeepSpeed silently ignores most unknown keys, so a misspelled setting has no effect. In "
         "zero_optimization and a few other sections it refuses them. An unknown key that resembles no "
         "known one is only a warning, and one that begins with an underscore, such as `_comment`, is a note.",
         '{"train_batchsize": 64}', '{"train_batch_size": 64}'),
    Code("DZ102", "a value of the wrong type",
         "A number in quotes is text. In YAML so is 5e8: write 5.0e+8. --fix removes such quotes.",
         '{"gradient_clipping": "1.0"}', '{"gradient_clipping": 1.0}'),
    Code("DZ103", '"auto" where nothing fills it in',
         'debzero replaces "auto" where a value follows from the job or the model. It leaves other keys '
         'with "auto" out, so that DeepSpeed\'s default holds; DeepSpeed alone would refuse the file.',
         '{"wall_clock_breakdown": "auto"}', '{}', "warning"),
    Code("DZ104", "a key that later releases renamed or dropped",
         "The pinned DeepSpeed still takes it; later releases do not. cpu_offload_params, which DeepSpeed "
         "refuses, is an error.",
         '{"zero_optimization": {"stage": 2, "cpu_offload": true}}',
         '{"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}', "warning"),
    Code("DZ105", "a repeated key",
         "DeepSpeed refuses a file that has the same key twice in one object. --fix does not choose "
         "between them.",
         '{"steps_per_print": 5, "steps_per_print": 50}', '{"steps_per_print": 50}'),
    Code("DZ106", "a number out of range",
         "The bounds are DeepSpeed's own, or those of its code: a reduce_bucket_size of 0 passes its validation and "
         "then divides by zero. ZeRO has stages 0 to 3.",
         '{"zero_optimization": {"stage": 4}}', '{"zero_optimization": {"stage": 2}}'),
    Code("DZ107", "a key of another release",
         "The installed DeepSpeed does not know a key that later ones have, or earlier ones had. It silently ignores "
         "it, or refuses it where it validates the section: then the finding is an error.",
         '{"torch_autocast": {"enabled": true}}', '{}', "warning"),
    Code("DZ108", "a setting without effect here",
         "DeepSpeed reads it, but it is for something that a training with debzero does not have, such as "
         "DeepSpeed's own data loader. What is switched off is no finding.",
         '{"activation_checkpointing": {"partition_activations": true}}', '{}', "warning"),
    Code("DZ109", "a setting that debzero cannot drive",
         "DeepSpeed would act on it, and the training would stop or be another than the job describes. What is "
         "switched off is no finding.",
         '{"progressive_layer_drop": {"enabled": true, "theta": 0.5}}', '{}'),
    Code("DZ110", "offload_param below stage 3",
         "Only stage 3 shards the parameters, so only there can they be offloaded. Below it every rank "
         "keeps all of them on its GPU: the expected memory is not saved.",
         '{"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}}',
         '{"zero_optimization": {"stage": 2}}'),
    Code("DZ111", "NVMe offload of the optimizer below stage 3",
         "DeepSpeed swaps optimizer states to NVMe in stage 3 only. Stages 1 and 2 can offload them to the "
         "host's memory.",
         '{"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "nvme", "nvme_path": "/nvme"}}}',
         '{"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}'),
    Code("DZ112", "NVMe offload without nvme_path",
         "DeepSpeed needs a folder on a local disk. In a job, zero.nvme_path serves both parts.",
         '{"zero_optimization": {"stage": 3, "stage3_gather_16bit_weights_on_model_save": true,\n'
         '  "offload_optimizer": {"device": "nvme"}}}',
         '{"zero_optimization": {"stage": 3, "stage3_gather_16bit_weights_on_model_save": true,\n'
         '  "offload_optimizer": {"device": "nvme", "nvme_path": "/nvme"}}}'),
    Code("DZ113", "offload_optimizer without ZeRO",
         "Stage 0 is plain data parallelism, where DeepSpeed offloads nothing.",
         '{"zero_optimization": {"stage": 0, "offload_optimizer": {"device": "cpu"}}}',
         '{"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}'),
    Code("DZ114", "a partial offload (ratio) below stage 3",
         "`ratio` is the share of the optimizer states that is offloaded. Stages 1 and 2 always offload "
         "all of them.",
         '{"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu", "ratio": 0.5}}}',
         '{"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}'),
    Code("DZ115", "a setting of stage 3 in a lower stage",
         "Lower stages ignore it.",
         '{"zero_optimization": {"stage": 2, "stage3_max_live_parameters": 1000000}}',
         '{"zero_optimization": {"stage": 2}}', "warning"),
    Code("DZ116", "stage 3 whose save_16bit_model writes nothing",
         "DeepSpeed's save_16bit_model then writes no weights. debzero gathers them itself and sets this "
         "key in its jobs.",
         '{"zero_optimization": {"stage": 3}}',
         '{"zero_optimization": {"stage": 3, "stage3_gather_16bit_weights_on_model_save": true}}', "warning"),
    Code("DZ117", "pipeline parallelism with stage 2 or 3",
         "DeepSpeed's pipeline engine works with ZeRO stage 0 or 1 only.",
         '{"zero_optimization": {"stage": 2}, "pipeline": {"stages": 2}}',
         '{"zero_optimization": {"stage": 2}}'),
    Code("DZ118", "overlapping communication between ranks that share a GPU",
         "With more ranks than GPUs, one rank's stream waits for another rank's kernel, and the training hangs. "
         "Reported for jobs only, on a host with GPUs: a JSON file alone does not say how many there are.",
         '{"zero_optimization": {"stage": 2, "overlap_comm": true}}', '{"zero_optimization": {"stage": 2}}'),
    Code("DZ119", "prescaled gradients with reduce_scatter",
         "In stages 2 and 3, DeepSpeed supports prescale_gradients and gradient_predivide_factor only without "
         "reduce_scatter, which is on by default. With it, DeepSpeed stops with an assertion.",
         '{"zero_optimization": {"stage": 2}, "prescale_gradients": true}', '{"zero_optimization": {"stage": 2}}'),
    Code("DZ120", "batch sizes that do not fit together",
         "train_batch_size = micro-batch x accumulation steps x ranks, exactly. DeepSpeed computes what is "
         "missing by rounding down, and then stops with an assertion.",
         '{"train_batch_size": 30, "train_micro_batch_size_per_gpu": 8}',
         '{"train_batch_size": 32, "train_micro_batch_size_per_gpu": 8}'),
    Code("DZ130", "fp16 and bf16 at once",
         "A training has one half-precision type: bf16 on GPUs since Ampere, fp16 on older ones.",
         '{"fp16": {"enabled": true}, "bf16": {"enabled": true}}', '{"bf16": {"enabled": true}}'),
    Code("DZ131", "an initial loss scale that wastes steps",
         "A scale of 2^16 (the default of DeepSpeed) overflows in the first steps, and each overflow skips "
         "a step until the scale is low enough. In a fine-tuning of a hundred steps that counts.",
         '{"fp16": {"enabled": true, "initial_scale_power": 16}}',
         '{"fp16": {"enabled": true, "initial_scale_power": 12}}', "warning"),
    Code("DZ132", "a fixed loss scale",
         "A loss scale other than 0 never adapts: steps that overflow are skipped to the end of the "
         "training.",
         '{"fp16": {"enabled": true, "loss_scale": 128}}', '{"fp16": {"enabled": true, "loss_scale": 0}}', "warning"),
    Code("DZ140", "max_grad_norm among the optimizer's parameters",
         "DeepSpeed clips gradients itself and refuses the optimizer's own setting.",
         '{"optimizer": {"type": "AdamW", "params": {"max_grad_norm": 1.0}}}',
         '{"optimizer": {"type": "AdamW", "params": {}}, "gradient_clipping": 1.0}'),
    Code("DZ141", "an unknown optimizer",
         "DeepSpeed's own optimizers may be written in upper or lower case, torch's only as torch names "
         "them.",
         '{"optimizer": {"type": "AdanW"}}', '{"optimizer": {"type": "AdamW"}}'),
    Code("DZ142", "an optimizer that ZeRO has not been tested with",
         "DeepSpeed refuses it unless zero_allow_untested_optimizer is true. The 1-bit optimizers never "
         "work with ZeRO, and Adagrad works with ZeRO when it is offloaded.",
         '{"zero_optimization": {"stage": 1}, "optimizer": {"type": "SGD"}}',
         '{"zero_optimization": {"stage": 1}, "optimizer": {"type": "SGD"},\n'
         ' "zero_allow_untested_optimizer": true}'),
    Code("DZ143", "an optimizer setting that is slow or has no effect with offload",
         "torch_adam runs torch's Adam on the CPU, which is several times slower than DeepSpeed's.",
         '{"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}},\n'
         ' "optimizer": {"type": "AdamW", "params": {"torch_adam": true}}}',
         '{"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}},\n'
         ' "optimizer": {"type": "AdamW", "params": {}}}', "warning"),
    Code("DZ144", "an unknown learning-rate schedule",
         "DeepSpeed has the schedules WarmupLR, WarmupDecayLR, WarmupCosineLR, LRRangeTest and OneCycle.",
         '{"scheduler": {"type": "WarmUpLR"}}', '{"scheduler": {"type": "WarmupLR"}}'),
    Code("DZ145", "a schedule's parameter that is missing or unknown",
         "Each schedule is a class whose arguments these are; DeepSpeed stops at a wrong one.",
         '{"scheduler": {"type": "WarmupDecayLR", "params": {"warmup_num_steps": 10}}}',
         '{"scheduler": {"type": "WarmupDecayLR", "params": {"warmup_num_steps": 10, "total_num_steps": "auto"}}}'),
    Code("DZ146", "a warm-up longer than the training",
         "The learning rate never reaches its peak.",
         '{"scheduler": {"type": "WarmupDecayLR", "params": {"warmup_num_steps": 500, "total_num_steps": 100}}}',
         '{"scheduler": {"type": "WarmupDecayLR", "params": {"warmup_num_steps": 10, "total_num_steps": 100}}}',
         "warning"),
    Code("DZ147", "an optimizer's parameter that is unknown",
         "Each optimizer is a class whose arguments these are; DeepSpeed stops at a wrong one.",
         '{"optimizer": {"type": "AdamW", "params": {"momentum": 0.9}}}',
         '{"optimizer": {"type": "AdamW", "params": {"betas": [0.9, 0.999]}}}'),
    Code("DZ150", "load_universal set by hand",
         "debzero neither writes nor reads universal checkpoints, which hold pickle. It reshards its own when the "
         "number of ranks has changed.",
         '{"checkpoint": {"load_universal": true}}', '{"checkpoint": {}}', "warning"),
    Code("DZ160", "a fault of the installed DeepSpeed",
         "It is found where the installed release has it, here 0.18.5: 0.18.5 and 0.18.6 are slow with ZeRO; before "
         "0.19.3 overlap_comm gives NaN with compiled layers at stages 1 and 2; pipelines hang in 0.18.3 and 0.18.4, "
         "and their gradients are wrong up to 0.19.2.",
         '{"zero_optimization": {"stage": 2}}', '{"zero_optimization": {"stage": 0}}', "warning",
         Releases("0.18.5", "2.6.0")),
)
CODES = {code.code: code for code in _CODES}
