"""Sending what rows say is to be sent, so a message that was lost or a sender that died loses none."""

import logging
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import TypeVar

from django.conf import settings
from django.core.mail import EmailMessage
from django.db.models import F, QuerySet

from billing.models import InvoiceMail, Notice
from marketplace.access import members
from marketplace.models import BudgetAlert, EventMail, IdleSpell, Organization, Role

FIRST_WAIT, LONGEST_WAIT = timedelta(minutes=2), timedelta(hours=6)
TRIES_MAX = 30
Row = TypeVar("Row", InvoiceMail, Notice, BudgetAlert, IdleSpell, EventMail)

log = logging.getLogger(__name__)


def deliver(rows: QuerySet[Row], written: Callable[[Row], EmailMessage], *, at: datetime, limit: int) -> int:
    """Send what is due, oldest first; return how much was sent. What cannot be sent is tried again, ever more seldom.

    A row is claimed by moving its next try, so two senders do not send the same
    one unless the first takes longer than a wait.
    """
    due = rows.filter(sent_at=None, next_try_at__lte=at, tries__lt=TRIES_MAX).order_by("next_try_at", "pk")
    sent = 0
    for row in due[:limit]:
        wait = min(FIRST_WAIT * 2 ** min(row.tries, 10), LONGEST_WAIT)
        same = type(row)._default_manager.filter(pk=row.pk)
        if not same.filter(sent_at=None, tries=row.tries).update(tries=F("tries") + 1, next_try_at=at + wait):
            continue
        try:
            written(row).send()
        except Exception:  # one address that refuses must not keep the others from theirs
            log.exception("%s was not sent", row)
            continue
        same.update(sent_at=at)
        sent += 1
    return sent


def receivers(organization: Organization) -> list[str]:
    """Return where mail about money goes: to the address of the billing details, else to owners and billing members."""
    details = getattr(organization, "billing_details", None)
    if details is not None and details.email:
        return [details.email]
    return people(organization, Role.OWNER, Role.BILLING)


def people(organization: Organization, *roles: Role) -> list[str]:
    """Return the addresses of the people of an organization who have one of these roles."""
    found = members(organization).filter(role__in=roles, user__is_active=True)
    return sorted(found.values_list("user__email", flat=True))


def language_of(organization: Organization) -> str:
    """Return the language in which an organization is written to: that of its billing details."""
    details = getattr(organization, "billing_details", None)
    return details.language if details is not None else settings.LANGUAGE_CODE
