"""Volumes: the list, one of them, making one with what it will cost, and what can be done with it."""

from collections.abc import Callable
from typing import Any

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect
from django.utils.translation import gettext as _

from marketplace import access, offers, volumes
from marketplace.errors import BadOrder, Conflict
from marketplace.models import Organization
from marketplace.portal import errors
from marketplace.portal.doors import REFUSALS, Visit, page, whole_number
from provisioning import volumes as kept
from provisioning.models import AT_REST, Phase, Volume

PAGE = 50
FIELDS = ("site", "offer", "name", "size_gib", "source", "project")
SIZE_GIB_DEFAULT = "100"
SNAPSHOTS_MOST = 20


@page()
def listed(visit: Visit) -> HttpResponse:
    """Show the organization's volumes, newest first, with what each costs while it exists."""
    organization = visit.organization(verb="volume.view")
    found = access.volumes(visit.actor).filter(project__organization=organization).exclude(state=Volume.State.DELETED)
    before = visit.query("before")
    if before:
        found = found.filter(pk__lt=access.volumes(visit.actor).filter(public_id=before).values("pk"))
    rows = list(found.order_by("-pk")[: PAGE + 1])
    more, rows = len(rows) > PAGE, rows[:PAGE]
    context = {
        "rows": [(volume, _rate(volume)) for volume in rows],
        "older": rows[-1].public_id if more else "",
        "organization": organization,
        "may_change": access.may(visit.actor, organization, "volume.change"),
    }
    return visit.live_page("volumes/list.html", "rows", context)


@page()
def shown(visit: Visit, volume_id: str) -> HttpResponse:
    """Show one volume: what it holds, what it costs, who uses it, and what can be done with it."""
    volume = access.volume_for(visit.actor, volume_id, verb="volume.view")
    copies = access.volumes(visit.actor).filter(source=volume).exclude(state=Volume.State.DELETED)
    context = {
        "volume": volume,
        "rate": _rate(volume),
        "billing": volumes.billing_of(volume),
        "attachment": kept.live_attachment(volume),
        "copies": list(copies.order_by("-pk")[:SNAPSHOTS_MOST]),
        "actions": kept.actions(volume),
        "deleted_when_unpaid": volumes.deleted_when_unpaid(volume),
        "may_change": access.may(visit.actor, volume.project.organization, "volume.change"),
        "warn_percent": kept.WARN_PERCENT,
    }
    return visit.live_page("volumes/show.html", "live", context)


def _rate(volume: Volume) -> volumes.Rate:
    return volumes.rate(price=volume.price_version, size_gib=volume.size_gib)


@page("GET", "HEAD", "POST")
def new(visit: Visit) -> HttpResponse:
    """Show the form with its estimate, or make the volume and go to it. Its name makes it safe to send twice."""
    if visit.request.method != "POST":
        typed = {name: visit.query(name) for name in FIELDS}
        return _form(visit, {**typed, "size_gib": typed["size_gib"] or SIZE_GIB_DEFAULT})
    typed = _typed(visit)
    project = access.project_for(visit.actor, typed["project"] or None, verb="volume.change")
    try:
        order = volumes.Order(
            site=offers.site_for(typed["site"]),
            name=typed["name"],
            size_gib=whole_number(typed["size_gib"]),
            source=access.volume_of(project, typed["source"]) if typed["source"] else None,
            offer=offers.offer_for(typed["offer"]) if typed["offer"] else None,
        )
        volume = volumes.create(actor=visit.actor, project=project, order=order, at=visit.at)
    except (BadOrder, Conflict) as error:
        field = error.field if isinstance(error, BadOrder) else "name"
        return _form(visit, typed, errors={field: str(error)}, status=422)
    except REFUSALS as error:
        refusal = errors.refusal_of(error, reference=visit.actor.request_id)
        return _form(visit, typed, refusal=refusal, status=refusal.status)
    messages.success(visit.request, _("%(name)s is being made. Billing starts when it is ready.") % {"name": volume})
    return redirect("volume", volume.public_id)


@page("POST")
def estimate(visit: Visit) -> HttpResponse:
    """Return the cost box for what is typed so far."""
    return visit.page("volumes/new.html#cost", _context(visit, _typed(visit)))


def _typed(visit: Visit) -> dict[str, str]:
    return {name: visit.text(name) for name in FIELDS}


def _form(visit: Visit, typed: dict[str, str], *, status: int = 200, **more: Any) -> HttpResponse:
    return visit.page("volumes/new.html", {**_context(visit, typed), **more}, status=status)


def _context(visit: Visit, typed: dict[str, str]) -> dict[str, Any]:
    organization = visit.organization(verb="volume.change")
    sites = list(offers.sites().order_by("name"))
    prices = volumes.prices_of(sites, currency=organization.currency, at=visit.at)
    sold = [site for site in sites if site.pk in prices]
    site = next((one for one in sold if one.slug == typed["site"]), sold[0] if sold else None)
    size_gib = whole_number(typed["size_gib"])
    is_size = 1 <= size_gib <= kept.SIZE_GIB_MAX
    return {
        "typed": typed,
        "errors": {},
        "sites": [(one, prices[one.pk]) for one in sold],
        "site": site,
        "offers": [offer for offer in offers.listed() if site is not None and offer.site_id == site.pk],
        "projects": visit.projects(organization),
        "size_gib": size_gib,
        "size_gib_max": kept.SIZE_GIB_MAX,
        "sources": _sources(visit, organization),
        "estimate": volumes.rate(price=prices[site.pk], size_gib=size_gib) if site is not None and is_size else None,
    }


