"""What of an offer may still be promised: commitments as a step function over UTC hours.

What runs on demand has no end, so it counts in every hour to come;
reservations count in theirs; spot counts nowhere, since it makes room. New
work is admitted where the sum stays within the offer's GPUs in every hour
that it touches. Counts suffice, because a reservation's nodes are chosen when
it begins: the intervals on a line form a perfect graph, so where no hour
exceeds the capacity, first-fit in order of starts gives everyone whole nodes.

GPUs that are free on a node which a tenant has alone (no_shared_host) are not
among the offer's: only that tenant can have them. They are counted in the
transaction that closes a node or leaves more of it free, so no sale misses them.

Each promise locks the offer's `Capacity` row, so callers make it last in
their transaction: after accounts, nodes and assignments.
"""

from collections.abc import Collection
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from django.db import connection, transaction
from django.db.models import F
from django.utils.translation import gettext

from billing.prepared import Asking, Steps, ask
from billing.wire import Asked, Value
from provisioning import alone
from provisioning.errors import NoCapacity
from provisioning.models import Capacity, GpuHold, Instance

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
SPOT = Instance.Market.SPOT
# How long hours that are over are kept, and how many of one offer are forgotten at a time.
KEPT = timedelta(days=1)
FORGOTTEN_EACH = 100

# An offer without commitments is limited by its nodes alone, so that their coming and going needs no count.
OPEN = """
INSERT INTO provisioning_capacity AS capacity (offer_id, gpus, open_ended, peak, waiting, counted_at)
VALUES (%(offer)s, 0, %(gpus)s::bigint, 0, 0, %(at)s)
ON CONFLICT (offer_id) DO UPDATE SET open_ended = capacity.open_ended + %(gpus)s::bigint
    WHERE (capacity.peak = 0 OR capacity.open_ended + %(gpus)s::bigint + capacity.peak <= capacity.gpus)
        AND (capacity.waiting = 0 OR %(is_first)s::boolean OR capacity.lets_pass
            AND capacity.open_ended + %(gpus)s::bigint + capacity.peak + capacity.waiting <= capacity.gpus)
RETURNING offer_id
"""

ADD = """
INSERT INTO provisioning_capacity (offer_id, gpus, open_ended, peak, waiting, counted_at)
SELECT offer.id, 0, 0, 0, 0, %(at)s FROM marketplace_offer offer
WHERE (%(offer)s::bigint IS NULL OR offer.id = %(offer)s)
    AND NOT EXISTS (SELECT FROM provisioning_capacity WHERE offer_id = offer.id)
ORDER BY offer.id ON CONFLICT (offer_id) DO NOTHING
"""

LOCK = """
SELECT FROM provisioning_capacity WHERE %(offer)s::bigint IS NULL OR offer_id = %(offer)s
ORDER BY offer_id FOR NO KEY UPDATE
"""

# The hours of which something is committed. Conditions on `offer_id` and `day` go to the rows.
HOURS = """
SELECT offer_id, day, day + (number - 1) * interval '1 hour' AS hour, of_hour AS gpus
FROM provisioning_committedday, unnest(gpus) WITH ORDINALITY AS of_day (of_hour, number) WHERE of_hour > 0
"""
WITHIN = f"""
SELECT offer_id, hour, gpus FROM ({HOURS}) hour WHERE offer_id = ANY (%(offers)s::bigint[])
    AND day > %(start)s::timestamptz - interval '24 hours' AND (%(end)s::timestamptz IS NULL OR day < %(end)s)
    AND hour >= %(start)s AND (%(end)s IS NULL OR hour < %(end)s)
"""  # noqa: S608  nothing in it comes from outside
PEAK = f"SELECT coalesce(max(gpus), 0) FROM ({WITHIN}) hour"  # noqa: S608  nothing in it comes from outside
LAST_ABOVE = f"SELECT max(hour) FROM ({WITHIN}) hour WHERE gpus > %(left)s"  # noqa: S608  nothing in it comes from outside

