"""Suppliers: applications, rate cards, adjustments and payouts; where money is concerned, with a second person."""

from collections.abc import Callable
from typing import Any

from django.contrib import messages
from django.core.paginator import Paginator
from django.http import HttpResponse
from django.shortcuts import redirect
from django.urls import reverse
from django.utils.translation import gettext as _

from billing.models import RateCard, SupplierAdjustment
from billing.suppliers import adjusting, cards, connecting
from marketplace import access_till, money
from marketplace.console import suppliers
from marketplace.console.door import carried_out, form_page, managers_only, sent
from marketplace.console.forms import NoForm, ReasonForm
from marketplace.console.supplier_forms import AdjustmentForm, HoldForm, RateCardForm, UnpaidLimitForm
from marketplace.contracts import sellers
from marketplace.portal.doors import Visit
from marketplace.suppliers import applying, earnings
from marketplace.templatetags.portal import percent

PER_PAGE = 50
SHOWN = 20


@managers_only()
def listed(visit: Visit) -> HttpResponse:
    """List who sells capacity, and what waits for somebody."""
    page = Paginator(suppliers.listed(), PER_PAGE).get_page(visit.request.GET.get("page"))
    context = {
        "page": page,
        "rows": [(one, earnings.balances(one), cards.in_force(supplier=one, offer="", at=visit.at)) for one in page],
        "applications": list(suppliers.applications()),
        "cards": list(suppliers.waiting_cards()),
        "adjustments": list(suppliers.waiting_adjustments()),
    }
    return visit.page("console/suppliers.html", context)


@managers_only()
def shown(visit: Visit, organization_id: str) -> HttpResponse:
    """Show a supplier: what it is owed, what was agreed, what moved."""
    supplier = suppliers.supplier_for(organization_id)
    context = {
        "supplier": supplier,
        "balances": earnings.balances(supplier),
        "cards": list(cards.of(supplier)[:SHOWN]),
        "uses": earnings.utilization(supplier, at=visit.at),
        "adjustments": list(adjusting.of(supplier)[:SHOWN]),
        "statements": list(access_till.statements(supplier).order_by("-pk")[:SHOWN]),
        "payouts": list(suppliers.payouts_of(supplier)[:SHOWN]),
        "account": connecting.of(supplier),
        "unpaid": sellers.unpaid_of(supplier, at=visit.at),
    }
    return visit.page("console/supplier.html", context)


@managers_only("GET", "HEAD", "POST")
def approve(visit: Visit, application_id: str) -> HttpResponse:
    """Let an organization sell capacity."""
    application = suppliers.application_for(application_id)
    form = NoForm(sent(visit))
    if carried_out(visit, form, applying.approve, application=application, at=visit.at):
        messages.success(visit.request, _("It may sell capacity now. Agree on a rate card next."))
        return redirect("console-supplier", application.organization.public_id)
    return form_page(
        visit,
        form,
        title=_("Let %(organization)s sell capacity") % {"organization": application.organization},
        text=application.about,
        send=_("Approve"),
        back=reverse("console-suppliers"),
    )


@managers_only("GET", "HEAD", "POST")
def decline(visit: Visit, application_id: str) -> HttpResponse:
    """Say no to an application, and why."""
    application = suppliers.application_for(application_id)
    form = ReasonForm(sent(visit))
    if carried_out(visit, form, applying.decline, application=application, at=visit.at):
        messages.success(visit.request, _("The application is declined."))
        return redirect("console-suppliers")
    return form_page(
        visit,
        form,
        title=_("Decline the application of %(organization)s") % {"organization": application.organization},
        text=_("They read the reason."),
        send=_("Decline"),
        back=reverse("console-suppliers"),
        is_dangerous=True,
    )


@managers_only("GET", "HEAD", "POST")
def card(visit: Visit, organization_id: str) -> HttpResponse:
    """Propose a rate card."""
    supplier = suppliers.supplier_for(organization_id)
    form = RateCardForm(sent(visit), supplier=supplier)
    if carried_out(visit, form, suppliers.propose_card, supplier=supplier, at=visit.at):
        messages.success(visit.request, _("The rate card is proposed. Another capacity manager has to approve it."))
        return redirect("console-supplier", organization_id)
    return form_page(
        visit,
        form,
        title=_("Rate card for %(supplier)s") % {"supplier": supplier},
        text=_("Once approved it is never changed; another one takes its place. Use before it keeps the one it had."),
        send=_("Propose"),
        back=reverse("console-supplier", args=[organization_id]),
    )


