"""Price lists: drafted as a table, simulated, approved by a second person, scheduled, and gone back to."""

from django.contrib import messages
from django.core.paginator import Paginator
from django.http import HttpResponse
from django.shortcuts import redirect
from django.urls import reverse
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from billing import commitments, price_lists, price_withdrawals
from billing.models import PriceList, PriceModel, PriceWithdrawal
from marketplace import money, wares
from marketplace.console import price_editor, pricing
from marketplace.console.door import REFUSALS, SAID, carried_out, form_page, managers_only, sent
from marketplace.console.forms import NoForm
from marketplace.console.price_forms import DraftForm, RestoreForm, ScheduleForm, WithdrawalForm
from marketplace.portal.doors import Visit

PER_PAGE = 50
NOTE_MAX = 200
MONEY = list(money.SYMBOLS)


@managers_only()
def listed(visit: Visit) -> HttpResponse:
    """List all price lists of a currency, or of all, and the commitments that wait for a second person."""
    currency = visit.query("currency")
    found = price_lists.lists(currency=currency if currency in MONEY else "")
    page = Paginator(found, PER_PAGE).get_page(visit.request.GET.get("page"))
    context = {
        "page": page,
        "rows": pricing.named(list(page), at=visit.at),
        "currency": currency,
        "currencies": MONEY,
        "commitments": commitments.waiting(),
        "withdrawals": price_withdrawals.waiting(),
    }
    return visit.page("console/price_lists.html", context)


@managers_only("GET", "HEAD", "POST")
def new(visit: Visit) -> HttpResponse:
    """Open a draft."""
    form = DraftForm(sent(visit), initial={"currency": visit.query("currency")})
    if carried_out(visit, form, pricing.draft, at=visit.at):
        return redirect("console-price-list-edit", form.made.public_id)
    return form_page(
        visit,
        form,
        title=_("New price list"),
        text=_("It begins as a copy of what is in force in that currency. Nothing changes until it is scheduled."),
        send=_("Open the draft"),
        back=reverse("console-price-lists"),
    )


@managers_only()
def shown(visit: Visit, list_id: str) -> HttpResponse:
    """Show a list: what it says, what it changes, what was simulated, and what can be done next."""
    row = pricing.list_for(list_id)
    others = [other for other in price_lists.lists(currency=row.currency)[:PER_PAGE] if other.pk != row.pk]
    against = next((other for other in others if other.public_id == visit.query("against")), None)
    ((_row, phase),) = pricing.named([row], at=visit.at)
    return visit.page(
        "console/price_list.html",
        {
            "list": row,
            "phase": phase,
            "items": price_lists.items(row),
            "changes": price_lists.changes(before=pricing.before(row, against=against, at=visit.at), after=row),
            "against": against,
            "others": others,
            "simulation": pricing.simulation(row),
            "withdrawals": price_withdrawals.listed().filter(price_list=row),
            "is_mine": visit.actor.user.pk in (row.drafted_by_id, row.edited_by_id),
        },
    )


@managers_only("GET", "HEAD", "POST")
def edit(visit: Visit, list_id: str) -> HttpResponse:
    """Edit a draft as a table; what is wrong stands beside its row, and nothing is saved then."""
    row = pricing.list_for(list_id)
    rows = price_editor.rows_of(price_lists.items(row), wares.all_of_them())
    note, status = row.note, 200
    typed = sent(visit)
    if typed is not None:
        note, status = typed.get("note", "")[:NOTE_MAX], 422
        if price_editor.read(rows, typed, currency=row.currency) and _saved(visit, row, rows, note):
            return redirect("console-price-list", list_id)
    context = {
        "list": row,
        "rows": rows,
        "note": note,
        "models": PriceModel.choices,
        "wrong": sum(1 for each in rows if each.errors),
    }
    return visit.page("console/price_editor.html", context, status=status)


def _saved(visit: Visit, row: PriceList, rows: list[price_editor.Row], note: str) -> bool:
    content = [each.item for each in rows if each.item is not None]
    try:
        pricing.save(actor=visit.actor, price_list=row, content=content, note=note)
    except REFUSALS as refusal:
        messages.error(visit.request, str(SAID.get(type(refusal), refusal)))
        return False
    messages.success(visit.request, _("The draft is saved. Simulate it next."))
    return True


@managers_only("POST")
def simulate(visit: Visit, list_id: str) -> HttpResponse:
    """Work out what the last 30 days would have cost."""
    row = pricing.list_for(list_id)
    if carried_out(visit, NoForm(sent(visit)), pricing.simulate, price_list=row, at=visit.at):
        messages.success(visit.request, _("The list is simulated. Somebody else can approve it."))
    return redirect("console-price-list", list_id)


@managers_only("GET", "HEAD", "POST")
def approve(visit: Visit, list_id: str) -> HttpResponse:
    """Let a list be final."""
    row = pricing.list_for(list_id)
    form = NoForm(sent(visit))
    if carried_out(visit, form, pricing.approve, price_list=row, at=visit.at):
        messages.success(visit.request, _("The list is approved. Schedule it next."))
        return redirect("console-price-list", list_id)
    return form_page(
        visit,
        form,
        title=_("Approve list %(list)s") % {"list": row},
        text=_("Nobody can change it afterwards. Nothing is charged by it until it is scheduled."),
        send=_("Approve"),
        back=reverse("console-price-list", args=[list_id]),
    )


