"""The table of dunning: how it is, what was proposed, and changing it with a second person."""

from collections import defaultdict

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect
from django.urls import reverse
from django.utils.translation import gettext as _

from billing import dunning_table
from billing.models import DunningTable
from marketplace.console import dunning, receivables
from marketplace.console.door import carried_out, form_page, managers_only, sent
from marketplace.console.forms import NoForm
from marketplace.console.receivable_forms import DunningForm
from marketplace.portal.doors import Visit

SHOWN = 20


@managers_only()
def shown(visit: Visit) -> HttpResponse:
    """Show the table, and what was proposed for it."""
    tables = [(table, dunning.said(table)) for table in dunning_table.listed()[:SHOWN]]
    return visit.page("console/dunning.html", {"steps": receivables.steps(), "tables": tables})


@managers_only("GET", "HEAD", "POST")
def new(visit: Visit) -> HttpResponse:
    """Propose another table."""
    days: dict[str, list[str]] = defaultdict(list)
    for step in receivables.steps():
        days[step.action].append(str(step.day_offset))
    form = DunningForm(sent(visit), initial={action: ", ".join(on) for action, on in days.items()})
    if carried_out(visit, form, dunning.propose, at=visit.at):
        messages.success(visit.request, _("The table is proposed. Another capacity manager has to approve it."))
        return redirect("console-dunning")
    return form_page(
        visit,
        form,
        title=_("What is done about unpaid invoices"),
        text=_("Nothing that harms comes before the due day, without a reminder before it, or in another order than"
               " from the mildest on. A step that is late delays those after it."),
        send=_("Propose"),
        back=reverse("console-dunning"),
    )  # fmt: skip


@managers_only("GET", "HEAD", "POST")
def approve(visit: Visit, table_id: str) -> HttpResponse:
    """Let a proposed table hold."""
    table = dunning.table_for(table_id)
    form = NoForm(sent(visit))
    if carried_out(visit, form, dunning.approve, table=table, at=visit.at):
        messages.success(visit.request, _("The table holds from now on."))
        return redirect("console-dunning")
    title, back = _("Approve another table"), reverse("console-dunning")
    return form_page(visit, form, title=title, text=_about(table), send=_("Approve"), back=back)


@managers_only("GET", "HEAD", "POST")
def decline(visit: Visit, table_id: str) -> HttpResponse:
    """Leave the table as it is."""
    table = dunning.table_for(table_id)
    form = NoForm(sent(visit))
    if carried_out(visit, form, dunning.decline, table=table, at=visit.at):
        messages.success(visit.request, _("The proposal is declined."))
        return redirect("console-dunning")
    title, back = _("Decline another table"), reverse("console-dunning")
    return form_page(visit, form, title=title, text=_about(table), send=_("Decline"), back=back, is_dangerous=True)


def _about(table: DunningTable) -> str:
    steps = "; ".join(f"{day:+}: {action}" for day, action in dunning.said(table))
    return _("%(steps)s. Proposed by %(person)s: %(reason)s") % {
        "steps": steps, "person": table.proposed_by, "reason": table.reason,
    }  # fmt: skip
