"""The bids that stand for an auction, as one query, and proof that an auction gave what was published."""

import zlib
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

from django.db import connection
from django.utils.translation import gettext

from marketplace import auction
from marketplace.errors import MarketError
from marketplace.models import Allocation, Auction
from provisioning import policies

# For so long an auction can be held again; then its bids are nobody's business any more.
KEPT = timedelta(days=90)

# Who waits needs funds that are still held, or somebody else who pays, and a project where things may start; who runs
# is charged and has a runway.
STANDING = """
SELECT bid.public_id, instance.replicas * instance.gpus_per_replica, bid.price_micros,
    instance.phase <> 'queued' AND told.id IS NULL, (extract(epoch FROM bid.placed_at) * 1000000)::bigint,
    bid.id, instance.id, instance.admitted_at IS NOT NULL, told.id,
    instance.phase <> 'queued', organization.public_id, bid.project_id
FROM marketplace_bid bid JOIN provisioning_instance instance ON instance.id = bid.instance_id
JOIN marketplace_project project ON project.id = bid.project_id
JOIN marketplace_organization organization ON organization.id = project.organization_id
LEFT JOIN provisioning_interruption told
    ON told.instance_id = instance.id AND told.state IN ('planned', 'notified')
WHERE bid.offer_id = %(offer)s AND instance.desired = 'running'
    AND instance.phase IN ('queued', 'placing', 'provisioning', 'verifying', 'running', 'notified')
    AND (told.id IS NULL OR told.reason IN ('outbid', 'capacity'))
    AND (instance.phase <> 'queued' OR bid.left_out_at IS NULL)
    AND (instance.phase <> 'queued' OR project.suspended_at IS NULL AND organization.suspended_at IS NULL)
    AND (instance.phase <> 'queued' OR instance.paid_by <> '' OR EXISTS (
        SELECT FROM billing_hold WHERE resource_id = instance.public_id AND state = 'pending' AND expires_at > %(at)s
    ))
"""


class Entry(NamedTuple):
    """A bid that stands, and whose it is. `told_id` is the interruption that was planned for it or announced."""

    bid: auction.Bid
    bid_id: int
    instance_id: int
    is_admitted: bool
    told_id: int | None
    holds_gpus: bool


def entries(*, offer_id: int, at: datetime) -> list[Entry]:
    """Return every bid that takes part in an auction of this offer now. Three queries at most.

    What waits and may not run there by a policy of its own, or won before and found no place (`spot_places`), takes
    no part and is not in the book; neither moves what has GPUs.
    """
    with connection.cursor() as cursor:
        cursor.execute(STANDING, {"offer": offer_id, "at": at})
        rows = cursor.fetchall()
    excluded = policies.exclusions((row[-1], offer_id) for row in rows)
    return [
        Entry(auction.Bid(a, b, c, d, e, owner), f, g, h, i, j)
        for a, b, c, d, e, f, g, h, i, j, owner, project_id in rows
        if j or (project_id, offer_id) not in excluded
    ]


class BookDeleted(MarketError):
    """The bids of the auction were deleted, so it cannot be held again; what it gave and published is kept."""


def book_of(held: Auction) -> bytes:
    """Return the book of an auction as it was sealed, or raise BookDeleted."""
    if held.book_deleted_at is not None:
        raise BookDeleted(
            gettext("The bids of this auction were deleted on %(day)s; what it gave and published is kept.")
            % {"day": f"{held.book_deleted_at:%Y-%m-%d}"}
        )
    return zlib.decompress(bytes(held.book))


@dataclass(frozen=True)
class Check:
    """Whether a replay gives what was published: the book's hash, every number, and who won."""

    hash_is_right: bool
    numbers_are_right: bool
    winners_are_right: bool
    replayed: str

    @property
    def is_right(self) -> bool:
        return self.hash_is_right and self.numbers_are_right and self.winners_are_right


def check(held: Auction) -> Check:
    """Hold an auction again from its book and compare everything with what was published and given, or BookDeleted."""
    book = book_of(held)
    outcome = auction.replay(book)
    given = Allocation.objects.filter(auction=held).values_list("bid__public_id", flat=True)
    numbers = (outcome.price_micros, outcome.charged_micros) == (held.price_micros, held.charged_micros)
    return Check(
        hash_is_right=auction.digest(book) == held.book_sha256,
        numbers_are_right=numbers and outcome.published() == held.published.encode(),
        winners_are_right=set(given) == set(outcome.winners),
        replayed=outcome.published().decode(),
    )


def forget(*, at: datetime, limit: int) -> int:
    """Delete the books that were kept for long enough, the oldest first; return how many.

    Prices, counts, demand, hash and winners stay: they say what the auction gave, not what anybody was ready to pay.
    """
    old = Auction.objects.filter(book_deleted_at=None, held_at__lt=at - KEPT).order_by("held_at")
    oldest = list(old.values_list("pk", flat=True)[:limit])
    return Auction.objects.filter(pk__in=oldest, book_deleted_at=None).update(book=b"", book_deleted_at=at)
