"""Events of money: budgets, payments and their refunds, what suppliers are told and paid; and requests for quota."""

from collections.abc import Collection, Iterable

from billing.models import Payment, Payout, Refund, SupplierStatement
from marketplace.budget_counters import COUNTERS
from marketplace.events.reading import Source, changes, moment
from marketplace.models import BudgetAlert, Event, QuotaRequest
from marketplace.money import decimal_string


def _budgets(rows: Collection[int]) -> Iterable[Event]:
    """One query."""
    related = ("budget__organization", "budget__project", "budget__token__project")
    for row in BudgetAlert.objects.filter(pk__in=rows).select_related(*related):
        budget, counter = row.budget, COUNTERS[row.budget.counts]
        data = {
            "owner": budget.owner.public_id, "counts": budget.counts, "kind": row.kind, "share": row.share,
            "amount": counter.written(row.amount), "reached": counter.written(row.reached),
            "currency": budget.organization.currency, "month": f"{row.period:%Y-%m}", "action": budget.action,
        }  # fmt: skip
        project = budget.project or (budget.token.project if budget.token else None)
        yield Event(
            organization_id=budget.organization_id, project=project, at=row.at, row=row.pk, type="budget.alert",
            subject_id=budget.public_id, data=data,
        )  # fmt: skip


def _payments(rows: Collection[int]) -> Iterable[Event]:
    """Two queries."""
    changed = changes(rows)
    for payment in Payment.objects.filter(pk__in=changed):
        data = {
            "purpose": payment.purpose, "reference": payment.reference or None,
            "amount": decimal_string(payment.amount_micros), "currency": payment.currency,
            "failure": payment.failure_text or None,
        }  # fmt: skip
        for change in changed[payment.pk]:
            yield Event(
                organization_id=payment.organization_id, at=change.at, row=change.pk, type=f"payment.{change.state}",
                subject_id=payment.public_id, data=data,
            )  # fmt: skip


def _refunds(rows: Collection[int]) -> Iterable[Event]:
    """Two queries."""
    changed = changes(rows)
    for refund in Refund.objects.filter(pk__in=changed).select_related("payment"):
        data = {
            "payment": refund.payment.public_id, "amount": decimal_string(refund.amount_micros),
            "currency": refund.payment.currency, "failure": refund.failure_text or None,
        }  # fmt: skip
        for change in changed[refund.pk]:
            yield Event(
                organization_id=refund.payment.organization_id, at=change.at, row=change.pk,
                type=f"refund.{change.state}", subject_id=refund.public_id, data=data,
            )  # fmt: skip


def _statements(rows: Collection[int]) -> Iterable[Event]:
    """One query."""
    for row in SupplierStatement.objects.filter(pk__in=rows):
        data = {
            "number": row.number, "currency": row.currency, "payout": decimal_string(row.payout_micros),
            "period_start": moment(row.period_start), "period_end": moment(row.period_end),
        }  # fmt: skip
        yield Event(
            organization_id=row.supplier_id, at=row.issued_at, row=row.pk, type="supplier_statement.issued",
            subject_id=row.public_id, data=data,
        )  # fmt: skip


def _payouts(rows: Collection[int]) -> Iterable[Event]:
    """Two queries."""
    changed = changes(rows)
    for payout in Payout.objects.filter(pk__in=changed).select_related("statement"):
        data = {
            "statement": payout.statement.public_id, "amount": decimal_string(payout.amount_micros),
            "currency": payout.currency, "failure": payout.failure or None,
        }  # fmt: skip
        for change in changed[payout.pk]:
            yield Event(
                organization_id=payout.supplier_id, at=change.at, row=change.pk, type=f"payout.{change.state}",
                subject_id=payout.public_id, data=data,
            )  # fmt: skip


def _quota_requests(rows: Collection[int]) -> Iterable[Event]:
    """Two queries."""
    changed = changes(rows)
    for asked in QuotaRequest.objects.filter(pk__in=changed).select_related("project"):
        data = {
            "limit": decimal_string(asked.limit) if asked.is_spend else asked.limit, "unit": asked.unit,
            "gpu_model": asked.gpu_model or None, "market": asked.market or None, "automatic": asked.is_automatic,
            "note": asked.note or None,
        }  # fmt: skip
        for change in changed[asked.pk]:
            yield Event(
                organization_id=asked.organization_id, project=asked.project, at=change.at, row=change.pk,
                type=f"quota_request.{change.state}", subject_id=asked.public_id, data=data,
            )  # fmt: skip


def _named(kind: str, states: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"{kind}.{state}" for state in states)


# Of tables whose rows change, only these states are told: triggers note them.
TOLD_STATES: dict[str, tuple[str, ...]] = {
    "payment": ("needs_action", "succeeded", "failed", "cancelled"),
    "refund": ("approved", "succeeded", "failed"),
    "payout": ("created", "paid", "failed", "cancelled", "reversed"),
    "quota_request": ("pending", "approved", "denied", "withdrawn"),
}
SOURCES: dict[str, Source] = {
    "budget": Source("budget.view", ("budget.alert",), _budgets),
    "payment": Source("payment.view", _named("payment", TOLD_STATES["payment"]), _payments),
    "refund": Source("payment.view", _named("refund", TOLD_STATES["refund"]), _refunds),
    "supplier_statement": Source("supplier.view", ("supplier_statement.issued",), _statements),
    "payout": Source("supplier.view", _named("payout", TOLD_STATES["payout"]), _payouts),
    "quota_request": Source("quota.view", _named("quota_request", TOLD_STATES["quota_request"]), _quota_requests),
}
