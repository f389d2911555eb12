"""What a budget can count. Something else to count joins by one entry of `COUNTERS`; nothing else names a counter.

A counter measures any number of owners at once: what each has used since the
month began, and what it will have used at the month's end.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db import connection
from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext

from billing.months import month_of, next_month
from marketplace import forecast
from marketplace.models import ApiToken, Organization, Project
from marketplace.models.budgets import MONEY, OUTCOMES
from marketplace.money import decimal_string, plain, shown, typed_micros
from marketplace.revenue_share import expecting
from marketplace.spend import BESIDE, IN_ALL, UP_TO

Owner = Organization | Project | ApiToken
DAY = timedelta(days=1)
COUNT_DIGITS_MAX = 9


@dataclass(frozen=True, slots=True)
class Whose:
    """An owner as a counter needs it: keys, no rows. Without project and token it is the whole organization."""

    organization_id: int
    project_id: int | None = None
    token_id: int | None = None

    @property
    def is_whole(self) -> bool:
        """Whether it is the whole organization, which alone has shares of revenue."""
        return self.project_id is None and self.token_id is None


@dataclass(frozen=True, slots=True)
class Measure:
    """What an owner has used since the month began, and the forecast for its end, in the counter's unit."""

    used: int
    forecast: int


Measured = Callable[[Sequence[Whose], datetime], list[Measure]]


@dataclass(frozen=True, slots=True)
class Counter:
    """A thing to count: how it is called, measured, written (for people, for programs, to be typed again), and read.

    `field` labels what an amount is typed into and may name the currency; `wrong` says what to type instead of what
    `read` cannot read.
    """

    label: Promise
    field: Promise
    wrong: Promise
    measure: Measured
    shown: Callable[[int, str], str]
    written: Callable[[int], str]
    typed: Callable[[int], str]
    read: Callable[[str], int | None]


# Of a token counts what it and all tokens that it made, directly or not, have ordered.
OWNERS = """
WITH RECURSIVE wanted AS (
    SELECT * FROM unnest(%(organization_ids)s::bigint[], %(project_ids)s::bigint[], %(token_ids)s::bigint[])
        WITH ORDINALITY AS one (organization_id, project_id, token_id, number)
), family AS (
    SELECT number, token.id, token.public_id FROM wanted JOIN marketplace_apitoken token ON token.id = wanted.token_id
    UNION
    SELECT family.number, made.id, made.public_id FROM family
    JOIN marketplace_apitoken made ON made.made_by_id = family.id
)
"""
# What is over and began in the month costs what was charged for it; only the rest, which is little, is rated here.
MONEY_USED = f"""
{OWNERS}, costs AS (
    SELECT span.organization_id, span.labels ->> 'project' AS project, span.labels ->> 'token' AS token,
        sum(CASE WHEN span.is_charged AND span.started_at >= %(since)s AND span.ended_at <= %(now)s
            THEN span.charged_micros
            ELSE {UP_TO.format(moment="%(now)s::timestamptz")} - {UP_TO.format(moment="%(since)s::timestamptz")}
        END) AS micros,
        sum(coalesce(last.micros_per_unit_hour, price.micros_per_unit_hour) * span.quantity)
            FILTER (WHERE span.ended_at IS NULL) AS burn
    FROM billing_usagespan span JOIN billing_priceversion price ON price.id = span.price_version_id
    LEFT JOIN LATERAL (
        SELECT micros_per_unit_hour FROM billing_pricepoint
        WHERE price.is_floating AND span.ended_at IS NULL AND price_version_id = price.id
        ORDER BY starts_at DESC LIMIT 1
    ) last ON true
    WHERE span.organization_id = ANY (%(organizations)s) AND span.covered_by = '' AND span.started_at <= %(now)s
        AND coalesce(span.ended_at, 'infinity') > %(since)s
    GROUP BY 1, 2, 3
), beside AS (
    SELECT organization_id, project_id, token_id, kind, sum(micros) AS micros FROM ({BESIDE}) moved GROUP BY 1, 2, 3, 4
), ordered AS (
    SELECT account.organization_id, held.project_id, purchase.token_id,
        sum(hold.amount_micros - hold.posted_micros) AS micros
    FROM billing_hold hold JOIN billing_account account ON account.id = hold.account_id
    JOIN marketplace_reservation held ON held.public_id = hold.resource_id AND held.state = 'payment_pending'
    LEFT JOIN marketplace_tokenpurchase purchase ON purchase.resource_id = held.public_id
    WHERE account.organization_id = ANY (%(organizations)s) AND hold.state = 'pending' GROUP BY 1, 2, 3
)
SELECT (coalesce(used.micros, 0) + paid.micros)::bigint, coalesce(used.burn, 0)::bigint,
    coalesce(due.micros, 0)::bigint
FROM wanted
LEFT JOIN marketplace_project project ON project.id = wanted.project_id
LEFT JOIN LATERAL (
    SELECT sum(micros) AS micros, sum(burn) AS burn FROM costs
    WHERE costs.organization_id = wanted.organization_id
        AND (wanted.project_id IS NULL OR costs.project = project.public_id)
        AND (wanted.token_id IS NULL
            OR costs.token IN (SELECT public_id FROM family WHERE family.number = wanted.number))
) used ON true
LEFT JOIN LATERAL (
    SELECT {IN_ALL} AS micros FROM beside WHERE beside.organization_id = wanted.organization_id
        AND (wanted.project_id IS NULL OR beside.project_id = wanted.project_id)
        AND (wanted.token_id IS NULL OR beside.token_id IN (SELECT id FROM family WHERE number = wanted.number))
) paid ON true
LEFT JOIN LATERAL (
    SELECT sum(micros) AS micros FROM ordered WHERE ordered.organization_id = wanted.organization_id
        AND (wanted.project_id IS NULL OR ordered.project_id = wanted.project_id)
        AND (wanted.token_id IS NULL OR ordered.token_id IN (SELECT id FROM family WHERE number = wanted.number))
) due ON true
ORDER BY wanted.number
"""  # noqa: S608  nothing in it comes from outside


