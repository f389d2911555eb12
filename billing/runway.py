"""How long the money lasts."""

import json
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from enum import StrEnum

from django.db import connection, transaction
from django.db.models import QuerySet

from billing import accounts, rating
from billing.models import Runway, Transfer
from billing.prepared import ask

LOW = timedelta(hours=1)
CRITICAL = timedelta(minutes=10)
HORIZON = timedelta(days=36500)  # what lasts longer lasts for ever, and would not fit a date

# Per open span: what it burns in an hour, and what it burned until a moment without having been charged. A floating
# price burns what its last point says, and has burned the difference of two sums.
BURN_SQL = """
SELECT coalesce(
           sum(span.quantity::numeric * coalesce(last.micros_per_unit_hour, price.micros_per_unit_hour)), 0
       )::bigint,
       coalesce(sum(span.quantity::numeric * (CASE WHEN price.is_floating
           THEN last.sum_micro_ms + last.micros_per_unit_hour * 1000 * extract(epoch FROM %(at)s - last.starts_at)
               - first.sum_micro_ms
               - first.micros_per_unit_hour * 1000 * extract(epoch FROM span.started_at - first.starts_at)
           ELSE price.micros_per_unit_hour * 1000 * extract(epoch FROM %(at)s - span.started_at)
       END) / 3600000 - span.charged_micros), 0)::bigint,
       (SELECT coalesce(jsonb_agg(jsonb_build_array(
            left_micros, floor(1000 * extract(epoch FROM expires_at - %(at)s))::bigint
        ) ORDER BY expires_at NULLS LAST, credit.id), '[]')
        FROM billing_creditgrant credit WHERE account_id = %(promo)s AND left_micros > 0)
FROM billing_usagespan span JOIN billing_priceversion price ON price.id = span.price_version_id
LEFT JOIN LATERAL (
    SELECT * FROM billing_pricepoint WHERE price.is_floating AND price_version_id = price.id
    ORDER BY starts_at DESC LIMIT 1
) last ON true
LEFT JOIN LATERAL (
    SELECT * FROM billing_pricepoint
    WHERE price.is_floating AND price_version_id = price.id AND starts_at <= span.started_at
    ORDER BY starts_at DESC LIMIT 1
) first ON true
WHERE span.organization_id = %(organization)s AND span.ended_at IS NULL AND span.covered_by = ''
"""

SHIFT = """
UPDATE billing_runway SET funds_micros = moved.funds, exhausts_at = moved.at
FROM unnest(%s::bigint[], %s::bigint[], %s::timestamptz[]) AS moved (organization_id, funds, at)
WHERE billing_runway.organization_id = moved.organization_id
"""
IS_BURNING = "SELECT FROM billing_runway WHERE organization_id = %(organization)s AND burn_micros_per_hour > 0"


class Level(StrEnum):
    """How long the money lasts: over a week or for ever, a week, a day, an hour, ten minutes, or no longer."""

    ENOUGH = "enough"
    WEEK = "week"
    DAY = "day"
    LOW = "low"
    CRITICAL = "critical"
    EXHAUSTED = "exhausted"


@transaction.atomic(savepoint=False)
def refresh(*, organization: accounts.Organization, at: datetime) -> Runway:
    """Work out anew when the money runs out, from all open spans and all money, held or not.

    What more may be owed counts as money, and credit that expires before it can
    be used does not. Held money counts: it is the organization's own, and what a hold keeps from
    one span it saves another. Called by whatever opens or closes a span or
    brings money in; charging moves money along the same line and need not.
    """
    # Behind the gate: of two refreshes at once the second sees the span that the first was called for.
    payer = accounts.lock(organization_id=organization.pk, currency=organization.currency)
    wallet = payer.wallet
    burn_micros_per_hour, uncharged_micros, credit = _burn(organization.pk, payer.promo.pk, at)
    funds_micros = wallet.promo_micros + wallet.cash_micros - wallet.owed_micros - uncharged_micros
    funds_micros += wallet.credit_limit_micros
    funds_micros -= _unusable_micros(credit, wallet.promo_micros - uncharged_micros, burn_micros_per_hour)
    runway = Runway(
        organization_id=organization.pk,
        burn_micros_per_hour=burn_micros_per_hour,
        funds_micros=funds_micros,
        as_of=at,
        exhausts_at=exhausts_at(funds_micros=funds_micros, burn_micros_per_hour=burn_micros_per_hour, at=at),
    )
    Runway.objects.bulk_create(
        [runway],
        update_conflicts=True,
        unique_fields=["organization"],
        update_fields=["burn_micros_per_hour", "funds_micros", "as_of", "exhausts_at"],
    )
    return runway


