"""Refusals with numbers, as people read them: in money and not in micros."""

import pytest

from billing.errors import InsufficientFunds, PaymentsPastDue
from marketplace import numbers
from marketplace.errors import BadOrder
from provisioning.errors import QuotaExceeded


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            InsufficientFunds(needed_micros=4_980_000, available_micros=1_000_000, currency="USD"),
            "This needs $4.98 of free credit; $1.00 is free.",
        ),
        (
            InsufficientFunds(
                needed_micros=4_980_000, available_micros=0, currency="USD", credit_limit_micros=2_000_000
            ),
            "This needs $4.98; of the credit limit of $2.00 and what was paid in, $0.00 is free.",
        ),
        (
            PaymentsPastDue(owed_micros=12_500_000, currency="USD", number="INV-000001"),
            "$12.50 is past due, since invoice INV-000001; nothing new starts until it is paid.",
        ),
        (
            QuotaExceeded(wanted=1_000, held=1, limit=2),
            "You asked for 1,000 more GPUs; the project holds 1 of 2.",
        ),
        (BadOrder("gpus", "Ask for less."), "Ask for less."),
    ],
)
def test_what_is_refused_is_told_with_its_numbers(error: Exception, said: str) -> None:
    assert numbers.said(error) == said
