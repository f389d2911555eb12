"""Policies of tenants: hard filters that placement itself reads. Setting one moves nothing that runs already."""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any

from django.db import connection, transaction
from django.db.models import Exists, OuterRef, Q
from django.utils.translation import gettext as _

from provisioning import calendar, quotas
from provisioning.errors import StaleVersion
from provisioning.models import Policy
from provisioning.placing.policy import Facts, broken_by, checked, wants_whole_hosts

FACTS = """
SELECT offer.id, site.country, site.jurisdiction, site.latitude, site.longitude, site.power_source, site.certifications,
    supplier.public_id
FROM marketplace_offer offer JOIN provisioning_site site ON site.id = offer.site_id
JOIN marketplace_organization supplier ON supplier.id = offer.supplier_id WHERE offer.id = ANY (%s)
"""

DOCUMENTS = """
SELECT project_id, jsonb_agg(document) FROM (
    SELECT project_id, document FROM provisioning_policy WHERE project_id = ANY (%(projects)s::bigint[])
    UNION ALL
    SELECT project.id, policy.document FROM marketplace_project project
    JOIN provisioning_policy policy ON policy.organization_id = project.organization_id
    WHERE project.id = ANY (%(projects)s::bigint[])
) applies GROUP BY project_id
"""

# Nodes on which a tenant that shares with nobody has something already: nobody else joins it there from now on.
CLOSE = """
UPDATE provisioning_node SET exclusive_to_id = mine.organization_id
FROM (
    SELECT node.id, min(project.organization_id) AS organization_id
    FROM provisioning_policy policy
    JOIN marketplace_project project
        ON project.id = policy.project_id OR project.organization_id = policy.organization_id
    JOIN provisioning_instance instance ON instance.project_id = project.id
    JOIN provisioning_assignment assignment ON assignment.instance_id = instance.id AND assignment.observed <> 'gone'
    JOIN provisioning_gpuhold hold ON hold.assignment_id = assignment.id AND hold.released_at IS NULL
    JOIN provisioning_node node ON node.id = assignment.node_id AND node.exclusive_to_id IS NULL
    WHERE policy.document @> '{"no_shared_host": true}'
    GROUP BY node.id ORDER BY node.id LIMIT %(limit)s
) mine WHERE provisioning_node.id = mine.id AND provisioning_node.exclusive_to_id IS NULL
RETURNING provisioning_node.offer_id
"""
# Of what has a project: whether a policy lets nobody share its hosts.
ALONE = Exists(
    Policy.objects.filter(
        Q(project=OuterRef("project")) | Q(organization=OuterRef("project__organization")),
        document__contains={"no_shared_host": True},
    )
)
CLOSED_AT_ONCE = 1000
# Claims hold it shared from their look at the policies to their end (`shards.REFRESH`).
LOCK = """
SELECT pg_advisory_xact_lock(hashtextextended('hosts of ' || coalesce(
    %(organization)s::bigint, (SELECT organization_id FROM marketplace_project WHERE id = %(project)s::bigint)
), 0))
"""


def of(*, organization_id: int | None = None, project_id: int | None = None) -> Policy | None:
    """Return the policy of an organization or of a project."""
    if project_id is not None:
        return Policy.objects.filter(project_id=project_id).first()
    return Policy.objects.filter(organization=organization_id, organization__isnull=False).first()


@transaction.atomic
def replace(
    *,
    organization_id: int | None = None,
    project_id: int | None = None,
    document: Mapping[str, Any],
    version: int | None,
    at: datetime,
) -> tuple[dict[str, Any], Policy]:
    """Make a document the whole policy of an organization or a project; return the one before, and the new row.

    With a `version`, only where the policy still has it (0: there is none yet), else StaleVersion. Raises BadPolicy.
    """
    wanted = checked(document)
    row, _new = Policy.objects.get_or_create(
        organization_id=organization_id, project_id=project_id, defaults={"version": 0, "updated_at": at}
    )
    row = Policy.objects.select_for_update().get(pk=row.pk)
    # Whoever orders hours locks these before they look for policies, and looks again where they were changed meanwhile.
    quotas.touch(organization_id=organization_id, project_id=project_id)
    if version is not None and version != row.version:
        raise StaleVersion(_("The policy was changed meanwhile; read it again, then repeat your change."))
    before = row.document
    row.document, row.version, row.updated_at = wanted, row.version + 1, at
    row.save(update_fields=["document", "version", "updated_at"])
    if wanted.get("no_shared_host"):
        close_hosts(at=at)
        later = partial(_close_after_claims, organization_id=organization_id, project_id=project_id, at=at)
        transaction.on_commit(later)
    return before, row


