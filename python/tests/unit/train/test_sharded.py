"""The native engine's stage 3, on one rank within the test: what is there when, and that it computes what the plain
engine does. Of two ranks: test_equivalence and test_native_checkpoint."""
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from layouts import FAMILIES
from support import plan_of

from debzero.train import gloo
from debzero.train.engine_native import NativeEngine
from debzero.train.engine_plain import PlainEngine
from debzero.train.engine_sharded import ShardedEngine
from debzero.train.units import Unit

STEPS, LAYERS = 3, 3


@pytest.fixture
def alone(tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # such small tensors only wait for more
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()
    torch.set_num_threads(threads)


def model_of(family):
    import transformers

    kind = {"bert": "BertForSequenceClassification", "t5": "T5ForConditionalGeneration"}[family]
    made = getattr(transformers, kind)
    settings = {**FAMILIES[family]["model"], "use_cache": False, "pad_token_id": 0, "decoder_start_token_id": 0,
                ("num_hidden_layers" if family == "bert" else "num_layers"): LAYERS}
    torch.manual_seed(3)
    return made(made.config_class(**{key: value for key, value in settings.items() if key != "type"}))


def losses(model, batch):
    logits = model(**batch).logits
    if logits.dim() == 2:
        return F.cross_entropy(logits, batch["input_ids"][:, 0] % 2, reduction="none")
    return F.cross_entropy(logits.transpose(1, 2), batch["labels"], reduction="none").mean(1)


def engine_of(bench, kind, model, precision="fp32"):
    zero = {} if kind is PlainEngine else {"zero__stage": 3 if kind is ShardedEngine else 2, "zero__engine": "native"}
    resolved = plan_of(bench, **zero, train__global_batch=8, train__micro_batch=4)
    assert resolved.batch.accumulation == 2
    return kind(model, replace(resolved, precision=precision), torch.device("cpu"), SimpleNamespace(losses=losses),
                print)


def micros(model, step):
    dice = torch.Generator().manual_seed(step)
    for length in (8, 11):
        batch = {"input_ids": torch.randint(5, 200, (4, length), generator=dice)}
        if model.config.is_encoder_decoder:
            batch["labels"] = batch["input_ids"][:, :5].contiguous()
        yield SimpleNamespace(batch=batch, weights=torch.full((4,), 0.25))


def trained(engine, first=0):
    return [float(engine.step(list(micros(engine.model, step)), 1e-3)) for step in range(first, first + STEPS)]


def differ(one, other):
    assert one.keys() == other.keys()
    # The biases of attention's keys change nothing: their gradients are rounding errors.
    return max(float((one[name] - other[name]).abs().max()) for name in one if "key.bias" not in name)


@pytest.mark.parametrize("family", ["bert", "t5"])
@pytest.mark.parametrize("checkpointing", [None, False, True], ids=["keeps all", "computes again", "reentrant"])
def test_it_computes_what_the_plain_engine_does(bench, alone, family, checkpointing):
    plain, model = engine_of(bench, PlainEngine, model_of(family)), model_of(family)
    if checkpointing is not None:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": checkpointing})
    sharded = engine_of(bench, ShardedEngine, model)
    assert len(sharded.units) == LAYERS * (1 + model.config.is_encoder_decoder)
    assert trained(sharded) == pytest.approx(trained(plain), abs=1e-5)
    assert differ(sharded.weights(), plain.weights()) < 1e-4


def test_no_more_than_two_layers_are_there_and_none_afterwards(bench, alone, monkeypatch):
    engine, seen = engine_of(bench, ShardedEngine, model_of("bert")), []
    start = Unit.start

    def started(unit):
        start(unit)
        seen.append((engine.phase, sum(each.is_there for each in engine.units), engine.root.is_there))

    monkeypatch.setattr(Unit, "start", started)
    trained(engine)
    with torch.no_grad():
        engine.model.eval()
        engine(input_ids=torch.ones(2, 8, dtype=torch.long))
    layers = [there for phase, there, _ in seen]
    assert {phase for phase, _, _ in seen} == {"forward", "backward", "evaluation"} and max(layers) == 2
    assert all(root for _, there, root in seen if there)
    weights = [*engine.model.parameters()]
    assert not any(unit.is_there for unit in engine.buckets) and all(p.grad is None for p in weights)
    assert not any(unit.weights.storage().nbytes() for unit in engine.buckets)
    assert sum(p.numel() for p in weights) == sum(p.numel() for p in model_of("bert").parameters())


def test_in_half_precision_it_computes_what_stage_2_does(bench, alone, monkeypatch):
    for name in ("all_gather_into_tensor", "reduce_scatter_tensor"):  # gloo knows no bfloat16
        monkeypatch.setattr(gloo, name, lambda output, source, async_op: (
            output.copy_(source), gloo._Done())[1])
    engines = [engine_of(bench, kind, model_of("bert"), "bf16") for kind in (NativeEngine, ShardedEngine)]
    found = [trained(engine) for engine in engines]
    weights = [engine.weights() for engine in engines]
    assert found[0] == found[1] and differ(*weights) == 0
    assert {weight.dtype for weight in weights[1].values() if weight.is_floating_point()} == {torch.bfloat16}
    assert found[1][0] != pytest.approx(found[1][-1], abs=1e-3), "it learns"


class Stream:
    """Does what it is given in that order, as a GPU's queue does, but as late as it may; until then the result is no
    number."""

    def __init__(self):
        self.waiting = []

    def later(self, work):
        def start(output, source, async_op):
            output.fill_(float("nan"))
            entry = SimpleNamespace(do=lambda: work(output, source), wait=lambda: self.run(entry))
            self.waiting.append(entry)
            return entry

        return start

    def run(self, entry):
        while entry in self.waiting:
            self.waiting.pop(0).do()


@pytest.mark.parametrize("family", ["bert", "t5"])
def test_nothing_is_used_before_it_has_come(bench, alone, monkeypatch, family):
    at_once, stream = engine_of(bench, ShardedEngine, model_of(family)), Stream()
    expected = trained(at_once), at_once.weights()
    for name in ("all_gather_into_tensor", "reduce_scatter_tensor"):
        monkeypatch.setattr(gloo, name, stream.later(getattr(gloo, name)))
    late = engine_of(bench, ShardedEngine, model_of(family))
    assert trained(late) == expected[0] and not stream.waiting
    assert differ(late.weights(), expected[1]) == 0


def test_a_weight_that_nothing_uses_only_decays(bench, alone):
    model = model_of("bert")
    model.bert.encoder.layer[1].unused = torch.nn.Parameter(torch.ones(3, 3))
    engine = engine_of(bench, ShardedEngine, model)
    trained(engine)
    rate, decay = 1e-3, engine.optimizer.param_groups[0]["weight_decay"]
    assert decay and torch.allclose(engine.weights()["bert.encoder.layer.1.unused"],
                                    torch.full((3, 3), (1 - rate * decay)**STEPS))


def test_ranks_send_alike_whatever_weights_their_samples_use(bench, alone, monkeypatch):
    """As of a mixture of experts, where another rank may use a weight that this one has no gradient of."""
    orders, sizes = [], []
    for name in ("all_gather_into_tensor", "reduce_scatter_tensor"):
        send = getattr(gloo, name)
        monkeypatch.setattr(gloo, name, lambda one, other, *, name=name, send=send, **options: (
            sizes.append((name, *map(len, (one, other)))), send(one, other, **options))[1])
    for used in (True, False):
        model = model_of("bert")
        layer = model.bert.encoder.layer[1]
        layer.extra = torch.nn.Parameter(torch.ones(FAMILIES["bert"]["model"]["hidden_size"]))
        forward = type(layer).forward
        monkeypatch.setattr(type(layer), "forward", lambda self, states, *args, forward=forward, used=used, **kwargs: (
            forward(self, states * self.extra if used and hasattr(self, "extra") else states, *args, **kwargs)))
        engine = engine_of(bench, ShardedEngine, model)
        sizes.clear()
        trained(engine)
        monkeypatch.setattr(type(layer), "forward", forward)
        orders.append(list(sizes))
    assert orders[0] == orders[1] and len(orders[0]) == STEPS * 2 * (2 + 3 * LAYERS - 1)


def test_a_gradient_that_comes_too_late_is_no_silent_loss(bench, alone):
    model = model_of("bert")
    weight = model.bert.encoder.layer[2].output.dense.weight
    first = model.bert.embeddings
    forward = first.forward
    first.forward = lambda *args, **kwargs: forward(*args, **kwargs) + 1e-3 * weight.mean()
    engine = engine_of(bench, ShardedEngine, model)
    engine.units[2].free = lambda: None
    engine.units[2].start()
    with pytest.raises(RuntimeError, match="after the backward pass had left it"):
        trained(engine)


def test_a_run_continues_as_if_it_had_not_stopped(bench, alone):
    whole, before, after = (engine_of(bench, ShardedEngine, model_of("bert")) for _ in range(3))
    expected = trained(whole) + trained(whole, STEPS)
    found = trained(before)
    (bench.folder / "step").mkdir()
    before.save(bench.folder, "step")
    after.load(bench.folder, "step")
    assert after.applied_steps == STEPS
    assert found + trained(after, STEPS) == expected and differ(after.weights(), whole.weights()) == 0
