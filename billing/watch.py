"""Who is told that the money runs out, and for how long what runs is left running after that.

A ladder: a week, a day, an hour, used up. Each rung is told once per crossing:
going down tells the lowest rung that was reached, and only money that lasts a
quarter longer than a rung again makes it be told anew (a floating price must
not tell every minute). Whoever has paid before has a grace at the end of it.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta

from django.db import transaction
from django.db.models import Q, QuerySet

from billing import accounts
from billing.models import Account, Notice, Runway, RunwayWatch, Transfer
from billing.notices import News, tell

GRACE = timedelta(minutes=30)
Rung = RunwayWatch.Rung
# From the longest to the shortest; the number of a rung is its place here.
LADDER: tuple[tuple[Rung, timedelta], ...] = (
    (Rung.WEEK, timedelta(days=7)),
    (Rung.DAY, timedelta(days=1)),
    (Rung.HOUR, timedelta(hours=1)),
    (Rung.USED_UP, timedelta(0)),
)
ORDER = (Rung.ENOUGH, *(rung for rung, _ in LADDER))
TOLD: Mapping[Rung, Notice.Kind] = {
    Rung.WEEK: Notice.Kind.RUNWAY_WEEK,
    Rung.DAY: Notice.Kind.RUNWAY_DAY,
    Rung.HOUR: Notice.Kind.RUNWAY_HOUR,
    Rung.USED_UP: Notice.Kind.USED_UP,
}
# Money is burned and comes in, so it goes both ways, over any number of rungs.
MOVES: Mapping[Rung, tuple[Rung, ...]] = {rung: tuple(other for other in ORDER if other != rung) for rung in ORDER}


def rung_of(*, exhausts_at: datetime | None, told: Rung, at: datetime) -> Rung:
    """Return the rung of money that lasts until `exhausts_at`, where `told` is the one that it stood on."""
    found = Rung.ENOUGH
    for rung, lasts in LADDER:
        if exhausts_at is None:
            break
        reached = _left_after(lasts) if ORDER.index(told) >= ORDER.index(rung) else lasts
        if exhausts_at <= at + reached:
            found = rung
    return found


def _left_after(lasts: timedelta) -> timedelta:
    """Up again only with a quarter more; what is used up is over with the first bit of money."""
    return lasts * 5 // 4


def look(*, at: datetime, limit: int = 500) -> int:
    """Move everybody whose money crossed a rung, and tell those who went down; return how many moved.

    Safe to repeat, to run twice at once and to be killed: each organization is one transaction behind its gate.
    """
    crossed = _crossed(at).select_related("organization")[:limit]
    return sum(_move(row.organization_id, row.organization.currency, at=at) for row in crossed)


def used_up(*, at: datetime) -> list[int]:
    """Return the organizations whose money is used up, still burned, and whose grace is over."""
    found = Runway.objects.filter(
        exhausts_at__lte=at,
        organization__runway_watch__rung=Rung.USED_UP,
        organization__runway_watch__grace_ends_at__lte=at,
    )
    return list(found.order_by("exhausts_at").values_list("organization_id", flat=True))


def _crossed(at: datetime) -> QuerySet[Runway]:
    """Everybody whose money is on another rung than they were told: `rung_of` as a condition.

    Whoever stays where they are is not among them, so that a look is of bounded length and yet reaches everybody.
    """
    told = "organization__runway_watch__rung"
    crossed = (Q(organization__runway_watch=None) | Q(**{told: Rung.ENOUGH})) & Q(exhausts_at__lte=at + LADDER[0][1])
    for (rung, lasts), below in zip(LADDER, [*LADDER[1:], None], strict=True):
        moved = Q(exhausts_at=None) | Q(exhausts_at__gt=at + _left_after(lasts))
        if below is not None:
            moved |= Q(exhausts_at__lte=at + below[1])
        crossed |= Q(**{told: rung}) & moved
    return Runway.objects.filter(crossed).order_by("exhausts_at", "pk")


@transaction.atomic
def _move(organization_id: int, currency: str, *, at: datetime) -> bool:
    payer = accounts.lock(organization_id=organization_id, currency=currency)
    runway = Runway.objects.get(organization=organization_id)
    watch, _ = RunwayWatch.objects.get_or_create(organization_id=organization_id, defaults={"since": at})
    told = Rung(watch.rung)
    rung = rung_of(exhausts_at=runway.exhausts_at, told=told, at=at)
    if rung not in MOVES[told]:
        return False
    down = ORDER.index(rung) > ORDER.index(told)
    crossing = watch.crossing + (not down)
    ends = None
    if rung == Rung.USED_UP:
        assert runway.exhausts_at is not None
        ends = min(at, runway.exhausts_at) + (GRACE if _has_paid(payer.cash) else timedelta(0))
    moved = RunwayWatch.objects.filter(pk=watch.pk, rung=told, crossing=watch.crossing).update(
        rung=rung, crossing=crossing, since=at, grace_ends_at=ends
    )
    if moved and down:
        key = f"runway:{organization_id}:{crossing}:{rung}"
        facts = {
            "until": runway.exhausts_at.isoformat() if runway.exhausts_at else "",
            "stops_at": ends.isoformat() if ends else "",
            "burn_micros_per_hour": str(runway.burn_micros_per_hour),
            "currency": currency,
        }
        tell([News(organization_id, TOLD[rung], key, facts)], at=at)
    return bool(moved)


def _has_paid(cash: Account) -> bool:
    """Return whether money ever came in from outside."""
    return Transfer.objects.filter(
        target=cash, source__organization=None, source__kind__in=[Account.Kind.PROCESSOR, Account.Kind.BANK]
    ).exists()
