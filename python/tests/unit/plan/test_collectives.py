"""How long collectives take: by hand, and against a simulation of the overlap."""
import math
from dataclasses import replace

import pytest

from debzero.plan.collectives import Cluster, Group, exposed

ONE_HOST = Cluster(1, 4, 1e9, 1e9, 0.0, 0.0)
TWO_HOSTS = Cluster(2, 4, 1e9, 10e9, 0.0, 0.0)


def whole(cluster):
    return Group(cluster, cluster.ranks, cluster.hosts)


def test_on_one_host_each_rank_sends_all_parts_but_one():
    group = whole(ONE_HOST)
    assert group.all_gather(4e9) == group.reduce_scatter(4e9) == pytest.approx(3.0)  # 3 of 4 GB at 1 GB/s
    assert group.all_reduce(4e9) == pytest.approx(6.0)


def test_between_hosts_a_ring_waits_for_the_link_and_a_tree_sends_less_over_it():
    group = whole(TWO_HOSTS)
    assert group.all_gather(8e9) == pytest.approx(7.0)  # 7 of 8 parts pass each link
    assert group.all_reduce(8e9) == pytest.approx(8.0)  # 2 (2 - 1) / 2 of it
    assert whole(replace(TWO_HOSTS, local=1e8)).all_reduce(8e9) == pytest.approx(120.0)  # 2 (4 - 1) / 4 of it inside


def test_gloo_has_rings_only_and_sums_on_every_rank():
    group = whole(replace(TWO_HOSTS, gloo=True))
    assert group.all_reduce(8e9) == group.reduce_scatter(8e9) == pytest.approx(14.0)
    assert whole(replace(TWO_HOSTS, gpus=1, gloo=True)).all_reduce(8e9) == pytest.approx(8.0)


def test_hops_of_a_tree_grow_with_the_logarithm_of_the_hosts():
    def hops(hosts, collective):
        return getattr(whole(Cluster(hosts, 8, 1e30, 1e30, 1.0, 0.0)), collective)(1.0)

    assert [hops(hosts, "all_reduce") for hosts in (2, 4, 128)] == pytest.approx([2, 4, 14])
    assert hops(128, "all_gather") == pytest.approx(1023 * 128 / 1024)  # of a ring's steps those between hosts


def test_groups_that_share_a_hosts_link_take_as_much_longer():
    alone, shared = Group(TWO_HOSTS, 2, 2), Group(TWO_HOSTS, 2, 2, sharing=4)
    assert shared.all_reduce(1e9) == pytest.approx(4 * alone.all_reduce(1e9))
    assert shared.send(1e9) == pytest.approx(4 * alone.send(1e9)) and Group(TWO_HOSTS, 2, 1).send(1e9) == 0.1


def simulated(transfer, window, pieces):
    free = 0.0
    for number in range(1, pieces + 1):
        free = max(free, window * number / pieces) + transfer / pieces
    return free - window


@pytest.mark.parametrize("transfer", [0.1, 1.0, 3.5, 4.5, 50.0])
@pytest.mark.parametrize("pieces", [1, 2, 10])
def test_what_computing_hides_is_what_a_simulation_finds(transfer, pieces):
    assert exposed(transfer, 4.0, pieces) == pytest.approx(simulated(transfer, 4.0, pieces))


def test_nothing_hides_a_single_piece_and_the_last_of_several():
    assert exposed(3.0, 100.0, 1) == 3.0 and exposed(3.0, 100.0, 3) == 1.0 and math.isclose(exposed(9, 0.0, 3), 9)
