"""What things cost from when on."""

from collections.abc import Collection
from datetime import datetime

from django.db.models import F, QuerySet

from billing.errors import PriceAlreadyPublished, RetroactivePrice
from billing.models import PriceVersion, Unit
from billing.prepared import AnyOf, Prepared


def publish(
    *,
    sku: str,
    currency: str,
    micros_per_unit_hour: int,
    effective_from: datetime,
    by: str,
    at: datetime,
    unit: str = Unit.GPU,
) -> PriceVersion:
    """Publish a price that begins at `effective_from`, which may be `at` itself but not before it.

    Publishing the same price for the same moment again changes nothing.
    """
    same_moment = {"sku": sku, "currency": currency, "effective_from": effective_from, "withdrawn_at": None}
    price = PriceVersion.objects.filter(**same_moment).first()
    if price is None:
        if effective_from < at:
            raise RetroactivePrice(f"{sku}: {effective_from:%Y-%m-%d %H:%M:%S} is over")
        price, _ = PriceVersion.objects.get_or_create(
            **same_moment,
            defaults={
                "micros_per_unit_hour": micros_per_unit_hour,
                "published_at": at,
                "published_by": by,
                "unit": unit,
            },
        )
    if (price.micros_per_unit_hour, price.unit) != (micros_per_unit_hour, unit):
        raise PriceAlreadyPublished(
            f"{sku}: {price.micros_per_unit_hour} micros from {effective_from:%Y-%m-%d %H:%M:%S}"
        )
    return price


CURRENT = Prepared(
    lambda skus, currency, at: (
        PriceVersion.objects.filter(AnyOf(F("sku"), skus), currency=currency, effective_from__lte=at, withdrawn_at=None)
        .order_by("sku", "-effective_from")
        .distinct("sku")
    ),
    str,
    str,
    datetime,
)


def current(*, skus: Collection[str], currency: str, at: datetime) -> dict[str, PriceVersion]:
    """Return the price in force for each of these that has one, in one query."""
    return {price.sku: price for price in CURRENT(list(skus), currency, at)}


def history(*, sku: str) -> QuerySet[PriceVersion]:
    """Return all versions, the newest first, those that are still to come included; none that were withdrawn."""
    return PriceVersion.objects.filter(sku=sku, withdrawn_at=None).order_by("-effective_from")