@transaction.atomic
def _close_after_claims(*, organization_id: int | None, project_id: int | None, at: datetime) -> None:
    """Close also the hosts of claims that were under way and may not have known of the policy; waits for them."""
    with connection.cursor() as cursor:
        cursor.execute(LOCK, {"organization": organization_id, "project": project_id})
    close_hosts(at=at)


@transaction.atomic
def close_hosts(*, at: datetime, limit: int = CLOSED_AT_ONCE) -> int:
    """Keep others off the nodes of tenants that share with nobody; return how many nodes were closed.

    A claim closes its nodes itself. This is for what was there before the policy. What is closed is counted at once.
    """
    with connection.cursor() as cursor:
        cursor.execute(CLOSE, {"limit": limit})
        offers = [offer_id for (offer_id,) in cursor.fetchall()]
    for offer_id in sorted(set(offers)):
        calendar.count(at=at, offer_id=offer_id)
    return len(offers)


def exclusions(pairs: Iterable[tuple[int, int]]) -> dict[tuple[int, int], list[str]]:
    """Return the rules that keep projects out of offers, for each pair of a project and an offer that any does.

    Two queries for any number of pairs; one where no policy applies.
    """
    wanted = set(pairs)
    documents = _documents({project for project, _offer in wanted})
    applies = {pair for pair in wanted if pair[0] in documents}
    facts = _facts({offer for _project, offer in applies})
    broken = {pair: broken_by(documents[pair[0]], facts[pair[1]]) for pair in applies}
    return {pair: rules for pair, rules in broken.items() if rules}


def may_exclude(*, project_id: int, offer_id: int) -> bool:
    """Return whether a policy keeps a project out of an offer, or lets it have whole nodes alone there.

    Two queries; one where no policy applies.
    """
    documents = _documents([project_id]).get(project_id, [])
    return wants_whole_hosts(documents) or bool(documents and broken_by(documents, facts_of(offer_id)))


def is_alone(project_id: int) -> bool:
    """Return whether a policy lets nobody share a project's hosts. One query."""
    return bool(alone([project_id]))


def alone(project_ids: Collection[int]) -> set[int]:
    """Return those of these projects whose hosts a policy lets nobody share. One query."""
    return {project_id for project_id, found in _documents(project_ids).items() if wants_whole_hosts(found)}


def _documents(project_ids: Collection[int]) -> dict[int, list[dict[str, Any]]]:
    if not project_ids:
        return {}
    with connection.cursor() as cursor:
        cursor.execute(DOCUMENTS, {"projects": list(project_ids)})
        return {project_id: json.loads(found) for project_id, found in cursor.fetchall()}


def facts_of(offer_id: int) -> Facts:
    """Return what policies read of an offer and its site. One query."""
    return _facts([offer_id])[offer_id]


def _facts(offer_ids: Collection[int]) -> dict[int, Facts]:
    if not offer_ids:
        return {}
    with connection.cursor() as cursor:
        cursor.execute(FACTS, [list(offer_ids)])
        return {row[0]: _read(row[1:]) for row in cursor.fetchall()}


def _read(row: Sequence[Any]) -> Facts:
    country, jurisdiction, latitude, longitude, power_source, certifications, supplier = row
    return Facts(
        country=country,
        jurisdiction=jurisdiction,
        latitude=float(latitude),
        longitude=float(longitude),
        power_source=power_source,
        certifications=frozenset(json.loads(certifications)),
        supplier=supplier,
    )