RUNS_ON_DEMAND = """
EXISTS (
    SELECT FROM provisioning_gpuhold hold JOIN provisioning_assignment assignment ON assignment.id = hold.assignment_id
    JOIN provisioning_instance instance ON instance.id = assignment.instance_id
    WHERE hold.gpu_id = gpu.id AND hold.released_at IS NULL AND instance.market = 'on_demand'
)
"""
# By offer: its GPUs in good order, and those of them that only the tenants may have who have their nodes alone. Sums
# apart, because nodes know how many GPUs they have, and only few are out. Of what is out, that counts on which somebody
# runs on demand: until it is over it is among what is promised without an end, and would be missing twice.
GPUS = f"""
SELECT offer.id, coalesce(built.gpus, 0) - coalesce(broken.gpus, 0) + coalesce(used.gpus, 0) AS in_service,
    coalesce(closed.gpus, 0) AS closed
FROM marketplace_offer offer
LEFT JOIN (
    SELECT offer_id, sum(gpu_count) AS gpus FROM provisioning_node node
    WHERE {alone.IN_SERVICE} AND (%(offer)s::bigint IS NULL OR offer_id = %(offer)s) GROUP BY offer_id
) built ON built.offer_id = offer.id
LEFT JOIN (
    SELECT offer_id, count(*) AS gpus FROM provisioning_gpu gpu JOIN provisioning_node node ON node.id = gpu.node_id
    WHERE NOT ({alone.IN_ORDER}) AND removed_at IS NULL AND {alone.IN_SERVICE} AND NOT {RUNS_ON_DEMAND}
        AND (%(offer)s::bigint IS NULL OR offer_id = %(offer)s) GROUP BY offer_id
) broken ON broken.offer_id = offer.id
LEFT JOIN (
    SELECT offer_id, count(*) AS gpus FROM provisioning_gpu gpu JOIN provisioning_node node ON node.id = gpu.node_id
    WHERE NOT ({alone.IN_SERVICE}) AND {RUNS_ON_DEMAND}
        AND (%(offer)s::bigint IS NULL OR offer_id = %(offer)s) GROUP BY offer_id
) used ON used.offer_id = offer.id
LEFT JOIN ({alone.CLOSED}) closed ON closed.offer_id = offer.id
WHERE %(offer)s::bigint IS NULL OR offer.id = %(offer)s
"""  # noqa: S608  nothing in it comes from outside
# The rows are locked by a statement before this one: what was committed while that waited is then seen.
COUNT = f"""
UPDATE provisioning_capacity AS capacity SET gpus = counted.in_service - counted.closed, counted_at = %(at)s,
    peak = coalesce(
        (SELECT max(gpus) FROM ({HOURS}) hour WHERE offer_id = capacity.offer_id
            AND day > %(since)s - interval '24 hours' AND hour > %(since)s), 0
    )
FROM ({GPUS}) counted WHERE counted.id = capacity.offer_id
"""  # noqa: S608  nothing in it comes from outside

# A few of each offer, by its index; those that somebody takes back this moment are left for the next time.
FORGET = """
DELETE FROM provisioning_committedday WHERE id IN (
    SELECT old.id FROM provisioning_capacity capacity, LATERAL (
        SELECT id FROM provisioning_committedday there
        WHERE there.offer_id = capacity.offer_id AND there.day <= %(before)s - interval '24 hours'
        ORDER BY there.day LIMIT %(each)s FOR UPDATE SKIP LOCKED
    ) old LIMIT %(limit)s
)
"""

