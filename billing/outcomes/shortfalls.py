"""Writing an hour's verdict down: once, the credit and the supplier's part of it in the same transaction."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db import transaction
from django.db.models import Sum
from django.db.models.functions import Coalesce

from billing import accounts, credits
from billing.accounts import Organization
from billing.models import GuaranteeCorrection, GuaranteeHour
from billing.outcomes import curve
from billing.outcomes.curve import Curve, Hour
from billing.outcomes.words import price_micros
from billing.suppliers import adjusting

FIGURES = ("measured_milli", "achieved_bps", "credit_bps", "credit_micros")


@dataclass(frozen=True, slots=True)
class Guaranteed:
    """What is guaranteed to whom, and who bears which part of a shortfall."""

    guarantee: str
    version: str
    organization: Organization
    resource_id: str
    resource_name: str
    project: str
    terms: Mapping[str, Any]
    supplier: Organization | None


@transaction.atomic
def post(*, guaranteed: Guaranteed, hour: Hour, at: datetime) -> GuaranteeHour | None:
    """Judge an hour that is over, give back what its curve says, and let the supplier bear its part.

    Returns None where that was done before, under whichever guarantee: then nothing changes, whatever is seen by now.
    """
    organization = guaranteed.organization
    accounts.lock(organization_id=organization.pk, currency=organization.currency)
    if GuaranteeHour.objects.filter(resource_id=guaranteed.resource_id, hour=hour.begins).exists():
        return None
    verdict = curve.judge(hour, Curve.read(guaranteed.terms))
    row = GuaranteeHour.objects.create(
        guarantee=guaranteed.guarantee,
        organization_id=organization.pk,
        resource_id=guaranteed.resource_id,
        resource_name=guaranteed.resource_name,
        project=guaranteed.project,
        version=guaranteed.version,
        supplier_id=guaranteed.supplier.pk if guaranteed.supplier else None,
        supplier_bps=guaranteed.terms["seller_bps"],
        currency=organization.currency,
        hour=hour.begins,
        curve=dict(guaranteed.terms),
        evidence=hour.as_json(),
        paid_micros=hour.paid_micros,
        at=at,
        **{name: getattr(verdict, name) for name in FIGURES},
    )
    if row.credit_micros:
        credits.compensate(
            organization=organization,
            amount_micros=row.credit_micros,
            key=f"guarantee:{row.public_id}",
            reason=f"Guaranteed performance of {guaranteed.resource_name}, {hour.begins:%Y-%m-%d %H:00} UTC"[:200],
            at=at,
        )
        adjusting.charge_hour(hour=row, at=at)
    return row


@transaction.atomic
def correct(*, hour: GuaranteeHour, paid_micros: int, returned_micros: int, at: datetime) -> GuaranteeCorrection | None:
    """Give back what an hour that fell short credits more at what it cost in the end, once; None where that is nothing.

    It was judged by what tiers and commitments had made of its month until then, at P micros. At the month's end it
    has cost P' of which R' was given back otherwise, and what was measured, so the step, stays:

        credit = min(P - R, [P x step / 10,000])           (`curve.judge`; [] rounds half up to a micro)
        more   = max(0, min(P' - R', [P' x step / 10,000]) - credit)

    Where use became cheaper the customer keeps what the hour credited. The platform bears all of it: suppliers have
    their part of use at its base rate, whatever tiers and commitments make of it.
    """
    organization = hour.organization
    accounts.lock(organization_id=organization.pk, currency=organization.currency)
    whole = min(max(0, paid_micros - returned_micros), price_micros(paid_micros, 1, bps=hour.credit_bps))
    more = whole - hour.credit_micros
    if more <= 0 or GuaranteeCorrection.objects.filter(hour=hour).exists():
        return None
    row = GuaranteeCorrection.objects.create(
        hour=hour, paid_micros=paid_micros, returned_micros=returned_micros, credit_micros=more, at=at
    )
    credits.compensate(
        organization=organization,
        amount_micros=more,
        key=f"guarantee-more:{hour.public_id}",
        reason=f"More for {hour.resource_name}, {hour.hour:%Y-%m-%d %H:00} UTC, at its price in the end"[:200],
        at=at,
    )
    return row


def credited_micros(*, resource_ids: list[str], since: datetime, until: datetime) -> dict[str, int]:
    """Return what guarantees gave back for these resources' hours between two moments."""
    rows = GuaranteeHour.objects.filter(resource_id__in=resource_ids, hour__gte=since, hour__lt=until)
    sums = rows.order_by().values_list("resource_id")
    return dict(sums.annotate(total=Sum("credit_micros") + Coalesce(Sum("correction__credit_micros"), 0)))


RULES: Mapping[str, str] = {
    "shortfall_credit_was_posted": """
        SELECT hour.public_id, format('credit %%s, posted %%s', credit_micros, coalesce(amount_micros, 0))
        FROM billing_guaranteehour hour
        LEFT JOIN billing_transfer transfer ON transfer.key = 'service-credit:guarantee:' || hour.public_id
        WHERE credit_micros <> coalesce(amount_micros, 0)
    """,
    "shortfall_credit_is_what_its_step_says": """
        SELECT public_id, format('credit %%s, %%s bps of %%s', credit_micros, credit_bps, paid_micros)
        FROM billing_guaranteehour WHERE credit_micros <> least(
            div(2 * paid_micros::numeric * credit_bps + 10000, 20000),
            greatest(0, paid_micros - (evidence ->> 'returned_micros')::bigint))
    """,
    "shortfall_is_corrected_by_what_its_step_says_of_the_price_in_the_end": """
        SELECT hour.public_id, format('%%s more, %%s bps of %%s, posted %%s', correction.credit_micros, credit_bps,
                                      correction.paid_micros, coalesce(amount_micros, 0))
        FROM billing_guaranteecorrection correction JOIN billing_guaranteehour hour ON hour.id = correction.hour_id
        LEFT JOIN billing_transfer transfer ON transfer.key = 'service-credit:guarantee-more:' || hour.public_id
        WHERE correction.credit_micros <> coalesce(amount_micros, 0)
           OR correction.credit_micros + hour.credit_micros <> least(
            div(2 * correction.paid_micros::numeric * credit_bps + 10000, 20000),
            correction.paid_micros - returned_micros)
    """,
    "supplier_bears_its_part_of_a_shortfall": """
        SELECT hour.public_id, format('credit %%s, part %%s bps, charged back %%s', credit_micros, supplier_bps,
                                      coalesce(-adjustment.amount_micros, 0))
        FROM billing_guaranteehour hour
        LEFT JOIN billing_supplieradjustment adjustment ON adjustment.hour_id = hour.id
        WHERE coalesce(-adjustment.amount_micros, 0)
            <> CASE WHEN hour.supplier_id IS NULL THEN 0 ELSE div(credit_micros::numeric * supplier_bps, 10000) END
    """,
}


def findings() -> Iterator[tuple[str, str]]:
    """Judge every hour again from its evidence; tell what comes out otherwise."""
    for row in GuaranteeHour.objects.order_by("pk").iterator(chunk_size=500):
        again = curve.judge(Hour.read(row.evidence), Curve.read(row.curve))
        written = {name: getattr(row, name) for name in FIGURES}
        expected = {name: getattr(again, name) for name in FIGURES}
        if written != expected:
            yield row.public_id, f"written {written}, comes out as {expected}"
