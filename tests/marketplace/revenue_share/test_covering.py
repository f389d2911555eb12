"""Hours under a share of revenue: metered by the list, charged by the share, and trued up."""

from datetime import timedelta
from threading import Barrier, Thread
from time import sleep

import pytest
from django.db import connection, transaction
from django.test import Client
from django.urls import reverse
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from billing import accounts, charging, usage
from billing.invoicing import prepaid
from billing.models import Charge, Hold, Outcome, OutcomeCost, PrepaidItem
from billing.outcomes import sharing
from billing.suppliers import purses
from marketplace import rentals, waiting
from marketplace.contracts import offering, wording
from marketplace.contracts import terms as written
from marketplace.errors import BadOrder
from marketplace.models import (
    Acceptance,
    ContractVersion,
    Membership,
    Organization,
    RevenueStatement,
    Side,
    WaitingOrder,
)
from marketplace.revenue_share import closing, covering, periods, statements
from provisioning.models import Instance
from tests.agreed import REVENUE
from tests.billing.makers import make_price
from tests.billing.makers import start as start_meter
from tests.blocks import Buyer, sell_blocks
from tests.conftest import make_token, order
from tests.marketplace.revenue_share.conftest import COVERS, DUE, FINAL, HOUR, NOON, PRICE, USD, period
from tests.standing import frozen

pytestmark = pytest.mark.django_db


clock = frozen(NOON)


def state(actor, micros, *, at=DUE - HOUR, of=None):
    return statements.submit(
        actor=actor, period=of or period(), revenue_micros=micros, lines=[], at=at, source=RevenueStatement.Source.API
    )


def spent():
    back = sum(Outcome.objects.filter(kind="reversed").values_list("amount_micros", flat=True))
    return sum(Outcome.objects.exclude(kind="reversed").values_list("amount_micros", flat=True)) - back


def meter(acme, agreed, *, begin, hours, gpus=2, resource="ins_x", micros=20 * USD):
    start_meter(
        acme, at=begin, resource_id=resource, quantity=gpus, covered_by=agreed.public_id,
        price_version=make_price(sku=resource, micros_per_unit_hour=micros),
    )  # fmt: skip
    usage.stop(resource_id=resource, at=begin + hours * HOUR)


def test_hours_under_a_share_cost_nothing_by_the_hour_and_are_trued_up_to_the_list(
    clock, agree, rent, run_until_idle, acme, actor, seller
):
    before = accounts.wallet(organization=acme)
    instance = rent(gpus=2, under=agree())
    run_until_idle()
    clock.shift(10 * HOUR)
    charging.charge_due(at=NOON + 10 * HOUR)
    assert closing.reckoned(period(), at=NOON + 10 * HOUR).due.total_micros == 20 * PRICE
    rentals.terminate(actor=actor, instance=Instance.objects.get(pk=instance.pk), at=NOON + 10 * HOUR)
    run_until_idle()
    assert Charge.objects.count() == 0
    assert accounts.wallet(organization=acme) == before
    state(actor, 100 * USD)
    assert closing.close_due(at=DUE, limit=10) == 1
    found = period()
    assert (found.metered_micros, found.charged_micros) == (20 * PRICE, 20 * PRICE)
    (line,) = found.metered_lines
    assert (line["resource"], line["gpus"], line["micros"]) == (instance.public_id, 2, 20 * PRICE)
    assert {one.kind: one.amount_micros for one in Outcome.objects.all()} == {
        "share": 15 * USD, "true_up": 20 * PRICE - 15 * USD,
    }  # fmt: skip
    said = [prepaid.text([one], "en") for one in PrepaidItem.objects.select_related("outcome").order_by("pk")]
    assert said == [
        "Share of sales: share of revenue, 2026-03: 15 % x 100 USD",
        "Share of sales: up to what its use costs by the list, 2026-03: 49.8 - 15 USD",
    ]
    # The seller has its part of the share and is not paid by the hour beside it.
    sharing.share_out(at=DUE)
    assert purses.of(seller.pk)["USD"].payable.balance_micros == 20 * PRICE * 8 // 10
    assert OutcomeCost.objects.count() == 0


def test_a_statement_that_corrects_an_estimate_is_trued_up_again_and_says_how(agree, acme, actor):
    agreed = agree(if_overdue="metered_cost")
    periods.open_due(at=NOON, limit=10)
    meter(acme, agreed, begin=NOON, hours=10)
    closing.close_due(at=DUE, limit=10)
    assert (period().state, period().charged_micros) == ("estimated", 400 * USD)
    state(actor, 4_000 * USD, at=DUE)
    closing.close_due(at=FINAL, limit=10)
    assert (period().state, period().charged_micros, spent()) == ("closed", 600 * USD, 600 * USD)
    said = [prepaid.text([one], "en") for one in PrepaidItem.objects.select_related("outcome").order_by("pk")]
    assert said[-1] == "Share of sales: what the estimate was too low by, 2026-03 (correction): 600 - 400 USD"