LOCK_ONE = f"""
SELECT {", ".join(field.column for field in Capacity._meta.concrete_fields)} FROM provisioning_capacity
WHERE offer_id = %(offer)s FOR NO KEY UPDATE
"""  # noqa: S608  nothing in it comes from outside
# Where one hour has no room, nothing is written at all. Whoever commits or releases hours changes the capacity's row
# too: where it is newer than this statement's look at the days, they may be as well, and nothing is written either.
COMMIT = """
WITH locked AS MATERIALIZED (
    SELECT offer_id, xmin AS version FROM provisioning_capacity WHERE offer_id = %(offer)s FOR NO KEY UPDATE
), stale AS MATERIALIZED (
    SELECT FROM locked JOIN provisioning_capacity there USING (offer_id) WHERE there.xmin <> locked.version
), wanted AS MATERIALIZED (
    SELECT day, array_fill(0, ARRAY[first]) || array_fill(%(gpus)s::int, ARRAY[until - first])
        || array_fill(0, ARRAY[24 - until]) AS gpus
    FROM unnest(%(days)s::timestamptz[], %(firsts)s::int[], %(untils)s::int[]) AS wanted (day, first, until)
), fullest AS (
    SELECT coalesce(max(hour.gpus), 0) + %(gpus)s::bigint AS gpus
    FROM wanted JOIN provisioning_committedday there ON there.offer_id = %(offer)s AND there.day = wanted.day,
        unnest(there.gpus, wanted.gpus) AS hour (gpus, added) WHERE hour.added > 0
), fits AS (
    UPDATE provisioning_capacity AS capacity SET peak = greatest(peak, fullest.gpus) FROM fullest, locked
    WHERE capacity.offer_id = locked.offer_id AND open_ended + fullest.gpus <= capacity.gpus
        AND NOT EXISTS (SELECT FROM stale)
    RETURNING capacity.offer_id
), committed AS (
    INSERT INTO provisioning_committedday AS committed (offer_id, day, gpus)
    SELECT offer_id, day, wanted.gpus FROM fits, wanted
    ON CONFLICT (offer_id, day) DO UPDATE SET gpus = (
        SELECT array_agg(before + added ORDER BY number)
        FROM unnest(committed.gpus, excluded.gpus) WITH ORDINALITY AS hour (before, added, number)
    )
)
SELECT EXISTS (SELECT FROM fits), EXISTS (SELECT FROM stale)
"""
RELEASE = """
UPDATE provisioning_committedday there SET gpus = (
    SELECT array_agg(before - CASE WHEN there.day + (number - 1) * interval '1 hour' >= %(start)s
        AND there.day + (number - 1) * interval '1 hour' < %(end)s THEN %(gpus)s ELSE 0 END ORDER BY number)
    FROM unnest(there.gpus) WITH ORDINALITY AS hour (before, number)
) WHERE offer_id = %(offer)s AND day > %(start)s - interval '24 hours' AND day < %(end)s
"""
EMPTY = """
DELETE FROM provisioning_committedday
WHERE offer_id = %(offer)s AND day > %(start)s - interval '24 hours' AND day < %(end)s AND 0 = ALL (gpus)
"""


def hour_of(at: datetime) -> datetime:
    """Return when the UTC hour of `at` began."""
    return at.replace(minute=0, second=0, microsecond=0)


def count_soon(*, offer_id: int, at: datetime) -> None:
    """Count the GPUs of an offer once this transaction is done, for whoever has other locks to take in it yet."""
    transaction.on_commit(partial(count, at=at, offer_id=offer_id), robust=True)


@transaction.atomic(savepoint=False)
def count(*, at: datetime, offer_id: int | None = None) -> None:
    """Count the GPUs of an offer, or of all, and the fullest hour to come. Locks what it counts, in order of offers.

    Three statements, whatever is promised.
    """
    words = {"offer": offer_id, "at": at, "since": at - HOUR}
    with connection.cursor() as cursor:
        for statement in (ADD, LOCK, COUNT):
            cursor.execute(statement, words)


def count_closed(*, instance: Instance, at: datetime) -> None:
    """Count what the claim of an instance has just closed, or raise NoCapacity where that is promised to others.

    Who closes nothing more than was closed before takes nothing from anybody, whatever is out of service.
    Locks as `count`.
    """
    before = lock(offer_id=instance.offer_id, at=at).gpus
    count(at=at, offer_id=instance.offer_id)
    now = Capacity.objects.get(pk=instance.offer_id)
    if now.gpus < before and now.peak and now.open_ended + now.peak > now.gpus:
        raise NoCapacity(
            gettext("A node that nobody shares would close GPUs that are reserved: up to %(peak)s in one hour.")
            % {"peak": now.peak}
        )


def forget(*, at: datetime, limit: int) -> int:
    """Forget hours that have been over for a day, some of each offer; return how many."""
    with connection.cursor() as cursor:
        cursor.execute(FORGET, {"before": at - KEPT, "each": FORGOTTEN_EACH, "limit": limit})
        forgotten: int = cursor.rowcount
    return forgotten


def open_ended(*, offer_id: int, gpus: int, at: datetime, is_first: bool = True) -> None:
    """Promise GPUs from now on without an end, or raise NoCapacity with nothing promised. One statement.

    Who is not `is_first` leaves to those who wait what they wait for.
    """
    assert gpus > 0
    for is_last in (False, True):
        if ask(OPEN, {"offer": offer_id, "gpus": gpus, "at": at, "is_first": is_first}):
            return
        if not is_last:
            count(at=at, offer_id=offer_id)  # It may have grown since, or the fullest hour may be over.
    capacity = Capacity.objects.get(pk=offer_id)
    if not is_first and capacity.waiting:
        raise NoCapacity(
            gettext("Orders for %(waiting)s GPUs of this offer wait already, and come first.")
            % {"waiting": capacity.waiting}
        )
    raise NoCapacity(
        gettext(
            "%(gpus)s GPUs without an end do not fit beside what is reserved: "
            "of %(all)s GPUs, %(open)s run on demand and up to %(peak)s are reserved in one hour."
        )
        % {"gpus": gpus, "all": capacity.gpus, "open": capacity.open_ended, "peak": capacity.peak}
    )


