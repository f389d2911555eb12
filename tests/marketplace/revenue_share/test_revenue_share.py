"""Shares of revenue: reported, corrected, charged when due, estimated when overdue, trued up once."""

from datetime import UTC, datetime, timedelta

import pytest
from django.db import DatabaseError, transaction
from django.test import Client
from django.urls import reverse
from hypothesis import given
from hypothesis import strategies as st

from billing import accounts, books, credits, daily, usage
from billing.models import Outcome
from billing.outcomes import margins, reversing, sharing
from billing.suppliers import purses
from marketplace.access import person
from marketplace.contracts import offering, sellers
from marketplace.errors import BadOrder, IllegalState
from marketplace.events import feed
from marketplace.models import Acceptance, Event, Organization, RevenuePeriod, RevenueStatement, Side
from marketplace.revenue_share import amounts, closing, periods, statements
from provisioning.errors import IllegalMove
from tests.agreed import REVENUE, share_revenue
from tests.billing.makers import make_price
from tests.billing.makers import start as start_meter
from tests.conftest import make_organization, make_person, make_token
from tests.standing import frozen

pytestmark = pytest.mark.django_db
MARCH = datetime(2026, 3, 10, 12, 0, tzinfo=UTC)
APRIL = datetime(2026, 4, 1, tzinfo=UTC)
DUE = APRIL + timedelta(days=5)
FINAL = APRIL + timedelta(days=10)
MONTH = timedelta(days=31)
USD = 1_000_000


clock = frozen(MARCH)


@pytest.fixture
def seller(clock, charlie):
    Organization.objects.filter(pk=(made := make_organization("Models AS", charlie, credit_micros=0)).pk).update(
        is_supplier=True
    )
    made.refresh_from_db()
    return made


@pytest.fixture
def agree(seller, acme, alice):
    def agreed(**revenue):
        version = share_revenue(seller, acme, alice, MARCH, **revenue)
        periods.open_due(at=MARCH, limit=100)
        return version

    return agreed


@pytest.fixture(autouse=True)
def the_books_balance(db):
    yield
    at = APRIL + 10 * MONTH
    daily.sum_up(at=at)
    assert books.check(at=at) == []


def period(at=MARCH):
    return RevenuePeriod.objects.select_related("organization", "version__contract").get(
        starts_at__lte=at, ends_at__gt=at
    )


def state(actor, micros, *, of=None, lines=(), at=MARCH):
    return statements.submit(
        actor=actor, period=of or period(), revenue_micros=micros, lines=list(lines), at=at,
        source=RevenueStatement.Source.API,
    )  # fmt: skip


def spent():
    back = sum(Outcome.objects.filter(kind="reversed").values_list("amount_micros", flat=True))
    return sum(Outcome.objects.exclude(kind="reversed").values_list("amount_micros", flat=True)) - back


def test_what_was_stated_last_is_charged_when_it_is_due_and_the_period_closes(agree, actor, acme, seller):
    agree()
    state(actor, 5_000 * USD)
    state(actor, 4_000_000_001)
    before = accounts.wallet(organization=acme).available_micros
    assert closing.close_due(at=DUE - timedelta(seconds=1), limit=10) == 0
    assert closing.close_due(at=DUE, limit=10) == 1
    assert closing.close_due(at=DUE, limit=10) == 0
    assert before - accounts.wallet(organization=acme).available_micros == 600 * USD  # 15 %, half up
    found = period()
    assert (found.state, found.basis, found.charged_micros) == ("closed", "reported", 600 * USD)
    sharing.share_out(at=DUE)
    assert purses.of(seller.pk)["USD"].payable.balance_micros == 480 * USD
    with pytest.raises(IllegalState):
        state(actor, USD)
    with pytest.raises(IllegalMove):
        found.move_to("open", at=DUE, message="again")


def test_a_statement_that_is_sent_twice_is_said_once_and_what_was_said_before_can_be_said_again(agree, actor):
    agree()
    lines = [("a", USD), ("b", 2 * USD)]
    said = [state(actor, 3 * USD, lines=lines) for _ in range(2)]
    said += [state(actor, 3 * USD), state(actor, 4 * USD), state(actor, 3 * USD, lines=lines)]
    assert [row.number for row in said] == [1, 1, 2, 3, 4]


