"""The meters."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from django.db import transaction
from django.db.models import Count, QuerySet, Sum

from billing import accounts, charging, floating, holds, rating, runway
from billing.errors import CurrencyMismatch, UnitMismatch
from billing.models import UNITS, PriceVersion, UsageSpan
from billing.prepared import Prepared


@transaction.atomic
def start(
    *,
    organization: accounts.Organization,
    resource_id: str,
    resource_name: str,
    labels: dict[str, Any],
    quantity: int,
    price_version: PriceVersion,
    at: datetime,
    meter: str = UsageSpan.Meter.GPU,
    covered_by: str = "",
) -> UsageSpan:
    """Open the meter for a resource. Starting an open meter again changes nothing.

    With `covered_by`, what paid for it ahead, it measures and charges nothing.

    A span never begins before the one before it ended: clocks of two machines
    may differ by more than the time between a stop and a start.
    """
    if price_version.currency != organization.currency:
        raise CurrencyMismatch(expected=organization.currency, found=price_version.currency)
    if price_version.unit != UNITS[meter]:
        raise UnitMismatch(expected=UNITS[meter], found=price_version.unit)
    accounts.lock(organization_id=organization.pk, currency=organization.currency)
    if price_version.is_floating:
        floating.keep_still([price_version.pk])
    latest = UsageSpan.objects.filter(resource_id=resource_id, meter=meter).order_by("-started_at", "-pk").first()
    started_at = rating.whole_millisecond(at)
    if latest is not None:
        if latest.ended_at is None:
            return latest
        started_at = max(started_at, latest.ended_at)
    span = UsageSpan.objects.create(
        organization_id=organization.pk,
        resource_id=resource_id,
        resource_name=resource_name,
        labels=labels,
        meter=meter,
        quantity=quantity,
        price_version=price_version,
        covered_by=covered_by,
        started_at=started_at,
        charged_through=started_at,
    )
    runway.refresh(organization=organization, at=at)
    return span


@transaction.atomic
def stop(*, resource_id: str, at: datetime, meter: str = UsageSpan.Meter.GPU) -> UsageSpan | None:
    """Close the meter of a resource if it is open, charge its whole span, and give back what is left of its holds.

    Returns None where no meter is open; holds are given back all the same, and
    stopping twice changes nothing. `at` may lie before the last charge (the
    meter closes at the last proof of life): what was taken for the time after
    it is given back. It counts as the start if it lies before even that: an
    empty span, which costs nothing.
    """
    span = next(iter(_OPEN(resource_id, meter)), None)
    if span is not None:
        accounts.lock(organization_id=span.organization_id, currency=span.price_version.currency)
        span = next(iter(_OPEN(resource_id, meter)), None)  # again, now that nobody else can close it
    ended_at = rating.whole_millisecond(at)
    if span is not None:
        ended_at = max(span.started_at, ended_at)
        _end(span, ended_at)
    holds.void_for(resource_id=resource_id, at=ended_at)
    if span is not None:
        runway.refresh(organization=span.organization, at=at)
    return span


def reprice(*, resource_id: str, price_version: PriceVersion, at: datetime, meter: str = UsageSpan.Meter.GPU) -> None:
    """Go on at another price from `at` on: the span ends and another begins there. What is held stays held.

    Without an open meter, or at the price that it has already, nothing changes.
    """
    _go_on(_running(resource_id, meter), at, price_version=price_version)


def pay_from(*, resource_id: str, covered_by: str, instead_of: str, at: datetime) -> None:
    """Let something else cover a resource's GPUs from `at` on, or with "" nothing: the span ends and another begins.

    `at` may lie before now: what was covered until then and is not any more is charged from there.
    Without an open meter, or where `instead_of` does not cover it, nothing changes.
    """
    running = _running(resource_id, UsageSpan.Meter.GPU)
    _go_on(running.filter(covered_by=instead_of), at, covered_by=covered_by)


def _running(resource_id: str, meter: str) -> QuerySet[UsageSpan]:
    running = UsageSpan.objects.filter(resource_id=resource_id, meter=meter, ended_at=None)
    return running.select_related("organization", "price_version")


_OPEN = Prepared(_running, str, str)


@transaction.atomic
def _go_on(running: QuerySet[UsageSpan], at: datetime, **changed: Any) -> None:
    span = running.first()
    if span is None or _is_so(span, changed):
        return
    accounts.lock(organization_id=span.organization_id, currency=span.price_version.currency)
    span = running.first()  # again, now that nobody else can close it
    if span is None or _is_so(span, changed):
        return
    ended_at = max(span.started_at, rating.whole_millisecond(at))
    _end(span, ended_at)
    before: dict[str, Any] = {"price_version": span.price_version, "covered_by": span.covered_by}
    start(
        organization=span.organization,
        resource_id=span.resource_id,
        resource_name=span.resource_name,
        labels=span.labels,
        quantity=span.quantity,
        at=ended_at,
        meter=span.meter,
        **(before | changed),
    )


def _is_so(span: UsageSpan, changed: dict[str, Any]) -> bool:
    return all(getattr(span, name) == value for name, value in changed.items())


def unit_milliseconds(*, span: UsageSpan, at: datetime) -> int:
    """Return what the span measured until `at`, or until its end where that came before."""
    end = at if span.ended_at is None else min(at, span.ended_at)
    return rating.unit_milliseconds(quantity=span.quantity, start=span.started_at, end=end)


def amounts_micros(spans: Iterable[UsageSpan], *, at: datetime) -> list[int]:
    """Return what each span costs until `at`, charged or not. At most one query, with which floating prices come."""
    return floating.amounts_micros((span, at if span.ended_at is None else min(at, span.ended_at)) for span in spans)


def amount_micros(*, span: UsageSpan, at: datetime) -> int:
    """Return what the span costs until `at`, charged or not."""
    return amounts_micros([span], at=at)[0]


def charged(*, span: UsageSpan) -> dict[str, int]:
    """Return how often the span was charged and how much that was together. One query."""
    return span.charges.aggregate(times=Count("pk"), micros=Sum("amount_micros", default=0))


def _end(span: UsageSpan, ended_at: datetime) -> None:
    """Close and charge a span that was read after its payer's accounts were locked."""
    charging.charge_locked([span.pk], through=ended_at, ended_at=ended_at)
    span.refresh_from_db(fields=["ended_at", "charged_micros", "charged_through"])
