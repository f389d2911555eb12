"""Which nodes are kept for what finds no place by its shape alone."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from provisioning.placing.asking import Request
from provisioning.placing.choice import choose
from provisioning.placing.keeping import emptiest, kept_for
from provisioning.placing.shard import Row, Shard

GPUS = 8


def shard_of(*free: int, racks: int = 1) -> Shard:
    """Return a shard of nodes with so many free GPUs, dealt out over racks of one fabric."""
    return Shard(Row(n, 1, f"r{n % racks}", (1 << count) - 1, GPUS) for n, count in enumerate(free, 1))


def test_the_node_that_lacks_least_is_kept_for_whoever_needs_a_whole_one() -> None:
    assert kept_for(shard_of(3, 6, 5), Request(1, 8)) == {2}
    assert kept_for(shard_of(3, 6, 5), Request(1, 1, is_exclusive=True, owner=7)) == {2}


def test_all_is_kept_where_it_fits_and_where_gpus_are_too_few_anyway() -> None:
    assert kept_for(shard_of(3, 8), Request(1, 8)) is None
    assert kept_for(shard_of(3, 4), Request(1, 8)) is None


def test_a_node_with_spot_alone_is_emptier_than_one_with_anything_else_and_one_without_is_emptiest() -> None:
    shard = shard_of(7, 0, 8, 6)
    spot = {2: 8, 4: 1}
    found = [emptiest(shard, hosts, frozenset(), spot) for hosts in (0, 1, 2, 3, 4)]
    assert found == [set(), {3}, {2, 3}, {1, 2, 3}, {1, 2, 3, 4}]


def test_nothing_is_kept_for_what_has_no_place_on_any_node_in_service() -> None:
    rows = [Row(1, 1, "r1", 0, GPUS), Row(2, 1, "r1", 0, GPUS, "state"), Row(3, 2, "r2", 0b1111, GPUS)]
    assert kept_for(Shard(rows), Request(2, 8, level="fabric", is_required=True)) == frozenset()
    assert kept_for(Shard(rows), Request(2, 8)) is None


def test_a_gang_keeps_as_many_of_the_emptiest_nodes_as_it_needs_in_one_domain() -> None:
    shard = shard_of(7, 4, 7, 4, 3, 4, racks=2)
    assert kept_for(shard, Request(3, 5)) == {1, 2, 3}
    assert kept_for(shard, Request(3, 5, level="rack", is_required=True)) == {1, 3, 5}
    assert kept_for(shard, Request(2, 8)) == {1, 3}


def test_where_another_tenant_is_alone_all_of_the_node_is_to_come_free() -> None:
    rows = [
        Row(1, 1, "r", 0b1111110, GPUS, owner=9),
        Row(2, 1, "r", 0b1111, GPUS),
        Row(3, 1, "r", 0b1111, GPUS, "held"),
    ]
    assert kept_for(Shard(rows), Request(1, 3, is_exclusive=True, owner=7)) == {2}
    assert kept_for(Shard(rows), Request(1, 3, is_exclusive=True, owner=7, barred=frozenset({2}))) == {1}


EVEN: dict[str, Any] = {"strategy": "spread", "is_required": True}


def test_what_is_to_be_spread_keeps_its_share_of_every_domain() -> None:
    # Each rack is to have two whole nodes: the emptiest two of each.
    shard = shard_of(7, 6, 3, 8, 7, 1, racks=2)
    assert kept_for(shard, Request(4, 8, **EVEN, level="rack")) == {1, 2, 4, 5}
    # One of three is to be anywhere: where the least is to come free.
    assert kept_for(shard_of(7, 6, 5), Request(2, 8, **EVEN, level="node")) == {1, 2}
    assert kept_for(shard_of(8, 8), Request(3, 8, **EVEN, level="node")) == frozenset()
    assert kept_for(shard_of(4, 4, 4, racks=2), Request(3, 8, **EVEN, level="rack", max_skew=0)) == frozenset()


@given(
    free=st.lists(st.integers(0, GPUS), min_size=1, max_size=8), racks=st.integers(1, 3), replicas=st.integers(2, 6),
    gpus=st.integers(1, GPUS), level=st.sampled_from(["node", "rack"]), max_skew=st.integers(0, 2), data=st.data(),
)  # fmt: skip
def test_what_is_kept_for_a_spread_is_a_place_once_it_is_empty_whatever_is_free_elsewhere(
    free: list[int], racks: int, replicas: int, gpus: int, level: str, max_skew: int, data: st.DataObject
) -> None:
    request = Request(replicas, gpus, **EVEN, level=level, max_skew=max_skew)
    kept = kept_for(shard_of(*free, racks=racks), request)
    if kept is None:
        return
    assert bool(kept) == (choose(shard_of(*[GPUS] * len(free), racks=racks), request) is not None)
    if kept:
        others = data.draw(st.lists(st.integers(0, GPUS), min_size=len(free), max_size=len(free)))
        emptied = [GPUS if number in kept else count for number, count in enumerate(others, 1)]
        assert choose(shard_of(*emptied, racks=racks), request) is not None


@given(
    free=st.lists(st.integers(0, GPUS), min_size=1, max_size=8), replicas=st.integers(1, 4), gpus=st.integers(1, GPUS)
)
def test_what_is_kept_is_a_place_once_it_is_empty_and_no_larger_than_needed(
    free: list[int], replicas: int, gpus: int
) -> None:
    request = Request(replicas, gpus)
    kept = kept_for(shard_of(*free), request)
    if kept is None:
        return
    assert kept or sum(GPUS // gpus for _ in free) < replicas
    if not kept:
        return
    emptied = [GPUS if number in kept else 0 for number, _ in enumerate(free, 1)]
    assert choose(shard_of(*emptied), request) is not None
    smallest = min(kept)
    assert (
        choose(shard_of(*[0 if number == smallest else count for number, count in enumerate(emptied, 1)]), request)
        is None
    )