def test_a_seller_has_no_part_of_what_its_customer_only_said_until_that_is_paid(agree, actor, acme, seller):
    agree()
    state(actor, 10_000 * USD)
    closing.close_due(at=DUE, limit=10)
    assert accounts.wallet(organization=acme).owed_micros == 500 * USD
    assert sharing.share_out(at=DUE) == 0
    assert "USD" not in purses.of(seller.pk)
    credits.grant(organization=acme, amount_micros=499 * USD, key="a", reason="paid", by="test", at=DUE)
    assert sharing.share_out(at=DUE) == 0
    credits.grant(organization=acme, amount_micros=USD, key="b", reason="paid", by="test", at=DUE)
    assert accounts.wallet(organization=acme).owed_micros == 0
    assert sharing.share_out(at=DUE) == 1
    assert purses.of(seller.pk)["USD"].payable.balance_micros == 1_200 * USD


def test_revenue_that_was_only_said_lifts_no_limit_of_its_seller_and_what_was_paid_of_it_does(
    agree, actor, acme, seller
):
    version = agree()

    def brought():
        own = margins.net_micros(organization_id=acme.pk, versions=[version.public_id]).get(version.public_id, 0)
        return own, -sellers.unpaid_micros(seller, "USD", at=DUE)

    state(actor, 1_000_000 * USD)
    closing.close_due(at=DUE, limit=10)
    said = Outcome.objects.get()
    reversing.reverse(key="a", of=said, amount_micros=50_000 * USD, reason="a mistake", at=DUE)
    assert brought() == (0, 0)
    credits.grant(organization=acme, amount_micros=100_000 * USD, key="a", reason="paid", by="test", at=DUE)
    sharing.share_out(at=DUE)
    assert brought() == (100_000 * USD, 20_000 * USD)
    reversing.reverse(key="b", of=said, amount_micros=40_000 * USD, reason="another", at=DUE)
    assert brought() == (60_000 * USD, 12_000 * USD)


def test_less_than_the_minimum_is_brought_up_to_it_and_more_than_the_cap_is_not_asked(agree, actor):
    agree(cap_micros=150 * USD)
    state(actor, 200 * USD)
    closing.close_due(at=DUE, limit=10)
    assert {one.kind: one.amount_micros for one in Outcome.objects.all()} == {"share": 30 * USD, "true_up": 70 * USD}
    periods.open_due(at=APRIL + timedelta(days=1), limit=10)
    state(actor, 9_000 * USD, of=period(APRIL))
    closing.close_due(at=DUE + MONTH, limit=10)
    assert period(APRIL).charged_micros == 150 * USD
    assert spent() == 250 * USD


@pytest.mark.parametrize(
    ("rule", "expected"), [("last_statement", 600 * USD), ("minimum", 100 * USD), ("metered_cost", 100 * USD)]
)
def test_an_overdue_statement_is_estimated_by_the_rule_and_stands_if_none_comes(agree, actor, rule, expected):
    agree(if_overdue=rule)
    state(actor, 4_000 * USD)
    closing.close_due(at=DUE, limit=10)
    periods.open_due(at=APRIL, limit=10)
    assert closing.close_due(at=DUE + MONTH, limit=10) == 1
    found = period(APRIL)
    assert (found.state, found.basis, found.charged_micros) == ("estimated", rule, expected)
    assert closing.close_due(at=FINAL + MONTH, limit=10) == 1
    assert (period(APRIL).state, period(APRIL).charged_micros) == ("closed", expected)
    assert books.recompute(at=FINAL + MONTH) == []


