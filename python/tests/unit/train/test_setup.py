"""What the hosts of a job compare before they train."""
from types import SimpleNamespace

import pytest
from support import plan_of

from debzero.base.errors import InputError
from debzero.train import setup


def compare(bench, monkeypatch, *prepared, **changes):
    """The problem of hosts that have prepared these samples: digest and revisions."""
    monkeypatch.setattr(setup.placement, "hosts", lambda: ["gpu1", "gpu2"])
    answers = [{**revisions, "samples": digest} for digest, revisions in prepared]
    context = SimpleNamespace(resolved=plan_of(bench, **changes), everywhere=lambda work: answers)
    setup._compare(context, SimpleNamespace(digest="", revisions={}))


def test_hosts_with_the_same_samples_train(bench, monkeypatch):
    compare(bench, monkeypatch, ("a1", {"model": "c"}), ("a1", {"model": "c"}))


@pytest.mark.parametrize(("revisions", "others", "changes", "expected"), [
    ({"data": "r1"}, {"data": "r2"}, {}, ("data", "the hosts have different revisions: r1 on gpu1, r2 on gpu2",
                                          "empty the hub's cache on the host that differs, or name one `revision`")),
    ({}, {"model": "c"}, {}, ("model", "the hosts have different revisions: None on gpu1, c on gpu2",
                              "empty the hub's cache on the host that differs, or name one `revision`")),
    ({}, {}, {"data__dataset": "debian-sections"}, ("data", "the hosts have different samples: a1 on gpu1, b2 on gpu2",
                                                    "run `apt-get update` on all of them"))])
def test_other_samples_are_named_with_their_cause_and_what_helps(bench, monkeypatch, revisions, others, changes,
                                                                 expected):
    with pytest.raises(InputError) as caught:
        compare(bench, monkeypatch, ("a1", revisions), ("b2", others), **changes)
    found, = caught.value.problems
    assert (found.key, found.reason, found.fix) == expected
