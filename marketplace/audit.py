"""The record of who changed what, written in the transaction of the change."""

from typing import Any

from billing.prepared import Asking, Steps, ask, insertion, values_of
from marketplace.access import Actor
from marketplace.models import AuditEntry, Organization

SYSTEM = "gpumarket"
WRITE = insertion(AuditEntry)


@Asking
def record(
    *,
    actor: Actor,
    organization: Organization | None,
    verb: str,
    subject_id: str,
    before: dict[str, Any] | None = None,
    after: dict[str, Any] | None = None,
) -> Steps[None]:
    """Write one entry. `before` and `after` never hold a secret."""
    entry = AuditEntry(
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
    yield WRITE, values_of(entry)


def is_recorded(verb: str, subject_id: str) -> bool:
    """Return whether an entry says this already; for what is done once per key.

    Who repeats the key waits for the first to commit, and then finds its entry.
    """
    return AuditEntry.objects.filter(verb=verb, subject_id=subject_id).exists()


def record_of(
    thing: Any,
    verb: str,
    *,
    actor: Actor,
    before: dict[str, Any] | None = None,
    after: dict[str, Any] | None = None,
) -> None:
    """Write one entry of what was done to something of a project."""
    record(
        actor=actor,
        organization=thing.project.organization,
        verb=verb,
        subject_id=thing.public_id,
        before=before,
        after=after,
    )


def record_own(
    *, organization: Organization, verb: str, subject_id: str, before: dict[str, Any], after: dict[str, Any]
) -> None:
    """Write one entry of what the system did by itself."""
    entry = AuditEntry(
        organization=organization, actor_name=SYSTEM, verb=verb, subject_id=subject_id, before=before, after=after
    )
    ask(WRITE, values_of(entry))
