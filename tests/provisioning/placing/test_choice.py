"""The choice of nodes and GPUs, against an oracle that looks at every domain."""

from collections import Counter
from contextlib import suppress
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from provisioning.placing import reasons
from provisioning.placing.asking import Choice, Request
from provisioning.placing.choice import choose
from provisioning.placing.shard import Row, Shard

BOARDS = ((), (0b1111, 0b11110000), (0b11, 0b1100, 0b110000, 0b11000000))
examples = settings(max_examples=100, deadline=None)


def node(number: int, *, fabric: int = 0, rack: int = 0, free: int = 255, **facts: object) -> Row:
    return Row(number, fabric, f"r{rack}", free, 8)._replace(**facts)


@st.composite
def fleets(draw: st.DrawFn) -> list[Row]:
    status, owner = st.sampled_from(["", "", "", "state", "held"]), st.sampled_from([0, 0, 0, 1, 2])
    one = st.tuples(
        st.integers(0, 1), st.integers(0, 2), st.integers(0, 255), status, owner, st.booleans(), st.sampled_from(BOARDS)
    )
    rows = draw(st.lists(one, min_size=1, max_size=10))
    return [
        Row(number, fabric, f"r{rack}", free, 8, status, owner, is_shared and owner > 0, groups)
        for number, (fabric, rack, free, status, owner, is_shared, groups) in enumerate(rows, start=1)
    ]


requests = st.builds(
    Request, replicas=st.integers(1, 6), gpus=st.integers(1, 8), tie=st.integers(0, 2**32 - 1),
    level=st.sampled_from(["node", "rack", "fabric", "site"]), is_required=st.booleans(), owner=st.integers(1, 3),
    is_exclusive=st.booleans(), strategy=st.sampled_from(["pack", "pack", "spread"]), max_skew=st.integers(1, 3),
    barred=st.frozensets(st.integers(1, 10), max_size=3),
)  # fmt: skip


def may_use(row: Row, request: Request) -> bool:
    if row.status or row.owner not in {0, request.owner} or row.id in request.avoid | request.barred:
        return False
    return not request.is_exclusive or (not row.is_shared if row.owner else row.mask == 255)


def domain_of(row: Row, level: str) -> object:
    return {"node": row.id, "rack": (row.fabric, row.rack), "fabric": row.fabric, "site": 0}[level]


def rooms(fleet: list[Row], request: Request, level: str, *, gangs: bool = True) -> Counter[object]:
    """Return how many replicas each domain takes. A gang of a tenant leaves the nodes that it has alone."""
    found = Counter[object]()
    for row in fleet:
        if may_use(row, request) and not (gangs and row.owner):
            found[domain_of(row, level)] += row.mask.bit_count() // request.gpus
    return +found


def assert_sound(fleet: list[Row], request: Request, choice: Choice) -> None:
    by_id = {row.id: row for row in fleet}
    assert len(choice.places) == request.replicas
    taken = Counter[int]()
    for node_id, mask in choice.places:
        assert may_use(by_id[node_id], request)
        assert mask.bit_count() == request.gpus
        assert mask & ~by_id[node_id].mask == 0
        assert taken[node_id] & mask == 0
        taken[node_id] |= mask


@examples
@given(fleet=fleets(), request=requests)
def test_a_choice_is_whole_disjoint_allowed_and_on_the_lowest_level_that_has_room(
    fleet: list[Row], request: Request
) -> None:
    choice = choose(Shard(fleet), request)
    if choice is not None:
        assert_sound(fleet, request, choice)
    if request.strategy == "spread" and request.replicas > 1:
        return
    one_node = rooms(fleet, request, "node", gangs=False)
    levels = ["node", "rack", "fabric", "site"]
    allowed = levels[: levels.index(request.level) + 1] if request.is_required else levels
    used = {row.id: row for row in fleet if choice and row.id in dict(choice.places)}
    if any(room >= request.replicas for room in one_node.values()):
        assert choice is not None
        assert len(used) == 1
        return
    for level in allowed[1:] if request.replicas > 1 else []:
        enough = {name: room for name, room in rooms(fleet, request, level).items() if room >= request.replicas}
        if enough:
            assert choice is not None
            assert choice.level == level
            (name,) = {domain_of(row, level) for row in used.values()}
            if not request.is_exclusive:
                assert enough[name] == min(enough.values())
            return
    assert choice is None


