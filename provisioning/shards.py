"""What each process knows of the nodes of an offer, brought up to date by one statement before each choice.

PostgreSQL is the truth. A trigger writes into each node's `changed` the number
of the last transaction that changed what placement reads of it. A refresh reads
the rows whose number is at least the oldest transaction that was under way at
the refresh before: whatever has been committed since is among them, whoever
committed it and in whatever order, and a row costs some microseconds. Rows
that were read before they were sure (counted as taken by a claim of ours, or
written by our own open transaction) are read again by their ids. The first
refresh reads them all.
"""

import json
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic
from typing import Any

from billing.prepared import ask
from provisioning.placing.boards import INDICES_MAX
from provisioning.placing.shard import OPEN, Row, Shard

# A transaction that claims is over by then; if it was rolled back, nobody says so.
CLAIM_S = 2.0
# An upper end that nothing reaches: a range is planned for few rows, whatever its ends will be.
EVER = 2**63 - 1
# The policies and the tenant come along, so that a claim asks twice in all: this, and for the GPUs. The lock lets who
# sets a policy wait for the claims that may not know it yet (`policies.replace`).
REFRESH = """
WITH tenant AS MATERIALIZED (
    SELECT project.organization_id, (
        SELECT jsonb_agg(policy.document ORDER BY policy.id) FROM provisioning_policy policy
        WHERE policy.project_id = project.id OR policy.organization_id = project.organization_id
    ) AS policies, pg_advisory_xact_lock_shared(hashtextextended('hosts of ' || project.organization_id, 0))
    FROM marketplace_project project WHERE project.id = %(project)s::bigint
), news AS (
    SELECT * FROM provisioning_node
    WHERE offer_id = %(offer)s::bigint AND changed BETWEEN %(since)s::bigint AND %(ever)s::bigint
    UNION ALL
    SELECT * FROM provisioning_node
    WHERE id = ANY (%(unsure)s::bigint[]) AND offer_id = %(offer)s::bigint AND changed < %(since)s::bigint
)
SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint, tenant.organization_id, tenant.policies,
    coalesce(news.changed = pg_current_xact_id_if_assigned()::text::bigint, false),
    news.id, news.fabric_id, news.rack, news.free_mask, news.gpu_count,
    CASE WHEN news.state <> 'available' THEN 'state' WHEN news.reachability <> 'online' THEN 'unreachable'
        WHEN news.is_held THEN 'held' ELSE '' END,
    coalesce(news.exclusive_to_id, 0),
    news.exclusive_to_id IS NOT NULL AND EXISTS (
        SELECT FROM provisioning_assignment assignment
        JOIN provisioning_gpuhold hold ON hold.assignment_id = assignment.id AND hold.released_at IS NULL
        JOIN provisioning_instance instance ON instance.id = assignment.instance_id
        JOIN marketplace_project project ON project.id = instance.project_id
        WHERE assignment.node_id = news.id AND assignment.observed <> 'gone'
            AND project.organization_id <> news.exclusive_to_id
    ),
    news.kept_for, news.nvlink_groups
FROM (SELECT) AS always LEFT JOIN tenant ON true LEFT JOIN news ON true
"""
RESTING = """
SELECT id FROM provisioning_node WHERE offer_id = %(offer)s::bigint AND state IN ('cordoned', 'draining')
"""


@dataclass(frozen=True, slots=True)
class Tenant:
    """Whose request it is: the organization, and the documents of its policies and the project's."""

    organization_id: int
    policies: list[Mapping[str, Any]]


