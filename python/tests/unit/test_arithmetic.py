"""Properties that hold for all numbers: the batch, the sampler, the learning rate, the data set's split."""
import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from debzero import sections
from debzero.batch import BatchError, split
from debzero.engine import rate_at
from debzero.sampler import EpochSampler, held_out_batches

small = st.integers(1, 64)


@given(st.integers(1, 4096), st.one_of(st.just("auto"), small), st.integers(1, 16), st.one_of(st.none(), st.integers(1, 16)))
def test_a_batch_holds_exactly_or_says_what_would(total, micro, ranks, accumulation):
    try:
        batch = split(total, micro, ranks, accumulation)
    except BatchError as error:
        assert error.key.startswith("train.") and error.reason and error.fix
    else:
        assert batch.micro * batch.accumulation * batch.ranks == total
        assert micro in ("auto", batch.micro)
        assert accumulation in (None, batch.accumulation)


@given(st.integers(1, 300), st.integers(1, 4), st.integers(1, 4), st.integers(1, 8), st.integers(0, 5))
def test_an_epoch_deals_every_sample_once_and_the_same_steps_to_all(samples, ranks, accumulation, micro, epoch):
    dealt, lengths = [], set()
    for rank in range(ranks):
        sampler = EpochSampler(samples, micro * accumulation * ranks, accumulation, ranks, rank, seed=3)
        sampler.set_epoch(epoch)
        steps = list(sampler)
        lengths.add((len(steps), len(sampler)))
        assert all(len(parts) == accumulation and max(map(len, parts)) <= micro for _, parts in steps)
        dealt += [index for _, parts in steps for part in parts for index in part]
    assert sorted(dealt) == list(range(samples))
    assert len(lengths) == 1


@given(st.integers(2, 200), st.integers(1, 4))
def test_a_step_sees_the_same_samples_however_they_are_shared_out(samples, ranks):
    def steps(ranks, accumulation):
        samplers = [EpochSampler(samples, 16, accumulation, ranks, rank, seed=1) for rank in range(ranks)]
        return [sorted(i for _, parts in step for part in parts for i in part) for step in zip(*samplers)]

    assert steps(1, 1) == steps(ranks, 2)


def test_epochs_differ_and_repeat():
    sampler = EpochSampler(100, 10, 1, 1, 0, seed=1)
    orders = []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        orders.append([i for _, parts in sampler for part in parts for i in part])
    assert orders[0] == orders[2] != orders[1]


@given(st.lists(st.integers(1, 128), min_size=1, max_size=100), st.integers(1, 5), st.integers(1, 9))
def test_evaluation_loses_and_doubles_nobody(lengths, ranks, size):
    shares = [list(held_out_batches(np.array(lengths), ranks, rank, size)) for rank in range(ranks)]
    assert len({len(share) for share in shares}) == 1, "ZeRO-3 needs as many forward passes on each rank"
    assert sorted(i for share in shares for batch in share for i in batch) == list(range(len(lengths)))


@given(st.integers(1, 500), st.floats(0, 0.9))
def test_the_rate_rises_to_its_peak_and_falls_to_almost_nothing(steps, warmup):
    rates = [rate_at(step, steps, 1.0, warmup) for step in range(steps)]
    peak = rates.index(max(rates))
    assert max(rates) == pytest.approx(1.0)
    assert rates[:peak] == sorted(rates[:peak]) and rates[peak:] == sorted(rates[peak:], reverse=True)
    assert min(rates) > 0


def _dump(count=3000):
    names = [f"pkg{i}" for i in range(count)]
    return "".join(f"Package: {name}\nSource: src{i // 3}\nSection: {'net' if i % 3 else 'contrib/sound'}\n"
                   f"Description: does a thing numbered {i // 2}\n\n" for i, name in enumerate(names))


def test_debian_sections_are_the_same_from_the_same_packages_in_any_order():
    paragraphs = _dump().strip().split("\n\n")
    mixed = "\n\n".join(paragraphs[::-1]) + "\n"
    first = sections.samples(io.BytesIO(_dump().encode()))
    assert first == sections.samples(io.BytesIO(mixed.encode()))
    assert {s.label for s in first} == {"net", "sound"}
    assert 0.05 < np.mean([s.held_out for s in first]) < 0.2


def test_debian_sections_never_show_a_held_out_text_in_training():
    found = sections.samples(io.BytesIO(_dump().encode()))
    texts = [s.text.lower() for s in found]
    assert len(texts) == len(set(texts))


def test_without_package_lists_the_fix_is_named():
    from debzero.errors import UserError

    with pytest.raises(UserError, match="apt-get update"):
        sections.samples(io.BytesIO(_dump(50).encode()))
