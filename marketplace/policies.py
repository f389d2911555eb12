"""Policies: where a tenant's instances may run. Placement reads them itself; here they are only changed and shown."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from django.db import transaction
from django.utils.translation import gettext_lazy

from marketplace import audit, resale
from marketplace.access import Actor
from marketplace.errors import BadOrder
from marketplace.models import Organization, Project
from provisioning import policies
from provisioning.models import Policy
from provisioning.placing.policy import BadPolicy, wants_whole_hosts

PROBLEMS = {
    "object": gettext_lazy("A policy is an object with rules."),
    "unknown": gettext_lazy("There is no such rule."),
    "allow_deny": gettext_lazy("Give an object with “allow”, “deny” or both."),
    "list": gettext_lazy("Give a list of at most 250 entries."),
    "text": gettext_lazy("Each entry is a text of 1 to 100 characters."),
    "country": gettext_lazy("Each entry is a country's two letters (ISO 3166-1), such as NO."),
    "near": gettext_lazy("Give latitude, longitude and within_ms, all three."),
    "number": gettext_lazy("This number is out of its range: ±90, ±180, 0 to 1000 ms."),
    "boolean": gettext_lazy("Give true or false."),
}


def of(scope: Organization | Project) -> Policy | None:
    """Return the policy of an organization or a project; the caller came through `access`."""
    return policies.of(**_key(scope))


@transaction.atomic
def replace(
    *, actor: Actor, scope: Organization | Project, document: Mapping[str, Any], version: int | None, at: datetime
) -> Policy:
    """Make a document the whole policy of an organization or a project; what runs is not moved.

    Who shares no host from now on has blocks of whole nodes: their hours for sale in parts are withdrawn.
    Raises BadOrder with the field, or StaleVersion where the policy is not at `version` any more.
    """
    # Before the policy's own locks. Who lists or buys hours there is before this, or knows of it.
    held = resale.lock_all_of(scope)
    try:
        before, row = policies.replace(**_key(scope), document=document, version=version, at=at)
    except BadPolicy as error:
        raise BadOrder(error.field or "document", str(PROBLEMS[error.problem])) from error
    if wants_whole_hosts([row.document]):
        resale.withdraw_all(held, actor=actor, at=at)
    organization = scope if isinstance(scope, Organization) else scope.organization
    audit.record(
        actor=actor, organization=organization, verb="policy.replace", subject_id=scope.public_id, before=before,
        after=row.document,
    )  # fmt: skip
    return row


def _key(scope: Organization | Project) -> dict[str, int]:
    return {"organization_id" if isinstance(scope, Organization) else "project_id": scope.pk}