def measure_money(owners: Sequence[Whose], at: datetime) -> list[Measure]:
    """Return what each has used and the forecast, as `spend` and `forecast` define them. One query for all, and those
    for what shares of revenue will ask of whole organizations."""
    whole = {one.organization_id for one in owners if one.is_whole}
    shares = expecting.in_month(whole, at=at) if whole else {}
    return [
        Measure(
            used,
            forecast.month_end_micros(
                used_micros=used, burn_micros_per_hour=burn, ordered_micros=ordered,
                shares_micros=shares.get(owner.organization_id, 0) if owner.is_whole else 0,
                at=at, until=next_month(at),
            ),
        )
        for owner, (used, burn, ordered) in zip(owners, _asked(MONEY_USED, owners, at), strict=True)
    ]  # fmt: skip


# A result that was accepted in the month and paid for, unless all of it was given back since.
OUTCOMES_USED = f"""
{OWNERS}, results AS (
    SELECT outcome.organization_id, project.id AS project_id, job.token_id,
        count(*) FILTER (WHERE outcome.at >= %(since)s) AS used,
        count(*) FILTER (WHERE outcome.at > %(now)s::timestamptz - interval '1 day') AS lately
    FROM billing_outcome outcome LEFT JOIN marketplace_project project ON project.public_id = outcome.project
    LEFT JOIN marketplace_job job ON job.public_id = outcome.resource_id
    WHERE outcome.organization_id = ANY (%(organizations)s) AND outcome.kind = 'outcome' AND outcome.at <= %(now)s
        AND outcome.at >= least(%(since)s::timestamptz, %(now)s::timestamptz - interval '1 day')
        AND outcome.amount_micros > coalesce((
            SELECT sum(back.amount_micros) FROM billing_outcome back WHERE back.of_id = outcome.id
        ), 0)
    GROUP BY 1, 2, 3
)
SELECT coalesce(sum(results.used), 0)::bigint, coalesce(sum(results.lately), 0)::bigint
FROM wanted LEFT JOIN results ON results.organization_id = wanted.organization_id
    AND (wanted.project_id IS NULL OR results.project_id = wanted.project_id)
    AND (wanted.token_id IS NULL OR results.token_id IN (SELECT id FROM family WHERE number = wanted.number))
GROUP BY wanted.number ORDER BY wanted.number
"""  # noqa: S608  nothing in it comes from outside


def measure_outcomes(owners: Sequence[Whose], at: datetime) -> list[Measure]:
    """Return how many results each has paid for, and how many it will have if every day is as the last 24 hours were.

    One query for all.
    """
    left = next_month(at) - at
    return [Measure(used, used + lately * left // DAY) for used, lately in _asked(OUTCOMES_USED, owners, at)]


def results_shown(amount: int, currency: str) -> str:
    """Write a number of results, in the reader's language."""
    return ngettext("%(count)s result", "%(count)s results", amount) % {"count": f"{amount:,}"}


def typed_count(text: str) -> int | None:
    """Return a whole number that was typed or sent, or None for what is none: nine digits at most."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= COUNT_DIGITS_MAX else None


def _asked(statement: str, owners: Sequence[Whose], at: datetime) -> list[tuple[int, ...]]:
    if not owners:
        return []
    given: dict[str, Any] = {
        "organization_ids": [one.organization_id for one in owners],
        "project_ids": [one.project_id for one in owners],
        "token_ids": [one.token_id for one in owners],
        "organizations": sorted({one.organization_id for one in owners}),
        "since": month_of(at),
        "now": at,
    }
    with connection.cursor() as cursor:
        cursor.execute(statement, given)
        rows: list[tuple[int, ...]] = cursor.fetchall()
    return rows


COUNTERS: Mapping[str, Counter] = {
    MONEY: Counter(
        label=_("Money"),
        field=_("For a calendar month, in %(currency)s"),
        wrong=_("Type an amount such as 1000 or 2.50."),
        measure=measure_money,
        shown=shown,
        written=decimal_string,
        typed=plain,
        read=typed_micros,
    ),
    OUTCOMES: Counter(
        label=_("Results"),
        field=_("Results that are paid for in a calendar month"),
        wrong=_("Type a whole number such as 1000."),
        measure=measure_outcomes,
        shown=results_shown,
        written=str,
        typed=str,
        read=typed_count,
    ),
}


def whose(owner: Owner, organization: Organization) -> Whose:
    """Return the keys of an owner of this organization."""
    if isinstance(owner, Project):
        return Whose(organization.pk, project_id=owner.pk)
    if isinstance(owner, ApiToken):
        return Whose(organization.pk, token_id=owner.pk)
    return Whose(organization.pk)
