"""How a customer's money is shared out: a pure function, in whole micros. The close does the same in SQL."""

from collections.abc import Sequence
from typing import NamedTuple

from billing import rating
from billing.models import RateCard
from billing.models.suppliers import BPS


class Shares(NamedTuple):
    """payout + reserve + fee = charge."""

    payout_micros: int
    reserve_micros: int
    fee_micros: int


def split(*, card: RateCard, currency: str, charge_micros: int, unit_milliseconds: int) -> Shares:
    """Return what the supplier gets now, what is held back for it, and what the platform keeps (or adds)."""
    assert charge_micros >= 0
    if card.fixed_micros is not None and card.fixed_currency == currency:
        gross = rating.amount_micros(micros_per_unit_hour=card.fixed_micros, unit_milliseconds=unit_milliseconds)
        payout, reserve = largest_remainder(gross, [BPS - card.reserve_bps, card.reserve_bps])
        return Shares(payout, reserve, charge_micros - gross)
    weights = [
        card.share_bps * (BPS - card.reserve_bps),
        card.share_bps * card.reserve_bps,
        (BPS - card.share_bps) * BPS,
    ]
    return Shares(*largest_remainder(charge_micros, weights))


def largest_remainder(total: int, weights: Sequence[int]) -> list[int]:
    """Return whole parts of a total in proportion to weights, which add up to it: what is over to the largest rests,
    the earlier part first where rests are equal."""
    whole = sum(weights)
    parts = [total * weight // whole for weight in weights]
    rests = sorted(range(len(weights)), key=lambda n: (-(total * weights[n] % whole), n))
    for n in rests[: total - sum(parts)]:
        parts[n] += 1
    return parts
