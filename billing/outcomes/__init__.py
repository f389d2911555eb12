"""Money for results: set aside before, taken when one is accepted, given back when it is taken back.

A room above decides what a result is and whether it counts; here is what that costs, whose it is, and that the
books know it. All verbs are safe to repeat with their key.
"""

from billing.outcomes.costs import book_cost, book_costs, covered_micros
from billing.outcomes.escrows import escrow, release
from billing.outcomes.floors import true_up
from billing.outcomes.margins import Margin, margins
from billing.outcomes.periods import Period, counted_micros
from billing.outcomes.reversing import left_micros, reverse
from billing.outcomes.settling import charge, settle
from billing.outcomes.sharing import share_out
from billing.outcomes.words import Item, Share

__all__ = [
    "Item",
    "Margin",
    "Period",
    "Share",
    "book_cost",
    "book_costs",
    "charge",
    "counted_micros",
    "covered_micros",
    "escrow",
    "left_micros",
    "margins",
    "release",
    "reverse",
    "settle",
    "share_out",
    "true_up",
]
