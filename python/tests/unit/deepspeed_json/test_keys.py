"""The table of keys is what the installed DeepSpeed reads: its configuration classes are asked."""
import inspect
import math
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from debzero.deepspeed_json import arguments, keys, releases

GROUP = {"any": {"params": {"start_bits": 8, "target_bits": 8, "bits": 8, "dense_ratio": 0.5}, "modules": ["x"]}}
TECHNIQUES = ("weight_quantization", "activation_quantization", "sparse_pruning", "row_pruning", "head_pruning",
              "channel_pruning")
# Everything that makes DeepSpeed look further.
EVERYTHING: dict[str, Any] = {
    "train_batch_size": 8, "optimizer": {"type": "AdamW", "params": {}},
    "scheduler": {"type": "WarmupLR", "params": {}},
    "fp16": {"enabled": True, "hysteresis": 2}, "amp": {"enabled": False}, "zero_optimization": True, "aio": {},
    "progressive_layer_drop": {"enabled": False}, "curriculum_learning": {"enabled": False}, "timers": {}, "nebula": {},
    "activation_checkpointing": {}, "flops_profiler": {}, "autotuning": {"model_info": {"profile": False}},
    "checkpoint": {"parallel_write": {}}, "data_types": {}, "pipeline": {}, "hybrid_engine": {},
    "data_efficiency": {
        "data_sampling": {"curriculum_learning": {"enabled": True, "curriculum_metrics": {}}},
        "data_routing": {"random_ltd": {"enabled": True}}},
    "elasticity": {"enabled": True, "max_train_batch_size": 8, "micro_batch_sizes": [8],
                   "ignore_non_elastic_batch_info": True},
    "compression_training": {
        "layer_reduction": {"enabled": True},
        **{name: {"shared_parameters": {"enabled": True, "fp16_mixed_quantize": {}, "method": "topk", "num_heads": 2},
                  "different_groups": GROUP} for name in TECHNIQUES}}}
EVERYTHING["compression_training"]["sparse_pruning"]["shared_parameters"]["method"] = "snip_momentum"


class Recorder(dict):
    """A configuration that remembers each path it was asked for."""

    def __init__(self, values: Any, asked: set, path: tuple = ()) -> None:
        super().__init__({key: Recorder(value, asked, (*path, key)) if isinstance(value, dict) else value
                          for key, value in values.items()})
        self.asked, self.path = asked, path

    def __contains__(self, key: object) -> bool:
        self.asked.add((*self.path, key))
        return super().__contains__(key)

    def __getitem__(self, key: object) -> Any:
        return super().__getitem__(key) if key in self else {}[key]

    def get(self, key: object, default: Any = None) -> Any:
        return super().__getitem__(key) if key in self else default

    def keys(self) -> Any:
        return self

    def __copy__(self) -> "Recorder":
        return Recorder(self, self.asked, self.path)

    copy = __copy__


def read_by_deepspeed() -> tuple[set, Any]:
    """Every path that DeepSpeed's configuration asks for, and the configuration of {}."""
    from deepspeed.runtime.config import DeepSpeedConfig

    asked: set = set()
    DeepSpeedConfig(Recorder(EVERYTHING, asked))
    for mode in ("fixed", "variable", "bigbird", "bslongformer"):
        DeepSpeedConfig(Recorder({"train_batch_size": 8, "sparse_attention": {"mode": mode}, "zero_optimization": {},
                                  "bfloat16": {}, "fp16": {}}, asked))
    config = DeepSpeedConfig(Recorder({"train_batch_size": 8, "bf16": {"enabled": True}, "comms_logger": {},
                                       "weight_quantization": {}}, asked))
    return asked, config


def models(model: type, path: tuple) -> Iterator[tuple[tuple, Any]]:
    """(section, model) of a class of DeepSpeed's configuration and of all classes within it."""
    yield path, model
    for name, field in model.model_fields.items():
        for inner in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if inspect.isclass(inner) and issubclass(inner, BaseModel):
                yield from models(inner, (*path, field.alias or name))


@pytest.fixture(scope="module")
def of_deepspeed():
    return read_by_deepspeed()


def here() -> str:
    return releases.here().deepspeed


def tabled() -> set:
    """Every key that the table gives to the installed release, under its path."""
    return {key.path for section in keys.table().values() for key in section.keys.values() if key.known_to(here())}


def test_every_key_that_deepspeed_asks_for_is_in_the_table(of_deepspeed):
    asked, known = of_deepspeed[0], tabled()
    free = {path for path in asked if any(part == "different_groups" for part in path[:-1])
            or path[:2] == ("optimizer", "params")}
    missing = {path for path in asked - free if path not in known}
    # read where quantization is on, under a name that DeepSpeed itself does not have
    assert not missing - {("compression_training", "shared_parameters")}, missing


def test_every_field_of_deepspeeds_classes_is_in_the_table_and_no_other(of_deepspeed):
    config = of_deepspeed[1]
    sections = {("zero_optimization",): config.zero_config, ("tensorboard",): config.monitor_config.tensorboard,
                ("wandb",): config.monitor_config.wandb, ("csv_monitor",): config.monitor_config.csv_monitor,
                ("comet",): config.monitor_config.comet, ("comms_logger",): config.comms_config.comms_logger,
                ("hybrid_engine",): config.hybrid_engine, ("timers", "throughput"): config.timers_config,
                ("weight_quantization",): config.weight_quantization_config}
    seen = set()
    for start, model in sections.items():
        for path, found in models(type(model), start):
            section = keys.table()[path]
            assert section.refuses_unknown(here()), path
            fields = {field.alias or name: field for name, field in found.model_fields.items()}
            known = {name for name, key in section.keys.items() if key.known_to(here())}
            spare = {name[len("stage3_"):] for name in fields if name.startswith("stage3_")} if path == start else set()
            assert set(fields) <= known <= set(fields) | spare, (path, known ^ set(fields))
            for name, field in fields.items():
                least = next((limit.ge for limit in field.metadata if hasattr(limit, "ge")), -math.inf)
                stricter = (name,) == ("reduce_bucket_size",) or name == "samples_log_interval"
                assert section.keys[name].kind.least == least or stricter, name
            seen.add(path)
    strict = {path for path, section in keys.table().items() if section.refuses_unknown(here())}
    assert strict == seen


def test_the_table_gives_each_key_a_state_a_source_and_its_reason(of_deepspeed):
    from importlib.util import find_spec
    from pathlib import Path

    package = Path(find_spec("deepspeed").origin).parent
    for section in keys.table().values():
        for key in section.keys.values():
            assert key.state in ("driven", "acts", "ignored", "refused") and key.source, key
            assert key.why or key.state in ("driven", "acts"), key
            assert (key.kind.name == "section") == (key.path in keys.table()), key
            file = key.source.split(",")[0]
            assert (package / file).is_file() or not key.known_to(here()), key


def test_the_arguments_of_optimizers_and_schedules_are_those_of_deepspeed():
    from deepspeed.runtime import config, lr_schedules

    assert {name.lower() for name in arguments.OPTIMIZERS} >= set(config.DEEPSPEED_OPTIMIZERS)
    assert set(arguments.SCHEDULERS) == set(lr_schedules.VALID_LR_SCHEDULES)
    for name, (params, needed) in arguments.SCHEDULERS.items():
        signature = dict(list(inspect.signature(getattr(lr_schedules, name).__init__).parameters.items())[2:])
        assert set(params) == set(signature)
        assert set(needed) == {key for key, value in signature.items() if value.default is value.empty}
