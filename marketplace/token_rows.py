"""The rows that every request with a token waits for. A part of `access` in its own file."""

from django.db.models import QuerySet

from billing.prepared import Prepared
from marketplace.models import ApiToken, Project


def live_tokens() -> QuerySet[ApiToken]:
    """Return the tokens that were not revoked, of people who are still here, with what tells what they may."""
    found = ApiToken.objects.select_related("membership__user", "membership__organization")
    return found.filter(revoked_at=None, membership__user__is_active=True)


# By the hash of its secret.
TOKEN = Prepared(lambda hashed: live_tokens().filter(secret_hash=hashed), str)
# What a token of an organization may name: it brought its membership along, so there is no subquery and no join.
PROJECTS = Prepared(lambda organization: Project.objects.filter(organization=organization).order_by("pk")[:2], int)
PROJECT = Prepared(
    lambda organization, project: Project.objects.filter(organization=organization, public_id=project), int, str
)
