"""The second calculator of tiers, minimums and commitments: one statement that reads only rows.

It shares no code with `tiers` and `adjusting`: it walks spans by ranges, tiers by
their rows and commitments by recursion, in PostgreSQL's exact `numeric`.
"""

from collections.abc import Iterator
from datetime import datetime

from django.db import connection


def _half_up(product: str) -> str:
    """Units, micros and milliseconds as micros; `div` would be the way of the first calculator."""
    rest = f"mod({product}, 3600000)"
    return f"({product} - {rest}) / 3600000 + (CASE WHEN {rest} >= 1800000 THEN 1 ELSE 0 END)"


def _milliseconds(during: str) -> str:
    return f"round(1000 * (extract(epoch FROM upper({during})) - extract(epoch FROM lower({during}))))"


# Every month of use at a version that has tiers or a minimum, or that somebody committed to: what was used, and what
# charges take for it. A month is read as far as its adjustment was worked out, one without an adjustment to its end.
USED = f"""
SELECT part.organization_id, part.version_id, part.month, part.through, sum(part.quantity * part.ms) AS ms,
       sum({_half_up("part.micros * part.quantity * (part.ms_before + part.ms)")}
           - ({_half_up("part.micros * part.quantity * part.ms_before")})) AS base
FROM (
    SELECT span.organization_id, version.id AS version_id, known.month, known.through,
           span.quantity::numeric AS quantity, version.micros_per_unit_hour::numeric AS micros,
           {_milliseconds("inside.during")} AS ms,
           round(1000 * (extract(epoch FROM lower(inside.during)) - extract(epoch FROM span.started_at))) AS ms_before
    FROM billing_usagespan span
    JOIN billing_priceversion version ON version.id = span.price_version_id AND NOT version.is_floating
    CROSS JOIN LATERAL generate_series(
        date_trunc('month', span.started_at, 'UTC'), coalesce(span.ended_at, %(at)s), interval '1 month'
    ) AS each (begins)
    CROSS JOIN LATERAL (
        SELECT each.begins AS month, coalesce((
            SELECT through FROM billing_adjustment done WHERE done.organization_id = span.organization_id
            AND done.price_version_id = version.id AND done.month = each.begins
        ), (each.begins AT TIME ZONE 'UTC' + interval '1 month') AT TIME ZONE 'UTC') AS through
    ) known
    CROSS JOIN LATERAL (
        SELECT span.during * tstzrange(known.month, known.through) AS during
    ) inside
    WHERE span.covered_by = '' AND NOT isempty(inside.during) AND (
        version.tiers <> '[]'::jsonb OR version.minimum_micros <> 0 OR EXISTS (
            SELECT FROM billing_commitmentprice agreed
            WHERE agreed.is_agreed AND agreed.organization_id = span.organization_id AND agreed.sku = version.sku
              AND known.month >= agreed.starts_at AND known.month < agreed.ends_at
        )
    )
) part
GROUP BY 1, 2, 3, 4
"""  # noqa: S608  our own text
# Each commitment takes what it covers one use after the other; what it has left goes on to the next.
EXPECTED = f"""
WITH RECURSIVE used AS ({USED}), promised AS (
    SELECT used.organization_id, used.version_id, used.month, used.ms, commitment.id AS commitment_id,
           agreed.micros_per_unit_hour::numeric AS micros, commitment.kind = 'spend' AS spends,
           row_number() OVER (PARTITION BY commitment.id ORDER BY used.month, used.version_id) AS turn
    FROM used JOIN billing_priceversion version ON version.id = used.version_id
    JOIN billing_commitmentprice agreed ON agreed.is_agreed AND agreed.organization_id = used.organization_id
        AND agreed.sku = version.sku AND used.month >= agreed.starts_at AND used.month < agreed.ends_at
    JOIN billing_commitment commitment ON commitment.id = agreed.commitment_id
), taken AS (
    SELECT id AS commitment_id, 0::bigint AS turn, 0::numeric AS covered, 0::numeric AS before, 0::numeric AS after,
           3600000 * CASE kind WHEN 'spend' THEN committed_micros::numeric ELSE committed_unit_hours END AS left_over
    FROM billing_commitment WHERE state = 'agreed'
    UNION ALL
    SELECT promised.commitment_id, promised.turn, now.covered, taken.after, taken.after + promised.micros * now.covered,
           taken.left_over - now.covered * CASE WHEN promised.spends THEN promised.micros ELSE 1 END
    FROM taken JOIN promised ON promised.commitment_id = taken.commitment_id AND promised.turn = taken.turn + 1
    CROSS JOIN LATERAL (SELECT least(promised.ms,
        CASE WHEN promised.spends THEN (taken.left_over - mod(taken.left_over, promised.micros)) / promised.micros
        ELSE taken.left_over END) AS covered
    ) now
), listed AS (
    SELECT used.*, version.sku, version.effective_from, version.minimum_micros,
           (used.month AT TIME ZONE 'UTC' + interval '1 month') AT TIME ZONE 'UTC' <= used.through AS is_over,
           promised.commitment_id, coalesce(taken.covered, 0) AS covered,
           coalesce({_half_up("taken.after")} - ({_half_up("taken.before")}), 0) AS committed, tiered.product
    FROM used JOIN billing_priceversion version ON version.id = used.version_id
    LEFT JOIN promised USING (organization_id, version_id, month)
    LEFT JOIN taken ON taken.commitment_id = promised.commitment_id AND taken.turn = promised.turn
    CROSS JOIN LATERAL (SELECT used.ms - coalesce(taken.covered, 0) AS ms) rest
    CROSS JOIN LATERAL (
        SELECT CASE version.model WHEN 'flat' THEN rest.ms * version.micros_per_unit_hour
            WHEN 'graduated' THEN sum(tier.micros * (least(rest.ms, tier.ends) - tier.begins))
                FILTER (WHERE rest.ms > tier.begins)
            ELSE rest.ms * max(tier.micros) FILTER (WHERE rest.ms > tier.begins AND rest.ms <= tier.ends)
            END AS product
        FROM (
            SELECT 3600000 * (said ->> 0)::numeric AS begins, (said ->> 1)::numeric AS micros,
                   coalesce(3600000 * (lead(said) OVER (ORDER BY place) ->> 0)::numeric, 'infinity') AS ends
            FROM jsonb_array_elements(version.tiers) WITH ORDINALITY AS row (said, place)
        ) tier
    ) tiered
), summed AS (
    SELECT listed.*, {_half_up("coalesce(product, 0)")} AS list_micros,
           row_number() OVER (
               PARTITION BY organization_id, sku, month, ms > 0 ORDER BY effective_from DESC, version_id DESC
           ) = 1 AND ms > 0 AND is_over AS asks_minimum
    FROM listed
), whole AS (
    SELECT summed.*, CASE WHEN asks_minimum THEN greatest(0, minimum_micros - sum(list_micros + committed) OVER (
        PARTITION BY organization_id, sku, month)) ELSE 0 END AS minimum
    FROM summed
)
SELECT coalesce(stored.public_id, 'none'), stored.unit_milliseconds, stored.covered_unit_milliseconds,
       stored.base_micros, stored.committed_micros, stored.minimum_micros, stored.rated_micros,
       coalesce(whole.ms, 0), coalesce(whole.covered, 0), coalesce(whole.base, 0), coalesce(whole.committed, 0),
       coalesce(whole.minimum, 0), coalesce(whole.list_micros + whole.committed + whole.minimum, 0),
       coalesce(stored.organization_id, whole.organization_id)
FROM (SELECT * FROM billing_adjustment WHERE price_version_id IS NOT NULL) stored
FULL JOIN whole ON whole.organization_id = stored.organization_id AND whole.version_id = stored.price_version_id
    AND whole.month = stored.month
WHERE (stored.id IS NULL AND whole.through < %(at)s - interval '2 hours' AND
        whole.list_micros + whole.committed + whole.minimum <> whole.base)
   OR (stored.unit_milliseconds, stored.covered_unit_milliseconds, stored.base_micros, stored.committed_micros,
       stored.minimum_micros, stored.rated_micros)
    IS DISTINCT FROM (coalesce(whole.ms, 0), coalesce(whole.covered, 0), coalesce(whole.base, 0),
       coalesce(whole.committed, 0), coalesce(whole.minimum, 0),
       coalesce(whole.list_micros + whole.committed + whole.minimum, 0)) AND stored.id IS NOT NULL
ORDER BY 1
"""  # noqa: S608  our own text
# Whose use was corrected after the last close: the next one brings it.
UNSETTLED = """
SELECT DISTINCT adjustment.organization_id FROM billing_adjustment adjustment
JOIN billing_usagespan span ON span.organization_id = adjustment.organization_id
JOIN billing_charge charge ON charge.span_id = span.id
WHERE span.ended_at < adjustment.through AND span.ended_at > adjustment.month
  AND charge.created_at >= adjustment.evaluated_at AND adjustment.organization_id = ANY(%(organizations)s)
"""


def findings(*, at: datetime) -> Iterator[tuple[str, str]]:
    """Work out every adjustment anew; yield its id and what differs.

    Use that was corrected since the last close is left to the next.
    """
    with connection.cursor() as cursor:
        cursor.execute(EXPECTED, {"at": at})
        rows = cursor.fetchall()
        cursor.execute(UNSETTLED, {"organizations": [row[-1] for row in rows]})
        unsettled = {key for (key,) in cursor.fetchall()}
    names = ("used", "covered", "base", "committed", "minimum", "rated")
    for public_id, *figures, organization_id in rows:
        if organization_id not in unsettled:
            written = dict(zip(names, figures[:6], strict=True))
            expected = {name: int(figure) for name, figure in zip(names, figures[6:], strict=True)}
            yield public_id, f"says {written}, worked out {expected}"
