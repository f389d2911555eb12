"""Asking for more quota: rules, people, notes, and that no limit ever falls by it."""

from typing import Any

import pytest
from django.utils import timezone

from billing import accounts, ledger
from billing.models import Account
from marketplace import limits, quota_requests
from marketplace.access import Actor, person
from marketplace.errors import BadOrder, Conflict, Forbidden, IllegalState
from marketplace.models import AuditEntry, Membership, Organization, Project, QuotaRequest, QuotaRule, Role, User
from marketplace.money import MICROS
from provisioning.models import Quota
from tests.marketplace.api.tables import every_row

pytestmark = pytest.mark.django_db


@pytest.fixture
def manager(carol: User) -> Actor:
    return person(carol)


@pytest.fixture(autouse=True)
def no_rules(db: None) -> None:
    QuotaRule.objects.all().delete()


def ask(actor: Actor, project: Project, *, limit: int = 40, **words: Any) -> QuotaRequest:
    return quota_requests.request(
        **{
            "actor": actor, "organization": project.organization, "project": project, "limit": limit,
            "reason": "a training run", "at": timezone.now(),
        } | words
    )  # fmt: skip


def limit_of(owner: Project | Organization, **words: str) -> int:
    mine = {"project": owner} if isinstance(owner, Project) else {"organization": owner, "project": None}
    return Quota.objects.get(**{"gpu_model": "", "market": "", "unit": "gpus"} | mine | words).limit


def pay(organization: Organization, micros: int) -> None:
    """Let cash come in and be used."""
    own = accounts.lock(organization_id=organization.pk, currency="USD")
    processor = accounts.platform(Account.Kind.PROCESSOR, "USD")
    revenue = accounts.platform(Account.Kind.REVENUE, "USD")
    at = timezone.now()
    ledger.transfer(key=f"in {micros}", source=processor, target=own.cash, amount_micros=micros, reason="x", at=at)
    ledger.transfer(key=f"out {micros}", source=own.cash, target=revenue, amount_micros=micros, reason="x", at=at)


def test_a_request_waits_for_a_person_and_changes_no_limit(actor: Actor, project: Project) -> None:
    made = ask(actor, project)
    assert (made.state, limit_of(project)) == ("pending", 16)
    assert list(quota_requests.pending()) == [made]
    assert AuditEntry.objects.get(verb="quota.request").after == {"limit": 40, "reason": "a training run"}


@pytest.mark.parametrize(("limit", "unit"), [(99_999_999_999, "gpus"), (10**15 + 1, "micros_per_hour")])
def test_nobody_asks_for_more_than_there_could_ever_be(
    actor: Actor, project: Project, limit: int, unit: Quota.Unit
) -> None:
    with pytest.raises(BadOrder, match="from 0 to 1,000,000") as refused:
        ask(actor, project, limit=limit, unit=unit)
    assert refused.value.field == "limit"
    assert not QuotaRequest.objects.exists()


def test_an_approval_raises_the_limit_with_a_note(actor: Actor, manager: Actor, project: Project) -> None:
    made = ask(actor, project)
    quota_requests.approve(actor=manager, found=made, note="welcome", at=timezone.now())
    made.refresh_from_db()
    assert (made.state, made.note, made.decided_by_name, made.is_automatic) == (
        "approved", "welcome", "carol@operator.example", False,
    )  # fmt: skip
    assert (limit_of(project), limit_of(project.organization)) == (40, 64)
    assert AuditEntry.objects.filter(verb__in=["quota.approve", "quota.change"]).count() == 2


def test_the_organizations_limit_is_raised_with_its_projects(
    actor: Actor, manager: Actor, project: Project, acme: Organization
) -> None:
    quota_requests.approve(actor=manager, found=ask(actor, project, limit=100), note="", at=timezone.now())
    assert (limit_of(project), limit_of(acme)) == (100, 100)


def test_an_approval_never_lowers_a_limit_that_grew_meanwhile(actor: Actor, manager: Actor, project: Project) -> None:
    made = ask(actor, project)
    limits.change(actor=manager, organization=project.organization, project=project, limit=500, reason="x")
    quota_requests.approve(actor=manager, found=made, note="", at=timezone.now())
    assert limit_of(project) == 500


def test_a_denial_changes_no_limit(actor: Actor, manager: Actor, project: Project) -> None:
    made = ask(actor, project)
    quota_requests.deny(actor=manager, found=made, note="not now", at=timezone.now())
    made.refresh_from_db()
    assert (made.state, made.note, limit_of(project)) == ("denied", "not now", 16)


def test_what_is_decided_stays_decided(actor: Actor, manager: Actor, project: Project) -> None:
    made = ask(actor, project)
    stale = QuotaRequest.objects.get(pk=made.pk)
    quota_requests.deny(actor=manager, found=made, note="", at=timezone.now())
    for act in (quota_requests.approve, quota_requests.deny):
        with pytest.raises(IllegalState, match="is decided already: it is Denied"):
            act(actor=manager, found=stale, note="", at=timezone.now())
    with pytest.raises(IllegalState):
        quota_requests.withdraw(actor=actor, found=stale, at=timezone.now())
    assert limit_of(project) == 16


