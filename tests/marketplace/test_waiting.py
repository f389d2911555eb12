"""Orders that wait: who comes first, what holds one up, and that each starts exactly once."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import time_machine
from django.db import transaction
from django.utils import timezone, translation

from billing import prices
from billing.models import Account
from marketplace import offers, outlook, rentals, spot_capacity, tokens, waiting
from marketplace.access import Actor, person
from marketplace.errors import BadOrder, IllegalState, ProjectSuspended
from marketplace.models import AuditEntry, Membership, Offer, Organization, Project, SpotTerms, WaitingOrder
from provisioning import calendar
from provisioning.errors import NeverFits, NoCapacity
from provisioning.models import Capacity, Fabric, Instance, Node, Quota, Site
from provisioning.volumes import Use
from tests.billing.makers import at_the_same_moment
from tests.conftest import Fleet, Rent, Run, Storage, make_organization, make_person, order, shared_with_nobody
from tests.marketplace.api.tables import every_row
from tests.marketplace.test_spend import budget
from tests.standing import frozen

pytestmark = pytest.mark.django_db

H200_HOUR = 2_490_000
NOON = datetime(2026, 11, 26, 12, tzinfo=UTC)


clock = frozen(NOON)


Wait = Callable[..., WaitingOrder]


def waits_as(actor: Actor, project: Project, fleet: Fleet) -> Wait:
    def wait(*, price: int = H200_HOUR, hours: float = 10, offer: Offer | None = None, **what: Any) -> WaitingOrder:
        at = timezone.now()
        return waiting.wait(
            actor=actor, project=project, order=order(offer or fleet.h200, **what),
            max_micros_per_gpu_hour=price, until=at + timedelta(hours=hours), at=at,
        )  # fmt: skip

    return wait


@pytest.fixture
def wait(actor: Actor, project: Project, fleet: Fleet) -> Wait:
    """Wait as Alice for one H200; what differs is named."""
    Quota.objects.update(limit=100)
    return waits_as(actor, project, fleet)


def another_who_waits(name: str, fleet: Fleet) -> Wait:
    user = make_person(f"{name.lower()}@other.example")
    project = Project.objects.select_related("organization").get(organization=make_organization(name, user))
    Quota.objects.update(limit=100)
    return waits_as(person(user), project, fleet)


@pytest.fixture
def strangers(fleet: Fleet) -> Wait:
    """Another customer who waits."""
    return another_who_waits("Dora", fleet)


@pytest.fixture
def full(rent: Rent, fleet: Fleet, actor: Actor, project: Project) -> list[Instance]:
    """Both H200 nodes rented out."""
    Quota.objects.update(limit=100)
    return [rent(gpus=8), rent(gpus=8)]


def sweep() -> int:
    return waiting.start_due(at=timezone.now(), limit=100)


def end(instance: Instance, actor: Actor, run_until_idle: Run) -> None:
    instance.refresh_from_db()
    rentals.terminate(actor=actor, instance=instance, at=timezone.now())
    run_until_idle()


def states(*entries: WaitingOrder) -> list[tuple[str, str]]:
    for entry in entries:
        entry.refresh_from_db()
    return [(entry.state, entry.why) for entry in entries]


def test_an_order_starts_once_its_gpus_are_free(
    wait: Wait, full: list[Instance], actor: Actor, run_until_idle: Run
) -> None:
    run_until_idle()
    entry = wait(gpus=8, env={"A": "b"}, name="later")
    assert sweep() == 0
    assert states(entry) == [("waiting", "capacity")]
    assert "Too few GPUs of H200" in entry.message
    end(full[0], actor, run_until_idle)
    assert sweep() == 1
    entry.refresh_from_db()
    assert entry.state == "started"
    assert entry.instance is not None
    assert (entry.instance.name, entry.instance.env, entry.instance.gpus) == ("later", {"A": "b"}, 8)
    assert sweep() == 0
    assert Instance.objects.count() == 3
    started = AuditEntry.objects.get(verb="wait.start")
    assert started.after == {"instance": entry.instance.public_id}


def test_why_it_waits_is_told_in_the_reader_s_language_and_never_before_it_is_known(
    wait: Wait, full: list[Instance]
) -> None:
    entry = wait(gpus=8)
    assert waiting.told(entry).startswith("It is new")
    sweep()
    entry.refresh_from_db()
    assert waiting.told(entry) == entry.message
    with translation.override("ja"):
        assert "asked for" not in waiting.told(entry)
        entry.why, entry.message = "refused", "The order is odd."
        assert waiting.told(entry).endswith("(The order is odd.)")


def test_while_it_waits_nothing_is_held_or_charged(wait: Wait, full: list[Instance], acme: Organization) -> None:
    before = every_row()
    wait()
    sweep()
    after = every_row()
    changed = {table for table in after if after[table] != before[table]}
    assert changed == {"marketplace_waitingorder", "marketplace_auditentry", "provisioning_capacity"}


def test_a_gang_at_the_head_is_not_passed_by_smaller_ones(
    wait: Wait, strangers: Wait, full: list[Instance], actor: Actor, run_until_idle: Run
) -> None:
    run_until_idle()
    gang, small = strangers(gpus=8, replicas=2), wait()
    end(full[0], actor, run_until_idle)
    assert sweep() == 0
    assert states(gang, small) == [("waiting", "capacity"), ("waiting", "capacity")]
    assert waiting.positions([gang, small]) == {gang.pk: 1, small.pk: 2}
    end(full[1], actor, run_until_idle)
    assert sweep() == 1
    assert states(gang, small)[0][0] == "started"


def test_a_new_order_leaves_to_the_queue_what_it_waits_for(
    wait: Wait, rent: Rent, full: list[Instance], actor: Actor, run_until_idle: Run
) -> None:
    run_until_idle()
    gang = wait(gpus=8, replicas=2)
    sweep()
    end(full[0], actor, run_until_idle)
    with pytest.raises(NoCapacity, match="16 GPUs of this offer wait already"):
        rent()
    waiting.cancel(actor=actor, entry=gang, at=timezone.now())
    rent()


def test_what_is_held_up_by_its_own_price_is_passed_and_keeps_its_place(
    wait: Wait, strangers: Wait, fleet: Fleet
) -> None:
    cheap, dear = wait(price=1_000_000), strangers()
    assert sweep() == 1
    assert states(cheap, dear) == [("waiting", "price"), ("started", "capacity")]
    assert cheap.message == "A GPU-hour costs $2.49 now; it may cost $1.00."
    assert waiting.positions([cheap]) == {cheap.pk: 1}
    now = timezone.now()
    prices.publish(
        sku=fleet.h200.sku, currency="USD", micros_per_unit_hour=900_000, effective_from=now, by="test", at=now
    )
    assert sweep() == 1


@pytest.mark.parametrize("why", ["funds", "quota", "budget", "refused"])
def test_the_entry_says_what_of_its_own_holds_it_up(
    wait: Wait, strangers: Wait, acme: Organization, project: Project, why: str
) -> None:
    mine, other = wait(), strangers()
    if why == "funds":
        Account.objects.filter(organization=acme).update(balance_micros=0)
    elif why == "quota":
        project.quotas.update(limit=0)
    elif why == "budget":
        budget(project, month=0)
    else:
        Project.objects.filter(pk=project.pk).update(suspended_at=timezone.now())
    assert sweep() == 1
    assert states(mine, other) == [("waiting", why), ("started", "capacity")]
    assert mine.message
    assert Instance.objects.filter(project=project).count() == 0


def test_who_may_not_rent_any_more_does_not_start(wait: Wait, actor: Actor, acme: Organization) -> None:
    entry = wait()
    Membership.objects.filter(user=actor.user).update(role="viewer")
    assert sweep() == 0
    assert states(entry) == [("waiting", "refused")]
    assert entry.message == "Whoever ordered it may not rent here any more."


def test_a_revoked_token_starts_nothing(actor: Actor, acme: Organization, project: Project, fleet: Fleet) -> None:
    token, _ = tokens.create_token(
        actor=actor, organization=acme, name="agent", scopes=("rent", "manage"), at=timezone.now()
    )
    entry = waits_as(Actor(user=actor.user, token=token), project, fleet)()
    tokens.revoke_token(actor=actor, token=token, at=timezone.now())
    assert sweep() == 0
    assert states(entry) == [("waiting", "refused")]


def test_an_organization_with_its_share_lets_others_first(
    wait: Wait, strangers: Wait, rent: Rent, run_until_idle: Run
) -> None:
    rent(gpus=8)
    run_until_idle()
    mine, other = wait(gpus=2), strangers(gpus=2)
    assert sweep() == 1
    assert states(mine, other) == [("waiting", "share"), ("started", "capacity")]
    assert mine.message == "The organization has 8 of 16 GPUs, and others wait."
    assert sweep() == 1  # Nobody else waits any more.


def test_its_time_is_over_at_its_time_also_where_many_end_at_once(
    clock: time_machine.Traveller, wait: Wait, full: list[Instance], actor: Actor, run_until_idle: Run
) -> None:
    entries = [wait(hours=1), wait(hours=1)]
    clock.shift(timedelta(minutes=59))
    sweep()
    assert states(*entries) == [("waiting", "capacity")] * 2
    end(full[0], actor, run_until_idle)
    clock.shift(timedelta(minutes=1))
    for over in ("expired", "waiting"), ("expired", "expired"):
        assert waiting.start_due(at=timezone.now(), limit=1) == 0
        assert tuple(state for state, _ in states(*entries)) == over
    assert AuditEntry.objects.filter(verb="wait.expire").count() == 2


def test_cancelling_twice_changes_nothing_and_what_started_is_told(wait: Wait, actor: Actor) -> None:
    one, two = wait(), wait()
    for _ in range(2):
        waiting.cancel(actor=actor, entry=one, at=timezone.now())
    assert AuditEntry.objects.filter(verb="wait.cancel").count() == 1
    assert sweep() == 1
    with pytest.raises(IllegalState, match="does not wait any more"):
        waiting.cancel(actor=actor, entry=two, at=timezone.now())


BAD: list[tuple[dict[str, Any], str]] = [
    ({"gpus": 0}, "gpus"),
    ({"gpus": 9}, "gpus"),
    ({"gpus": 8, "replicas": 3}, "gpus"),
    ({"command": []}, "command"),
    ({"price": 0}, "max_price"),
    ({"hours": 0}, "until"),
    ({"hours": -1}, "until"),
    ({"hours": 24 * 31}, "until"),
]


def test_what_could_never_start_is_refused_by_its_field(wait: Wait) -> None:
    before = every_row()
    for change, field in BAD:
        with pytest.raises(BadOrder) as refusal:
            wait(**change)
        assert refusal.value.field == field, change
    assert every_row() == before


def test_a_suspended_project_does_not_wait(wait: Wait, project: Project) -> None:
    project.suspended_at = timezone.now()
    with pytest.raises(ProjectSuspended):
        wait()


def test_a_queue_is_not_filled_by_one(wait: Wait, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "WAITS_MAX", 2)
    wait()
    wait()
    with pytest.raises(BadOrder, match="at most 2"):
        wait()


def test_the_outlook_names_what_fits_instead(
    wait: Wait, rent: Rent, project: Project, fleet: Fleet, operator: Organization, actor: Actor, run_until_idle: Run
) -> None:
    rent(gpus=8)
    run_until_idle()
    found = outlook.look(project=project, offer=fleet.h200, gpus=8, replicas=2, at=timezone.now())
    assert not found.fits_now
    assert [(one.offer, one.gpus, one.replicas) for one in found.nearest] == [(fleet.h200, 8, 1)]
    assert (found.ahead, found.gpus_ahead, found.estimate) == (0, 0, None)
    fits = outlook.look(project=project, offer=fleet.h200, gpus=8, replicas=1, at=timezone.now())
    assert fits.fits_now


def test_what_is_free_where_a_tenant_is_alone_is_no_outlook_for_others(
    wait: Wait, rent: Rent, strangers: Wait, project: Project, fleet: Fleet
) -> None:
    shared_with_nobody(project)
    rent()
    stranger = Project.objects.get(organization__name="Dora")
    asked: dict[str, Any] = {"offer": fleet.h200, "at": timezone.now()}
    found = outlook.look(project=stranger, gpus=4, replicas=3, **asked)
    assert not found.fits_now
    assert [(one.gpus, one.replicas) for one in found.nearest] == [(4, 2)]
    # Their own seven are there for themselves.
    assert outlook.look(project=project, gpus=3, replicas=2, **asked).fits_now
    assert outlook.look(project=project, gpus=7, replicas=1, **asked).fits_now
    (listing,) = offers.listings([fleet.h200], currency="USD", at=timezone.now())
    assert listing.available_gpus == 8


def test_an_order_whose_time_is_over_leaves_its_gpus_to_new_ones(
    clock: time_machine.Traveller, wait: Wait, full: list[Instance], rent: Rent, actor: Actor, run_until_idle: Run
) -> None:
    run_until_idle()
    wait(gpus=8, replicas=2, hours=1)
    sweep()
    clock.shift(timedelta(hours=1))
    sweep()
    end(full[0], actor, run_until_idle)
    assert rent().claimed


def test_an_estimate_follows_what_came_free(
    wait: Wait, full: list[Instance], actor: Actor, run_until_idle: Run, project: Project, fleet: Fleet
) -> None:
    run_until_idle()
    end(full[0], actor, run_until_idle)
    gang = wait(gpus=8, replicas=2)
    at = timezone.now()
    assert outlook.estimates([gang], at=at)[gang.pk] == at + timedelta(hours=48)


def test_demand_is_what_was_tried_and_lacks_nothing_but_gpus(wait: Wait, full: list[Instance], fleet: Fleet) -> None:
    wait(gpus=8, replicas=2)
    assert waiting.demand(fleet.h200, timezone.now()) == 0
    wait(price=1)
    sweep()
    assert waiting.demand(fleet.h200, timezone.now()) == 16  # The second was not looked at yet.
    assert Capacity.objects.get(offer=fleet.h200).waiting == 16
    terms = SpotTerms(offer=fleet.h200)
    assert spot_capacity.asked_on_demand(terms, at=timezone.now()) == 16


@pytest.mark.parametrize("away", [{"reachability": "lost"}, {"state": "cordoned"}, {"is_held": True}])
@pytest.mark.parametrize("wish", [{}, {"strategy": "spread", "level": "node"}])
def test_what_is_out_of_service_comes_back_so_an_order_for_it_waits_and_blocks_nobody_meanwhile(
    wait: Wait, strangers: Wait, rent: Rent, fleet: Fleet, away: dict[str, Any], wish: dict[str, Any]
) -> None:
    gang: dict[str, Any] = {"gpus": 8, "replicas": 2, "wish": wish}
    Node.objects.filter(name="h200-1").update(**away)
    calendar.count(at=timezone.now(), offer_id=fleet.h200.pk)
    # What a launch is told that it lacks now, the queue takes.
    with pytest.raises(NoCapacity) as full:
        rent(**gang)
    assert not isinstance(full.value, NeverFits)
    large, small = wait(**gang), strangers()
    assert sweep() == 1
    assert states(large, small) == [("waiting", "refused"), ("started", "capacity")]
    assert "no place in service now" in waiting.told(large)
    assert waiting.demand(fleet.h200, timezone.now()) == 0
    Node.objects.filter(offer=fleet.h200).update(reachability="online", state="available", is_held=False)
    sweep()
    assert states(large) == [("waiting", "capacity")]


def test_a_strict_order_never_starts_on_demand_and_blocks_nobody(wait: Wait, strangers: Wait) -> None:
    inside, other = wait(attach="strict"), strangers()
    assert sweep() == 1
    assert states(inside, other) == [("waiting", "refused"), ("started", "capacity")]
    assert inside.message.startswith("No reservation of")


def test_an_order_keeps_whether_it_attaches_and_how_it_is_placed(wait: Wait) -> None:
    entry = wait(gpus=1, replicas=2, attach="forbid", wish={"strategy": "spread", "level": "node"})
    assert sweep() == 1
    entry.refresh_from_db()
    assert entry.instance is not None
    assert entry.instance.attach == "forbid"
    assert len(set(entry.instance.assignments.values_list("node", flat=True))) == 2


def test_a_long_queue_takes_no_turn_from_that_of_another_offer(wait: Wait, fleet: Fleet) -> None:
    first, second = sorted([fleet.h200, fleet.l40s], key=lambda offer: offer.pk)
    for _ in range(3):
        wait(offer=first, price=1)
    other = wait(offer=second)
    waiting.start_due(at=timezone.now(), limit=1)
    assert states(other)[0][0] == "started"


def test_each_that_is_held_up_has_its_turn(
    clock: time_machine.Traveller, wait: Wait, strangers: Wait, fleet: Fleet
) -> None:
    held_up = [wait(price=1) for _ in range(3)]
    waiting.start_due(at=timezone.now(), limit=100)
    other = strangers()
    for _ in range(3):
        clock.shift(timedelta(seconds=5))
        waiting.start_due(at=timezone.now(), limit=1)
    states(*held_up)
    assert len({entry.tried_at for entry in held_up}) == 3
    assert states(other)[0][0] == "started"


@pytest.mark.django_db(transaction=True)
def test_two_sweeps_at_once_start_each_once(wait: Wait, actor: Actor) -> None:
    entries = [wait() for _ in range(6)]
    assert at_the_same_moment(*[sweep] * 4) == ["done"] * 4
    while sweep():
        pass
    assert [state for state, _ in states(*entries)] == ["started"] * 6
    assert Instance.objects.count() == 6


def test_a_crash_while_it_starts_leaves_it_waiting(wait: Wait, monkeypatch: pytest.MonkeyPatch) -> None:
    class Crash(BaseException):
        pass

    def crash(*_: Any, **__: Any) -> None:
        raise Crash

    entry = wait()
    with monkeypatch.context() as fault:
        fault.setattr(waiting, "_record_own", crash)
        with pytest.raises(Crash), transaction.atomic():
            sweep()
    assert (states(entry)[0][0], Instance.objects.count()) == ("waiting", 0)
    assert sweep() == 1


def test_what_outgrew_a_fleet_that_changed_is_passed_and_keeps_its_place(
    wait: Wait, strangers: Wait, fleet: Fleet, site: Site
) -> None:
    gang = wait(gpus=8, replicas=2, wish={"level": "fabric", "required": True})
    other = Fabric.objects.create(site=site, name="fabric-2", kind="infiniband")
    Node.objects.filter(name="h200-2").update(fabric=other)
    small = strangers()
    assert sweep() == 1
    assert states(gang, small) == [("waiting", "refused"), ("started", "capacity")]
    assert "larger than one fabric" in waiting.told(gang)
    assert waiting.positions([gang]) == {gang.pk: 1}
    with pytest.raises(NeverFits, match="larger than one fabric"):
        strangers(gpus=8, replicas=2, wish={"level": "fabric", "required": True})


def test_what_can_be_spread_no_more_as_it_wants_is_passed_too(
    wait: Wait, strangers: Wait, fleet: Fleet, site: Site
) -> None:
    even = {"strategy": "spread", "level": "fabric", "required": True, "max_skew": 0}
    gang = wait(replicas=3, wish=even)
    other = Fabric.objects.create(site=site, name="fabric-2", kind="infiniband")
    Node.objects.filter(name="h200-2").update(fabric=other)
    small = strangers()
    assert sweep() == 1
    assert states(gang, small) == [("waiting", "refused"), ("started", "capacity")]
    assert "could not be spread" in waiting.told(gang)


def test_what_has_no_place_in_service_is_passed_and_says_so(wait: Wait, strangers: Wait, storage: Storage) -> None:
    volume = storage.make()
    bound = wait(uses=[Use(volume, "/data")])
    Node.objects.filter(pk=volume.node_id).update(state="cordoned")
    small = strangers()
    assert sweep() == 1
    assert states(bound, small) == [("waiting", "refused"), ("started", "capacity")]
    assert "which takes no instances now. It has no place in service now" in waiting.told(bound)
    Node.objects.filter(pk=volume.node_id).update(state="available")
    assert sweep() == 1
    assert states(bound) == [("started", "refused")]


def test_who_finds_no_place_by_its_shape_alone_holds_up_and_is_starved_by_nobody_behind_it(
    wait: Wait, strangers: Wait, project: Project, fleet: Fleet, actor: Actor, run_until_idle: Run
) -> None:
    theirs = [strangers(gpus=4), strangers(gpus=5)]
    assert sweep() == 2
    run_until_idle()
    shared_with_nobody(project)
    # The node with four is nearest to being empty: it is kept, and only the three free ones of the other are had.
    others = another_who_waits("Erik", fleet)
    first, fits, large, last = wait(), others(gpus=2), others(gpus=4), others()
    assert sweep() == 1
    waits = ("waiting", "capacity")
    assert states(first, fits, large, last) == [waits, ("started", "capacity"), waits, waits]
    theirs[0].refresh_from_db()
    assert theirs[0].instance is not None
    end(theirs[0].instance, actor, run_until_idle)
    assert sweep() == 1
    assert [state for state, _ in states(first, large, last)] == ["started", "waiting", "waiting"]
    nodes = [Node.objects.get(assignments__instance=entry.instance) for entry in (first, fits)]
    assert nodes[0] != nodes[1]