@examples
@given(fleet=fleets(), request=requests)
def test_what_fits_on_one_node_takes_the_tightest_and_keeps_nvlink_groups_whole(
    fleet: list[Row], request: Request
) -> None:
    request = replace(request, replicas=1, is_required=False, is_exclusive=False, owner=3)
    able = [row for row in fleet if may_use(row, request) and row.mask.bit_count() >= request.gpus]
    choice = choose(Shard(fleet), request)
    if not able:
        assert choice is None
        return

    def widest(row: Row) -> int:
        return max((row.mask & group).bit_count() for group in row.groups or (255,))

    whole = [row for row in able if widest(row) >= request.gpus]
    assert choice is not None
    ((node_id, mask),) = choice.places
    chosen = next(row for row in fleet if row.id == node_id)
    assert chosen.mask.bit_count() == min(row.mask.bit_count() for row in whole or able)
    if whole:
        assert choice.level == "nvlink"
        (group,) = [group for group in chosen.groups or (255,) if mask & ~group == 0]
        rooms = [(chosen.mask & other).bit_count() for other in chosen.groups or (255,)]
        assert (chosen.mask & group).bit_count() == min(room for room in rooms if room >= request.gpus)
    else:
        assert choice.level == "node"


@examples
@given(fleet=fleets(), request=requests, moves=st.lists(st.tuples(st.integers(0, 9), fleets()), max_size=4))
def test_a_shard_that_was_kept_up_to_date_chooses_as_one_that_was_read_anew(
    fleet: list[Row], request: Request, moves: list[tuple[int, list[Row]]]
) -> None:
    shard = Shard(fleet)
    shard.rooms(request.gpus)
    rows = {row.id: row for row in fleet}
    for position, others in moves:
        was = fleet[position % len(fleet)]
        rows[was.id] = others[0]._replace(id=was.id, fabric=was.fabric, rack=was.rack)
        shard.put(rows[was.id])
    fresh = Shard(rows.values())
    # The one who was asked before has opened the same domains in the same order, so even ties are equal.
    assert choose(shard, request) == choose(fresh, request)
    assert reasons.rejected(shard, request) == reasons.rejected(fresh, request)
    assert reasons.hints(shard) == reasons.hints(fresh)


@examples
@given(fleet=fleets(), request=requests, masks=st.dictionaries(st.integers(1, 10), st.integers(0, 255)))
def test_what_would_be_is_chosen_as_if_it_were_so_and_leaves_no_trace(
    fleet: list[Row], request: Request, masks: dict[int, int]
) -> None:
    shard = Shard(fleet)
    before = choose(shard, request)
    emptied = {row.id for row in fleet if masks.get(row.id) == 255}
    then = [
        row._replace(mask=masks.get(row.id, row.mask), owner=0 if row.id in emptied else row.owner) for row in fleet
    ]
    with shard.as_if(masks):
        assert choose(shard, request) == choose(Shard(then), request)
    assert choose(shard, request) == before


@examples
@given(fleet=fleets(), asked=st.lists(requests, min_size=1, max_size=5))
def test_takes_that_are_only_tried_count_for_the_next_and_leave_no_trace(
    fleet: list[Row], asked: list[Request]
) -> None:
    shard, taken = Shard(fleet), Shard(fleet)
    before, hints = list(shard.rows()), reasons.hints(shard)
    with suppress(ZeroDivisionError), shard.trying() as take:
        for request in asked:
            choice = choose(taken, request)
            assert choose(shard, request) == choice
            owner = request.owner if request.is_exclusive else 0
            for node_id, mask in choice.places if choice is not None else ():
                take(node_id, mask, owner)
                taken.take(node_id, mask, owner)
            assert list(shard.rows()) == list(taken.rows())
        raise ZeroDivisionError
    assert list(shard.rows()) == before
    assert reasons.hints(shard) == hints


