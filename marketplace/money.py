"""How money is written: decimal strings for programs, grouped amounts for people. Never a float."""

import re
from decimal import ROUND_HALF_UP, Decimal

from billing.invoicing.rounding import MINOR_DIGITS

MICROS = 1_000_000
AMOUNT = re.compile(r"[0-9]+(\.[0-9]{1,6})?", re.ASCII)
SYMBOLS = {"USD": "$", "EUR": "€", "GBP": "£", "JPY": "¥"}


def decimal_string(micros: int) -> str:
    """Return an exact decimal with six places, such as `2.490000`."""
    sign, whole, rest = "-" if micros < 0 else "", *divmod(abs(micros), MICROS)
    return f"{sign}{whole}.{rest:06d}"


def plain(micros: int) -> str:
    """Return an amount as somebody would type it, such as `2.49`."""
    return decimal_string(micros).rstrip("0").rstrip(".")


def brief(micros: int, currency: str) -> str:
    """Return an amount for where room is short: to the minor unit, exact only where that would hide most of it."""
    return shown(micros, currency, exact=0 < abs(micros) < MICROS // 10 ** MINOR_DIGITS.get(currency, 2))


def micros_of(text: str) -> int:
    """Return the micros of an exact decimal with at most six places, such as `2.49`."""
    whole, _, rest = text.partition(".")
    assert len(rest) <= 6
    return int(whole) * MICROS + int(rest.ljust(6, "0"))


def typed_micros(text: str, *, whole_digits_max: int = 9) -> int | None:
    """Return the micros of an amount that was typed or sent, or None for what is none: digits, six places at most."""
    if not AMOUNT.fullmatch(text) or len(text.partition(".")[0]) > whole_digits_max:
        return None
    return micros_of(text)


def shown(micros: int, currency: str, *, exact: bool = False) -> str:
    """Return an amount as people read it, such as `$1,234.50`.

    Rounded half up to the currency's minor unit; `exact` keeps as many of the
    six places as the amount needs, for rates below a cent.
    """
    amount = Decimal(micros) / MICROS
    digits = MINOR_DIGITS.get(currency, 2)
    if exact:
        digits = max(digits, -int(amount.normalize().as_tuple().exponent))
    rounded = abs(amount).quantize(Decimal(1).scaleb(-digits), rounding=ROUND_HALF_UP)
    sign = "-" if amount < 0 else ""
    symbol = SYMBOLS.get(currency, f"{currency} " if currency else "")
    return f"{sign}{symbol}{rounded:,.{digits}f}"
