"""What can be asked of rented GPUs, from every door alike: checks, prices, funds, quota and names."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from billing import accounts, books, prices
from billing.errors import InsufficientFunds
from billing.models import Account, Hold, UsageSpan
from marketplace import rentals, tasks
from marketplace.access import Actor
from marketplace.errors import BadOrder, Conflict, ProjectSuspended
from marketplace.models import AuditEntry, Offer, Organization, Project
from provisioning.errors import IllegalMove, NoCapacity, QuotaExceeded
from provisioning.models import GpuHold, Instance, Node, Quota, Workflow
from tests.conftest import Fleet, Rent, Run, order
from tests.marketplace.api.tables import every_row

pytestmark = pytest.mark.django_db

H200_HOUR = 2_490_000


def wallet(organization: Organization) -> accounts.Wallet:
    return accounts.wallet(organization=organization)


def test_renting_takes_quota_holds_the_first_hour_and_claims_gpus(
    rent: Rent, acme: Organization, project: Project
) -> None:
    instance = rent(gpus=2, replicas=2)
    assert Quota.objects.get(project=project).held == instance.quota_held == 4
    assert wallet(acme).held_micros == 4 * H200_HOUR
    assert GpuHold.objects.filter(assignment__instance=instance, released_at=None).count() == 4
    assert Workflow.objects.get(instance=instance).step == "place"
    entry = AuditEntry.objects.get(verb="instance.rent")
    assert entry.after == {"name": instance.name, "offer": "h200-narvik", "replicas": 2, "gpus": 2}
    assert (entry.subject_id, entry.request_id) == (instance.public_id, "req_test")
    assert books.check(at=timezone.now()) == []


def test_a_name_is_made_where_none_is_given(rent: Rent) -> None:
    names = {rent().name for _ in range(2)}
    assert len(names) == 2
    assert all(name.startswith("h200-") and rentals.NAME_SHAPE.fullmatch(name) for name in names)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"gpus": 0}, "gpus"),
    ({"gpus": 9}, "gpus"),
    ({"gpus": 8, "replicas": 3}, "gpus"),
    ({"replicas": 0}, "replicas"),
    ({"replicas": 10_001}, "replicas"),
    ({"name": "Big"}, "name"),
    ({"name": "x" * 64}, "name"),
    ({"name": "ends-with-a-newline\n"}, "name"),
    ({"command": []}, "command"),
    ({"command": ["", "x"]}, "command"),
    ({"command": ["x\x00"]}, "command"),
    ({"command": ["\ud800"]}, "command"),
    ({"command": ["x" * 65_537]}, "command"),
    ({"env": {"a b": "x"}}, "env"),
    ({"env": {"": "x"}}, "env"),
    ({"env": {"A\n": "x"}}, "env"),
    ({"env": {"A": "\x00"}}, "env"),
    ({"env": {"A": "\udfff"}}, "env"),
    ({"env": {"A": "x" * 65_537}}, "env"),
]


def test_an_order_that_makes_no_sense_names_its_field_and_changes_nothing(rent: Rent) -> None:
    before = every_row()
    for change, field in BAD:
        with pytest.raises(BadOrder) as refusal:
            rent(**change)
        assert refusal.value.field == field, change
    assert every_row() == before


def test_the_longest_that_is_allowed_is_allowed(rent: Rent) -> None:
    rent(name="a" * 63, command=["é" * 32_768], env={"A" * 128: "x" * (65_536 - 128)})
    assert Instance.objects.get().name == "a" * 63


def suspend(acme: Organization) -> None:
    Organization.objects.filter(pk=acme.pk).update(suspended_at=timezone.now())


def cordon(acme: Organization) -> None:
    Node.objects.update(state="cordoned")


def empty_the_purse(acme: Organization) -> None:
    Account.objects.filter(organization=acme, kind="promo").update(balance_micros=H200_HOUR - 1)


def forbid(acme: Organization) -> None:
    Quota.objects.update(limit=0)


@pytest.mark.parametrize(
    ("spoil", "refusal"),
    [
        (suspend, ProjectSuspended),
        (cordon, NoCapacity),
        (empty_the_purse, InsufficientFunds),
        (forbid, QuotaExceeded),
    ],
)
def test_each_refusal_leaves_everything_as_it_was(
    rent: Rent, acme: Organization, project: Project, spoil: Callable[[Organization], None], refusal: type[Exception]
) -> None:
    spoil(acme)
    project.organization.refresh_from_db()
    before = every_row()
    with pytest.raises(refusal):
        rent()
    assert every_row() == before


def test_the_whole_gang_is_refused_if_one_replica_has_no_room(rent: Rent) -> None:
    Quota.objects.update(limit=100)
    rent(gpus=1)
    before = every_row()
    with pytest.raises(NoCapacity):
        rent(gpus=8, replicas=2)
    assert every_row() == before


def test_a_name_is_taken_by_the_living_and_free_again_after_them(rent: Rent, actor: Actor, run_until_idle: Run) -> None:
    first = rent(name="mine")
    with pytest.raises(Conflict, match="mine"):
        rent(name="mine")
    rentals.terminate(actor=actor, instance=first, at=timezone.now())
    run_until_idle()
    assert rent(name="mine").pk != first.pk


def test_a_rename_is_written_down_and_a_taken_name_refused(rent: Rent, actor: Actor) -> None:
    rent(name="taken")
    instance = rent(name="mine")
    rentals.rename(actor=actor, instance=instance, name="mine")
    with pytest.raises(Conflict):
        rentals.rename(actor=actor, instance=Instance.objects.get(pk=instance.pk), name="taken")
    rentals.rename(actor=actor, instance=instance, name="yours")
    entry = AuditEntry.objects.get(verb="instance.rename")
    assert (entry.before, entry.after) == ({"name": "mine"}, {"name": "yours"})


def test_a_rehearsal_says_the_price_and_does_nothing(
    rent: Rent, actor: Actor, project: Project, fleet: Fleet, django_capture_on_commit_callbacks: Any
) -> None:
    before = every_row()
    with django_capture_on_commit_callbacks() as nudges:
        quote = rentals.rehearse(
            actor=actor, project=project, order=order(fleet.h200, gpus=2, replicas=3), at=timezone.now()
        )
    assert (quote.hourly_micros, nudges) == (6 * H200_HOUR, [])
    assert every_row() == before


def test_a_start_is_at_today_s_price_and_holds_another_first_hour(
    running: Instance, actor: Actor, fleet: Fleet, acme: Organization, run_until_idle: Run
) -> None:
    rentals.stop(actor=actor, instance=running, at=timezone.now())
    run_until_idle()
    assert wallet(acme).held_micros == 0
    at = timezone.now()
    prices.publish(
        sku=fleet.h200.sku, currency="USD", micros_per_unit_hour=3_000_000, effective_from=at, by="test", at=at
    )
    again = Instance.objects.select_related("project__organization", "offer").get(pk=running.pk)
    rentals.start(actor=actor, instance=again, at=timezone.now())
    run_until_idle()
    assert wallet(acme).held_micros == 3_000_000
    assert [span.price_version.micros_per_unit_hour for span in UsageSpan.objects.order_by("pk")] == [
        H200_HOUR,
        3_000_000,
    ]
    assert books.check(at=timezone.now()) == []


def test_verbs_that_change_nothing_are_not_written_down(running: Instance, actor: Actor) -> None:
    for _ in range(2):
        rentals.stop(actor=actor, instance=running, at=timezone.now())
    rentals.terminate(actor=actor, instance=running, at=timezone.now())
    rentals.terminate(actor=actor, instance=running, at=timezone.now())
    verbs = AuditEntry.objects.filter(subject_id=running.public_id).order_by("pk").values_list("verb", flat=True)
    assert list(verbs) == ["instance.rent", "instance.stop", "instance.terminate"]


def test_what_has_ended_is_neither_started_nor_renamed(running: Instance, actor: Actor, run_until_idle: Run) -> None:
    rentals.terminate(actor=actor, instance=running, at=timezone.now())
    run_until_idle()
    ended = Instance.objects.get(pk=running.pk)
    for verb in (
        lambda: rentals.start(actor=actor, instance=ended, at=timezone.now()),
        lambda: rentals.rename(actor=actor, instance=ended, name="late"),
        lambda: rentals.stop(actor=actor, instance=ended, at=timezone.now()),
    ):
        with pytest.raises(IllegalMove):
            verb()


def test_whoever_cannot_pay_any_more_is_stopped_and_told_why(
    running: Instance, acme: Organization, run_until_idle: Run
) -> None:
    assert rentals.stop_what_nobody_can_pay_for(at=timezone.now(), limit=10) == 0
    later = timezone.now() + timedelta(hours=403)
    assert rentals.stop_what_nobody_can_pay_for(at=later, limit=10) == 1
    run_until_idle()
    running.refresh_from_db()
    assert (running.phase, running.reason) == ("stopped", "no_funds")
    assert "add credit" in running.message
    assert not Hold.objects.filter(state="pending").exists()
    tasks.stop_what_nobody_can_pay_for()


def test_what_its_offer_runs_no_more_is_not_started_again(actor: Actor, rent: Rent, run_until_idle: Run) -> None:
    """Without nodes an offer may learn to run something else; a command is no image."""
    instance = rent()
    rentals.stop(actor=actor, instance=instance, at=timezone.now())
    run_until_idle()
    Offer.objects.update(runtime="podman")
    instance = Instance.objects.select_related("project__organization", "offer").get(pk=instance.pk)
    with pytest.raises(BadOrder, match="runs images") as refusal:
        rentals.start(actor=actor, instance=instance, at=timezone.now())
    assert refusal.value.field == "image"
    assert Instance.objects.get().phase == "stopped"
