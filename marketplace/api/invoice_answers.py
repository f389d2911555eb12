"""Invoices as the API shows them; shapes are in `invoice_shapes`."""

from collections.abc import Sequence
from typing import Any

from django.utils import timezone

from billing import invoice_payments
from billing.invoicing.proof import LineProof, SpanProof, TotalsProof
from billing.invoicing.proof_of_outcomes import OutcomeProof
from billing.invoicing.proof_of_prepaid import PrepaidProof
from billing.invoicing.proof_of_tiers import AdjustmentProof
from billing.models import BillingDetails, Invoice, InvoiceLine
from marketplace import owing
from marketplace.invoices.details import FIELDS
from marketplace.models import Organization
from marketplace.money import decimal_string

STEPS_MAX = 500

RULE = (
    "A span costs quantity x milliseconds x price per unit-hour / 3,600,000 from its start, rounded half up to a "
    "millionth once; what earlier invoices had of it is taken off. The sum of an invoice's lines is rounded half up to "
    "the currency's minor unit and handed out to the lines by largest remainder."
)


def details(row: BillingDetails | None) -> dict[str, Any]:
    return {name: getattr(row, name) for name in FIELDS} if row else dict.fromkeys(FIELDS, "") | {"language": "en"}


def invoices(organization: Organization, rows: Sequence[Invoice]) -> list[dict[str, Any]]:
    payable = invoice_payments.payable_micros_of(rows, organization)
    return [_invoice(row, payable[row.pk]) for row in rows]


def _invoice(row: Invoice, due_micros: int) -> dict[str, Any]:
    collection = invoice_payments.collection_of(row)
    return {
        "id": row.public_id,
        "number": row.number,
        "kind": row.kind,
        "organization": {"id": row.organization.public_id, "name": row.organization.name},
        "credits": {"id": row.credited.public_id, "number": row.credited.number} if row.credited else None,
        "reason": row.reason,
        "period": {"start": row.period_start, "end": row.period_end},
        "issued_at": row.issued_at,
        "currency": row.currency,
        "seller": row.seller,
        "customer": row.customer,
        "subtotal": decimal_string(row.subtotal_micros),
        "promo": decimal_string(row.promo_micros),
        "net": decimal_string(row.net_micros),
        "taxes": [
            {
                "treatment": row.tax_treatment,
                "country": row.tax_country,
                "name": row.tax_name,
                "rate_bps": row.tax_rate_bps,
                "taxable": decimal_string(row.net_micros),
                "tax": decimal_string(row.tax_micros),
            }
        ],
        "total": decimal_string(row.total_micros),
        "paid_at_issue": decimal_string(row.paid_micros),
        "due_at_issue": decimal_string(row.due_micros),
        "due": decimal_string(due_micros),
        "state": owing.state_of(row, due_micros, at=timezone.now()),
        "due_at": collection.due_at if collection else None,
        "written_off": decimal_string(collection.written_off_micros if collection else 0),
        "recovered": decimal_string(collection.recovered_micros if collection else 0),
    }


def line(row: InvoiceLine) -> dict[str, Any]:
    price = row.micros_per_unit_hour
    return {
        "id": row.key,
        "resource": row.resource_id,
        "name": row.resource_name,
        "project": row.project,
        "meter": row.meter,
        "market": row.market,
        "late": row.is_late,
        "unit": row.unit,
        "unit_milliseconds": row.unit_milliseconds,
        "price_version": row.price_version.public_id if row.price_version else None,
        "price_per_unit_hour": None if price is None else decimal_string(price),
        "starts_at": row.starts_at,
        "ends_at": row.ends_at,
        "exact": decimal_string(row.exact_micros),
        "amount": decimal_string(row.amount_micros),
    }


def totals(found: TotalsProof) -> dict[str, Any]:
    return {
        "agrees": found.agrees,
        "on_invoice": _named(found.written),
        "worked_out": _named(found.expected),
    }