def next_open(*, offer_id: int, gpus: int, at: datetime) -> datetime | None:
    """Return from when on so many GPUs without an end fit beside what is committed; None where not in sight.

    Of the offer's GPUs as they are now. Locks nothing.
    """
    capacity = Capacity.objects.filter(pk=offer_id).first()
    if capacity is None:
        return at
    left = gpus_there(offer_id, at=at) - capacity.open_ended - gpus
    if left < 0:
        return None
    ((last,),) = _read(LAST_ABOVE, offer_ids=[offer_id], starts_at=hour_of(at), ends_at=None, left=left)
    return at if last is None else last + HOUR


def limit_spot(*, offer_id: int, gpus: int) -> None:
    """Let spot hold no more GPUs of an offer than this until it is told otherwise. The last lock of a transaction."""
    Capacity.objects.filter(pk=offer_id).update(for_spot=gpus)


def spot_gpus(offer_id: int) -> int:
    """Return how many GPUs of an offer spot holds now, those among them that it is to give back."""
    mine = GpuHold.objects.filter(assignment__instance__offer=offer_id, assignment__instance__market=SPOT)
    return mine.filter(released_at=None).count()


def has_room_for_spot(*, offer_id: int, gpus: int) -> bool:
    """Return whether spot may hold so many GPUs more now; who asks next waits until the transaction ends.

    Whoever lost its GPUs keeps them for its notice, so whoever won may have to wait for exactly those: others that
    are free belong to somebody. Call it before nodes are locked.
    """
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [f"spot-claim:{offer_id}"])
    left = spot_left(offer_id)
    return left is None or gpus <= left


def spot_left(offer_id: int) -> int | None:
    """Return how many GPUs of an offer spot may hold more now; None where nobody has set a limit."""
    most = Capacity.objects.filter(pk=offer_id).values_list("for_spot", flat=True).first()
    return None if most is None else most - spot_gpus(offer_id)


def gpus_of_offer(offer_id: int) -> int:
    """Return how many GPUs of an offer may be promised, as last counted."""
    return Capacity.objects.filter(pk=offer_id).values_list("gpus", flat=True).first() or 0


def gpus_there(offer_id: int, *, at: datetime) -> int:
    """Return how many GPUs of an offer could be promised if they were counted now. Locks and writes nothing.

    For whoever asks early in a transaction: a count would hold until its end what everybody locks last.
    """
    with connection.cursor() as cursor:
        cursor.execute(GPUS, {"offer": offer_id, "at": at})
        _, in_service, closed = cursor.fetchone()
    return int(in_service - closed)


def close(*, offer_id: int, gpus: int) -> None:
    """Take back a promise without an end; the column's own check refuses to go below zero."""
    Capacity.objects.filter(pk=offer_id).update(open_ended=F("open_ended") - gpus)


@Asking
def commit(*, offer_id: int, gpus: int, starts_at: datetime, ends_at: datetime, at: datetime) -> Steps[None]:
    """Commit GPUs in each hour of a window of whole hours, or raise NoCapacity with nothing committed.

    In the caller's transaction: one statement and a row for each day, once more where somebody was faster.
    """
    assert connection.in_atomic_block
    assert gpus > 0
    assert hour_of(starts_at) == starts_at < ends_at == hour_of(ends_at), "a window is whole hours"
    asked: Asked = COMMIT, {"offer": offer_id, "gpus": gpus, **_days(starts_at, ends_at)}
    ((fits, is_stale),) = yield asked
    if is_stale:
        ((fits, _),) = yield asked
    if not fits:
        count(at=at, offer_id=offer_id)  # It may have grown since, or was never counted.
        ((fits, _),) = yield asked
    if not fits:
        raise NoCapacity(
            gettext("%(gpus)s GPUs are not free in every hour of that window; at its fullest, %(free)s are.")
            % {"gpus": gpus, "free": free(offer_id=offer_id, starts_at=starts_at, ends_at=ends_at)}
        )