@examples
@given(fleet=fleets(), request=requests, node_ids=st.frozensets(st.integers(1, 10)))
def test_what_is_reopened_or_hidden_for_a_moment_is_chosen_from_as_if_it_were_so_and_leaves_no_trace(
    fleet: list[Row], request: Request, node_ids: frozenset[int]
) -> None:
    shard = Shard(fleet)
    before, hints = list(shard.rows()), reasons.hints(shard)
    opened = Shard(row._replace(status="" if row.id in node_ids else row.status) for row in fleet)
    with shard.reopened(node_ids):
        assert choose(shard, request) == choose(opened, request)
        assert reasons.rejected(shard, request) == reasons.rejected(opened, request)
    hidden = Shard(row._replace(status=row.status or ("avoided" if row.id in node_ids else "")) for row in fleet)
    with shard.without(node_ids):
        assert choose(shard, request) == choose(hidden, request)
        assert reasons.rejected(shard, request) == reasons.rejected(hidden, request)
    assert list(shard.rows()) == before
    assert reasons.hints(shard) == hints


@examples
@given(fleet=fleets(), request=requests)
def test_the_same_request_is_answered_the_same_and_changes_nothing(fleet: list[Row], request: Request) -> None:
    shard = Shard(fleet)
    before = reasons.hints(shard)
    request = replace(request, avoid=frozenset({1, 2}))
    assert choose(shard, request) == choose(shard, request) == choose(Shard(reversed(fleet)), request)
    assert reasons.hints(shard) == before


@examples
@given(fleet=fleets(), request=requests)
def test_a_spread_is_as_even_as_it_can_be(fleet: list[Row], request: Request) -> None:
    request = replace(request, strategy="spread", replicas=min(request.replicas, 4) + 1, is_exclusive=False, owner=3)
    level = request.level if request.level != "site" else "node"
    request = replace(request, level=level)
    room = rooms(fleet, request, level)
    splits = [
        split for split in product(*(range(most + 1) for most in room.values())) if sum(split) == request.replicas
    ]
    best = min((max(split) - min(split) for split in splits), default=None)
    choice = choose(Shard(fleet), request)
    if best is None or (request.is_required and best > request.max_skew):
        assert choice is None
        return
    assert choice is not None
    by_id = {row.id: row for row in fleet}
    counts = Counter(domain_of(by_id[node_id], level) for node_id, _ in choice.places)
    assert max(counts.values()) - min(counts[name] for name in room) == best


@examples
@given(fleet=fleets(), request=requests)
def test_the_relaxation_that_is_told_would_fit_and_is_needed(fleet: list[Row], request: Request) -> None:
    shard = Shard(fleet)
    if choose(shard, request) is not None:
        return
    found = reasons.why_not(shard, request)
    for name, value in found.relaxation.items():
        change = {"is_exclusive": False} if name == "no_shared_host" else {name: value}
        assert choose(shard, replace(request, **change)) is not None
    if not found.relaxation:
        smaller = replace(request, replicas=1, gpus=1, is_required=False, is_exclusive=False)
        assert choose(shard, smaller) is None or request.is_exclusive or request.gpus > 1 < request.replicas
    assert sum(found.rejected.values()) + found.candidates == len(fleet)


def test_a_tight_rack_is_filled_before_a_roomy_one_is_opened() -> None:
    roomy = [node(number, rack=0) for number in (1, 2, 3)]
    tight = [node(number, rack=1, free=255 if number == 4 else 0) for number in (4, 5, 6)]
    assert choose(Shard(roomy + tight), Request(1, 8)) == Choice("nvlink", [(4, 255)])


