"""However a job is divided over ranks, it computes the same: losses and weights of tiny models over 50 steps, in fp32
and without dropout, beside those of plain data parallelism on two ranks. And a fault that is planted shows."""
import pytest
from layouts import FAMILIES, LAYOUTS, Trained, same, train

QUICK = {("bert", "zero2"), ("t5", "tensor2")}


@pytest.fixture(scope="session")
def runs(trained):
    """A family's training in a layout, done when first asked for."""
    made = {}

    def run(family, layout) -> Trained:
        if (family, layout) not in made:
            made[family, layout] = train(trained, family, layout)
        return made[family, layout]

    return run


def cases() -> list:
    return [pytest.param(family, layout, marks=() if (family, layout) in QUICK else pytest.mark.slow)
            for family in FAMILIES for layout in LAYOUTS if layout != "ddp"]


@pytest.mark.parametrize(("family", "layout"), cases())
def test_a_layout_computes_what_plain_data_parallelism_does(runs, family, layout):
    plain = runs(family, "ddp")
    assert plain.losses[-5:].mean() < 0.8 * plain.losses[:5].mean(), "it must have learned something"
    assert same(runs(family, layout), plain)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "layout", "fault"), [
    ("bert", "ddp", "gradient scaled twice"), ("bert", "ddp", "mask forgotten"),
    ("t5", "zero2", "mask forgotten"), ("gpt2", "ddp", "gradient scaled twice"),
    ("bert", "tensor2", "gradient summed twice"), ("gpt2", "tensor2", "gradient summed twice")])
def test_a_planted_fault_shows(trained, runs, family, layout, fault):
    assert not same(train(trained, family, layout, fault), runs(family, "ddp"))
