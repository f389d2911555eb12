"""What things cost from when on."""

from collections.abc import Collection
from datetime import datetime

from django.db.models import QuerySet

from billing.errors import PriceAlreadyPublished, RetroactivePrice
from billing.models import PriceVersion, Unit


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
    same_moment = {"sku": sku, "currency": currency, "effective_from": effective_from}
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


def current(*, skus: Collection[str], currency: str, at: datetime) -> dict[str, PriceVersion]:
    """Return the price in force for each of these that has one, in one query."""
    began = PriceVersion.objects.filter(sku__in=skus, currency=currency, effective_from__lte=at)
    return {price.sku: price for price in began.order_by("sku", "-effective_from").distinct("sku")}


def history(*, sku: str) -> QuerySet[PriceVersion]:
    """Return all versions, the newest first, those that are still to come included."""
    return PriceVersion.objects.filter(sku=sku).order_by("-effective_from")
