"""Events of what was agreed to: periods of shared revenue, and hours that fell short of a guarantee."""

from collections.abc import Collection, Iterable, Iterator
from typing import Any

from billing.models import GuaranteeCorrection, GuaranteeHour
from marketplace.events.reading import Source, moment
from marketplace.models import Event, PeriodState, Project, RevenuePeriodEvent
from marketplace.money import decimal_string


def _periods(rows: Collection[int]) -> Iterator[Event]:
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


def _hours(rows: Collection[int]) -> Iterator[Event]:
    """Those alone that credited something. Two queries."""
    found = list(GuaranteeHour.objects.filter(pk__in=rows, credit_micros__gt=0))
    projects = _projects(found)
    for row in found:
        yield Event(
            organization_id=row.organization_id, project=projects.get(row.project), at=row.at, row=row.pk,
            type="guarantee.shortfall", subject_id=row.resource_id,
            data=_shortfall(row) | {"credit": decimal_string(row.credit_micros)},
        )  # fmt: skip


def _corrections(rows: Collection[int]) -> Iterator[Event]:
    """What hours credited once it was known what they cost in the end. Two queries."""
    found = list(GuaranteeCorrection.objects.filter(pk__in=rows).select_related("hour"))
    projects = _projects(row.hour for row in found)
    for row in found:
        hour = row.hour
        more = {
            "credit": decimal_string(row.credit_micros),
            "credited": decimal_string(hour.credit_micros + row.credit_micros),
        }
        yield Event(
            organization_id=hour.organization_id, project=projects.get(hour.project), at=row.at, row=row.pk,
            type="guarantee.corrected", subject_id=hour.resource_id, data=_shortfall(hour) | more,
        )  # fmt: skip


def _projects(hours: Iterable[GuaranteeHour]) -> dict[str, Project]:
    return {one.public_id: one for one in Project.objects.filter(public_id__in={row.project for row in hours})}


def _shortfall(row: GuaranteeHour) -> dict[str, Any]:
    return {
        "name": row.resource_name, "contract": row.version, "hour": moment(row.hour),
        "achieved_bps": row.achieved_bps, "credit_bps": row.credit_bps, "currency": row.currency,
    }  # fmt: skip


SOURCES = {
    "revenue_period": Source(
        "revenue.view", tuple(f"revenue_period.{state}" for state in PeriodState.values if state != "open"), _periods
    ),
    "guarantee_hour": Source("instance.view", ("guarantee.shortfall",), _hours),
    "guarantee_correction": Source("instance.view", ("guarantee.corrected",), _corrections),
}
