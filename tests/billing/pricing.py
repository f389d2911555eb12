"""Price lists and commitments: people who decide, lists that are in force, months of use."""

from datetime import UTC, datetime
from itertools import count
from uuid import uuid4

from django.apps import apps

from billing import commitments, price_lists
from billing.models import Adjustment, UsageSpan
from billing.price_lists import Item
from tests.billing.makers import HOUR, NOON, USD

MARCH = datetime(2026, 3, 1, tzinfo=UTC)
APRIL = datetime(2026, 4, 1, tzinfo=UTC)
MAY = datetime(2026, 5, 1, tzinfo=UTC)
JUNE = datetime(2026, 6, 1, tzinfo=UTC)
SKU = "ofr_1/on_demand"
# 2.50 up to 100 hours, 2.00 up to 1000, then 1.50.
TIERS = ((0, 100, 2_500_000), (100, 1000, 2_000_000), (1000, None, 1_500_000))

numbers = count(1)


def person(name="ann"):
    email = f"{name}@example.com"
    return apps.get_model("marketplace", "User").objects.get_or_create(email=email)[0].pk


def item(sku=SKU, *, rows=((0, None, 2_500_000),), model="flat", **overrides):
    return Item(**({"sku": sku, "name": sku, "unit": "gpu", "model": model, "rows": rows} | overrides))


def drafted(*content, currency="USD", at=NOON):
    made = price_lists.draft(currency=currency, by=person(), key=uuid4(), at=at)
    if content:
        price_lists.save(price_list=made, content=content, note="", by=person())
    return made


def approved(*content, currency="USD", at=NOON):
    made = drafted(*content, currency=currency, at=at)
    price_lists.simulate(price_list=made, at=at)
    price_lists.approve(price_list=made, by=person("bob"), at=at)
    return made


def in_force(*content, currency="USD", begins=NOON - HOUR):
    """Publish a list that is in force from `begins` on; return its prices by what they are for."""
    made = approved(*content, currency=currency, at=begins - HOUR)
    found = price_lists.schedule(price_list=made, effective_from=begins, by="ann@example.com", at=begins - HOUR)
    return {version.sku: version for version in found}


def tiered(model="graduated", *, rows=TIERS, begins=NOON - HOUR, sku=SKU, **overrides):
    return in_force(item(sku, rows=rows, model=model, **overrides), begins=begins)[sku]


def used(organization, version, *, begin, hours, quantity=1, **overrides):
    """Write down use as if it had been charged to its end, without the money: for what only reads spans."""
    return UsageSpan.objects.create(
        organization=organization,
        resource_id=f"ins_{next(numbers)}",
        resource_name="trainer",
        quantity=quantity,
        price_version=version,
        started_at=begin,
        ended_at=begin + hours * HOUR,
        charged_through=begin + hours * HOUR,
        **overrides,
    )


def committed(organization, *, kind="hours", skus=(SKU,), amount=100, discount_bps=2000, starts_at=APRIL, months=1,
              at=NOON, agreed=True):  # fmt: skip
    made = commitments.propose(
        organization=organization, currency=organization.currency, kind=kind, skus=skus, amount=amount,
        discount_bps=discount_bps, starts_at=starts_at, months=months, note="contract 1", by=person(), key=uuid4(),
        at=at,
    )  # fmt: skip
    if agreed:
        commitments.agree(commitment=made, by=person("bob"), at=at)
    return made


def adjusted():
    return Adjustment.objects.order_by("pk").last()


def cost(hours, rows=TIERS):
    """What graduated tiers ask for whole hours, added up hour by hour."""
    total = 0
    for hour in range(hours):
        total += next(micros for begin, end, micros in rows if begin <= hour and (end is None or hour < end))
    return total


assert USD == 1_000_000
