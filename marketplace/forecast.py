"""What a month will have cost at its end, if nothing is started, stopped or sold from now on.

    forecast = what was used since the month began, with what was paid ahead in it
             + the price per hour of all that is charged now x the hours that are left of the month
             + reserved hours that are ordered and not paid yet
             + what shares of revenue will ask that fall due in the month (`revenue_share/expecting.py`)

What runs inside a reservation costs nothing more: its hours were paid ahead.
Prices that float go on as they are now. Rounded half up to a micro, once.
"""

from datetime import datetime

from django.db import connection

from billing import rating
from marketplace.models import Organization


def month_end_micros(*, used_micros: int, burn_micros_per_hour: int, ordered_micros: int, shares_micros: int,
                     at: datetime, until: datetime) -> int:  # fmt: skip
    """Return the forecast for `until`, the end of the month, as of `at`."""
    left_ms = rating.unit_milliseconds(quantity=1, start=at, end=until)
    to_come = rating.amount_micros(micros_per_unit_hour=burn_micros_per_hour, unit_milliseconds=left_ms)
    return used_micros + to_come + ordered_micros + shares_micros


ORDERED = """
SELECT coalesce(sum(hold.amount_micros - hold.posted_micros), 0)::bigint
FROM billing_hold hold JOIN billing_account account ON account.id = hold.account_id
JOIN marketplace_reservation held ON held.public_id = hold.resource_id AND held.state = 'payment_pending'
WHERE account.organization_id = %(organization)s AND hold.state = 'pending'
"""


def ordered_micros(organization: Organization) -> int:
    """Return what is set aside for reserved hours that are ordered and not paid yet. One query."""
    with connection.cursor() as cursor:
        cursor.execute(ORDERED, {"organization": organization.pk})
        found: int = cursor.fetchone()[0]
    return found