class LiveShard:
    """One offer's shard in this process. Use it under its lock (`current`)."""

    def __init__(self, offer_id: int) -> None:
        self.offer_id = offer_id
        self.lock = threading.Lock()
        self.shard = Shard()
        # Nodes that are to be the place of somebody who waits.
        self.kept = frozenset[int]()
        # Those of them that are kept for blocks of whole nodes.
        self.for_blocks = frozenset[int]()
        self._empty: Shard | None = None
        self._since = 0
        self._unsure: set[int] = set()
        # What other threads are claiming this moment: by thread, until when, and which GPUs of which nodes.
        self._claims: dict[int, tuple[float, dict[int, int]]] = {}

    def refresh(self, project_id: int = 0, *, trusts_claims: bool = True) -> Tenant:
        """Take in what has changed; return who asks. GPUs that another thread is claiming count as taken."""
        claimed = self._claimed_by_others() if trusts_claims else {}
        unsure = self._unsure.union(claimed)
        wanted = {"offer": self.offer_id, "project": project_id, "since": self._since, "ever": EVER}
        rows = ask(REFRESH, wanted | {"unsure": sorted(unsure)})
        news = [row for row in rows if row[4] is not None]
        self.kept = self.kept.difference(row[4] for row in news).union(row[4] for row in news if row[-2])
        of_blocks = {row[4] for row in news if row[-2] == "block"}
        self.for_blocks = self.for_blocks.difference(row[4] for row in news).union(of_blocks)
        found = sorted((_row(*row[4:]), row[3]) for row in news)
        for row, _ in found:
            self.shard.put(row._replace(mask=row.mask & ~claimed[row.id]) if row.id in claimed else row)
            if self._empty is not None:
                self._empty.put(_emptied(row))
        for node_id in unsure.difference(row.id for row, _ in found):
            self.shard.drop(node_id)
            if self._empty is not None:
                self._empty.drop(node_id)
            self.kept -= {node_id}
            self.for_blocks -= {node_id}
        self._since, self._unsure = rows[0][0], {row.id for row, is_ours in found if is_ours}.union(claimed)
        return Tenant(rows[0][1] or 0, json.loads(rows[0][2] or "[]"))

    def empty(self) -> Shard:
        """Return the same nodes as if nobody had a GPU of them; those that are not available stay out.

        Asked for once it costs a look at every node, and each refresh keeps it up to date from then on.
        """
        if self._empty is None:
            self._empty = Shard(_emptied(row) for row in self.shard.rows())
        return self._empty

    def kept_from(self, *, has_block_nodes: bool, spares: frozenset[int] | None = None) -> frozenset[int]:
        """Return the nodes that an order is not to have; one that waited for its turn `spares` some for the queue."""
        queued = self.kept - self.for_blocks if spares is None else spares
        return queued if has_block_nodes else queued | self.for_blocks

    @contextmanager
    def whole_fleet(self) -> Iterator[Shard]:
        """Yield the same with the nodes that are cordoned or draining: those come back. New and retired ones do not."""
        with self.empty().reopened(number for (number,) in ask(RESTING, {"offer": self.offer_id})):
            yield self.empty()

    def take(self, places: Sequence[tuple[int, int]], owner: int) -> None:
        """Count GPUs as taken that this thread is about to claim; the refresh after its end sees whether it did."""
        masks: dict[int, int] = {}
        for node_id, mask in places:
            self._unsure.add(node_id)
            self.shard.take(node_id, mask, owner)
            masks[node_id] = masks.get(node_id, 0) | mask
        self._claims[threading.get_ident()] = (monotonic() + CLAIM_S, masks)

    def doubt(self, node_ids: Iterable[int]) -> None:
        """Read nodes again at the next refresh, whatever their numbers say."""
        self._unsure.update(node_ids)

    def end_claim(self) -> None:
        """Note that this thread claims nothing any more: what it got is written, or rolled back."""
        self._claims.pop(threading.get_ident(), None)

    @property
    def counts_claims(self) -> bool:
        """Whether GPUs count as taken that others are only claiming yet."""
        return bool(self._claims)

    def _claimed_by_others(self) -> dict[int, int]:
        now, found = monotonic(), dict[int, int]()
        # A thread has one transaction at a time: what it claimed before has come to an end.
        self.end_claim()
        for until, masks in list(self._claims.values()):
            if until > now:
                for node_id, mask in masks.items():
                    found[node_id] = found.get(node_id, 0) | mask
        return found


def _row(*columns: Any) -> Row:
    return Row._make([*columns[:-2], tuple(json.loads(columns[-1]))])


def _emptied(row: Row) -> Row:
    """Return a node as if all were free there and it answered; `state` alone is a decision that it take nothing."""
    all_of_it = (1 << min(row.total, INDICES_MAX)) - 1
    status = row.status if row.status == "state" else OPEN
    return row._replace(mask=all_of_it, status=status, owner=0, is_shared=False)


_lives: dict[int, LiveShard] = {}
_making = threading.Lock()


def of(offer_id: int) -> LiveShard:
    """Return this process's shard of an offer."""
    live = _lives.get(offer_id)
    if live is None:
        with _making:
            live = _lives.setdefault(offer_id, LiveShard(offer_id))
    return live


@contextmanager
def current(offer_id: int) -> Iterator[LiveShard]:
    """Hold an offer's shard for a moment. It is as old as its last `refresh`."""
    live = of(offer_id)
    with live.lock:
        yield live
