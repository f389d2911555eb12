"""From exact micros to what can be paid: whole minor units of a currency, such as cents. Whole numbers throughout."""

from collections.abc import Mapping
from itertools import islice

MICROS = 1_000_000
LEAST_UNITS = 50  # minor units: what a card is charged at least
MINOR_DIGITS: Mapping[str, int] = {"JPY": 0}  # all others have two


def minor_unit_micros(currency: str) -> int:
    """Return the micros of the smallest amount that can be paid: 10,000 for a cent, 1,000,000 for a yen."""
    digits = MINOR_DIGITS.get(currency, 2)
    return MICROS // int(f"1{'0' * digits}")


def half_up(micros: int, unit: int) -> int:
    """Return an amount as whole units (of `unit` micros each), in micros; half a unit is rounded away from zero."""
    size = (abs(micros) + unit // 2) // unit * unit
    return size if micros >= 0 else -size


def asked(micros: int, currency: str) -> int:
    """Return what is asked for an amount that is left to pay: the least that can be paid and pays all of it.

    Credit and cash pay to the micro, so what they leave may be no whole minor unit. What is paid beyond it is cash.
    """
    assert micros >= 0
    return micros + -micros % minor_unit_micros(currency)


def asked_together(asks: Mapping[int, int], currency: str) -> dict[int, int]:
    """Return what is to be asked for each of these, in their order, so that a card can be charged for it or it is zero.

    What is less than the least that a card is charged waits, and the first with which it reaches that asks for it too.
    """
    least, waiting = LEAST_UNITS * minor_unit_micros(currency), 0
    together = {}
    for key, micros in asks.items():
        waiting += micros
        is_enough = micros > 0 and waiting >= least
        together[key] = waiting if is_enough else 0
        waiting = 0 if is_enough else waiting
    return together


def shared_out(exact: Mapping[str, int], unit: int) -> dict[str, int]:
    """Return each line's amount in whole units: the one rounding of an invoice.

    The sum of all lines is rounded half up, and handed out by largest
    remainder: each line gets its whole units, and those with the largest rests
    one more, the smaller key first where rests are equal. So the lines add up
    to the rounded sum, and none is a whole unit or more away from what it cost.
    """
    amounts = {key: micros // unit * unit for key, micros in exact.items()}
    left = (half_up(sum(exact.values()), unit) - sum(amounts.values())) // unit
    by_rest = sorted(exact, key=lambda key: (amounts[key] - exact[key], key))
    for key in islice(by_rest, max(0, left)):
        amounts[key] += unit
    return amounts


def part_of_tax(*, tax_micros: int, net_micros: int, credited_micros: int, now_micros: int, unit: int) -> int:
    """Return the tax that goes back with `now_micros` of an invoice's net amount, after `credited_micros` of it did.

    It is the tax of everything credited so far, rounded half up, less what went
    back before; so a full credit, in however many steps, returns exactly the tax.
    """
    assert 0 < now_micros <= net_micros - credited_micros

    def until(micros: int) -> int:
        return (2 * tax_micros * micros + net_micros * unit) // (2 * net_micros * unit) * unit

    return until(credited_micros + now_micros) - until(credited_micros)
