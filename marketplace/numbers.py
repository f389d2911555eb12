"""What refusals say whose numbers are worth telling: the same through every door, and to whom sweeps tell it."""

from collections.abc import Callable

from django.utils.translation import gettext as _

from billing.errors import InsufficientFunds, PaymentsPastDue
from marketplace import limits
from marketplace.money import shown
from provisioning.errors import QuotaExceeded


def said(error: Exception) -> str:
    """Return why something was refused, with its numbers as people read them."""
    tell = NUMBERS.get(type(error))
    return tell(error) if tell else str(error)


def _funds(error: InsufficientFunds) -> str:
    text = _("This needs %(needed)s of free credit; %(available)s is free.")
    if error.credit_limit_micros:
        text = _("This needs %(needed)s; of the credit limit of %(limit)s and what was paid in, %(available)s is free.")
    return text % {
        "limit": shown(error.credit_limit_micros, error.currency),
        "needed": shown(error.needed_micros, error.currency),
        "available": shown(error.available_micros, error.currency),
    }


def _past_due(error: PaymentsPastDue) -> str:
    if not error.number:
        return _("%(owed)s that your bank took back is past due; nothing new starts until it is paid. Add credit.") % {
            "owed": shown(error.owed_micros, error.currency)
        }
    return _("%(owed)s is past due, since invoice %(number)s; nothing new starts until it is paid.") % {
        "owed": shown(error.owed_micros, error.currency),
        "number": error.number,
    }


NUMBERS: dict[type[Exception], Callable[..., str]] = {
    InsufficientFunds: _funds,
    PaymentsPastDue: _past_due,
    QuotaExceeded: limits.why,
}
