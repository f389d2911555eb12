"""Acme used two GPUs for three hours and a volume for a day last month; the operator sells."""

from datetime import UTC, datetime
from typing import Any

import pytest

from billing import usage
from billing.invoicing import issuing, sellers
from billing.models import Invoice, PriceVersion, UsageSpan
from marketplace.models import Organization
from tests.billing.invoicing import APRIL, CLOSE
from tests.billing.makers import HOUR, NOON, make_price, move, pay_in

LITTLE = 7_400_000


@pytest.fixture
def seller(operator: Organization) -> Organization:
    sellers.save_details(
        organization=operator, legal_name="GPU Operator AS", address="Havnegata 1\n8514 Narvik", country="NO",
        tax_id="995525828MVA",
    )  # fmt: skip
    sellers.name_seller(organization=operator)
    return operator


def leave_little_credit(organization: Organization) -> None:
    """Let credit pay 7.40 of what comes, and cash the rest: what credit pays whole is on no invoice."""
    promo = organization.accounts.get(kind="promo", currency=organization.currency)
    if promo.balance_micros > LITTLE:
        move(promo, "promo_expense", promo.balance_micros - LITTLE)
    pay_in(organization, 100_000_000)


def use_last_month(organization: Organization) -> None:
    """Use from 2 March on, at 2.5 per GPU-hour and 0.0001 per GiB-hour."""
    leave_little_credit(organization)

    def ran(resource_id: str, name: str, price: PriceVersion, hours: int, **more: Any) -> None:
        usage.start(
            organization=organization, resource_id=resource_id, resource_name=name, price_version=price, at=NOON,
            **{"labels": {"market": "on_demand"}, "quantity": 2} | more,
        )  # fmt: skip
        usage.stop(resource_id=resource_id, at=NOON + hours * HOUR, meter=more.get("meter", UsageSpan.Meter.GPU))

    ran(f"ins_{organization.pk}", "trainer", make_price(currency=organization.currency), 3)
    disk = make_price(sku="site/storage", micros_per_unit_hour=100, unit="gib", currency=organization.currency)
    ran(f"vol_{organization.pk}", "=datasets", disk, 24, meter="volume", quantity=1000, labels={})


def use_beyond_credit(organization: Organization) -> None:
    """Use for twelve hundred dollars, which is more than the credit that Acme has."""
    usage.start(
        organization=organization, resource_id="ins_big", resource_name="giant", labels={"market": "on_demand"},
        quantity=48, price_version=make_price(sku="big"), at=NOON,
    )  # fmt: skip
    usage.stop(resource_id="ins_big", at=NOON + 10 * HOUR)


@pytest.fixture
def invoice(seller: Organization, acme: Organization) -> Invoice:
    use_last_month(acme)
    assert issuing.issue_due(at=CLOSE) == 1
    return Invoice.objects.select_related("organization").get()


def tokyo(seller: Organization, acme: Organization) -> Invoice:
    """An invoice between two Japanese companies, in yen and in Japanese."""
    Organization.objects.filter(pk__in=[acme.pk]).update(currency="JPY")
    acme.refresh_from_db()
    sellers.save_details(
        organization=seller, legal_name="株式会社ジーピーユー", address="東京都千代田区丸の内1-1", country="JP",
        tax_id="T5835678256246",
    )  # fmt: skip
    sellers.save_details(
        organization=acme, legal_name="アクメ研究所", address="大阪府大阪市北区1-2", country="JP", language="ja"
    )
    price = make_price(sku="yen", micros_per_unit_hour=400_000_000, currency="JPY")
    usage.start(
        organization=acme, resource_id="ins_yen", resource_name="学習", labels={"market": "spot"}, quantity=2,
        price_version=price, at=datetime(2026, 3, 3, tzinfo=UTC),
    )  # fmt: skip
    usage.stop(resource_id="ins_yen", at=datetime(2026, 3, 3, 3, tzinfo=UTC))
    return issuing.issue(organization=acme, at=APRIL)
