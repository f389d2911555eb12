"""The assignment leases as the control plane counts them: when what a silent node ran has surely ended.

A node ends each workload by itself when it has not heard from us for the
workload's lease (`agent/lease.py`). We wait longer: for the seconds that such
an end may take there, and for clocks that drift apart.
"""

from datetime import datetime, timedelta
from functools import reduce
from operator import or_

from django.conf import settings
from django.db.models import Q

# What the node may need after the lease: an agent that is late, a guard that looks seldom, TERM and then KILL.
GRACE = timedelta(seconds=30)
DRIFT = timedelta(seconds=10)


def lease(kind: str) -> timedelta:
    """Return how long an instance with this lease may run on where its node does not hear us."""
    return timedelta(seconds=settings.ASSIGNMENT_LEASE_S[kind])


def over_after(kind: str) -> timedelta:
    """Return after how long a silence nothing of such an instance runs on its node any more."""
    return lease(kind) + GRACE + DRIFT


def lost_after() -> timedelta:
    """Return after how long a silence nothing of ours runs on a node any more."""
    return max(map(over_after, settings.ASSIGNMENT_LEASE_S))


def over(at: datetime) -> Q:
    """Return which assignments have ended by themselves, since their nodes heard nothing from us for so long.

    None of a Slurm cluster is among them: nothing there ends a job because we are silent.
    """
    return ~Q(node__driver="slurm") & reduce(
        or_,
        (
            Q(instance__lease=kind, node__heartbeat__last_seen__lt=at - over_after(kind))
            for kind in settings.ASSIGNMENT_LEASE_S
        ),
    )
