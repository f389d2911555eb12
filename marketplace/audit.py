"""The record of who changed what, written in the transaction of the change."""

import json
from typing import Any

from django.utils import timezone

from billing.prepared import Value, ask
from billing.public_ids import new_public_id
from marketplace.access import Actor
from marketplace.models import Organization

SYSTEM = "gpumarket"
WRITE = """
INSERT INTO marketplace_auditentry (public_id, organization_id, actor_id, actor_name, token_id_used, verb, subject_id,
    before, after, request_id, at)
VALUES (%(public_id)s, %(organization)s, %(actor)s, %(actor_name)s, %(token)s, %(verb)s, %(subject)s, %(before)s,
    %(after)s, %(request)s, %(at)s)
"""


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
    _write(
        organization, verb, subject_id, before, after,
        actor=actor.user.pk, actor_name=actor.name, request=actor.request_id,
        token=actor.token.public_id if actor.token else "",
    )  # fmt: skip


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
    _write(organization, verb, subject_id, before, after, actor=None, actor_name=SYSTEM, request="", token="")


def _write(
    organization: Organization | None,
    verb: str,
    subject_id: str,
    before: dict[str, Any] | None,
    after: dict[str, Any] | None,
    **who: str | int | None,
) -> None:
    entry: dict[str, Value] = {
        "public_id": new_public_id("aud"),
        "organization": organization.pk if organization else None,
        "verb": verb,
        "subject": subject_id,
        "before": None if before is None else json.dumps(before),
        "after": None if after is None else json.dumps(after),
        "at": timezone.now(),
    }
    ask(WRITE, {**entry, **who})
