"""What must hold of service credits and adjustments of suppliers; see `books`."""

from collections.abc import Iterator, Mapping

from billing.models import SlaVerdict
from billing.sla import availability
from billing.sla.availability import Seen
from billing.sla.terms import VERSIONS

RULES: Mapping[str, str] = {
    "sla_credit_is_what_its_tier_says": """
        SELECT public_id, format('credit %%s, %%s bps of %%s', credit_micros, credit_bps, paid_micros)
        FROM billing_slaverdict WHERE credit_micros <> least(div(paid_micros::numeric * credit_bps, 10000),
            greatest(0, paid_micros - (evidence ->> 'returned_micros')::bigint))
    """,
    "sla_credit_was_posted": """
        SELECT verdict.public_id, format('credit %%s, posted %%s', credit_micros, coalesce(amount_micros, 0))
        FROM billing_slaverdict verdict
        LEFT JOIN billing_transfer transfer ON transfer.key = 'service-credit:sla:' || verdict.public_id
        WHERE credit_micros <> coalesce(amount_micros, 0)
    """,
    "supplier_bears_no_more_than_the_credit": """
        SELECT verdict.public_id, format('credit %%s, charged back %%s', credit_micros, -adjustment.amount_micros)
        FROM billing_supplieradjustment adjustment JOIN billing_slaverdict verdict ON verdict.id = adjustment.verdict_id
        WHERE -adjustment.amount_micros > credit_micros
    """,
    "supplier_adjustment_moved_its_money": """
        SELECT adjustment.public_id, format('%%s micros, %%s; moved %%s', adjustment.amount_micros, state,
                                            coalesce(moved.micros, 0))
        FROM billing_supplieradjustment adjustment LEFT JOIN (
            SELECT split_part(key, ':', 2) AS adjustment,
                   sum(CASE WHEN source.organization_id IS NULL THEN amount_micros ELSE -amount_micros END) AS micros
            FROM billing_transfer transfer JOIN billing_account source ON source.id = transfer.source_id
            WHERE key LIKE 'adjust:%%' GROUP BY adjustment
        ) moved ON moved.adjustment = adjustment.public_id
        WHERE CASE WHEN state = 'approved' THEN adjustment.amount_micros ELSE 0 END <> coalesce(moved.micros, 0)
    """,
}
FIGURES = ("up_ms", "down_ms", "degraded_ms", "availability_ppm", "credit_bps", "credit_micros")


def findings() -> Iterator[tuple[str, str]]:
    """Judge every month again from its evidence; tell what comes out otherwise."""
    for row in SlaVerdict.objects.order_by("pk").iterator(chunk_size=500):
        terms = VERSIONS.get(row.terms_version)
        if terms is None:
            yield row.public_id, f"there are no terms {row.terms_version}"
            continue
        again = availability.judge(Seen.read(row.evidence), terms)
        written = {name: getattr(row, name) for name in FIGURES}
        expected = {name: getattr(again, name) for name in FIGURES}
        if written != expected:
            yield row.public_id, f"written {written}, comes out as {expected}"
