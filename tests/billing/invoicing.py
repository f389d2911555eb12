"""A till that sends invoices: a seller, customers with addresses, use in a month of our choice."""

from datetime import UTC, datetime

from billing import charging, usage
from billing.invoicing import issuing, sellers
from billing.models import UsageSpan
from tests.billing.makers import HOUR, make_organization, make_price, start

MARCH = datetime(2026, 3, 1, tzinfo=UTC)
APRIL = datetime(2026, 4, 1, tzinfo=UTC)
MAY = datetime(2026, 5, 1, tzinfo=UTC)
CLOSE = APRIL + 2 * HOUR


def make_seller(country="NO", tax_id="", **overrides):
    """Name whoever sells; in Norway, where a quarter is tax, if nothing else is said."""
    seller = make_organization()
    sellers.save_details(
        organization=seller, legal_name="GPU Operator AS", address="Havnegata 1\n8514 Narvik", country=country,
        tax_id=tax_id, **overrides,
    )  # fmt: skip
    sellers.name_seller(organization=seller)
    return seller


def details(organization, country="NO", tax_id="", **overrides):
    ordinary = {"legal_name": "Acme Research", "address": "Main Street 1\nTown"}
    return sellers.save_details(
        organization=organization, country=country, tax_id=tax_id, **(ordinary | overrides)
    )  # fmt: skip


def use(organization, *, begin, hours=1, resource_id="ins_1", price=None, **overrides):
    """Let something run for some hours, charged to its end; without hours it is still running."""
    price = price or make_price(currency=organization.currency)
    span = start(organization, resource_id=resource_id, at=begin, price_version=price, **overrides)
    if hours is not None:
        usage.stop(resource_id=resource_id, at=begin + hours * HOUR, meter=span.meter)
    return UsageSpan.objects.get(pk=span.pk)


def charged(span, through):
    charging.charge_span(span=span, through=through)
    return span


def close(at=CLOSE):
    return issuing.issue_due(at=at)