def test_a_gang_takes_the_largest_racks_whole_and_fits_the_last_one_best() -> None:
    sizes = {0: 3, 1: 2, 2: 1, 3: 3}
    fleet = [
        node(10 * rack + number, rack=rack) for rack, size in sizes.items() for number in range(1, size + 1)
    ]  # fmt: skip
    choice = choose(Shard(fleet), Request(4, 8))
    assert choice is not None
    assert choice.level == "fabric"
    assert Counter(node_id // 10 for node_id, _ in choice.places) in ({0: 3, 2: 1}, {3: 3, 2: 1})


def test_a_required_level_waits_where_a_preferred_one_climbs() -> None:
    shard = Shard([node(1, rack=0), node(2, rack=1)])
    assert choose(shard, Request(2, 8, level="rack", is_required=True)) is None
    assert choose(shard, Request(2, 8, level="rack")) is not None
    assert reasons.why_not(shard, Request(2, 8, level="rack", is_required=True)).relaxation == {"level": "fabric"}


def test_who_shares_with_nobody_takes_empty_nodes_and_fills_the_own_ones() -> None:
    shard = Shard([node(1, free=0b1111), node(2), node(3, free=0b11, owner=7), node(4, free=0b111, owner=8)])
    assert choose(shard, Request(1, 2, owner=7, is_exclusive=True)) == Choice("nvlink", [(3, 0b11)])
    assert choose(shard, Request(1, 4, owner=7, is_exclusive=True)) == Choice("nvlink", [(2, 0b1111)])
    assert choose(shard, Request(1, 4, owner=9)) == Choice("nvlink", [(1, 0b1111)])
    refusal = reasons.why_not(shard, Request(4, 4, owner=9, is_exclusive=True))
    assert refusal.rejected == {"another_tenant": 2, "not_whole": 1}


HALVES = (0b1111, 0b11110000)


@pytest.mark.parametrize("where", [{}, {"home": 1}, {"owner": 7}])
def test_a_required_nvlink_group_is_one_group_wherever_it_is_asked_for(where: dict[str, Any]) -> None:
    owner = where.get("owner", 0)
    split = Shard([node(1, free=0b00110011, owner=owner)._replace(groups=HALVES)])
    wanted = Request(1, 4, level="nvlink", is_required=True, **where)
    assert choose(split, wanted) is None
    assert choose(split, replace(wanted, is_required=False)) == Choice("node", [(1, 0b00110011)])
    assert reasons.why_not(split, wanted).relaxation == {"level": "node"}
    whole = Shard([node(1, free=0b11110011, owner=owner)._replace(groups=HALVES)])
    assert choose(whole, wanted) == Choice("nvlink", [(1, 0b11110000)])
    two = Request(2, 2, **where)
    assert choose(whole, two) == Choice("nvlink", [(1, 0b00110000), (1, 0b11000000)])
    assert choose(split, two) == Choice("node", [(1, 0b0011), (1, 0b00110000)])


def test_a_home_is_taken_or_nothing() -> None:
    shard = Shard([node(1, free=0b11), node(2)])
    assert choose(shard, Request(2, 1, home=1)) == Choice("nvlink", [(1, 0b1), (1, 0b10)])
    assert choose(shard, Request(1, 4, home=1)) is None


def test_a_node_that_moves_to_another_rack_is_found_there_and_one_that_is_gone_nowhere() -> None:
    shard = Shard([node(1, rack=0), node(2, rack=1)])
    shard.put(node(2, rack=0))
    assert choose(shard, Request(2, 8, level="rack", is_required=True)) is not None
    shard.drop(1)
    assert choose(shard, Request(2, 8)) is None
    assert reasons.hints(shard).nodes == 1


@pytest.mark.parametrize(("largest", "broken", "easiest"), [(2, 2, [(3, 1), (4, 6)])])
def test_hints_tell_the_largest_gang_and_what_is_in_its_way(
    largest: int, broken: int, easiest: list[tuple[int, int]]
) -> None:
    fleet = [node(1), node(2), node(3, free=0b1111111), node(4, free=0b11), node(5, status="held"), node(6, free=0)]
    found = reasons.hints(Shard(fleet))
    assert (found.largest["site"], found.broken, found.easiest) == (largest, broken, easiest)
    assert (found.free, found.stranded, found.out) == (25, 9, {"held": 1})