def _sources(visit: Visit, organization: Organization) -> list[Volume]:
    found = access.volumes(visit.actor).filter(project__organization=organization)
    return list(found.filter(state__in=[Volume.State.AVAILABLE, Volume.State.ATTACHED]).order_by("-pk")[:PAGE])


# What can be done. Each page asks first, and says what it costs and what becomes of the data.


@page("GET", "HEAD", "POST")
def delete(visit: Visit, volume_id: str) -> HttpResponse:
    """Ask before deleting, and say until when it can be taken back."""

    def act(volume: Volume) -> str:
        volumes.delete(actor=visit.actor, volume=volume, at=visit.at)
        return _("%(name)s is deleted and costs nothing any more. You can restore it for 3 days.") % {"name": volume}

    return _asked(visit, volume_id, "delete", act)


@page("GET", "HEAD", "POST")
def restore(visit: Visit, volume_id: str) -> HttpResponse:
    """Ask before taking a deletion back, since the time in between is charged."""

    def act(volume: Volume) -> str:
        volumes.restore(actor=visit.actor, volume=volume, at=visit.at)
        return _("%(name)s is back with everything in it.") % {"name": volume}

    return _asked(visit, volume_id, "restore", act)


@page("GET", "HEAD", "POST")
def detach(visit: Visit, volume_id: str) -> HttpResponse:
    """Ask before taking a volume from its instance."""

    def act(volume: Volume) -> str:
        volumes.detach(actor=visit.actor, volume=volume, at=visit.at)
        return _("%(name)s is detached. It still exists and is charged.") % {"name": volume}

    return _asked(visit, volume_id, "detach", act)


@page("GET", "HEAD", "POST")
def attach(visit: Visit, volume_id: str) -> HttpResponse:
    """Attach a volume to an instance that is stopped."""

    def act(volume: Volume) -> str:
        instance = access.instance_for(visit.actor, visit.text("instance"), verb="instance.change")
        use = kept.Use(volume, visit.text("path"), visit.text("read_only") == "true")
        volumes.attach(actor=visit.actor, use=use, instance=instance, at=visit.at)
        return _("%(name)s is attached; the next start of %(instance)s finds it.") % {
            "name": volume, "instance": instance
        }  # fmt: skip

    volume = access.volume_for(visit.actor, volume_id, verb="volume.change")
    resting = access.instances(visit.actor).filter(
        project=volume.project_id, offer__site=volume.site_id, phase__in=AT_REST - {Phase.TERMINATED}
    )
    return _asked(visit, volume_id, "attach", act, instances=list(resting.order_by("-pk")[:PAGE]))


@page("GET", "HEAD", "POST")
def snapshot(visit: Visit, volume_id: str) -> HttpResponse:
    """Ask for the name of a copy, and say what it costs."""

    def act(volume: Volume) -> str:
        copy = volumes.snapshot(actor=visit.actor, volume=volume, name=visit.text("name"), at=visit.at)
        return _("The snapshot %(name)s is being made.") % {"name": copy}

    return _asked(visit, volume_id, "snapshot", act)


@page("GET", "HEAD", "POST")
def resize(visit: Visit, volume_id: str) -> HttpResponse:
    """Ask for the new size, at today's price."""

    def act(volume: Volume) -> str:
        size_gib = whole_number(visit.text("size_gib"))
        volumes.resize(actor=visit.actor, volume=volume, size_gib=size_gib, at=visit.at)
        return _("%(name)s has %(size)s GiB now.") % {"name": volume, "size": size_gib}

    return _asked(visit, volume_id, "resize", act)


@page("GET", "HEAD", "POST")
def rename(visit: Visit, volume_id: str) -> HttpResponse:
    """Ask for a new name."""

    def act(volume: Volume) -> str:
        volumes.rename(actor=visit.actor, volume=volume, name=visit.text("name"))
        return _("The volume is called %(name)s now.") % {"name": volume.name}

    return _asked(visit, volume_id, "rename", act)


def _asked(visit: Visit, volume_id: str, verb: str, act: Callable[[Volume], str], **more: Any) -> HttpResponse:
    """Show what a verb would do; do it once it is confirmed; show it again with what was wrong."""
    volume = access.volume_for(visit.actor, volume_id, verb="volume.change")
    found: dict[str, str] = {}
    if visit.request.method == "POST":
        try:
            messages.success(visit.request, act(volume))
        except (BadOrder, Conflict) as error:
            found = {error.field if isinstance(error, BadOrder) else "name": str(error)}
        else:
            return redirect("volume", volume.public_id)
    context = {
        "volume": volume,
        "verb": verb,
        "refusal": kept.actions(volume)[verb],
        "rate": _rate(volume),
        "attachment": kept.live_attachment(volume),
        "grace_hours": kept.GRACE.days * 24,
        "errors": found,
        "typed": {name: visit.text(name) for name in ("name", "size_gib", "path", "instance", "read_only")},
        **more,
    }
    return visit.page("volumes/confirm.html", context, status=422 if found else 200)