@managers_only("GET", "HEAD", "POST")
def card_approve(visit: Visit, card_id: str) -> HttpResponse:
    """Let a proposed rate card stand."""
    found = suppliers.card_for(card_id)
    said = {"title": _("Approve the rate card for %(supplier)s"), "send": _("Approve"), "done": _("It is approved.")}
    return _decide(visit, found, suppliers.approve_card, "card", text=_card(found), **said)


@managers_only("GET", "HEAD", "POST")
def card_decline(visit: Visit, card_id: str) -> HttpResponse:
    """Leave what was agreed as it is."""
    found = suppliers.card_for(card_id)
    said = {"title": _("Decline the rate card for %(supplier)s"), "send": _("Decline"), "done": _("It is declined.")}
    return _decide(visit, found, suppliers.decline_card, "card", text=_card(found), is_dangerous=True, **said)


@managers_only("GET", "HEAD", "POST")
def adjust(visit: Visit, organization_id: str) -> HttpResponse:
    """Propose to give a supplier something, or to take something back."""
    supplier = suppliers.supplier_for(organization_id)
    form = AdjustmentForm(sent(visit))
    if carried_out(visit, form, suppliers.propose_adjustment, supplier=supplier, at=visit.at):
        messages.success(visit.request, _("The adjustment is proposed. Another capacity manager has to approve it."))
        return redirect("console-supplier", organization_id)
    return form_page(
        visit,
        form,
        title=_("Adjustment for %(supplier)s") % {"supplier": supplier},
        text=_("What is taken comes from what is held back first, and may leave a balance below zero."),
        send=_("Propose"),
        back=reverse("console-supplier", args=[organization_id]),
    )


@managers_only("GET", "HEAD", "POST")
def adjustment_approve(visit: Visit, adjustment_id: str) -> HttpResponse:
    """Move what was proposed."""
    found = suppliers.adjustment_for(adjustment_id)
    said = {"title": _("Approve the adjustment for %(supplier)s"), "send": _("Approve"), "done": _("It is approved.")}
    return _decide(visit, found, suppliers.approve_adjustment, "adjustment", text=_adjustment(found), **said)


@managers_only("GET", "HEAD", "POST")
def adjustment_decline(visit: Visit, adjustment_id: str) -> HttpResponse:
    """Leave things as they are."""
    found = suppliers.adjustment_for(adjustment_id)
    said = {"title": _("Decline the adjustment for %(supplier)s"), "send": _("Decline"), "done": _("It is declined.")}
    text = _adjustment(found)
    return _decide(visit, found, suppliers.decline_adjustment, "adjustment", text=text, is_dangerous=True, **said)


@managers_only("GET", "HEAD", "POST")
def unpaid_limit(visit: Visit, organization_id: str) -> HttpResponse:
    """Say what work under a supplier's contracts may cost the platform beyond what results brought it."""
    supplier = suppliers.supplier_for(organization_id)
    form = UnpaidLimitForm(sent(visit), initial={"currency": supplier.currency})
    if carried_out(visit, form, sellers.set_limit, seller=supplier, at=visit.at):
        messages.success(visit.request, _("It is noted. What runs goes on."))
        return redirect("console-supplier", organization_id)
    return form_page(
        visit,
        form,
        title=_("Unpaid work of %(supplier)s") % {"supplier": supplier},
        text=_("Failed attempts and verification cost customers nothing and are the platform's to pay. At this limit "
               "no more work under contracts of this supplier starts, for any customer."),
        send=_("Set"),
        back=reverse("console-supplier", args=[organization_id]),
    )  # fmt: skip


