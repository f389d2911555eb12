"""Hours under a share of revenue that ends: they go on under a later version, or cost their price by the hour."""

from datetime import timedelta

import pytest
from django.db import transaction

from billing import charging
from billing.models import UsageSpan
from marketplace import spend
from marketplace.access import person
from marketplace.contracts import offering
from marketplace.errors import BadOrder
from marketplace.models import Acceptance, AuditEntry, RevenuePeriod, Side
from marketplace.revenue_share import closing, covering, periods
from provisioning import quotas, steps
from provisioning.health import faults
from provisioning.models import Instance, Quota
from tests.billing.makers import while_it_waits
from tests.conftest import make_person
from tests.marketplace.revenue_share.conftest import APRIL, COVERS, DUE, HOUR, NOON, PRICE, period
from tests.standing import frozen

pytestmark = pytest.mark.django_db

clock = frozen(NOON)


def test_hours_that_a_reservation_covers_stay_so_when_the_agreement_of_their_instance_ends(
    clock, agree, rent, run_until_idle, actor
):
    agreed = agree()
    instance = rent(under=agreed)
    run_until_idle()
    offering.withdraw(actor=actor, version=agreed.version, at=NOON + HOUR)
    UsageSpan.objects.update(covered_by="rsv_of_the_same")  # as an order of both was metered before it was refused
    clock.move_to(APRIL + HOUR)
    assert covering.release_due(at=APRIL + HOUR, limit=10) == 1
    (span,) = UsageSpan.objects.all()
    assert (span.covered_by, span.ended_at) == ("rsv_of_the_same", None)
    assert Instance.objects.get(pk=instance.pk).paid_by == ""


def test_when_the_seller_withdraws_it_hours_cost_their_price_from_the_end_of_the_last_period(
    clock, agree, rent, run_until_idle, acme, actor
):
    agreed = agree()
    instance = rent(under=agreed)
    run_until_idle()
    offering.withdraw(actor=actor, version=agreed.version, at=NOON + HOUR)
    with pytest.raises(BadOrder, match="withdrawn"):
        rent(under=Acceptance.objects.select_related("version__contract", "organization").get(pk=agreed.pk))
    assert covering.release_due(at=APRIL - timedelta(seconds=1), limit=10) == 0
    clock.move_to(APRIL + 3 * HOUR)
    charging.charge_due(at=APRIL + 3 * HOUR)
    for expected in (1, 0):
        assert covering.release_due(at=APRIL + 3 * HOUR, limit=10) == expected
    charging.charge_due(at=APRIL + 3 * HOUR)
    covered, charged = UsageSpan.objects.order_by("started_at")
    assert (covered.covered_by, covered.ended_at, covered.charged_micros) == (agreed.public_id, APRIL, 0)
    assert (charged.covered_by, charged.started_at, charged.charged_micros) == ("", APRIL, 3 * PRICE)
    assert Instance.objects.get(pk=instance.pk).paid_by == ""
    assert AuditEntry.objects.get(verb="instance.uncover").organization == acme
    assert [one.label for one in RevenuePeriod.objects.all()] == ["2026-03"]
    closing.close_due(at=DUE, limit=10)
    assert period().metered_micros == 36 * PRICE  # all of March and nothing of April


def test_when_its_customer_leaves_no_period_begins_any_more_and_hours_cost_their_price_after_the_last(
    clock, agree, rent, run_until_idle, acme, actor
):
    agreed = agree()
    instance = rent(under=agreed)
    run_until_idle()
    offering.leave(actor=actor, version=agreed.version, organization=acme, at=NOON + HOUR)
    with pytest.raises(BadOrder, match="ended this agreement"):
        rent(under=covering.agreement(acme, agreed.version.public_id))
    assert covering.choices(acme, instance.offer) == []
    assert covering.release_due(at=APRIL - timedelta(seconds=1), limit=10) == 0
    clock.move_to(APRIL + HOUR)
    assert covering.release_due(at=APRIL + HOUR, limit=10) == 1
    assert periods.open_due(at=APRIL + 40 * 24 * HOUR, limit=10) == 0
    assert [one.label for one in RevenuePeriod.objects.all()] == ["2026-03"]


