"""Tenants: their money, their projects, and what a capacity manager may change about them."""

from django.contrib import messages
from django.core.paginator import Paginator
from django.http import HttpResponse
from django.shortcuts import redirect
from django.urls import reverse
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from marketplace import limits
from marketplace.console import bank, organizations, receivables
from marketplace.console.door import carried_out, form_page, managers_only, sent
from marketplace.console.forms import CreditForm, NoForm, QuotaForm, ReasonForm
from marketplace.models import Organization, Project
from marketplace.portal.doors import Visit

ORGANIZATIONS_PER_PAGE = 50


@managers_only()
def listed(visit: Visit) -> HttpResponse:
    """List the tenants."""
    search = visit.query("search")
    found = Paginator(organizations.listed(search=search), ORGANIZATIONS_PER_PAGE)
    page = found.get_page(visit.request.GET.get("page"))
    tenants = [organizations.tenant(organization) for organization in page]
    return visit.page("console/organizations.html", {"page": page, "tenants": tenants, "search": search})


@managers_only()
def shown(visit: Visit, organization_id: str) -> HttpResponse:
    """Show a tenant: what it has and burns, its projects, what was changed."""
    organization = organizations.organization_for(organization_id)
    context = {
        "tenant": organizations.tenant(organization),
        "limits": limits.listed(organization.quotas.all()),
        "history": organizations.history(organization),
        "lines": receivables.lines(organization),
        "timelines": receivables.timelines(organization, at=visit.at),
        "transfers": bank.transfers(organization)[:20],
    }
    return visit.page("console/organization.html", context)


@managers_only("GET", "HEAD", "POST")
def credit(visit: Visit, organization_id: str) -> HttpResponse:
    """Give a tenant promotional credit."""
    organization = organizations.organization_for(organization_id)
    form = CreditForm(sent(visit))
    if carried_out(visit, form, organizations.grant_credit, organization=organization, at=visit.at):
        messages.success(visit.request, _("The credit is granted."))
        return redirect("console-organization", organization_id)
    return form_page(
        visit,
        form,
        title=_("Credit for %(organization)s") % {"organization": organization},
        text=_("Promotional credit in %(currency)s. It pays what is owed first, then what is used.")
        % {"currency": organization.currency},
        send=_("Grant"),
        back=reverse("console-organization", args=[organization_id]),
    )


@managers_only("GET", "HEAD", "POST")
def quota(visit: Visit, project_id: str) -> HttpResponse:
    """Change what a project may hold."""
    project = organizations.project_for(project_id)
    return _quota(visit, project.organization, project)


@managers_only("GET", "HEAD", "POST")
def organization_quota(visit: Visit, organization_id: str) -> HttpResponse:
    """Change what an organization may hold, over all its projects."""
    return _quota(visit, organizations.organization_for(organization_id), None)


def _quota(visit: Visit, organization: Organization, project: Project | None) -> HttpResponse:
    current = organizations.quota_of(project, organization)
    form = QuotaForm(sent(visit), initial={"limit": current.limit if current else None})
    if carried_out(visit, form, limits.change, organization=organization, project=project):
        messages.success(visit.request, _("The quota is changed."))
        return redirect("console-organization", organization.public_id)
    return form_page(
        visit,
        form,
        title=_("Quota of %(project)s") % {"project": project or organization},
        text=ngettext(
            "It holds %(held)s GPU now. A limit below that stops nothing; it only refuses more.",
            "It holds %(held)s GPUs now. A limit below that stops nothing; it only refuses more.",
            current.held if current else 0,
        )
        % {"held": current.held if current else 0},
        send=_("Save"),
        back=reverse("console-organization", args=[organization.public_id]),
    )


@managers_only("GET", "HEAD", "POST")
def quota_remove(visit: Visit, organization_id: str, quota_id: str) -> HttpResponse:
    """Let a limit apply no more."""
    organization = organizations.organization_for(organization_id)
    found = organizations.quota_to_change(organization, quota_id)
    form = ReasonForm(sent(visit))
    if carried_out(visit, form, limits.remove, quota=found):
        messages.success(visit.request, _("The limit applies no more."))
        return redirect("console-organization", organization_id)
    return form_page(
        visit,
        form,
        title=_("Remove the limit %(limit)s")
        % {"limit": limits.words_of(gpu_model=found.gpu_model, market=found.market)},
        text=_("What is held stays held. The wider limits of the organization and its projects go on."),
        send=_("Remove"),
        back=reverse("console-organization", args=[organization_id]),
    )


@managers_only("GET", "HEAD", "POST")
def suspend(visit: Visit, project_id: str) -> HttpResponse:
    """Let nothing new start in a project."""
    project = organizations.project_for(project_id)
    form = ReasonForm(sent(visit))
    if carried_out(visit, form, organizations.suspend, project=project, at=visit.at):
        messages.success(visit.request, _("The project is suspended."))
        return redirect("console-organization", project.organization.public_id)
    return form_page(
        visit,
        form,
        title=_("Suspend %(project)s") % {"project": project},
        text=_("Nothing new can start in it. What runs goes on, and is charged as before."),
        send=_("Suspend"),
        back=reverse("console-organization", args=[project.organization.public_id]),
        is_dangerous=True,
    )


@managers_only("POST")
def resume(visit: Visit, project_id: str) -> HttpResponse:
    """Let instances start in a project again."""
    project = organizations.project_for(project_id)
    if carried_out(visit, NoForm(sent(visit)), organizations.resume, project=project):
        messages.success(visit.request, _("Instances can start in the project again."))
    return redirect("console-organization", project.organization.public_id)