@pytest.mark.parametrize(("said", "total"), [(8_000 * USD, 1_200 * USD), (1_000 * USD, 150 * USD), (0, 100 * USD)])
def test_a_statement_that_comes_after_all_corrects_the_estimate_once_in_both_directions(
    agree, actor, acme, said, total
):
    agree()
    state(actor, 4_000 * USD)
    closing.close_due(at=DUE, limit=10)
    periods.open_due(at=APRIL, limit=10)
    closing.close_due(at=DUE + MONTH, limit=10)
    state(actor, said, of=period(APRIL), at=DUE + MONTH)
    for _ in range(2):
        closing.close_due(at=FINAL + MONTH, limit=10)
    assert (period(APRIL).state, period(APRIL).charged_micros) == ("closed", total)
    assert spent() == 600 * USD + total
    assert accounts.wallet(organization=acme).owed_micros == max(0, 600 * USD + total - 1_000 * USD)
    assert books.recompute(at=FINAL + MONTH) == []


def test_what_the_agreement_covers_is_charged_at_least_by_the_list(agree, actor, acme):
    version = agree(true_up="metered_cost", minimum_micros=0)
    covers = Acceptance.objects.get(version=version).public_id
    start_meter(
        acme, at=APRIL - timedelta(hours=10), resource_id="ins_x", quantity=2, covered_by=covers,
        price_version=make_price(micros_per_unit_hour=20 * USD),
    )  # fmt: skip
    usage.stop(resource_id="ins_x", at=APRIL + timedelta(hours=5))
    state(actor, 1_000 * USD)
    closing.close_due(at=DUE, limit=10)
    assert period().charged_micros == 400 * USD  # ten hours of the month, not fifteen
    assert {one.kind: one.amount_micros for one in Outcome.objects.all()} == {"share": 150 * USD, "true_up": 250 * USD}


def test_a_withdrawn_version_opens_no_more_periods(agree):
    version = agree()
    type(version).objects.filter(pk=version.pk).update(state="withdrawn", withdrawn_at=APRIL - timedelta(days=1))
    assert periods.open_due(at=APRIL + 5 * MONTH, limit=100) == 0
    assert RevenuePeriod.objects.count() == 1


def test_an_amended_agreement_has_each_month_once_and_no_gap_is_filled_backwards(agree, actor, acme, charlie):
    merchant, first = person(charlie, "req_seller"), agree()

    def amended(bps, at, accepted_at):
        terms = {**first.terms, "revenue": first.terms["revenue"] | {"share_bps": bps}}
        made = offering.amend(actor=merchant, contract=first.contract, terms=terms, side=Side.SELLER, at=at)
        offering.offer(actor=merchant, version=made, at=at)
        assert periods.open_due(at=at, limit=100) == 0, "nothing follows from an offer alone"
        offering.accept(actor=actor, version=made, organization=acme, sha256=made.sha256, at=accepted_at)
        return made

    second = amended(2_000, MARCH, MARCH + timedelta(days=7))
    periods.open_due(at=APRIL + 2 * MONTH, limit=100)

    def opened():
        return [(one.version.number, one.label) for one in RevenuePeriod.objects.order_by("starts_at")]

    so_far = [(1, "2026-03"), (2, "2026-04"), (2, "2026-05"), (2, "2026-06")]
    assert opened() == so_far
    offering.withdraw(actor=merchant, version=second, at=APRIL + 2 * MONTH)
    amended(2_500, APRIL + 4 * MONTH, APRIL + 4 * MONTH)
    periods.open_due(at=APRIL + 4 * MONTH, limit=100)
    assert opened() == [*so_far, (3, "2026-08")]


def test_days_are_periods_too(agree):
    agree(period="day")
    assert period().label == "2026-03-10"
    assert periods.open_due(at=MARCH + timedelta(days=3), limit=100) == 3


def test_a_statement_is_never_changed(agree, actor):
    agree()
    made = state(actor, USD)
    with pytest.raises(DatabaseError), transaction.atomic():
        RevenueStatement.objects.filter(pk=made.pk).update(revenue_micros=2)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name,amount\n", "Line 1"),
        ("label,amount\na,1.5\nb\n", "Line 3: it has 1 columns"),
        ("label,amount\na,1.5\nb,1.2.3\n", "Line 3: “1.2.3”"),
        ("label,amount\na,-1\n", "Line 2: “-1”"),
        ("label,amount\n,1\n", "Line 2: write a label"),
    ],
)
def test_a_file_that_is_wrong_is_refused_with_its_line(text, said):
    with pytest.raises(BadOrder, match=said):
        statements.lines_of(text)


