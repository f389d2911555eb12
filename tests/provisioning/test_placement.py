"""Where instances are placed, against an oracle in plain Python that knows nothing of SQL."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from django.db import connection, transaction
from django.utils import timezone
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from billing import prices
from billing.prepared import ask
from marketplace.models import Offer, Organization, Project
from provisioning import placement, shards, taking
from provisioning.errors import NoCapacity
from provisioning.models import Assignment, Fabric, Gpu, GpuHold, Instance, Node, Site
from tests.conftest import Fleet, Rent, make_offer
from tests.nodes import wiped

pytestmark = pytest.mark.django_db

GPUS = 8


@dataclass(frozen=True)
class Spot:
    """A node of an invented fleet."""

    fabric: int
    rack: int
    free: int


spots = st.lists(
    st.builds(Spot, fabric=st.integers(0, 1), rack=st.integers(0, 2), free=st.integers(0, GPUS)), min_size=1, max_size=9
)
shapes = st.tuples(st.integers(1, 6), st.integers(1, GPUS))
examples = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def offer(operator: Organization, site: Site) -> Offer:
    return make_offer(operator, site, slug="h200", gpu_model="H200", price_micros=2_490_000)


Order = Callable[[int, int], Instance]


@pytest.fixture
def ordered(offer: Offer, project: Project) -> Order:
    """Make an instance of so many replicas and GPUs, that is nowhere yet."""
    price = prices.current(skus=[offer.sku], currency="USD", at=timezone.now())[offer.sku]

    def make(replicas: int, gpus: int) -> Instance:
        return Instance.objects.create(
            project=project, offer=offer, price_version=price, name=f"i{Instance.objects.count()}", replicas=replicas,
            gpus_per_replica=gpus, command=["true"],
        )  # fmt: skip

    return make


@contextmanager
def undone() -> Iterator[None]:
    """Take back what an example wrote."""
    with transaction.atomic():
        yield
        transaction.set_rollback(True)


def build(offer: Offer, fleet: list[Spot]) -> list[Node]:
    """Make these nodes; a GPU that is not free is not healthy."""
    fabrics = [Fabric.objects.create(site=offer.site, name=f"f{number}", kind="roce") for number in range(2)]
    nodes = Node.objects.bulk_create(
        Node(
            name=f"n{number}", fabric=fabrics[spot.fabric], offer=offer, rack=f"r{spot.rack}", gpu_model="H200",
            gpu_count=GPUS, gpu_memory_mib=1, free_mask=(1 << spot.free) - 1, state="available", reachability="online",
        )
        for number, spot in enumerate(fleet)
    )  # fmt: skip
    Gpu.objects.bulk_create(
        Gpu(node=node, uuid=f"{node.name}-{index}", index=index, memory_mib=1, healthy=index < spot.free)
        for node, spot in zip(nodes, fleet, strict=True)
        for index in range(GPUS)
    )
    return nodes


def domains(fleet: list[Spot]) -> list[list[list[int]]]:
    """Return the numbers of the nodes of each domain, from the tightest level to the widest."""
    numbers = range(len(fleet))
    racks = {(fleet[number].fabric, fleet[number].rack) for number in numbers}
    return [
        [[number for number in numbers if (fleet[number].fabric, fleet[number].rack) == rack] for rack in racks],
        [[number for number in numbers if fleet[number].fabric == fabric] for fabric in (0, 1)],
        [list(numbers)],
    ]


def fewest(rooms: list[int], replicas: int) -> int:
    """Return into how few of these rooms so many replicas fit."""
    rooms = sorted(rooms, reverse=True)
    return next(count for count in range(1, len(rooms) + 1) if sum(rooms[:count]) >= replicas)


def assert_as_tight_as_possible(fleet: list[Spot], used: set[int], replicas: int, gpus: int) -> None:
    whole = [spot.free for spot in fleet if spot.free >= replicas * gpus]
    if whole:
        assert [fleet[number].free for number in used] == [min(whole)]
        return
    inner = [[number] for number in range(len(fleet))]
    for level in domains(fleet):
        rooms = {tuple(domain): sum(fleet[number].free // gpus for number in domain) for domain in level}
        enough = {domain: room for domain, room in rooms.items() if room >= replicas}
        if enough:
            inside = [domain for domain in enough if used <= set(domain)]
            assert inside, f"{used} is in no domain of this level, which has room: {enough}"
            assert enough[inside[0]] == min(enough.values())
            parts = [part for part in inner if set(part) <= set(inside[0])]
            free = [sum(fleet[number].free // gpus for number in part) for part in parts]
            assert sum(not used.isdisjoint(part) for part in parts) == fewest(free, replicas)
            return
        inner = level
    raise AssertionError("nothing had room, yet something was placed")


def room_anywhere(fleet: list[Spot], gpus: int) -> int:
    return sum(spot.free // gpus for spot in fleet)


@examples
@given(fleet=spots, shape=shapes)
def test_a_claim_is_whole_disjoint_and_as_tight_as_can_be(
    offer: Offer, ordered: Order, fleet: list[Spot], shape: tuple[int, int]
) -> None:
    replicas, gpus = shape
    with undone():
        nodes = build(offer, fleet)
        instance = ordered(replicas, gpus)
        if room_anywhere(fleet, gpus) < replicas:
            with pytest.raises(NoCapacity):
                placement.claim(instance=instance, at=timezone.now())
            assert not GpuHold.objects.exists()
            assert not Assignment.objects.exists()
            assert [node.free_gpus for node in Node.objects.order_by("pk")] == [spot.free for spot in fleet]
            return
        claimed = placement.claim(instance=instance, at=timezone.now())
        assert [assignment.replica for assignment in claimed] == list(range(replicas))
        numbers = {node.pk: number for number, node in enumerate(nodes)}
        taken = Counter(numbers[assignment.node_id] for assignment in claimed)
        for number, spot in enumerate(fleet):
            assert Node.objects.get(pk=nodes[number].pk).free_gpus == spot.free - gpus * taken[number]
        assert_claim_is_sound(claimed, instance)
        assert_as_tight_as_possible(fleet, set(taken), replicas, gpus)


def places_of(offer: Offer, ordered: Order, fleet: list[Spot], shape: tuple[int, int]) -> list[int]:
    """Return the numbers of the nodes that a claim takes, by replica."""
    numbers = {node.pk: number for number, node in enumerate(build(offer, fleet))}
    claimed = placement.claim(instance=ordered(*shape), at=timezone.now())
    return [numbers[assignment.node_id] for assignment in claimed]


def test_the_rack_with_the_least_room_to_spare_is_chosen(offer: Offer, ordered: Order) -> None:
    roomy, tight = [Spot(0, 0, 8), Spot(0, 0, 8)], [Spot(0, 1, 4), Spot(0, 1, 4), Spot(0, 1, 4)]
    assert sorted(places_of(offer, ordered, roomy + tight, (3, 4))) == [2, 3, 4]


def test_a_rack_is_chosen_before_a_tighter_fabric(offer: Offer, ordered: Order) -> None:
    rack, apart = [Spot(0, 0, 8), Spot(0, 0, 8)], [Spot(1, 0, 4), Spot(1, 1, 4), Spot(1, 2, 4)]
    assert set(places_of(offer, ordered, rack + apart, (3, 4))) == {0, 1}


def test_the_last_replicas_of_a_gang_take_the_fullest_node_that_has_room(offer: Offer, ordered: Order) -> None:
    assert places_of(offer, ordered, [Spot(0, 0, 8), Spot(0, 0, 8), Spot(0, 0, 4)], (3, 4)) == [0, 0, 2]


def assert_claim_is_sound(claimed: list[Assignment], instance: Instance) -> None:
    uuids = [uuid for assignment in claimed for uuid in assignment.gpu_uuids]
    assert len(set(uuids)) == len(uuids) == instance.gpus
    for assignment in claimed:
        rows = GpuHold.objects.filter(assignment=assignment, released_at=None, gpu__healthy=True)
        held = rows.filter(gpu__node=assignment.node_id).order_by("gpu__index").values_list("gpu__uuid", flat=True)
        assert list(held) == assignment.gpu_uuids == Assignment.objects.get(pk=assignment.pk).gpu_uuids
        assert len(held) == instance.gpus_per_replica


@examples
@given(fleet=spots, shapes=st.lists(shapes, min_size=1, max_size=5), order=st.randoms(use_true_random=False))
def test_what_is_released_is_as_if_it_had_never_been_claimed(
    offer: Offer, ordered: Order, fleet: list[Spot], shapes: list[tuple[int, int]], order: object
) -> None:
    with undone():
        build(offer, fleet)
        living = []
        for replicas, gpus in shapes:
            instance = ordered(replicas, gpus)
            try:
                placement.claim(instance=instance, at=timezone.now())
            except NoCapacity:
                continue
            living.append(instance)
            assert_counts_are_right()
        order.shuffle(living)  # type: ignore[attr-defined]
        for instance in living:
            wiped(instance)
            placement.release(instance=instance, at=timezone.now())
            placement.release(instance=instance, at=timezone.now())
            assert_counts_are_right()
        assert [node.free_gpus for node in Node.objects.order_by("pk")] == [spot.free for spot in fleet]


def assert_counts_are_right() -> None:
    live = GpuHold.objects.filter(released_at=None)
    held = Counter(live.values_list("gpu__node", flat=True))
    healthy = Counter(Gpu.objects.filter(healthy=True).values_list("node", flat=True))
    for node in Node.objects.all():
        assert node.free_gpus == healthy[node.pk] - held[node.pk]


@pytest.mark.parametrize(
    "state", [{"state": "cordoned"}, {"state": "draining"}, {"state": "new"}, {"reachability": "suspect"},
              {"reachability": "unreachable"}, {"reachability": "lost"}]
)  # fmt: skip
def test_nothing_is_placed_on_a_node_that_is_not_fit_for_it(
    offer: Offer, ordered: Order, state: dict[str, str]
) -> None:
    nodes = build(offer, [Spot(0, 0, 8), Spot(0, 0, 8)])
    Node.objects.filter(pk=nodes[0].pk).update(**state)
    assert {row.node_id for row in placement.claim(instance=ordered(1, 8), at=timezone.now())} == {nodes[1].pk}
    for replicas in (1, 2):
        with pytest.raises(NoCapacity):
            placement.claim(instance=ordered(replicas, 1), at=timezone.now())


def test_a_refusal_says_what_is_not_free_and_how_much_is(offer: Offer, ordered: Order) -> None:
    build(offer, [Spot(0, 0, 3), Spot(1, 0, 4)])
    with pytest.raises(
        NoCapacity, match=r"Too few GPUs of H200 in Narvik are free now: 7 over all its nodes, of 2 × 4 asked"
    ):
        placement.claim(instance=ordered(2, 4), at=timezone.now())


def test_another_offer_s_nodes_are_left_alone(offer: Offer, ordered: Order, fleet: Fleet) -> None:
    with pytest.raises(NoCapacity):
        placement.claim(instance=ordered(1, 1), at=timezone.now())


def test_a_node_that_counts_more_than_it_has_is_a_bug_that_shows(offer: Offer, ordered: Order) -> None:
    nodes = build(offer, [Spot(0, 0, 3)])
    Node.objects.filter(pk=nodes[0].pk).update(free_mask=31)
    with pytest.raises(AssertionError, match="do not have the free GPUs"), transaction.atomic():
        placement.claim(instance=ordered(1, 5), at=timezone.now())
    assert not GpuHold.objects.exists()


def test_each_claim_raises_the_generation_of_its_nodes_once(offer: Offer, ordered: Order) -> None:
    nodes = build(offer, [Spot(0, 0, 8), Spot(0, 0, 4)])
    placement.claim(instance=ordered(3, 4), at=timezone.now())
    assert [Node.objects.get(pk=node.pk).desired_generation for node in nodes] == [2, 2]


@pytest.mark.parametrize("replicas", [1, 8, 12])
def test_a_claim_is_two_statements(offer: Offer, ordered: Order, replicas: int, django_assert_num_queries: Any) -> None:
    build(offer, [Spot(0, 0, 8), Spot(0, 0, 8)])
    instance = ordered(replicas, 1)
    # What fits no single node is taken in a savepoint, and those are two more round trips.
    with django_assert_num_queries(4 if replicas > 8 else 2) as captured:
        placement.claim(instance=instance, at=timezone.now())
    asked = [query["sql"] for query in captured.captured_queries if "SAVEPOINT" not in query["sql"]]
    assert asked == [shards.REFRESH, taking.TAKE_ALL if replicas > 8 else taking.TAKE_ONE_NOW]


def test_what_changed_comes_from_an_index(offer: Offer) -> None:
    nodes = build(offer, [Spot(0, 0, 8)] * 50)
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE provisioning_node")  # Else the plan would follow what earlier tests left to count.
        cursor.execute("SET LOCAL enable_seqscan = off")
    since = Node.objects.get(pk=nodes[0].pk).changed + 1
    wanted = {"offer": offer.pk, "project": 0, "since": since, "ever": shards.EVER, "unsure": [1, 2]}
    plan = "\n".join(row[0] for row in ask(f"EXPLAIN {shards.REFRESH}", wanted))
    assert "node_changed" in plan
    assert "Seq Scan on provisioning_node" not in plan


def test_a_node_that_is_kept_for_somebody_has_changed_for_every_process(db: None) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE tgname = 'provisioning_node_notes_its_change'"
        )
        (noted,) = cursor.fetchone()
    assert "new.kept_for" in noted


def test_a_replica_s_gpus_are_those_with_the_lowest_numbers(rent: Rent) -> None:
    first, second = (rent(gpus=2).assignments.get() for _ in range(2))
    assert [uuid[-1] for uuid in first.gpu_uuids + second.gpu_uuids] == ["0", "1", "2", "3"]
