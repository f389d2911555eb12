"""Writing a verdict down: once per resource and month, the credit and the supplier's part in the same transaction."""

from dataclasses import dataclass
from datetime import datetime

from django.db import transaction

from billing import accounts, credits
from billing.accounts import Organization
from billing.models import SlaVerdict
from billing.sla import availability
from billing.sla.availability import Seen
from billing.sla.terms import Terms
from billing.suppliers import adjusting


@dataclass(frozen=True, slots=True)
class Subject:
    """What is judged, who pays for it and whose GPUs it had."""

    organization: Organization
    resource_id: str
    resource_name: str
    project: str
    supplier_id: int | None
    offer: str


@transaction.atomic
def post(*, subject: Subject, seen: Seen, terms: Terms, at: datetime) -> SlaVerdict | None:
    """Judge a month that is over, give back what its terms say, and let the supplier bear its part.

    Returns None where that was done before: then nothing changes, whatever is seen by now.
    """
    organization = subject.organization
    accounts.lock(organization_id=organization.pk, currency=organization.currency)
    if SlaVerdict.objects.filter(resource_id=subject.resource_id, month=seen.begins).exists():
        return None
    verdict = availability.judge(seen, terms)
    row = SlaVerdict.objects.create(
        organization_id=organization.pk,
        resource_id=subject.resource_id,
        resource_name=subject.resource_name,
        project=subject.project,
        supplier_id=subject.supplier_id,
        offer=subject.offer,
        currency=organization.currency,
        month=seen.begins,
        terms_version=terms.version,
        up_ms=verdict.up_ms,
        down_ms=verdict.down_ms,
        degraded_ms=verdict.degraded_ms,
        availability_ppm=verdict.availability_ppm,
        paid_micros=seen.paid_micros,
        credit_bps=verdict.credit_bps,
        credit_micros=verdict.credit_micros,
        evidence=seen.as_json(),
        at=at,
    )
    if row.credit_micros:
        credits.compensate(
            organization=organization,
            amount_micros=row.credit_micros,
            key=f"sla:{row.public_id}",
            reason=f"Service credit for {subject.resource_name}, {seen.begins:%Y-%m}"[:200],
            at=at,
        )
        adjusting.charge_back(verdict=row, at=at)
    return row