@given(
    revenue=st.integers(0, 10**15), bps=st.integers(1, 10_000), least=st.integers(0, 10**12),
    most=st.none() | st.integers(1, 10**13), metered=st.integers(0, 10**12), trues=st.booleans(),
)  # fmt: skip
def test_a_period_costs_its_share_between_its_least_and_its_cap(revenue, bps, least, most, metered, trues):
    terms = REVENUE | {
        "share_bps": bps, "minimum_micros": least, "cap_micros": most, "true_up": "metered_cost" if trues else "none",
    }  # fmt: skip
    due = amounts.due(terms, revenue_micros=revenue, metered_micros=metered)
    exact = (2 * revenue * bps + 10_000) // 20_000
    whole = max(exact, least, metered if trues else 0)
    assert due.total_micros == (whole if most is None else min(whole, most))
    assert 0 <= due.share_micros <= due.total_micros
    assert due.share_micros == (exact if most is None else min(exact, most))


def ask(token, method, path, body=None, key="k-1"):
    client = Client(headers={"Authorization": f"Bearer {token}", "Idempotency-Key": key})
    return getattr(client, method)(f"/api/v1/{path}", body, **({"content_type": "application/json"} if body else {}))


def test_the_api_takes_a_statement_once_and_says_what_is_wrong_with_it(agree, alice, acme):
    version = agree().public_id
    token = make_token(alice, acme)
    order = {"contract": version, "period": "2026-03", "csv": "label,amount\nshop,10.50\napp,0.25\n"}
    for _ in range(2):
        answer = ask(token, "post", "revenue/statements", order)
        assert (answer.status_code, answer.json()["revenue"], answer.json()["number"]) == (201, "10.750000", 1)
    for change, status, field in (
        ({"period": "2025-03"}, 422, "period"), ({"period": "March"}, 422, "period"),
        ({"contract": "ctv_none"}, 404, "contract"), ({"csv": "label,amount\nshop,x\n"}, 422, "csv"),
    ):  # fmt: skip
        answer = ask(token, "post", "revenue/statements", order | change, key=f"k-{status}-{change}")
        assert (answer.status_code, field in answer.content.decode()) == (status, True), answer.content
    shown = ask(token, "get", f"revenue/periods/{period().public_id}").json()
    assert (shown["so_far"], shown["statements"][0]["source"]) == ("100.000000", "csv")
    closing.close_due(at=DUE, limit=10)
    answer = ask(token, "post", "revenue/statements", order, key="late")
    assert answer.status_code == 409
    stranger = make_person("eve@other.example")
    theirs = make_token(stranger, make_organization("Else", stranger))
    assert ask(theirs, "get", f"revenue/periods/{period().public_id}").status_code == 404
    assert ask(theirs, "post", "revenue/statements", order, key="x").status_code == 404


def test_the_pages_take_a_statement_and_the_console_shows_the_period(agree, alice, charlie):
    agree()
    client = Client()
    client.force_login(alice)
    address = reverse("revenue-period", args=[period().public_id])
    assert "Share of sales" in client.get(reverse("revenue")).content.decode()
    assert client.post(address, {"revenue": "1,234.50"}).status_code == 302
    assert client.post(address, {"csv": "label,amount\nx,zzz\n"}).status_code == 422
    page = client.get(address).content.decode()
    assert "$1,234.50" in page
    assert "$185.18" in page  # so far
    type(alice).objects.filter(pk=alice.pk).update(is_staff=True)
    for name in ("console-revenue-periods", "console-margins"):
        assert client.get(reverse(name)).status_code == 200


def test_what_becomes_of_a_period_is_an_event(agree, actor, acme):
    agree()
    state(actor, 4_000 * USD)
    closing.close_due(at=DUE, limit=10)
    while feed.publish(at=DUE, limit=1000):
        pass
    (event,) = Event.objects.filter(organization=acme, type__startswith="revenue_period.")
    assert (event.type, event.data["charged"], event.data["period"]) == (
        "revenue_period.closed", "600.000000", "2026-03",
    )  # fmt: skip
