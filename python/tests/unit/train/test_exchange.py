"""What the ranks tell each other arrives as it was, and only as JSON."""
import json

import numpy as np
import pytest

from debzero.base.errors import InputError, OutOfMemory, PassingError, PassingProblem, Problem, UserError
from debzero.train import exchange
from debzero.train.exchange import Outcome, settle


def over_the_wire(work):
    return settle(json.loads(json.dumps(Outcome(work).as_json())))


def failing(error):
    def work():
        raise error
    return work


def test_a_result_arrives_as_it_was():
    value = {"text": "é\x1b\udc80", "numbers": [1, 0.1 + 0.2, 1e-320, 2**70], "none": None, "": [True]}
    assert over_the_wire(lambda: value) == value
    assert np.isnan(over_the_wire(lambda: float("nan")))


@pytest.mark.parametrize("kind", [UserError, PassingError, OutOfMemory])
def test_an_error_is_the_same_on_every_rank(kind):
    with pytest.raises(UserError) as caught:
        over_the_wire(failing(kind("the reason", "the fix")))
    assert type(caught.value) is kind and (caught.value.reason, caught.value.fix) == ("the reason", "the fix")


def test_all_problems_of_a_job_are_the_same_on_every_rank():
    problems = [Problem("job.yml", "data", "wrong", "right", "DZ101", "warning"),
                PassingProblem("job.yml", "output", "full", "room")]
    with pytest.raises(InputError) as caught:
        over_the_wire(failing(InputError(problems)))
    assert caught.value.problems == problems
    assert [type(problem) for problem in caught.value.problems] == [Problem, PassingProblem]


def test_a_defect_is_reported_once_and_ends_all_ranks(capsys):
    with pytest.raises(UserError, match="KeyError: 'x'.*\n.*a defect"):
        over_the_wire(failing(KeyError("x")))
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("size", [0, -1, exchange.LIMIT + 1, 2**62])
def test_no_rank_can_make_others_allocate_what_it_likes(size):
    with pytest.raises(UserError, match="announced"):
        exchange._checked(size)
