"""Amounts of money as people type them."""

import re

from marketplace.cli.problems import usage

AMOUNT = re.compile(r"[0-9]{1,9}(\.[0-9]{1,6})?", re.ASCII)


def amount(text: str) -> str:
    """Return a decimal amount that was typed, or refuse it before anything is sent."""
    if not AMOUNT.fullmatch(text):
        raise usage(f"{text!r} is not an amount.", suggestion="Write a decimal number, such as 1.25.")
    return text
