"""The test cards, and what each does. The same numbers do the same at Stripe."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KnownCard:
    """`declines` is the code with which charges fail, `is_refused` that it cannot even be saved."""

    brand: str
    text: str
    declines: str = ""
    is_refused: bool = False
    needs_proof: bool = False


CARDS: Mapping[str, KnownCard] = {
    "4242424242424242": KnownCard("visa", "pays"),
    "5555555555554444": KnownCard("mastercard", "pays"),
    "4000000000000002": KnownCard("visa", "is declined at once", declines="generic_decline", is_refused=True),
    "4000000000000341": KnownCard(
        "visa", "can be saved, and is declined when it is charged", declines="generic_decline"
    ),
    "4000000000009995": KnownCard("visa", "has too little money", declines="insufficient_funds", is_refused=True),
    "4000002760003184": KnownCard("visa", "asks its owner for proof each time (3-D Secure)", needs_proof=True),
}
DECLINED = "Your card was declined."
NO_FUNDS = "Your card has insufficient funds."


def said(code: str) -> str:
    """Return what a decline says."""
    return NO_FUNDS if code == "insufficient_funds" else DECLINED
