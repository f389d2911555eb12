"""What is left of an invoice: only what pays it counts, not what makes other use cheaper."""

import pytest

from billing import adjusting, books, charging, usage
from billing.invoicing import debts
from billing.models import Invoice
from tests.billing.invoicing import APRIL, MARCH, MAY, close, details, make_seller, use
from tests.billing.makers import HOUR, USD, make_organization
from tests.billing.people import give_credit_line
from tests.billing.pricing import TIERS, cost, tiered

pytestmark = pytest.mark.django_db


@pytest.fixture
def acme():
    """A customer who pays afterwards, and used 50 hours of March at 2.50 that nobody has paid yet."""
    make_seller()
    organization = make_organization()
    details(organization)
    give_credit_line(organization, 10_000 * USD, at=MARCH)
    price = tiered(begins=MARCH)
    use(organization, begin=MARCH, hours=50, quantity=1, price=price)
    close(at=APRIL + 4 * HOUR)
    use(organization, begin=APRIL + 10 * HOUR, hours=200, quantity=1, price=price, resource_id="ins_2")
    return organization


def left(organization):
    invoices = Invoice.objects.order_by("pk")
    found = debts.left_due_micros(organization=organization, invoices=invoices)
    return [found[one.pk] for one in invoices]


def test_tiers_of_this_month_pay_no_invoice_of_the_last(acme):
    assert left(acme) == [50 * 2_500_000 * 5 // 4]
    assert adjusting.post_due(at=APRIL + 300 * HOUR) == 1
    assert left(acme) == [50 * 2_500_000 * 5 // 4]


def test_tiers_that_come_with_an_invoice_do_not_pay_it(acme):
    close(at=MAY + 4 * HOUR)
    assert left(acme) == [50 * 2_500_000 * 5 // 4, cost(200, TIERS) * 5 // 4]
    assert sum(left(acme)) == -acme.accounts.get(kind="receivable").balance_micros
    assert books.check(at=MAY + 4 * HOUR) == []


def test_use_that_had_ended_earlier_pays_no_invoice(acme):
    price = tiered(begins=APRIL + 250 * HOUR, sku="ofr_2/on_demand")
    span = use(acme, begin=APRIL + 260 * HOUR, hours=None, quantity=1, price=price, resource_id="ins_3")
    charging.charge_span(span=span, through=APRIL + 270 * HOUR)
    usage.stop(resource_id="ins_3", at=APRIL + 265 * HOUR)
    assert left(acme) == [50 * 2_500_000 * 5 // 4]
