"""The first page after signing in, and the help page."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db.models import Count, F, Sum
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render

from billing import accounts
from marketplace import access, costs
from marketplace.errors import NotFound
from marketplace.models import Organization
from marketplace.portal import invitations, spending
from marketplace.portal.doors import Visit, page
from provisioning.models import AT_REST, CHARGED_PHASES, STARTING, Phase

SHOWN_INSTANCES, SHOWN_EVENTS = 8, 8
# What is between them stands on the instance's own page.
TOLD = {Phase.QUEUED, Phase.RUNNING, Phase.NOTIFIED} | AT_REST


@dataclass(frozen=True)
class Event:
    """One move of one of the organization's instances."""

    at: datetime
    instance_id: str
    instance_name: str
    phase: str
    reason: str


@page()
def home(visit: Visit) -> HttpResponse:
    """Show what runs, what it costs, how long the credit lasts and what to do next."""
    try:
        organization = visit.organization(verb="instance.view")
    except NotFound:
        # A person without any organization: invited and not yet in, or taken out of their last one.
        if waiting := invitations.waiting(visit.request):
            return redirect("invitation", waiting)
        return visit.page("homeless.html", {})
    return visit.live_page("home.html", "live", _context(visit, organization))


def _context(visit: Visit, organization: Organization) -> dict[str, Any]:
    of_organization = access.instances(visit.actor).filter(project__organization=organization)
    alive = of_organization.exclude(phase__in=[Phase.TERMINATED, Phase.STOPPED]).order_by("-pk")
    shown = list(alive[:SHOWN_INSTANCES])
    running = of_organization.filter(phase__in=CHARGED_PHASES).aggregate(
        instances=Count("pk"), gpus=Sum(F("replicas") * F("gpus_per_replica"), default=0)
    )
    cost = costs.of(shown, at=visit.at)
    recent = of_organization.filter(events__new_phase__in=TOLD).order_by("-events__pk")
    has_launched = bool(shown) or of_organization.exists()
    wallet = accounts.wallet(organization=organization)
    has_token = access.tokens(visit.actor, organization).exists()
    return {
        "organization": organization,
        "rows": [(instance, cost[instance.pk]) for instance in shown],
        "running": running,
        "starting": of_organization.filter(phase__in=STARTING).count(),
        "spending": spending.of(organization, at=visit.at),
        "wallet": wallet,
        "runway": access.runway_of(organization),
        "events": [
            Event(*row)
            for row in recent.values_list("events__at", "public_id", "name", "events__new_phase", "events__reason")[
                :SHOWN_EVENTS
            ]
        ],
        "has_credit": wallet.available_micros > 0,
        "has_token": has_token,
        "has_launched": has_launched,
        "is_new": not (has_token and has_launched),
        "may_rent": access.may(visit.actor, organization, "instance.change"),
    }


@page()
def spending_chip(visit: Visit) -> HttpResponse:
    """Return the chip in the frame that says what is spent now and this month."""
    return visit.page("frame/chip.html", {})


def help_page(request: HttpRequest) -> HttpResponse:
    """Explain in one page how renting, paying and the command line work; open to everybody."""
    return render(request, "help.html", {"charged": CHARGED_PHASES, "phases": list(Phase)})
