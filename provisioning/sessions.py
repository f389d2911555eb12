"""SSH into instances: whose keys open them, where they are reached, and who was inside.

The nodes keep the doors; here is what they are told and what they say. Whoever keeps the record of an organization
reads `unnoted` and says `note`, since this room does not know what a record is.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import structlog
from django.core.exceptions import ObjectDoesNotExist
from django.db import transaction
from django.db.models import F, Q, QuerySet

from provisioning import placement
from provisioning.models import Assignment, Instance, Node, SshSession
from provisioning.models.sessions import UNNOTED

log = structlog.get_logger("provisioning.sessions")

OPENED, CLOSED, REFUSED = "opened", "closed", "refused"


@dataclass(frozen=True)
class PublishedPort:
    """A port of a replica, and where the world reaches it."""

    port: int
    host: str
    host_port: int


@dataclass(frozen=True)
class Door:
    """How one replica is reached now. Without `ssh_port` its node has no SSH gateway."""

    replica: int
    host: str
    ssh_port: int | None
    user: str
    host_key: str
    ports: tuple[PublishedPort, ...]


def doors(instance: Instance, places: Iterable[Assignment]) -> list[Door]:
    """Return how the replicas of an instance that run are reached; `places` are those of `placement.places`."""
    running = [row for row in places if row.observed == Assignment.Observed.RUNNING]
    return [_door(instance, row) for row in running if row.instance_id == instance.pk and row.fence == instance.run]


def _door(instance: Instance, row: Assignment) -> Door:
    try:
        heartbeat = row.node.heartbeat
        access, hostname = heartbeat.access or {}, heartbeat.hostname
    except ObjectDoesNotExist:
        access, hostname = {}, row.node.name
    host = access.get("host") or hostname
    return Door(
        replica=row.replica,
        host=host,
        ssh_port=access.get("ssh_port"),
        # The id and not the name: it is nobody else's, and stays when the instance is renamed.
        user=instance.public_id if instance.replicas == 1 else f"{instance.public_id}.{row.replica}",
        host_key=access.get("host_key") or "",
        ports=tuple(
            PublishedPort(port=int(inside), host=host, host_port=outside)
            for inside, outside in sorted(row.ports.items(), key=lambda pair: int(pair[0]))
        ),
    )


def keys_of(instances: Iterable[Instance]) -> dict[int, list[str]]:
    """Return the SSH keys of these instances' projects, by project. One query."""
    found: dict[int, list[str]] = {}
    rows = Instance.objects.filter(pk__in=[instance.pk for instance in instances], project__ssh_keys__isnull=False)
    pairs = rows.order_by("project__ssh_keys__id").values_list("project_id", "project__ssh_keys__public_key")
    for project_id, key in pairs.distinct():
        found.setdefault(project_id, []).append(key)
    return found


@transaction.atomic
def keys_changed(*, project_id: int) -> None:
    """Have every node that runs something of a project hear of its keys at the next report."""
    there = Assignment.objects.filter(~Q(observed=Assignment.Observed.GONE), instance__project=project_id)
    locked = [node.pk for node in placement.lock(set(there.values_list("node_id", flat=True)))]
    Node.objects.filter(pk__in=locked).update(desired_generation=F("desired_generation") + 1)


def take(node: Node, at: datetime, body: Mapping[str, Any]) -> None:
    """Write down what a node says of a session, once however often it says so."""
    row = Assignment.objects.filter(public_id=str(body.get("assignment", "")), node=node).first()
    action, kind = body.get("action"), str(body.get("kind") or SshSession.Kind.LOGIN)
    if row is None or action not in {OPENED, CLOSED, REFUSED} or kind not in SshSession.Kind.values:
        # Nobody's instance was meant, as when somebody tries the door of a machine; or a node that makes things up.
        log.info("session of nobody", node=node.public_id, action=action, peer=body.get("peer"))
        return
    session, is_new = SshSession.objects.get_or_create(
        assignment=row,
        session=str(body.get("session", ""))[:32],
        defaults={
            "kind": kind,
            "is_refused": action == REFUSED,
            "fingerprint": str(body.get("fingerprint", ""))[:64],
            "peer": str(body.get("peer", ""))[:64],
            "message": str(body.get("message", ""))[:200],
            "opened_at": at,
            "closed_at": None if action == OPENED else at,
            "close_noted": action == REFUSED,  # Its one entry is that of the opening.
        },
    )
    if not is_new and action == CLOSED:
        ours = SshSession.objects.filter(pk=session.pk, closed_at=None)
        ours.update(closed_at=max(at, session.opened_at))


def close_left_open(*, at: datetime, limit: int) -> int:
    """Close sessions in what is gone: an agent that was killed could not say that they ended."""
    left = SshSession.objects.filter(closed_at=None, assignment__observed=Assignment.Observed.GONE)
    found = list(left.order_by("pk").values_list("pk", flat=True)[:limit])
    return SshSession.objects.filter(pk__in=found, closed_at=None, opened_at__lte=at).update(closed_at=at)


def unnoted() -> QuerySet[SshSession]:
    """Return the sessions that began or ended since they were last noted, the oldest first."""
    return SshSession.objects.filter(UNNOTED).order_by("pk")


def note(rows: Sequence[SshSession]) -> None:
    """Remember that these are on record, as they are in these objects."""
    SshSession.objects.filter(pk__in=[row.pk for row in rows]).update(open_noted=True)
    ended = [row.pk for row in rows if row.closed_at is not None]
    SshSession.objects.filter(pk__in=ended).update(close_noted=True)
