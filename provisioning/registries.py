"""How a node logs in to pull an image: told to the one that holds the live assignment, for that registry alone."""

import hmac
from dataclasses import dataclass, field
from datetime import datetime

import structlog
from django.db import transaction
from django.db.models import F

from provisioning import images, nodes
from provisioning.errors import NodeUnknown, NotAssigned
from provisioning.models import Assignment, Node, RegistryCredential
from provisioning.secrets import Unreadable, unseal

log = structlog.get_logger("provisioning.registries")

# Before these an image may still be pulled; afterwards there is nothing to pull for.
PULLING = [Assignment.Observed.PENDING, Assignment.Observed.PREPARING, Assignment.Observed.PREPARED]


@dataclass(frozen=True)
class Login:
    """What opens a registry. The password is in no representation, so that no log shows it by accident."""

    host: str
    username: str
    password: str = field(repr=False)


@transaction.atomic
def login_for(*, node: str, key: str, assignment: str, fence: int, at: datetime) -> Login | None:
    """Return the login for the registry of an assignment's image, None where the project has none.

    Raises NodeUnknown for a node or key that is not known, and NotAssigned
    unless the node is about to pull for exactly this assignment and fence.
    """
    return _handed_out(in_preparation(node=node, key=key, assignment=assignment, fence=fence), at)


def in_preparation(*, node: str, key: str, assignment: str, fence: int) -> Assignment:
    """Return the assignment of an image that a node is about to prepare, of this fence and for this key alone.

    Raises NodeUnknown, NotAssigned.
    """
    asked_by = Node.objects.filter(public_id=node).first()
    if asked_by is None or not asked_by.key_hash or not hmac.compare_digest(nodes.digest(key), asked_by.key_hash):
        raise NodeUnknown("This key opens nothing here.")
    live = Assignment.objects.filter(node=asked_by, public_id=assignment, fence=fence, instance__run=F("fence"))
    wanted = live.filter(observed__in=PULLING).exclude(desired=Assignment.Desired.GONE)
    found = wanted.select_related("instance").first()
    if found is None or not found.instance.image:
        raise NotAssigned("This node has no image to pull for such an assignment with this fence.")
    return found


def _handed_out(assignment: Assignment, at: datetime) -> Login | None:
    instance = assignment.instance
    host = images.parse(instance.image).host
    row = RegistryCredential.objects.filter(project=instance.project_id, host=host).first()
    if row is None:
        return None
    told = log.bind(
        credential=row.public_id, host=host, instance=instance.public_id, assignment=assignment.public_id,
        node=assignment.node_id,
    )  # fmt: skip
    try:
        password = unseal(row.sealed_password)
    except Unreadable:
        # The pull will be refused by the registry, which the customer sees; only we can know why.
        told.error("registry credential cannot be read")
        return None
    RegistryCredential.objects.filter(pk=row.pk).update(handed_out_at=at)
    told.info("registry credential handed out")
    return Login(host=host, username=row.username, password=password)
