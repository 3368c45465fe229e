"""Step times: the volumes of the ZeRO paper, pipelines and tensor parallelism by hand, and what must grow or shrink."""
import json
from dataclasses import replace

import pytest
from planning import BENCHMARKS

from debzero.job.batch import Batch
from debzero.plan import rates
from debzero.plan.collectives import Cluster
from debzero.plan.layouts import data_group, label, layouts
from debzero.plan.step_time import HIDDEN, Case, Engine, Work
from debzero.resolve.layout import Layout

P = 1_000_000_000
WORK = Work(P, 24, 1024, 128, 0.01, 0.0, False)
CLUSTER = Cluster(4, 8, 25e9, 200e9, 1e-5, 1e-6)
DEEPSPEED = {"overlap_comm": True, "reduce_bucket_size": 50_000_000}


def over(cluster, tensor=1, pipeline=1):
    return Layout(cluster.ranks // (tensor * pipeline), tensor, pipeline)


def case(stage, zero=None, cluster=CLUSTER, parts=(1, 1), **changes):
    """`parts`: ranks of tensor and pipeline parallelism."""
    layout, micro, accumulation = over(cluster, *parts), changes.get("micro", 8), changes.get("accumulation", 1)
    batch = Batch(micro * accumulation * layout.data, micro, accumulation, layout.data)
    engine = Engine(stage, changes.get("width", 2), zero or {}, divided=layout.each > 1)
    return Case(layout, WORK, engine, batch, cluster)


def sent(one):
    return sum(transfer.sent for transfer in one.step().transfers)


def test_volumes_are_those_of_the_zero_paper():
    """Section 7: for P parameters, data parallelism and stages 1 and 2 send 2 P each, stage 3 sends 3 P."""
    part = 31 / 32 * P
    assert sent(case(0)) == pytest.approx(2 * 4 * part)  # in fp32
    assert sent(case(1)) == sent(case(2)) == pytest.approx(2 * 2 * part)
    assert sent(case(3, DEEPSPEED)) == pytest.approx(3 * 2 * part)


def test_deepspeeds_stages_1_and_2_sum_on_every_rank_unless_told_otherwise():
    part = 31 / 32 * P
    assert sent(case(2, DEEPSPEED)) == pytest.approx(3 * 2 * part)
    assert sent(case(2, {**DEEPSPEED, "use_multi_rank_bucket_allreduce": False})) == pytest.approx(2 * 2 * part)
    assert sent(case(2, {**DEEPSPEED, "reduce_scatter": False,
                         "use_multi_rank_bucket_allreduce": False})) == pytest.approx(3 * 2 * part)


def test_stage_2_reduces_each_micro_batch_and_stage_1_only_the_last():
    once, often = (sent(case(stage, accumulation=4)) for stage in (1, 2))
    assert (often - once) == pytest.approx(3 * 2 * 31 / 32 * P)


def test_stage_3_gathers_again_only_what_it_has_freed():
    part, zero = 31 / 32 * 2, {**DEEPSPEED, "stage3_max_live_parameters": 100_000_000}
    one = case(3, zero)
    assert sent(one) == pytest.approx((3 * P - 100_000_000) * part)
    assert sent(replace(one, work=replace(WORK, root=200_000_000))) == pytest.approx((3 * P - 300_000_000) * part)
    everything = replace(one, engine=replace(one.engine, zero={**zero, "stage3_max_live_parameters": 2 * P}))
    assert sent(everything) == pytest.approx(2 * P * part)


def test_a_step_without_others_is_its_computing():
    alone = case(0, micro=8, accumulation=3, cluster=Cluster(1, 1, 1, 1, 0, 0)).step()
    assert alone.total == alone.compute == pytest.approx(3 * 8 * 0.01) and alone.efficiency == 1 and not alone.exposed


def test_plain_ddp_by_hand():
    """Two processors, two buckets: the first is hidden behind the backward pass, the second is not."""
    work = replace(WORK, parameters=2 * 2**25)
    two = Cluster(2, 1, 2**26, 1.0, 0.0, 0.0, gloo=True)  # 128 MiB at 64 MiB/s: 2 s a bucket
    one = replace(case(0, cluster=two, micro=900, width=4), work=work).step()
    assert one.compute == pytest.approx(9.0)  # of which 6 are the backward pass
    assert one.exposed == pytest.approx(2.0) and one.total == pytest.approx(11.0)
    slow = replace(case(0, cluster=replace(two, link=2**24), micro=900, width=4), work=work).step()
    assert slow.exposed == pytest.approx(3 + 16 - 6)  # ready after 3 s, 8 s each


def test_gloo_waits_for_every_sharded_stage():
    two = Cluster(2, 1, 1e9, 1.0, 0.0, 0.0, gloo=True)
    for stage in (1, 2, 3):
        step = case(stage, {"reduce_bucket_size": 5e7}, cluster=two, width=4, accumulation=2).step()
        assert step.exposed == pytest.approx(sum(transfer.seconds for transfer in step.transfers))
    # per micro-batch: two all-gathers of half the weights, an all-reduce of the gradients
    assert step.exposed == pytest.approx(2 * (0.5 + 0.5 + 1) * 4 * P / 1e9)


def test_a_pipeline_waits_for_one_micro_batch_less_than_it_has_stages():
    cluster = Cluster(1, 4, 1.0, 1e15, 0.0, 0.0)
    step = case(1, cluster=cluster, parts=(1, 4), accumulation=8).step()
    assert step.compute == pytest.approx(8 * 8 * 0.01 / 4) and step.bubble == pytest.approx(step.compute * 3 / 8)
    hidden = 4 * 8 * 128 * 1024  # in fp32
    assert step.transfers[0].size == 2 * 8 * hidden, "a stage between two others"
    assert case(1, cluster=cluster, parts=(1, 2), accumulation=8).step().transfers[0].size == 8 * hidden
    slow = case(1, cluster=replace(cluster, local=hidden / 0.01), parts=(1, 4), accumulation=8).step()
    assert slow.exposed == pytest.approx(2 * 3 * 0.01), "10 ms each hide but while the pipeline fills and empties"
    slower = case(1, cluster=replace(cluster, local=hidden / 0.05), parts=(1, 4), accumulation=8).step()
    assert slower.exposed == pytest.approx(2 * 3 * 0.05 + 8 * 0.03), "a micro-batch takes a stage 20 ms"


def test_stages_that_share_embeddings_sum_their_gradients():
    one = case(1, cluster=Cluster(1, 4, 1.0, 1e9, 0.0, 0.0), parts=(1, 4))
    tied = replace(one, work=replace(WORK, tied=5_000_000)).step()
    assert tied.exposed - one.step().exposed == pytest.approx(4 * 5_000_000 / 1e9)


def test_tensor_parallelism_sums_four_times_a_layer():
    cluster = Cluster(1, 4, 1.0, 1e9, 0.0, 0.0)
    step = case(1, cluster=cluster, parts=(4, 1)).step()
    forward, backward = step.transfers
    assert forward.times == backward.times == 2 * 24 and forward.seconds + backward.seconds == step.exposed
    assert backward.sent == 2 * forward.sent == pytest.approx(2 * 24 * 2 * 3 / 4 * 8 * 128 * 1024 * 4), "one in fp32"


def test_copies_of_a_divided_model_average_in_fp32_and_broadcast_what_they_updated():
    step = case(1, cluster=Cluster(1, 4, 1.0, 1e9, 0.0, 0.0), parts=(2, 1)).step()
    gradients, weights = step.transfers[2:]
    assert gradients.size == weights.size == 4 * P / 2 and "broadcast" in weights.what
    assert gradients.exposed_seconds < gradients.seconds, "the backward pass hides a part"


@pytest.mark.parametrize(("stage", "parts"), [(0, (1, 1)), (1, (1, 1)), (2, (1, 1)), (3, (1, 1)), (1, (8, 1)),
                                              (1, (1, 4)), (1, (8, 4))])
def test_a_faster_link_is_never_slower_and_a_larger_cluster_never_faster(stage, parts):
    zero = DEEPSPEED if stage else {}

    def seconds(link, hosts):
        return case(stage, zero, replace(CLUSTER, link=link, hosts=hosts), parts).step().total

    by_link = [seconds(link, 4) for link in (1e8, 1e9, 1e10, 1e11, 1e12)]
    assert by_link == sorted(by_link, reverse=True)
    by_hosts = [seconds(25e9, hosts) for hosts in (4, 8, 32, 128)]
    assert all(more >= less * (1 - 1e-9) for less, more in zip(by_hosts, by_hosts[1:]))
    assert len(set(by_link)) > 1, "the link does not matter"


def test_at_the_smallest_link_communication_hides_and_below_it_does_not():
    one = case(0, micro=64)
    link = one.smallest_link()
    for factor, hides in ((1.01, True), (0.95, False)):
        step = replace(one, cluster=replace(CLUSTER, link=link * factor)).step()
        assert (step.exposed <= HIDDEN * step.total) is hides
    assert replace(one, cluster=replace(CLUSTER, hosts=1)).smallest_link() is None


def test_groups_of_copies_lie_where_their_ranks_are():
    """32 ranks: with tensor 8, a group has one rank on each of the four hosts, and eight groups share each link."""
    group = data_group(over(CLUSTER, tensor=8), CLUSTER)
    assert (group.ranks, group.hosts, group.sharing) == (4, 4, 8)
    group = data_group(over(CLUSTER, pipeline=4), CLUSTER)
    assert (group.ranks, group.hosts, group.sharing) == (8, 1, 1)
    group = data_group(over(CLUSTER, 2, 2), CLUSTER)
    assert (group.ranks, group.hosts, group.sharing) == (8, 2, 2)


def test_layouts_divide_the_ranks_the_layers_and_the_heads():
    found = layouts(CLUSTER, layers=6, heads=12)
    assert [label(*each) for each in found] == [
        "plain DDP", "ZeRO-1", "ZeRO-2", "ZeRO-3", "tensor 2", "tensor 4", "pipeline 2", "tensor 4 x pipeline 2"]
    assert {layout.each for _, layout in layouts(Cluster(3, 1, 1, 1, 0, 0), 24, 16)} == {1}


def test_the_share_of_the_peak_is_what_was_measured():
    row = json.loads((BENCHMARKS / "speed-h200.json").read_text())["rows"]["max_length"]
    assert round(row["peak_share"], 3) == rates.peak_share("classification")
    cell = json.loads((BENCHMARKS / "gpus-2.json").read_text())["cells"]["2/gpt2-xl/padded/native3"]
    assert round(cell["runs"][0]["peak_share"], 3) == rates.peak_share("causal-lm") == rates.peak_share("text-to-text")


@pytest.mark.parametrize(("text", "bits"), [("200G", 200e9), ("100Mbit/s", 100e6), ("1.5gbps", 1.5e9), ("800", 800)])
def test_links_are_in_bits_per_second(text, bits):
    assert rates.parse_link(text) == bits / 8


@pytest.mark.parametrize("text", ["", "0", "fast", "-1G", "25GB/s", "1e9", "G", "40\u212a", "٤G", "0.0000000001"])
def test_what_is_no_link_is_refused(text):
    with pytest.raises(ValueError, match="bits per second such as 200G"):
        rates.parse_link(text)


def test_links_for_people():
    assert [rates.link_text(bits / 8) for bits in (200e9, 1.5e6, 100)] == ["200 Gbit/s", "1.5 Mbit/s", "100 bit/s"]
    assert rates.local_rate("NVIDIA H100 80GB HBM3") > 9 * rates.local_rate("NVIDIA L4")