@managers_only("GET", "HEAD", "POST")
def hold(visit: Visit, organization_id: str) -> HttpResponse:
    """Hold a supplier's payouts back, or let them go again."""
    supplier = suppliers.supplier_for(organization_id)
    account = suppliers.account_for(supplier)
    is_held = account.held_at is not None
    form = HoldForm(sent(visit), initial={"is_held": not is_held})
    if carried_out(visit, form, suppliers.hold_payouts, account=account, at=visit.at):
        messages.success(visit.request, _("It is noted."))
        return redirect("console-supplier", organization_id)
    title = _("Let payouts to %(supplier)s go again") if is_held else _("Hold payouts to %(supplier)s back")
    return form_page(
        visit,
        form,
        title=title % {"supplier": supplier},
        text=_("What it earns is kept either way."),
        send=_("Let them go") if is_held else _("Hold them back"),
        back=reverse("console-supplier", args=[organization_id]),
        is_dangerous=not is_held,
    )


@managers_only("GET", "HEAD", "POST")
def reverse_payout(visit: Visit, payout_id: str) -> HttpResponse:
    """Ask for a payout to be taken back, or approve that as the second person."""
    payout = suppliers.payout_for(payout_id)
    form = ReasonForm(sent(visit))
    if carried_out(visit, form, suppliers.reverse_payout, payout=payout, at=visit.at):
        messages.success(visit.request, _("It is noted. Money moves once two people agreed."))
        return redirect("console-supplier", payout.supplier.public_id)
    return form_page(
        visit,
        form,
        title=_("Take a payout to %(supplier)s back") % {"supplier": payout.supplier},
        text=_("%(amount)s of %(day)s. One person asks for this and another approves it.")
        % {"amount": money.shown(payout.amount_micros, payout.currency), "day": payout.slot},
        send=_("Take it back"),
        back=reverse("console-supplier", args=[payout.supplier.public_id]),
        is_dangerous=True,
    )


@managers_only("GET", "HEAD", "POST")
def call_off_payout(visit: Visit, payout_id: str) -> HttpResponse:
    """Call a payout off before it is sent."""
    payout = suppliers.payout_for(payout_id)
    form = ReasonForm(sent(visit))
    if carried_out(visit, form, suppliers.call_off_payout, payout=payout, at=visit.at):
        messages.success(visit.request, _("The payout is called off. Nothing was sent."))
        return redirect("console-supplier", payout.supplier.public_id)
    return form_page(
        visit,
        form,
        title=_("Call off a payout to %(supplier)s") % {"supplier": payout.supplier},
        text=_("%(amount)s of %(day)s. It is ordered anew unless you hold payouts back first; what it earned is kept.")
        % {"amount": money.shown(payout.amount_micros, payout.currency), "day": payout.slot},
        send=_("Call it off"),
        back=reverse("console-supplier", args=[payout.supplier.public_id]),
        is_dangerous=True,
    )


def _decide(
    visit: Visit,
    found: RateCard | SupplierAdjustment,
    verb: Callable[..., None],
    name: str,
    *,
    title: str,
    send: str,
    done: str,
    **more: Any,
) -> HttpResponse:
    form = NoForm(sent(visit))
    if carried_out(visit, form, verb, **{name: found}, at=visit.at):
        messages.success(visit.request, done)
        return redirect("console-supplier", found.supplier.public_id)
    back = reverse("console-supplier", args=[found.supplier.public_id])
    return form_page(visit, form, title=title % {"supplier": found.supplier}, send=send, back=back, **more)


def _card(found: RateCard) -> str:
    fixed = "" if found.fixed_micros is None else money.shown(found.fixed_micros, found.fixed_currency)
    return _(
        "%(share)s of what customers pay%(fixed)s, %(reserve)s of that held back for %(days)s days; it bears"
        " %(sla)s of service credits. In force from %(from)s UTC, proposed by %(person)s."
    ) % {
        "share": percent(found.share_bps),
        "fixed": _(", or %(amount)s per GPU-hour") % {"amount": fixed} if fixed else "",
        "reserve": percent(found.reserve_bps),
        "days": found.reserve_days,
        "sla": percent(found.sla_bps),
        "from": f"{found.effective_from:%Y-%m-%d %H:%M}",
        "person": found.proposed_by,
    }


def _adjustment(found: SupplierAdjustment) -> str:
    return _("%(amount)s, proposed by %(person)s: %(reason)s") % {
        "amount": money.shown(found.amount_micros, found.currency),
        "person": found.proposed_by,
        "reason": found.reason,
    }