def _days(starts_at: datetime, ends_at: datetime) -> dict[str, Value]:
    """Return the days of a window, with the first of its hours in each and the first that is not."""
    begins = starts_at.replace(hour=0)
    days = [begins + number * DAY for number in range(-((begins - ends_at) // DAY))]
    firsts = [starts_at.hour] + [0] * (len(days) - 1)
    untils = [24] * (len(days) - 1) + [(ends_at - days[-1]) // HOUR]
    return {"days": days, "firsts": firsts, "untils": untils}


@transaction.atomic
def release(*, offer_id: int, gpus: int, starts_at: datetime, ends_at: datetime, at: datetime) -> None:
    """Take back a commitment in each hour of a window, of which the hours that are over do not matter."""
    lock(offer_id=offer_id, at=at)
    with connection.cursor() as cursor:
        for statement in (RELEASE, EMPTY):
            cursor.execute(statement, {"offer": offer_id, "gpus": gpus, "start": starts_at, "end": ends_at})
    peak = peak_within(offer_id=offer_id, starts_at=hour_of(at), ends_at=None)
    Capacity.objects.filter(pk=offer_id).update(peak=peak)


def peak_within(*, offer_id: int, starts_at: datetime, ends_at: datetime | None) -> int:
    """Return the most that one hour has committed, from the hour of `starts_at` until `ends_at` or for ever."""
    ((most,),) = _read(PEAK, offer_ids=[offer_id], starts_at=hour_of(starts_at), ends_at=ends_at)
    return int(most)


def committed(
    *, offer_ids: Collection[int], starts_at: datetime, ends_at: datetime | None = None
) -> dict[int, dict[datetime, int]]:
    """Return by offer how many GPUs are committed in each hour from `starts_at` on that has any. One query."""
    found: dict[int, dict[datetime, int]] = {offer_id: {} for offer_id in offer_ids}
    for offer_id, hour, gpus in _read(WITHIN, offer_ids=offer_ids, starts_at=hour_of(starts_at), ends_at=ends_at):
        found[offer_id][hour] = gpus
    return found


def _read(
    statement: str, *, offer_ids: Collection[int], starts_at: datetime, ends_at: datetime | None, **more: int
) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(statement, {"offers": list(offer_ids), "start": starts_at, "end": ends_at, **more})
        rows: list[tuple[Any, ...]] = cursor.fetchall()
    return rows


def free(*, offer_id: int, starts_at: datetime, ends_at: datetime) -> int:
    """Return how many GPUs may still be committed in every hour of a window, as last counted. Three queries."""
    return _free(gpus_of_offer(offer_id), offer_id=offer_id, starts_at=starts_at, ends_at=ends_at)


def free_now(*, offer_id: int, starts_at: datetime, ends_at: datetime, at: datetime) -> int:
    """Return the same of the GPUs that are there now. Locks nothing, so who then commits may still be refused."""
    return _free(gpus_there(offer_id, at=at), offer_id=offer_id, starts_at=starts_at, ends_at=ends_at)


def _free(gpus: int, *, offer_id: int, starts_at: datetime, ends_at: datetime) -> int:
    running = Capacity.objects.filter(pk=offer_id).values_list("open_ended", flat=True).first() or 0
    return max(0, gpus - running - peak_within(offer_id=offer_id, starts_at=starts_at, ends_at=ends_at))


def free_by_hour(*, offer_ids: Collection[int], starts_at: datetime, hours: int) -> dict[int, list[int]]:
    """Return for each of these offers how many GPUs may still be committed in each hour from a start on. Two queries.

    An offer of which nothing was ever counted has none.
    """
    left = {
        capacity.pk: [max(0, capacity.gpus - capacity.open_ended)] * hours
        for capacity in Capacity.objects.filter(pk__in=offer_ids)
    }
    for offer_id, taken in committed(offer_ids=left, starts_at=starts_at, ends_at=starts_at + hours * HOUR).items():
        of_offer = left[offer_id]
        for hour, gpus in taken.items():
            number = (hour - starts_at) // HOUR
            of_offer[number] = max(0, of_offer[number] - gpus)
    return {offer_id: left.get(offer_id, [0] * hours) for offer_id in offer_ids}


def gpus_of(*, offer_ids: Collection[int]) -> dict[int, int]:
    """Return how many GPUs each of these offers has in all, as last counted; those never counted are left out."""
    return dict(Capacity.objects.filter(pk__in=offer_ids).values_list("pk", "gpus"))


def lock(*, offer_id: int, at: datetime) -> Capacity:
    """Lock what is promised of an offer, counted for the first time where nothing was yet."""
    rows = ask(LOCK_ONE, {"offer": offer_id})
    if not rows:
        count(at=at, offer_id=offer_id)
        rows = ask(LOCK_ONE, {"offer": offer_id})
    return Capacity.from_db(None, [field.attname for field in Capacity._meta.concrete_fields], rows[0])