def test_withdrawing_twice_changes_nothing_and_leaves_room_for_another(actor: Actor, project: Project) -> None:
    made = ask(actor, project)
    with pytest.raises(Conflict):
        ask(actor, project, limit=50)
    for _ in range(2):
        quota_requests.withdraw(actor=actor, found=made, at=timezone.now())
    assert AuditEntry.objects.filter(verb="quota.withdraw").count() == 1
    assert ask(actor, project, limit=50).state == "pending"


def rule(**changes: Any) -> QuotaRule:
    ordinary = {"name": "paid", "gpus_max": 50, "paid_micros_min": 100 * MICROS}
    return QuotaRule.objects.create(**ordinary | changes)


def test_a_rule_approves_at_once_and_is_written_down(actor: Actor, project: Project, acme: Organization) -> None:
    rule()
    pay(acme, 100 * MICROS)
    made = ask(actor, project)
    assert (made.state, made.is_automatic, made.decided_by_name) == ("approved", True, "rule “paid”")
    assert limit_of(project) == 40
    entry = AuditEntry.objects.get(verb="quota.approve")
    assert (entry.actor_name, entry.after) == ("gpumarket", {"limit": 40, "rule": "paid"})


@pytest.mark.parametrize("case", ["paid less", "owes", "asks for more", "another market", "ended", "money"])
def test_a_rule_approves_nothing_beyond_it(actor: Actor, project: Project, acme: Organization, case: str) -> None:
    rule(market="spot" if case == "another market" else "", is_active=case != "ended")
    pay(acme, (99 if case == "paid less" else 100) * MICROS)
    if case == "owes":
        Account.objects.filter(organization=acme, kind="receivable").update(balance_micros=-1)
    words = {"unit": Quota.Unit.MICROS_PER_HOUR} if case == "money" else {}
    assert ask(actor, project, limit=51 if case == "asks for more" else 40, **words).state == "pending"


def test_what_was_only_paid_ahead_or_went_back_is_not_paid(acme: Organization) -> None:
    own = accounts.lock(organization_id=acme.pk, currency="USD")
    platform = {kind: accounts.platform(kind, "USD") for kind in Account.Kind if kind in ("deferred", "processor")}
    at = timezone.now()
    pay(acme, 100 * MICROS)
    ledger.transfer(
        key="in", source=platform[Account.Kind.PROCESSOR], target=own.cash, amount_micros=2 * MICROS, reason="x", at=at
    )
    for kind, account in platform.items():
        ledger.transfer(key=f"to {kind}", source=own.cash, target=account, amount_micros=MICROS, reason="x", at=at)
    assert quota_requests.paid_micros(acme) == 100 * MICROS
    expense = accounts.platform(Account.Kind.SLA_EXPENSE, "USD")
    ledger.transfer(key="back", source=expense, target=own.cash, amount_micros=MICROS, reason="x", at=at)
    assert quota_requests.paid_micros(acme) == 99 * MICROS


def test_promotional_credit_is_not_paid(actor: Actor, project: Project, acme: Organization) -> None:
    assert quota_requests.paid_micros(acme) == 0


BAD: list[tuple[dict[str, Any], str]] = [
    ({"limit": 16}, "limit"),
    ({"limit": 0}, "limit"),
    ({"limit": -1}, "limit"),
    ({"limit": 10**16}, "limit"),
    ({"reason": "  "}, "reason"),
    ({"reason": "x" * 501}, "reason"),
    ({"gpu_model": "H1000"}, "gpu_model"),
    ({"market": "black"}, "market"),
    ({"unit": "watts"}, "unit"),
]


def test_what_makes_no_sense_names_its_field_and_changes_nothing(actor: Actor, project: Project) -> None:
    before = every_row()
    for change, field in BAD:
        with pytest.raises(BadOrder) as refusal:
            ask(actor, project, **change)
        assert refusal.value.field == field, change
    assert every_row() == before


def test_a_limit_of_a_model_is_made_by_its_approval(actor: Actor, manager: Actor, project: Project, fleet: Any) -> None:
    made = ask(actor, project, limit=4, gpu_model="H200", market="spot")
    quota_requests.approve(actor=manager, found=made, note="", at=timezone.now())
    assert limit_of(project, gpu_model="H200", market="spot") == 4


def test_whoever_belongs_to_the_organization_does_not_raise_its_limit(
    actor: Actor, project: Project, manager: Actor
) -> None:
    made = ask(actor, project)
    Membership.objects.create(organization=project.organization, user=manager.user, role=Role.VIEWER)
    for own in (actor, manager):
        with pytest.raises(Forbidden, match="somebody else has to decide"):
            quota_requests.approve(actor=own, found=made, note="mine", at=timezone.now())
    assert (QuotaRequest.objects.get().state, limit_of(project)) == ("pending", 16)