def amend(agreed, actor, **revenue):
    """Agree to a second version an hour after noon; it is in force from April on."""
    merchant = person(make_person("m@operator.example"), "req_seller")
    terms = {**agreed.version.terms, "revenue": agreed.version.terms["revenue"] | revenue}
    second = offering.amend(
        actor=merchant, contract=agreed.version.contract, terms=terms, side=Side.SELLER, at=NOON + HOUR
    )  # fmt: skip
    offering.offer(actor=merchant, version=second, at=NOON + HOUR)
    offering.accept(
        actor=actor, version=second, organization=agreed.organization, sha256=second.sha256, at=NOON + HOUR
    )  # fmt: skip
    return covering.agreement(agreed.organization, second.public_id)


def test_what_leaves_an_agreement_counts_with_its_price_in_hourly_budgets_and_quotas(
    clock, agree, rent, run_until_idle, acme, actor, project
):
    quotas.set_limit(project_id=project.pk, limit=10**9, unit="micros_per_hour")
    agreed = agree()
    rent(gpus=2, under=agreed)
    run_until_idle()
    assert spend.committed(acme, acme, at=NOON).hourly_micros == 0
    offering.withdraw(actor=actor, version=agreed.version, at=NOON + HOUR)
    clock.move_to(APRIL + HOUR)
    assert covering.release_due(at=APRIL + HOUR, limit=10) == 1
    assert spend.committed(acme, acme, at=APRIL + HOUR).hourly_micros == 2 * PRICE
    assert Quota.objects.get(project=project, unit="micros_per_hour").held == 2 * PRICE
    assert quotas.miscounted() == []


def test_a_later_version_takes_over_no_more_gpus_than_it_covers_the_oldest_first(
    clock, agree, rent, run_until_idle, actor
):
    agreed = agree()
    first, second = rent(under=agreed), rent(gpus=2, under=agreed)
    run_until_idle()
    early = amend(agreed, actor, covers=COVERS | {"gpus": 2})
    clock.move_to(APRIL + HOUR)
    assert covering.release_due(at=APRIL + HOUR, limit=10) == 2
    paid_by = dict(Instance.objects.values_list("public_id", "paid_by"))
    assert paid_by == {first.public_id: early.public_id, second.public_id: ""}
    now = dict(UsageSpan.objects.filter(ended_at=None).values_list("resource_id", "covered_by"))
    assert now == paid_by


def test_a_later_version_that_was_agreed_to_covers_on_from_its_first_period(
    clock, agree, rent, run_until_idle, acme, actor, seller
):
    agreed = agree()
    instance = rent(under=agreed)
    run_until_idle()
    early = amend(agreed, actor, share_bps=2_000)
    with pytest.raises(BadOrder, match="no period now"):
        covering.check(early, offer=instance.offer, gpus=1, at=NOON + HOUR)
    clock.move_to(APRIL + HOUR)
    assert covering.release_due(at=APRIL + HOUR, limit=10) == 1
    first, then = UsageSpan.objects.order_by("started_at")
    assert (first.ended_at, then.started_at, then.ended_at) == (APRIL, APRIL, None)
    assert (then.covered_by, Instance.objects.get(pk=instance.pk).paid_by) == (early.public_id, early.public_id)
    assert closing.reckoned(period(APRIL), at=APRIL + HOUR).due.total_micros == PRICE


@pytest.mark.django_db(transaction=True)
def test_what_failed_gives_its_gpus_back_while_its_agreement_ends_and_neither_locks_the_other_out(
    clock, agree, rent, run_until_idle, actor
):
    agreed = agree()
    instance = rent(under=agreed)
    run_until_idle()
    offering.withdraw(actor=actor, version=agreed.version, at=NOON + HOUR)
    at = APRIL + HOUR
    clock.move_to(at)
    faults.fail(instance=Instance.objects.get(pk=instance.pk), happened="A GPU broke.", fault_at=at, at=at)

    def lock():
        assert Instance.objects.select_for_update(no_key=True).get(pk=instance.pk).quota_held == 1

    def finish():
        with transaction.atomic():
            steps.finish(Instance.objects.get(pk=instance.pk))

    while_it_waits(lock, finish, then=lambda: covering.release_due(at=at, limit=10))
    instance.refresh_from_db()
    assert (instance.paid_by, instance.quota_held) == ("", 0)
    assert quotas.miscounted() == []
