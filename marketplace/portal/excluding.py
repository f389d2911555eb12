"""What policies keep out of the launch form: which offers, and why."""

from collections.abc import Iterable

from django.utils.translation import gettext as _

from marketplace.models import Project
from marketplace.offers import Listing
from provisioning import decisions, policies


def excluded(project: Project, listings: Iterable[Listing]) -> dict[int, str]:
    """Return by primary key the offers that policies keep a project out of, each with the reason. Two queries."""
    found = policies.exclusions((project.pk, listing.offer.pk) for listing in listings)
    why = _("A policy keeps it out: the offer is %(rules)s.")
    return {offer_id: why % {"rules": decisions.said(rules)} for (_project, offer_id), rules in found.items()}
