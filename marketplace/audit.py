"""The record of who changed what, written in the transaction of the change."""

from typing import Any

from marketplace.access import Actor
from marketplace.models import AuditEntry, Organization


def record(
    *,
    actor: Actor,
    organization: Organization | None,
    verb: str,
    subject_id: str,
    before: dict[str, Any] | None = None,
    after: dict[str, Any] | None = None,
) -> None:
    """Write one entry. `before` and `after` never hold a secret."""
    AuditEntry.objects.create(
        organization=organization,
        actor=actor.user,
        actor_name=actor.name,
        token_id_used=actor.token.public_id if actor.token else "",
        verb=verb,
        subject_id=subject_id,
        before=before,
        after=after,
        request_id=actor.request_id,
    )
