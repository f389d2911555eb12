"""Where rebates go: back to what paid, what is owed first, then cash, then credit; and credit never becomes cash."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from billing import adjusting, books, charging, usage
from billing.accounts import CustomerAccounts
from billing.invoicing import proof
from billing.models import Account, Invoice, PriceVersion
from billing.rebates import Paid, given_back, taken
from tests.billing.invoicing import APRIL, CLOSE, MAY, close, make_seller, use
from tests.billing.makers import HOUR, NOON, USD, grant, make_organization, make_price, wallet
from tests.billing.pricing import in_force, item, tiered

pytestmark = pytest.mark.django_db
# 2.50 up to 100 hours; beyond, all of them cost 2.00.
VOLUME = ((0, 100, 2_500_000), (100, None, 2_000_000))


@pytest.fixture(autouse=True)
def the_books_balance(db):
    yield
    assert books.check(at=MAY + 20 * HOUR) == []
    assert books.recompute(at=MAY + 20 * HOUR) == []


def has(organization):
    found = wallet(organization)
    return found.promo_micros // USD, found.cash_micros // USD, found.owed_micros // USD


def in_memory(**balances):
    kinds = {"promo": balances["promo"], "cash": balances["cash"], "receivable": -balances["owed"]}
    return CustomerAccounts(**{kind: Account(kind=kind, balance_micros=micros) for kind, micros in kinds.items()})


def of_a_dollar_in_cash(organization, *, promo):
    """Let cash pay for a dollar of something else, so that there is an invoice; then credit comes."""
    price = make_price(micros_per_unit_hour=USD, sku="ofr_2/on_demand")
    use(organization, begin=NOON, hours=1, price=price, quantity=1, resource_id="ins_9")
    grant(organization, promo)


def test_a_rebate_for_a_month_that_was_invoiced_returns_as_the_credit_that_paid():
    make_seller()
    acme = make_organization(cash=1001 * USD)
    of_a_dollar_in_cash(acme, promo=300 * USD)
    price = tiered("volume", rows=VOLUME)
    use(acme, begin=NOON, hours=100, price=price, quantity=1)
    close()
    assert Invoice.objects.get().promo_micros == 250 * USD
    use(acme, begin=NOON, hours=20, price=price, quantity=1, resource_id="ins_2")
    # Of the thousand the first invoice took its tax.
    assert has(acme) == (0, 999, 0)
    adjusting.post_due(at=CLOSE + HOUR)
    assert has(acme) == (60, 999, 0)


def test_the_next_invoice_asks_for_the_cash_that_paid_and_not_for_less():
    make_seller()
    acme = make_organization(cash=1001 * USD)
    of_a_dollar_in_cash(acme, promo=250 * USD)
    price = tiered("volume", rows=VOLUME)
    use(acme, begin=NOON, hours=100, price=price, quantity=1)
    close()
    use(acme, begin=NOON, hours=2, price=price, quantity=1, resource_id="ins_2")
    use(acme, begin=APRIL, hours=80, price=price, quantity=1, resource_id="ins_3")
    adjusting.post_due(at=APRIL + 81 * HOUR)
    # March: 255 charged, 204 asked, and 5 of it came from cash.
    assert has(acme) == (46, 999 - 200, 0)
    close(at=MAY + 2 * HOUR)
    first, second = Invoice.objects.order_by("pk")
    assert (second.subtotal_micros, second.promo_micros) == (154 * USD, -46 * USD)
    assert second.net_micros == 200 * USD
    assert proof.of_totals(second).agrees
    assert wallet(acme).cash_micros == 1001 * USD - first.total_micros - second.total_micros


def test_what_takes_a_rebate_back_takes_the_cash_first_that_it_had_returned():
    acme = make_organization(cash=1000 * USD)
    span = use(acme, begin=NOON, hours=None, price=tiered("volume", rows=VOLUME), quantity=1)
    charging.charge_span(span=span, through=NOON + 120 * HOUR)
    adjusting.post_due(at=NOON + 120 * HOUR)
    assert has(acme) == (0, 760, 0)
    grant(acme, 500 * USD)
    usage.stop(resource_id=span.resource_id, at=NOON + 100 * HOUR)
    adjusting.post_due(at=NOON + 121 * HOUR)
    assert has(acme) == (500, 750, 0)


def test_what_was_owed_and_credit_paid_since_returns_as_credit():
    poor = make_organization()
    use(poor, begin=NOON, hours=120, price=tiered("volume", rows=VOLUME), quantity=1)
    assert has(poor) == (0, 0, 300)
    grant(poor, 300 * USD)
    assert has(poor) == (0, 0, 0)
    adjusting.post_due(at=NOON + 120 * HOUR)
    assert has(poor) == (60, 0, 0)


def test_credit_that_comes_back_pays_what_is_owed_for_other_use():
    poor = make_organization(promo=300 * USD)
    use(poor, begin=NOON, hours=120, price=tiered("volume", rows=VOLUME), quantity=1)
    other = in_force(item("other"), begins=NOON - HOUR / 2)["other"]
    use(poor, begin=NOON, hours=10, quantity=4, resource_id="ins_2", price=other)
    owed = has(poor)[2]
    assert owed > 60
    adjusting.post_due(at=NOON + 120 * HOUR)
    assert has(poor) == (0, 0, owed - 60)


amounts = st.integers(0, 200)


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(promo=amounts, cash=amounts, hours=st.lists(st.integers(1, 60), min_size=1, max_size=4), cut=st.integers(1, 120))
def test_however_a_month_goes_nobody_has_more_cash_than_was_paid_in(promo, cash, hours, cut):
    acme = make_organization(promo=promo * USD, cash=cash * USD)
    price = PriceVersion.objects.first() or tiered("volume", rows=VOLUME)
    for number, lasted in enumerate(hours):
        use(acme, begin=NOON, hours=lasted, price=price, quantity=1, resource_id=f"{acme.pk}/{number}")
        adjusting.post_due(at=NOON + (60 + number) * HOUR)
        assert wallet(acme).cash_micros <= cash * USD
    running = use(acme, begin=NOON, hours=None, price=price, quantity=1, resource_id=f"{acme.pk}/last")
    charging.charge_span(span=running, through=NOON + 120 * HOUR)
    adjusting.post_due(at=NOON + 120 * HOUR)
    assert wallet(acme).cash_micros <= cash * USD
    usage.stop(resource_id=running.resource_id, at=NOON + cut * HOUR)
    adjusting.post_due(at=NOON + 121 * HOUR)
    assert wallet(acme).cash_micros <= cash * USD


@given(micros=st.integers(1, 500), others=st.integers(-100, 500), returned=st.integers(-500, 500), owed=amounts)
def test_shares_add_up_and_only_what_cash_or_debt_paid_returns_as_such(micros, others, returned, owed):
    payer = in_memory(promo=150, cash=150, owed=owed)
    by = Paid(others_micros=others, posted_cash_micros=returned)
    back = {account.kind: share for account, share in given_back(micros, payer=payer, paid_by=by)}
    assert sum(back.values()) == micros
    assert back["cash"] + back["receivable"] == min(micros, max(0, others))
    took = {account.kind: share for account, share in taken(micros, payer=payer, paid_by=by)}
    assert sum(took.values()) == micros
    assert took["cash"] >= min(micros, max(0, -returned), 150)
    assert took["promo"] <= 150
    assert took["cash"] <= 150