@managers_only("GET", "HEAD", "POST")
def schedule(visit: Visit, list_id: str) -> HttpResponse:
    """Publish an approved list for a moment to come."""
    row = pricing.list_for(list_id)
    form = ScheduleForm(sent(visit))
    if carried_out(visit, form, pricing.schedule, price_list=row, at=visit.at):
        said = ngettext("%(count)s price changes then.", "%(count)s prices change then.", form.made)
        messages.success(visit.request, said % {"count": form.made})
        return redirect("console-price-list", list_id)
    return form_page(
        visit,
        form,
        title=_("Schedule list %(list)s") % {"list": row},
        text=_("What runs keeps the price it started with, and commitments keep theirs. To go back, schedule a list"
               " with the earlier content.")
        + " "
        + _("A list that is scheduled for later still holds from its own moment on, with all that it says."),
        send=_("Schedule"),
        back=reverse("console-price-list", args=[list_id]),
    )  # fmt: skip


@managers_only("GET", "HEAD", "POST")
def withdraw(visit: Visit, list_id: str) -> HttpResponse:
    """Give up a list; one that is scheduled by two people."""
    row = pricing.list_for(list_id)
    if row.state == PriceList.State.SCHEDULED:
        return _propose_withdrawal(visit, row)
    form = NoForm(sent(visit))
    if carried_out(visit, form, pricing.withdraw, price_list=row):
        messages.success(visit.request, _("The list is withdrawn."))
        return redirect("console-price-list", list_id)
    return form_page(
        visit,
        form,
        title=_("Withdraw list %(list)s") % {"list": row},
        text=_("It stays here to be read, and never comes into force."),
        send=_("Withdraw"),
        back=reverse("console-price-list", args=[list_id]),
        is_dangerous=True,
    )


def _propose_withdrawal(visit: Visit, row: PriceList) -> HttpResponse:
    form = WithdrawalForm(sent(visit))
    if carried_out(visit, form, pricing.propose_withdrawal, price_list=row, at=visit.at):
        messages.success(visit.request, _("The withdrawal is proposed. Another capacity manager has to approve it."))
        return redirect("console-price-list", row.public_id)
    return form_page(
        visit,
        form,
        title=_("Withdraw list %(list)s") % {"list": row},
        text=_("It is scheduled. Somebody else has to approve this at least a minute before it begins; until then it"
               " stays scheduled. Lists that are scheduled for later still hold with all that they say."),
        send=_("Propose"),
        back=reverse("console-price-list", args=[row.public_id]),
        is_dangerous=True,
    )  # fmt: skip


@managers_only("GET", "HEAD", "POST")
def approve_withdrawal(visit: Visit, withdrawal_id: str) -> HttpResponse:
    """Withdraw a scheduled list that somebody else wants to be withdrawn."""
    row = pricing.withdrawal_for(withdrawal_id)
    form = NoForm(sent(visit))
    if carried_out(visit, form, pricing.approve_withdrawal, withdrawal=row, at=visit.at):
        messages.success(visit.request, _("The list is withdrawn."))
        return redirect("console-price-list", row.price_list.public_id)
    return form_page(
        visit,
        form,
        title=_("Withdraw list %(list)s") % {"list": row.price_list},
        text=_about(row),
        send=_("Withdraw"),
        back=reverse("console-price-list", args=[row.price_list.public_id]),
        is_dangerous=True,
    )


@managers_only("GET", "HEAD", "POST")
def decline_withdrawal(visit: Visit, withdrawal_id: str) -> HttpResponse:
    """Let a list come into force as it is scheduled."""
    row = pricing.withdrawal_for(withdrawal_id)
    form = NoForm(sent(visit))
    if carried_out(visit, form, pricing.decline_withdrawal, withdrawal=row, at=visit.at):
        messages.success(visit.request, _("The list stays scheduled."))
        return redirect("console-price-list", row.price_list.public_id)
    return form_page(
        visit,
        form,
        title=_("Leave list %(list)s scheduled") % {"list": row.price_list},
        text=_about(row),
        send=_("Decline"),
        back=reverse("console-price-list", args=[row.price_list.public_id]),
    )


def _about(row: PriceWithdrawal) -> str:
    return _("Proposed by %(person)s: %(reason)s") % {"person": row.proposed_by, "reason": row.reason}


@managers_only("GET", "HEAD", "POST")
def restore(visit: Visit, list_id: str) -> HttpResponse:
    """Open a draft with the content of an earlier list."""
    row = pricing.list_for(list_id)
    form = RestoreForm(sent(visit))
    if carried_out(visit, form, pricing.draft, currency=row.currency, restores=row, at=visit.at):
        messages.success(visit.request, _("A draft with its content is open. Simulate it next."))
        return redirect("console-price-list", form.made.public_id)
    return form_page(
        visit,
        form,
        title=_("Go back to list %(list)s") % {"list": row},
        text=_("A new draft gets its content. It goes through simulation, approval and schedule as every list does."),
        send=_("Open the draft"),
        back=reverse("console-price-list", args=[list_id]),
    )
