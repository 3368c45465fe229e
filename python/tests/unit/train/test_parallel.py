"""Models that are divided over ranks: dropout, checkpoints for any division, what is refused."""
import itertools
import json
import re

import pytest
from layouts import FAMILIES, LAYOUTS, result, same, settings, train
from support import changed

WITH_DROPOUT = {"bert": {"model.hidden_dropout_prob": 0.2, "model.attention_probs_dropout_prob": 0.2},
                "gpt2": {"model.resid_pdrop": 0.2, "model.embd_pdrop": 0.2, "model.attn_pdrop": 0.2},
                "t5": {"model.dropout_rate": 0.2, "model.d_ff": 96}}
INNER = 96  # T5 drops inner values of feed-forward layers: so many, which nothing else is
VARIANTS = {
    "roberta": {"model": {**FAMILIES["bert"]["model"], "type": "roberta", "max_position_embeddings": 40}},
    "gpt2 that classifies": {"model": FAMILIES["gpt2"]["model"]},
    "bert that writes": {**FAMILIES["bert"], "task": "causal-lm"},
    "gated t5 that writes": {"model": {**FAMILIES["t5"]["model"], "feed_forward_proj": "gated-gelu",
                                       "tie_word_embeddings": False}, "task": "text-to-text",
                             "data__answers": "text", "data__max_answer_length": 6},
}


def dropping(family):
    return changed(FAMILIES[family], WITH_DROPOUT[family])


def dropped(bench, family, layout, fault="dropout recorded"):
    """{rank: [(shape, digest) of each mask]} of two steps."""
    for path in bench.folder.glob("dropped-*"):
        path.unlink()
    job = bench.job(f"dropping-{family}", **{**dropping(family), **LAYOUTS[layout]}, train__global_batch=16,
                    train__micro_batch=4, train__max_steps=2, data__padding="max_length")
    done = bench.quick("train", job, "--again", PLANTED=fault)
    assert done.returncode == 0, done.stdout
    ranks = int((json.loads((bench.output(f"dropping-{family}") / "report.json").read_text()))["world_size"])
    lines = [(bench.folder / f"dropped-{rank}").read_text().splitlines() for rank in range(ranks)]
    assert all(lines)
    return [[(tuple(map(int, shape.split(","))), digest) for shape, digest in map(str.split, own)] for own in lines]


def drops_right(ranks, tensor):
    """Whether ranks of a copy drop alike what they all have, and nothing else is ever dropped alike."""
    for own in ranks:
        if len({digest for _, digest in own}) < len(own):
            return False
    for one, other in itertools.combinations(range(len(ranks)), 2):
        if one // tensor != other // tensor:
            if {digest for _, digest in ranks[one]} & {digest for _, digest in ranks[other]}:
                return False
            continue
        for (shape, mine), (_, theirs) in zip(ranks[one], ranks[other]):
            divided = len(shape) == 4 or shape[-1] == INNER // tensor
            if (mine == theirs) == divided:
                return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize(("family", "layout"), [
    ("bert", "tensor2 x data2"), ("gpt2", "pipeline2 x tensor2"), ("t5", "tensor2 x data2"), ("t5", "pipeline2")])
def test_ranks_drop_alike_what_they_share_and_nothing_else(trained, family, layout):
    assert drops_right(dropped(trained, family, layout), LAYOUTS[layout].get("parallel__tensor", 1))


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["parts drop alike", "copies drop alike", "shared dropped apart"])
def test_dropout_that_is_repeated_or_apart_shows(trained, fault):
    assert not drops_right(dropped(trained, "gpt2", "tensor2 x data2", fault), 2)


@pytest.mark.slow
def test_dropout_that_stages_repeat_shows(trained):
    assert not drops_right(dropped(trained, "bert", "pipeline2", "stages drop alike"), 1)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "layout"), [
    ("roberta", "tensor2"), ("gated t5 that writes", "tensor2"), ("bert that writes", "pipeline2 x tensor2"),
    ("gpt2 that classifies", "pipeline2")])
def test_other_models_of_the_families_can_be_divided(trained, name, layout):
    few = {"train__max_steps": 12, "train__evaluate_every": 12, "train__learning_rate": 1e-3}
    names = [f"{name}-{way}".replace(" ", "-") for way in ("ddp", layout)]
    plain, divided = (train(trained, VARIANTS[name], way, name=own, **few)
                      for own, way in zip(names, ("ddp", layout)))
    assert same(plain, divided)
    reports = [json.loads((trained.output(own) / "report.json").read_text()) for own in names]
    assert reports[0]["evaluation"] == pytest.approx(reports[1]["evaluation"], rel=1e-4)
    assert reports[0]["samples"] == reports[1]["samples"], "both write the same"
    size = LAYOUTS[layout].get("ranks", 2)
    assert reports[1]["world_size"] == reports[1]["tensor"] * reports[1]["pipeline"] == size


@pytest.mark.slow
def test_layers_that_are_computed_again_drop_the_same_again(trained):
    plain, again = (train(trained, dropping("bert"), "tensor2", name=f"checkpointing-{on}".lower(),
                          train__gradient_checkpointing=on) for on in (False, True))
    assert same(plain, again)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "first", "then"), [
    ("bert", "pipeline2", "ddp"), ("t5", "tensor2 x data2, zero1", "pipeline3"),
    pytest.param("gpt2", "ddp", "pipeline2 x data2, zero1", marks=pytest.mark.long),
    pytest.param("t5", "pipeline3", "pipeline2 x tensor2", marks=pytest.mark.long)])
def test_a_run_continues_with_another_division(trained, family, first, then):
    reached = []
    for number, layouts in enumerate(((first, then), ("ddp", "ddp"))):
        name = re.sub(r"\W+", "-", f"{family}-{first}-{then}-{number}")
        for layout, steps in zip(layouts, (10, 20)):
            job = trained.job(name, **settings(family, layout, train__max_steps=steps))
            done = trained.quick("train", job)
            assert done.returncode == 0, done.stdout
        assert "resuming from step 10" in done.stdout
        reached.append(result(trained.output(name)))
    assert len(reached[0].losses) == 20 and same(*reached)
