"""Checkpoints and failures: Young's and Daly's formulas against their own definition."""
import math

import pytest

from debzero.plan.failures import DAY, HOST_MTBF_DAYS, best_interval, lost_share


def test_the_best_interval_is_near_youngs_for_short_checkpoints():
    assert math.sqrt(2 * 60 * DAY) == pytest.approx(3220, rel=1e-3)
    assert best_interval(60, DAY) == pytest.approx(3220 - 60, rel=0.01)


@pytest.mark.parametrize(("writing", "mtbf"), [(1, DAY), (60, DAY), (600, 4 * 3600), (1800, 2 * 3600)])
def test_no_other_interval_loses_clearly_less(writing, mtbf):
    best = best_interval(writing, mtbf)
    lost = lost_share(best, writing, 120, mtbf)
    others = [lost_share(best * factor / 20, writing, 120, mtbf) for factor in range(2, 100)]
    assert lost <= min(others) + 0.002 and 0 < lost < 1


def test_what_is_lost_by_hand():
    # To first order: the checkpoint, half an interval and the restart for each failure.
    expected = 60 / 3660 + (3660 / 2 + 120) / DAY
    assert lost_share(3600, 60, 120, DAY) == pytest.approx(expected, rel=0.03)
    assert lost_share(3600, 60, 120, 1e15) == pytest.approx(60 / 3660)


def test_where_a_checkpoint_takes_longer_than_the_hosts_live_nothing_is_done():
    assert best_interval(100, 10) == 10 and lost_share(10, 100, 0, 10) > 0.99 and lost_share(3600, 60, 60, 1) == 1.0


def test_the_rate_is_that_of_its_source():
    assert pytest.approx(264, abs=0.5) == HOST_MTBF_DAYS  # as `debzero plan --help` says
