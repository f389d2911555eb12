"""Events of what was agreed to: periods of shared revenue, and hours that fell short of a guarantee."""

from collections.abc import Collection, Iterable

from billing.models import GuaranteeHour
from marketplace.events.reading import Source, moment
from marketplace.models import Event, PeriodState, Project, RevenuePeriodEvent
from marketplace.money import decimal_string


def _periods(rows: Collection[int]) -> Iterable[Event]:
    """One query."""
    related = "period__version__contract"
    for row in RevenuePeriodEvent.objects.filter(pk__in=rows).select_related(related):
        period = row.period
        revenue = period.revenue_micros
        data = {
            "contract": period.version.public_id, "title": period.version.contract.title, "period": period.label,
            "basis": period.basis or None, "revenue": None if revenue is None else decimal_string(revenue),
            "charged": decimal_string(period.charged_micros), "currency": period.currency,
            "final_at": moment(period.final_at),
        }  # fmt: skip
        yield Event(
            organization_id=period.organization_id, at=row.at, row=row.pk, type=f"revenue_period.{row.new_state}",
            subject_id=period.public_id, data=data,
        )  # fmt: skip


def _hours(rows: Collection[int]) -> Iterable[Event]:
    """Those alone that credited something. Two queries."""
    found = list(GuaranteeHour.objects.filter(pk__in=rows, credit_micros__gt=0))
    projects = {one.public_id: one for one in Project.objects.filter(public_id__in={row.project for row in found})}
    for row in found:
        data = {
            "name": row.resource_name, "contract": row.version, "hour": moment(row.hour),
            "achieved_bps": row.achieved_bps, "credit_bps": row.credit_bps,
            "credit": decimal_string(row.credit_micros), "currency": row.currency,
        }  # fmt: skip
        yield Event(
            organization_id=row.organization_id, project=projects.get(row.project), at=row.at, row=row.pk,
            type="guarantee.shortfall", subject_id=row.resource_id, data=data,
        )  # fmt: skip


SOURCES = {
    "revenue_period": Source(
        "revenue.view", tuple(f"revenue_period.{state}" for state in PeriodState.values if state != "open"), _periods
    ),
    "guarantee_hour": Source("instance.view", ("guarantee.shortfall",), _hours),
}
