"""Requests for quota: what customers ask for and why, and the rules that need nobody's look."""

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect
from django.urls import reverse
from django.utils.translation import gettext as _

from marketplace import quota_requests
from marketplace.console.door import carried_out, form_page, managers_only, sent
from marketplace.console.forms import NoForm, NoteForm, QuotaRuleForm
from marketplace.portal.doors import Visit

DECIDED_MAX = 50


@managers_only()
def listed(visit: Visit) -> HttpResponse:
    """Show what waits for a decision, the latest decisions, and the rules."""
    asked = quota_requests.asked
    context = {
        "pending": [(one, asked(one)) for one in quota_requests.pending()],
        "decided": [(one, asked(one)) for one in quota_requests.decided(DECIDED_MAX)],
        "rules": [(rule, quota_requests.tell(rule)) for rule in quota_requests.rules()],
    }
    return visit.page("console/requests.html", context)


@managers_only("GET", "HEAD", "POST")
def approve(visit: Visit, request_id: str) -> HttpResponse:
    """Give what is asked for, with a note."""
    return _decide(visit, request_id, is_good=True)


@managers_only("GET", "HEAD", "POST")
def deny(visit: Visit, request_id: str) -> HttpResponse:
    """Refuse what is asked for, with a note."""
    return _decide(visit, request_id, is_good=False)


def _decide(visit: Visit, request_id: str, *, is_good: bool) -> HttpResponse:
    found = quota_requests.any_for(request_id)
    form = NoteForm(sent(visit))
    verb = quota_requests.approve if is_good else quota_requests.deny
    if carried_out(visit, form, verb, found=found, at=visit.at):
        messages.success(visit.request, _("Approved: the limit is raised.") if is_good else _("The request is denied."))
        return redirect("console-requests")
    words = {"asked": quota_requests.asked(found), "organization": found.organization}
    title = _("Approve %(asked)s for %(organization)s") if is_good else _("Deny %(asked)s for %(organization)s")
    return form_page(
        visit,
        form,
        title=title % words,
        text=found.reason,
        send=_("Approve") if is_good else _("Deny"),
        is_dangerous=not is_good,
        back=reverse("console-requests"),
    )


@managers_only("GET", "HEAD", "POST")
def rule_new(visit: Visit) -> HttpResponse:
    """Make a rule by which requests are approved at once."""
    form = QuotaRuleForm(sent(visit))
    if carried_out(visit, form, quota_requests.make_rule):
        messages.success(visit.request, _("The rule decides from now on."))
        return redirect("console-requests")
    return form_page(
        visit,
        form,
        title=_("New rule"),
        text=_("Requests up to it are approved at once, for customers who owe nothing and have paid enough."),
        send=_("Make the rule"),
        back=reverse("console-requests"),
    )


@managers_only("GET", "HEAD", "POST")
def rule_end(visit: Visit, rule_id: str) -> HttpResponse:
    """Let a rule decide no more."""
    rule = quota_requests.rule_for(rule_id)
    form = NoForm(sent(visit))
    if carried_out(visit, form, quota_requests.end_rule, rule=rule):
        messages.success(visit.request, _("The rule decides no more."))
        return redirect("console-requests")
    return form_page(
        visit,
        form,
        title=_("End the rule “%(rule)s”") % {"rule": rule.name},
        text=quota_requests.tell(rule),
        send=_("End it"),
        back=reverse("console-requests"),
    )
