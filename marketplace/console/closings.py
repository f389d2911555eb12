"""Months that are over and not closed: what has no invoice, what waits for prices, what was not judged."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.utils.translation import gettext as _

from billing import adjusting
from billing.invoicing import pieces
from billing.months import month_of
from marketplace.models import Organization
from marketplace.sla import closing

# How long after the end of a month everything is closed, if nothing is wrong.
CLOSED_WITHIN = timedelta(days=1)
MONTHS_SHOWN = 6
SHOWN = 50


@dataclass(frozen=True)
class Late:
    """What of an organization's month is not closed, and what becomes of it by itself."""

    organization: Organization
    month: datetime
    what: str
    then: str
    until: datetime | None = None


def late(*, at: datetime) -> Sequence[Late]:
    """Return what is not closed a day after its month ended, the oldest first. About ten queries."""
    over = month_of(at - CLOSED_WITHIN)
    prices = adjusting.unfinished(until=over, limit=SHOWN)
    judged = closing.waiting(at=at, since=CLOSED_WITHIN, months=MONTHS_SHOWN, limit=SHOWN)
    invoices = pieces.due(cutoff=over, after=0, limit=SHOWN)
    keys = {key for key, _month in prices} | {one.organization_id for one in judged} | set(invoices)
    names = Organization.objects.in_bulk(keys)
    before = month_of(over - timedelta(days=1))
    found = [Late(names[key], month, _("Tiers, minimums or commitments"), _tried()) for key, month in prices]
    found += [Late(names[key], before, _("Invoice"), _tried()) for key in invoices]
    found += [_not_judged(one, names, at) for one in judged]
    return sorted(found, key=lambda one: (one.month, one.organization.name))


def _tried() -> str:
    return _("Tried again every hour until it succeeds; the log of the worker says what is wrong.")


def _not_judged(one: closing.Waiting, names: dict[int, Organization], at: datetime) -> Late:
    what = _("Service level of instances: %(count)s") % {"count": one.instances}
    then = _tried()
    if one.until is not None and at < one.until:
        then = _("Waits for what tiers or a commitment make of the price; without that it is judged as far as posted.")
    elif one.month not in closing.months_over(at):
        then = _("Not tried any more. Settle it with the customer by a service credit.")
    return Late(names[one.organization_id], one.month, what, then, one.until)
