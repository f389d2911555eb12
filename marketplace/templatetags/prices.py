"""How prices with tiers, and commitments, are written on pages."""

from collections.abc import Sequence

from django import template
from django.utils.safestring import SafeString
from django.utils.translation import gettext_lazy as _

from billing.models import Commitment, PriceListItem, PriceVersion
from marketplace.templatetags.portal import badge

register = template.Library()

PHASES = {
    "draft": (_("draft"), "quiet", "pencil"),
    "simulated": (_("simulated"), "moving", "clock"),
    "approved": (_("approved"), "good", "check"),
    "withdrawn": (_("withdrawn"), "quiet", "minus"),
    "scheduled": (_("scheduled"), "moving", "clock"),
    "in_force": (_("in force"), "good", "check"),
    "superseded": (_("over"), "quiet", "minus"),
}


@register.filter
def tiers(row: PriceVersion | PriceListItem) -> list[tuple[int, int | None, int]]:
    """Return the tiers of a price as (from hours, up to, micros), the last up to None; none where it is one price."""
    ends: Sequence[int | None] = [hours for hours, _micros in row.tiers[1:]] + [None]
    return [(begin, end, micros) for (begin, micros), end in zip(row.tiers, ends, strict=False)]


@register.filter
def has_terms(row: PriceVersion) -> bool:
    """Return whether a price says more than what an hour costs."""
    return bool(row.tiers or row.minimum_micros)


@register.simple_tag
def list_phase(phase: str) -> SafeString:
    """Write where a price list stands."""
    text, tone, name = PHASES[str(phase)]
    return badge(str(text), tone, name)


@register.filter
def drawn_percent(commitment: Commitment) -> int:
    """Return how much of a commitment is used, in whole percent."""
    return commitment.drawn_micros * 100 // commitment.committed_micros
