"""E-mail about budgets: each alert is a row that says what is to be sent, so a lost message loses none."""

from datetime import datetime, timedelta

from django.conf import settings
from django.core.mail import EmailMessage
from django.urls import reverse
from django.utils import translation
from django.utils.translation import gettext as _

from marketplace import outbox
from marketplace.budget_counters import COUNTERS
from marketplace.models import Budget, BudgetAlert, Role


def send_due(*, at: datetime, limit: int) -> int:
    """Send the alerts that were not sent yet; return how many were."""
    rows = BudgetAlert.objects.select_related(
        "budget__organization", "budget__project", "budget__token__membership__user"
    )
    return outbox.deliver(rows, written, at=at, limit=limit)


def written(alert: BudgetAlert) -> EmailMessage:
    """Return the message that tells of an alert, in the language of the organization's billing details."""
    budget = alert.budget
    with translation.override(outbox.language_of(budget.organization)):
        shown, currency = COUNTERS[budget.counts].shown, budget.organization.currency
        facts = {
            "owner": budget.owner.name, "organization": budget.organization.name, "share": alert.share,
            "reached": shown(alert.reached, currency), "amount": shown(alert.amount, currency),
            "month": f"{alert.period:%Y-%m}", "url": settings.PUBLIC_URL + reverse("budgets"),
        }  # fmt: skip
        if alert.kind == BudgetAlert.Kind.USED:
            subject = _("%(share)s %% of the budget of %(owner)s is used") % facts
            told = _("%(reached)s of %(amount)s is used in %(month)s (UTC).") % facts
        else:
            subject = _("The forecast reaches %(share)s %% of the budget of %(owner)s") % facts
            told = _("If all goes on as now, %(reached)s of %(amount)s will be used in %(month)s (UTC).") % facts
        about = _("This concerns %(owner)s of %(organization)s.") % facts
        where = _("See and change budgets: %(url)s") % facts
        body = "\n\n".join([about, told, _consequence(alert), where])
    return EmailMessage(subject=subject, body=body + "\n", to=receivers(budget))


def _consequence(alert: BudgetAlert) -> str:
    budget = alert.budget
    if budget.action == Budget.Action.ALERT:
        return _("Nothing is stopped: this budget only tells.")
    if budget.action == Budget.Action.BLOCK:
        return _("What runs goes on. Once the budget is used up, nothing new starts.")
    if alert.kind == BudgetAlert.Kind.USED and alert.share >= 100:
        end = alert.at + timedelta(minutes=budget.grace_minutes)
        return _(
            "Nothing new starts, and what runs on this budget is stopped at %(end)s UTC; nothing is charged for it "
            "from then on. Volumes are kept and cost on. Raise the budget to let it go on."
        ) % {"end": f"{end:%Y-%m-%d %H:%M}"}
    return _(
        "Once the budget is used up, nothing new starts, and %(minutes)s minutes later what runs on it is stopped."
    ) % {"minutes": budget.grace_minutes}


def receivers(budget: Budget) -> list[str]:
    """Return who is told: owners and billing members, and of a token's budget whoever has it."""
    found = set(outbox.people(budget.organization, Role.OWNER, Role.BILLING))
    return sorted(found | ({budget.token.membership.user.email} if budget.token else set()))