def proof(found: LineProof) -> dict[str, Any]:
    return {
        "line": found.line.key,
        "exact": decimal_string(found.exact_micros),
        "amount": decimal_string(found.rounded_micros),
        "on_invoice": decimal_string(found.line.amount_micros),
        "agrees": found.agrees,
        "spans": [_span(span) for span in found.spans],
        "adjustment": _adjustment(found.adjustment) if found.adjustment is not None else None,
        "prepaid": _prepaid(found.prepaid) if found.prepaid is not None else None,
        "outcomes": _outcomes(found.outcomes) if found.outcomes is not None else None,
    }


def _outcomes(found: OutcomeProof) -> dict[str, Any]:
    return {
        "kind": found.kind,
        "results": found.subjects,
        "steps": [
            {
                "count": count,
                "quantity": step.quantity,
                "unit": step.unit,
                "price": decimal_string(step.micros_per_unit),
                "per": step.per,
                "part_bps": step.bps,
                "over_cap": decimal_string(step.unpaid_micros),
                "amount": decimal_string(step.amount_micros),
            }
            for count, step in found.rows[:STEPS_MAX]
        ],
        "steps_left_out": max(0, len(found.steps) - STEPS_MAX),
        "amount": decimal_string(found.amount_micros),
    }


def _prepaid(found: PrepaidProof) -> dict[str, Any]:
    row = found.written
    return {
        "kind": row.kind,
        "reservation": row.resource_id,
        "at": row.at,
        "hours": [
            {
                "gpus": step.gpus,
                "hours": step.hours,
                "price_per_gpu_hour": decimal_string(step.micros_per_gpu_hour),
            }
            for step in found.steps
        ],
        "hours_cost": decimal_string(found.hours_micros),
        "kept": decimal_string(row.kept_micros),
        "promo": decimal_string(row.promo_micros),
        "amount": decimal_string(found.amount_micros),
    }


def _adjustment(found: AdjustmentProof) -> dict[str, Any]:
    row = found.written
    return {
        "unit_milliseconds": row.unit_milliseconds,
        "covered_unit_milliseconds": row.covered_unit_milliseconds,
        "commitment": row.adjustment.commitment.public_id if row.adjustment.commitment else None,
        "tiers": [
            {
                "from_unit_hours": step.from_unit_hours,
                "up_to_unit_hours": step.up_to_unit_hours,
                "unit_milliseconds": step.unit_milliseconds,
                "price_per_unit_hour": decimal_string(step.micros_per_unit_hour),
            }
            for step in found.steps
        ],
        "listed": decimal_string(found.listed_micros),
        "committed": decimal_string(row.committed_micros),
        "minimum": decimal_string(row.minimum_micros),
        "rated": decimal_string(found.rated_micros),
        "charged": decimal_string(row.base_micros),
        "invoiced_before": decimal_string(row.before_micros),
        "amount": decimal_string(found.amount_micros),
    }


def _span(found: SpanProof) -> dict[str, Any]:
    return {
        "span": found.span.public_id,
        "quantity": found.span.quantity,
        "span_starts_at": found.span.started_at,
        "starts_at": found.starts_at,
        "ends_at": found.ends_at,
        "unit_milliseconds": found.unit_milliseconds,
        "price_version": found.span.price_version.public_id,
        "steps": [
            {
                "starts_at": step.starts_at,
                "ends_at": step.ends_at,
                "milliseconds": step.milliseconds,
                "price_per_unit_hour": decimal_string(step.micros_per_unit_hour),
            }
            for step in found.steps
        ],
        "steps_left_out": found.steps_left_out,
        "cost_through_end": decimal_string(found.through_micros),
        "cost_invoiced_before": decimal_string(found.before_micros),
        "amount": decimal_string(found.amount_micros),
    }


def _named(figures: dict[str, int]) -> dict[str, str]:
    return {name.removesuffix("_micros"): decimal_string(micros) for name, micros in figures.items()}
