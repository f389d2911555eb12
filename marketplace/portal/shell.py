"""What every page shows around its content."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from django.conf import settings
from django.http import HttpRequest
from django.utils import timezone
from django.utils.safestring import SafeString

from billing import runway
from billing.runway import Level
from marketplace import access, permissions
from marketplace.models import Membership, Organization, Role
from marketplace.portal import spending
from marketplace.portal.preferences import THEMES, theme_of, zone_of

ORGANIZATION_KEY = "organization"


def shell(request: HttpRequest) -> dict[str, Any]:
    """Return the context of the frame. It asks nothing until a page draws it, so fragments cost nothing."""
    return {"theme": theme_of(request), "themes": THEMES, "languages": settings.LANGUAGES, "frame": Frame(request)}


@dataclass(frozen=True)
class Frame:
    """Where a person is, what else they may choose, and what they spend. Two queries for a page."""

    request: HttpRequest
    drawn: dict[str, SafeString] = field(default_factory=dict)

    @cached_property
    def memberships(self) -> list[Membership]:
        """The organizations that this person may choose from."""
        if not self.request.user.is_authenticated:
            return []
        return list(access.memberships(access.person(self.request.user)).order_by("pk"))

    @cached_property
    def membership(self) -> Membership | None:
        """Where the person is now."""
        chosen = self.request.session.get(ORGANIZATION_KEY)
        ranked = sorted(self.memberships, key=lambda member: member.organization.public_id != chosen)
        return ranked[0] if ranked else None

    @property
    def organization(self) -> Organization | None:
        return self.membership.organization if self.membership else None

    @property
    def sees_audit(self) -> bool:
        return self.membership is not None and permissions.allows(Role(self.membership.role), "audit.view")

    @property
    def sees_invoices(self) -> bool:
        return self.membership is not None and permissions.allows(Role(self.membership.role), "invoice.view")

    @property
    def sees_supply(self) -> bool:
        return self.membership is not None and permissions.allows(Role(self.membership.role), "supplier.view")

    @property
    def may_rent(self) -> bool:
        return self.membership is not None and permissions.allows(Role(self.membership.role), "instance.change")

    @cached_property
    def spending(self) -> spending.Spending | None:
        """What the organization spends now and this month."""
        if self.organization is None:
            return None
        with timezone.override(zone_of(self.request)):
            return spending.of(self.organization, at=timezone.now())

    @cached_property
    def runs_low(self) -> Level | None:
        """How urgently to warn that running instances will be stopped; asks only when something is charged."""
        if self.organization is None or self.spending is None or not self.spending.per_hour_micros:
            return None
        level = runway.level(organization=self.organization, at=timezone.now())
        return None if level in {Level.ENOUGH, Level.WEEK} else level
