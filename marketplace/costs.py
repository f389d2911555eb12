"""What instances cost, now and so far, as every door shows it. One query for any number of instances."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from billing import floating, rating, usage
from billing.models import UsageSpan
from provisioning.models import AT_REST, Instance, Phase

SECOND_MS, HOUR_MS, DAY_MS = 1000, 3_600_000, 86_400_000


class Billing(StrEnum):
    """Whether the meter runs. `paused`: the node is silent, so nothing is charged until it answers."""

    NOT_STARTED = "not_started"
    RUNNING = "running"
    PAUSED = "paused"
    ENDED = "ended"


@dataclass(frozen=True)
class Cost:
    """Amounts in micros of `currency`; the rates are what it costs while the meter runs."""

    billing: Billing
    currency: str
    per_second_micros: int
    per_hour_micros: int
    per_day_micros: int
    so_far_micros: int
    gpu_milliseconds: int


def rates(*, micros_per_unit_hour: int, quantity: int) -> tuple[int, int, int]:
    """Return micros per second, hour and day of `gpus` GPUs; each is rounded by itself."""
    second, hour, day = (
        rating.amount_micros(micros_per_unit_hour=micros_per_unit_hour, unit_milliseconds=quantity * milliseconds)
        for milliseconds in (SECOND_MS, HOUR_MS, DAY_MS)
    )
    return second, hour, day


def of(instances: Iterable[Instance], *, at: datetime) -> dict[int, Cost]:
    """Return the cost of each instance by its primary key, until `at`. Floating prices take two queries more."""
    instances = list(instances)
    spans: dict[str, list[UsageSpan]] = {instance.public_id: [] for instance in instances}
    # What was never ready was never metered; every launch is answered here.
    metered = [instance.public_id for instance in instances if instance.ready_at is not None or instance.run > 1]
    amounts: dict[int, int] = {}
    if metered:
        found = list(UsageSpan.objects.filter(resource_id__in=metered).select_related("price_version"))
        for span, micros in zip(found, usage.amounts_micros(found, at=at), strict=True):
            spans[span.resource_id].append(span)
            amounts[span.pk] = micros
    series = {instance.price_version_id for instance in instances if instance.price_version.is_floating}
    prices = floating.prices_now(series, at=at) if series else {}
    return {instance.pk: _cost(instance, spans[instance.public_id], amounts, prices, at) for instance in instances}


def _cost(
    instance: Instance, spans: list[UsageSpan], amounts: Mapping[int, int], prices: Mapping[int, int], at: datetime
) -> Cost:
    price = instance.price_version
    # Between its notice and its end it pays another price than its own.
    running = next((span.price_version for span in spans if span.is_open and not span.price_version.is_floating), price)
    micros_per_unit_hour = prices.get(running.pk, running.micros_per_unit_hour)
    if instance.reservation_id is not None or instance.paid_by:
        micros_per_unit_hour = 0  # Inside a reservation everything is paid ahead, and a contract pays by itself.
    second, hour, day = rates(micros_per_unit_hour=micros_per_unit_hour, quantity=instance.gpus)
    return Cost(
        billing=_billing(instance, spans),
        currency=price.currency,
        per_second_micros=second,
        per_hour_micros=hour,
        per_day_micros=day,
        so_far_micros=sum(amounts[span.pk] for span in spans),
        gpu_milliseconds=sum(usage.unit_milliseconds(span=span, at=at) for span in spans),
    )


def _billing(instance: Instance, spans: list[UsageSpan]) -> Billing:
    if any(span.is_open for span in spans):
        return Billing.RUNNING
    if instance.is_charged:
        return Billing.PAUSED
    if spans and (instance.phase in AT_REST or instance.phase in {Phase.STOPPING, Phase.TERMINATING}):
        return Billing.ENDED
    return Billing.NOT_STARTED