def refresh_if_burning(*, organization: accounts.Organization, at: datetime) -> None:
    """Work it out anew where something burns; elsewhere it lasts for ever whatever there is. One statement then."""
    if ask(IS_BURNING, {"organization": organization.pk}):
        refresh(organization=organization, at=at)


def shift(moves: Iterable[Transfer]) -> None:
    """Let the money of those who still use something last as much shorter or longer as these transfers moved.

    Two statements for any number of organizations, whose accounts the caller has locked.
    """
    change: dict[int, int] = {}
    for move in moves:
        for account, micros in ((move.source, -move.amount_micros), (move.target, move.amount_micros)):
            if account.organization_id is not None:
                change[account.organization_id] = change.get(account.organization_id, 0) + micros
    rows = Runway.objects.filter(organization__in=change, burn_micros_per_hour__gt=0)
    told = [(row, row.funds_micros + change[row.organization_id]) for row in rows]
    if not told:
        return
    with connection.cursor() as cursor:
        cursor.execute(
            SHIFT,
            [
                [row.organization_id for row, _ in told],
                [funds for _, funds in told],
                [
                    exhausts_at(funds_micros=funds, burn_micros_per_hour=row.burn_micros_per_hour, at=row.as_of)
                    for row, funds in told
                ],
            ],
        )


def exhausts_at(*, funds_micros: int, burn_micros_per_hour: int, at: datetime) -> datetime | None:
    """Return the millisecond in which the money is used up; None if nothing burns or it takes a century."""
    if not burn_micros_per_hour:
        return None
    lasts_ms = max(0, funds_micros) * rating.MILLISECONDS_PER_HOUR // burn_micros_per_hour
    if lasts_ms > HORIZON // rating.MILLISECOND:
        return None
    return at + lasts_ms * rating.MILLISECOND


def running_low(*, at: datetime) -> QuerySet[Runway]:
    """Return the runways of those whose level is `LOW` or worse, the most urgent first."""
    return Runway.objects.filter(exhausts_at__lte=at + LOW).order_by("exhausts_at")


def level(*, organization: accounts.Organization, at: datetime) -> Level:
    """Return how long the money lasts, as a word, in one query; what burns nothing has enough."""
    return level_of(Runway.objects.filter(organization_id=organization.pk).first(), at=at)


def level_of(runway: Runway | None, *, at: datetime) -> Level:
    """Return the level of a runway; none at all is one that burns nothing."""
    if runway is None or runway.exhausts_at is None:
        return Level.ENOUGH
    lasts = runway.exhausts_at - at
    return next((level for level, least in LEVELS if lasts > least), Level.EXHAUSTED)


# What lasts longer than each of these.
LEVELS = (
    (Level.ENOUGH, timedelta(days=7)),
    (Level.WEEK, timedelta(days=1)),
    (Level.DAY, LOW),
    (Level.LOW, CRITICAL),
    (Level.CRITICAL, timedelta(0)),
)


def _burn(organization_id: int, promo_id: int, at: datetime) -> tuple[int, int, list[tuple[int, int | None]]]:
    with connection.cursor() as cursor:
        cursor.execute(BURN_SQL, {"at": at, "organization": organization_id, "promo": promo_id})
        burn_micros_per_hour, uncharged_micros, credit = cursor.fetchone()
    return burn_micros_per_hour, uncharged_micros, [(left, expires_ms) for left, expires_ms in json.loads(credit)]


def _unusable_micros(credit: Sequence[tuple[int, int | None]], promo_micros: int, burn_micros_per_hour: int) -> int:
    """Return how much of the promotional credit expires before it is burned.

    `credit` has of each grant, in the order of use, what was left when it was last looked at and in how many
    milliseconds it expires. Until one expires no more of it and those before it can be burned than the burn takes.
    """
    used = max(0, sum(left for left, _ in credit) - max(0, promo_micros))
    shares, _ = rating.take_in_turn(used, [left for left, _ in credit])
    total = usable = 0
    for (left, expires_ms), share in zip(credit, shares, strict=True):
        if expires_ms is not None:
            total += left - share
            burned = burn_micros_per_hour * max(0, expires_ms) // rating.MILLISECONDS_PER_HOUR
            usable = min(usable + left - share, burned)
    return total - usable