AMOUNT = st.integers(0, 10**10)
USE = st.lists(st.tuples(st.integers(0, 40 * 3_600_000), st.integers(0, 40 * 3_600_000), st.integers(1, 9)), max_size=4)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    revenue=st.none() | AMOUNT, late=st.none() | AMOUNT, bps=st.integers(1, 10_000), least=st.integers(0, 10**9),
    most=st.none() | st.integers(1, 10**9), rule=st.sampled_from(["minimum", "metered_cost"]),
    trues=st.booleans(), use=USE,
)  # fmt: skip
def test_whatever_is_used_and_said_a_period_costs_its_closed_form_and_never_more_than_its_cap(
    agree, acme, actor, revenue, late, bps, least, most, rule, trues, use
):
    with transaction.atomic():
        agreed = agree(
            share_bps=bps, minimum_micros=least, cap_micros=most, if_overdue=rule,
            true_up="metered_cost" if trues else "none",
        )  # fmt: skip
        periods.open_due(at=NOON, limit=10)
        price, metered = make_price(sku="h", micros_per_unit_hour=2_490_001), 0
        for number, (begin_ms, long_ms, gpus) in enumerate(use):
            begin, end = NOON + timedelta(milliseconds=begin_ms), NOON + timedelta(milliseconds=begin_ms + long_ms)
            start_meter(
                acme, at=begin, resource_id=f"ins_{number}", quantity=gpus, covered_by=agreed.public_id,
                price_version=price,
            )  # fmt: skip
            usage.stop(resource_id=f"ins_{number}", at=end)
            within = max(0, min(long_ms, 36 * 3_600_000 - begin_ms))  # 36 h are left of March
            metered += (2 * gpus * within * 2_490_001 + 3_600_000) // 7_200_000
        if revenue is not None:
            state(actor, revenue)
        closing.close_due(at=DUE, limit=10)
        first, is_estimate = spent(), revenue is None
        if late is not None and is_estimate:
            state(actor, late, at=DUE)
        closing.close_due(at=FINAL, limit=10)

        def closed_form(earned, floor):
            whole = max((2 * earned * bps + 10_000) // 20_000, least, floor)
            return whole if most is None else min(whole, most)

        by_list = metered if trues else 0
        estimate = closed_form(0, metered if rule == "metered_cost" else by_list)
        assert first == (estimate if is_estimate else closed_form(revenue, by_list))
        last = closed_form(late, by_list) if late is not None and is_estimate else first
        assert (period().state, spent(), period().charged_micros) == ("closed", last, last)
        assert period().metered_micros == sum(line["micros"] for line in period().metered_lines) == metered
        reckoned = closing.reckoned(period(), at=FINAL)
        assert (reckoned.due.total_micros, dict(reckoned.steps)["total"]) == (last, last)
        assert most is None or max(first, last) <= most
        transaction.set_rollback(True)


@pytest.mark.parametrize(
    ("revenue", "order_of", "said"),
    [
        ({"covers": None, "true_up": "none"}, {}, "No hours are covered"),
        ({"covers": {"offers": ["h200-narvik"], "gpus": 1}}, {"gpus": 2}, "covers 1 GPUs at once"),
        ({"covers": {"offers": ["l40s-narvik"], "gpus": 8}}, {}, "does not cover"),
    ],
)
def test_what_an_agreement_does_not_cover_is_refused_with_the_term(agree, rent, acme, revenue, order_of, said):
    with pytest.raises(BadOrder, match=said) as refused:
        rent(under=agree(**revenue), **order_of)
    assert refused.value.field == "contract"
    assert Instance.objects.count() == 0


@pytest.mark.parametrize("inside", [{"attach": "strict"}, {"attach": "strict", "reservation": "the block"}])
def test_an_order_that_names_a_contract_and_a_reservation_is_refused_and_nothing_is_made(
    agree, rent, actor, project, fleet, clock, inside
):
    sell_blocks(fleet.h200)
    buyer = Buyer(actor, project, fleet.h200, NOON)
    block = buyer.buy(2, 0, 6)
    buyer.go_to(0)
    chosen = inside | ({"reservation": block} if "reservation" in inside else {})
    with pytest.raises(BadOrder, match="inside a reservation") as refused:
        rent(under=agree(), **chosen)
    assert refused.value.field == "contract"
    assert Instance.objects.count() == 0


def test_gpus_of_somebody_else_than_the_seller_are_not_covered(agree, rent, charlie, actor, seller, fleet):
    agreed = agree(covers={"offers": None, "gpus": 8})
    fleet.h200.supplier = other = Organization.objects.exclude(pk=seller.pk).first()
    fleet.h200.save()
    agreed.version.contract.refresh_from_db()
    assert other is not None
    with pytest.raises(BadOrder, match="does not cover"):
        rent(under=agreed)
    with pytest.raises(BadOrder) as refused:
        offering.draft(
            actor=actor, seller=seller, title="Share", at=NOON,
            terms={**agreed.version.terms, "revenue": REVENUE | {"covers": COVERS}},
        )  # fmt: skip
    assert refused.value.field == "revenue/covers/offers/0"


def test_a_stopped_instance_starts_again_only_where_the_agreement_has_room(agree, rent, run_until_idle, actor):
    agreed = agree(covers={"offers": None, "gpus": 2})
    first = rent(gpus=2, under=agreed)
    run_until_idle()
    rentals.stop(actor=actor, instance=Instance.objects.get(pk=first.pk), at=NOON)
    run_until_idle()
    rent(gpus=1, under=agreed)
    with pytest.raises(BadOrder, match="2 GPUs at once"):
        rentals.start(actor=actor, instance=Instance.objects.get(pk=first.pk), at=NOON)


@pytest.mark.django_db(transaction=True)
def test_two_orders_at_once_do_not_pass_what_an_agreement_covers(agree, fleet, actor, project, monkeypatch):
    agreed, gate, ends = agree(covers={"offers": None, "gpus": 8}), Barrier(2), []
    current = periods.current
    periods.open_due(at=NOON, limit=10)  # else the second waits for the period that the first opens

    def slowly(agreed, *, at):
        sleep(0.3)  # between the lock and the count
        return current(agreed, at=at)

    monkeypatch.setattr(covering.periods, "current", slowly)

    def ask():
        try:
            gate.wait()
            fresh = Acceptance.objects.select_related("version__contract", "organization").get(pk=agreed.pk)
            wanted = order(fleet.h200, gpus=5, under=fresh)
            rentals.rent(actor=actor, project=project, order=wanted, at=NOON)
            ends.append("rented")
        except BadOrder:
            ends.append("refused")
        finally:
            connection.close()

    pair = [Thread(target=ask) for _ in range(2)]
    for thread in pair:
        thread.start()
    for thread in pair:
        thread.join()
    assert sorted(ends) == ["refused", "rented"]


def test_used_up_funds_leave_hours_under_a_share_alone_and_a_debt_past_due_stops_them(
    agree, rent, run_until_idle, acme, monkeypatch
):
    rent(under=agree())
    run_until_idle()
    monkeypatch.setattr(rentals.standing, "used_up", lambda at: [acme.pk])
    assert rentals.stop_what_nobody_can_pay_for(at=NOON, limit=10) == 0
    monkeypatch.setattr(rentals.standing, "past_due", lambda action, at: [acme.pk])
    assert rentals.stop_what_nobody_can_pay_for(at=NOON, limit=10) == 1


def test_the_terms_say_what_is_rented_under_them_and_the_most_that_a_period_costs(agree):
    said = dict(wording.sentences(written.of(agree(cap_micros=900 * USD).version.terms)))
    assert said["Rented under it"] == "Instances of up to 8 GPUs at once, on these offers: h200-narvik."
    assert "what the hours rented under it cost by the list, never more than $900.00" in said["Share of revenue"]


def test_the_api_rents_under_a_contract_and_shows_the_arithmetic_line_by_line(
    clock, agree, alice, acme, fleet, run_until_idle
):
    contract = agree().version.public_id
    client = Client(headers={"Authorization": f"Bearer {make_token(alice, acme)}", "Idempotency-Key": "k-1"})
    body = {"offer": "h200-narvik", "command": ["sleep", "9"], "contract": contract}

    def ask(path, **changed):
        return client.post(f"/api/v1/{path}", body | changed, content_type="application/json")

    rehearsed = ask("instances?dry_run=true").json()
    assert (rehearsed["per_hour"]["amount"], rehearsed["price"]["amount"]) == ("0.000000", "2.490000")
    assert ask("instances?dry_run=true", contract="ctv_none").json()["code"] == "invalid_request"
    made = ask("instances")
    assert made.status_code == 202, made.content
    assert made.json()["paid_by"] == Acceptance.objects.get(side=Side.BUYER).public_id
    run_until_idle()
    clock.shift(2 * HOUR)
    shown = client.get(f"/api/v1/revenue/periods/{period().public_id}").json()
    assert {one["name"]: one["amount"] for one in shown["arithmetic"]} == {
        "revenue": "0.000000", "share": "0.000000", "minimum": "0.000000", "metered_cost": "4.980000",
        "true_up": "4.980000", "total": "4.980000",
    }  # fmt: skip
    (line,) = shown["metered"]
    assert (line["resource"], line["gpus"], line["price"], line["amount"]) == (
        made.json()["id"], 1, "2.490000", "4.980000",
    )  # fmt: skip
    assert ask("bids", max_price="3").status_code == 422, "an auction's price is not the list's"


def test_the_portal_rents_under_a_contract_and_shows_the_hours_of_the_metered_cost(
    clock, agree, alice, acme, fleet, run_until_idle
):
    Membership.objects.filter(user=alice).update(role="owner")
    contract = agree().version.public_id
    client = Client()
    client.force_login(alice)
    form = {
        "offer": "h200-narvik", "gpus": "1", "replicas": "1", "command": "sleep 9", "key": "k", "contract": contract,
        "project": acme.projects.get().public_id,
    }  # fmt: skip
    assert "By the list it costs $2.49 an hour" in client.post(reverse("launch-estimate"), form).content.decode()
    assert client.post(reverse("launch"), form | {"contract": "ctv_x", "key": "j"}).status_code == 422
    both = form | {"attach": "strict"}
    assert "Choose the contract or the reservation." in client.post(reverse("launch-estimate"), both).content.decode()
    refused = client.post(reverse("launch"), both)
    assert refused.status_code == 422
    assert "name a contract or a reservation, not both" in refused.content.decode()
    assert client.post(reverse("launch"), form).status_code == 302
    run_until_idle()
    clock.shift(2 * HOUR)
    instance = Instance.objects.get()
    assert "a share of revenue" in client.get(reverse("instance", args=[instance.public_id])).content.decode()
    page = client.get(reverse("revenue-period", args=[period().public_id])).content.decode()
    assert instance.public_id in page
    assert "$4.98" in page


def waits_for(actor, project, fleet, agreed, **what):
    return waiting.wait(
        actor=actor, project=project, order=order(fleet.h200, under=agreed, **what), max_micros_per_gpu_hour=PRICE,
        until=NOON + 9 * HOUR, at=NOON,
    )  # fmt: skip


def test_an_order_that_waits_starts_under_its_contract_and_never_by_the_hour(agree, rent, actor, project, fleet):
    agreed = agree(covers=COVERS | {"gpus": 2})
    entry = waits_for(actor, project, fleet, agreed, gpus=2)
    rent(under=agreed)
    assert waiting.start_due(at=NOON, limit=9) == 0
    entry.refresh_from_db()
    assert (entry.state, entry.why) == ("waiting", "refused")
    assert "covers 2 GPUs at once" in entry.message
    rentals.terminate(actor=actor, instance=Instance.objects.get(), at=NOON)
    Instance.objects.update(paid_by="")  # Its GPUs count no more.
    assert waiting.start_due(at=NOON, limit=9) == 1
    entry.refresh_from_db()
    assert entry.instance.paid_by == agreed.public_id
    assert not Hold.objects.filter(resource_id=entry.instance.public_id).exists()


def test_what_a_contract_never_covers_does_not_wait_for_it(agree, actor, project, fleet):
    for agreed, field, what in [
        (agree(covers=COVERS | {"gpus": 2}), "revenue/covers/gpus", {"gpus": 4}),
        (agree(covers=None), "No hours are covered", {}),
    ]:
        with pytest.raises(BadOrder, match=field):
            waits_for(actor, project, fleet, agreed, **what)
    assert not WaitingOrder.objects.exists()


def test_a_version_that_is_withdrawn_meanwhile_starts_nothing(agree, actor, project, fleet):
    agreed = agree()
    entry = waits_for(actor, project, fleet, agreed)
    ContractVersion.objects.filter(pk=agreed.version_id).update(state="withdrawn", withdrawn_at=NOON)
    assert waiting.start_due(at=NOON, limit=9) == 0
    entry.refresh_from_db()
    assert (entry.state, "is withdrawn" in entry.message) == ("waiting", True)
    assert not Instance.objects.exists()


def test_the_api_lets_an_order_wait_with_its_contract(clock, agree, alice, acme, fleet):
    contract = agree().version.public_id
    client = Client(headers={"Authorization": f"Bearer {make_token(alice, acme)}", "Idempotency-Key": "w"})
    body = {
        "offer": "h200-narvik", "command": ["sleep", "9"], "contract": contract, "max_price": "2.49",
        "until": (NOON + HOUR).isoformat(),
    }  # fmt: skip
    assert client.post("/api/v1/waits", body, content_type="application/json").status_code == 202
    assert WaitingOrder.objects.get().order["contract"] == contract
    refused = client.post(
        "/api/v1/waits", body | {"contract": "ctv_none"}, content_type="application/json",
        headers={"Idempotency-Key": "x"},
    )  # fmt: skip
    assert (refused.status_code, "has not agreed" in refused.content.decode()) == (422, True)
