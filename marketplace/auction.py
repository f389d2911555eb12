"""The spot auction of one offer and tick, as a pure function of its book: no clock, no database, no float.

A sealed-bid, uniform-price batch auction with a reserve. Bids are maximums and
all or none; the eligible ones are ranked by price, those that run already with
a bonus of `hysteresis_bp`, and walked once: what still fits, wins. Everybody
pays p = max(reserve, min(lowest winning bid, highest losing bid)), the
(m+1)-price, clamped because a bid that lost for its size alone may be higher
than one that won. Where a cap is set, no organization wins more than its share
of the GPUs: a bid that would take more loses, and sets no price, since more GPUs
would not have gone to it either. What is charged may rise by `rise_bp` from tick to tick at
most, so it may lie below p, never above it.

The book is bytes with one form, so its SHA-256 says which auction was held and
`replay` gives every published number again. O(n log n) time, O(n) space.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

BASIS = 10_000
# What is published of the demand: beyond so many steps, every n-th one.
CURVE_STEPS_MAX = 100
# Each step holds at least so many bids that no step above it holds, so that none shows what one bid asks for.
CURVE_BIDS_MIN = 3


class Bid(NamedTuple):
    """`gpus` GPUs, all or none, for at most `price_micros` per GPU-hour each; `placed_us` counts from 1970.

    `owner` says whose it is, and only where a cap is set.
    """

    id: str
    gpus: int
    price_micros: int
    is_incumbent: bool
    placed_us: int
    owner: str = ""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What holds in one auction beside its bids; amounts in micros of `currency` per GPU-hour."""

    offer: str
    tick: str
    currency: str
    capacity_gpus: int
    reserve_micros: int
    hysteresis_bp: int
    rise_bp: int
    last_charged_micros: int | None
    # Books from before steps held several bids have no such line, and give again what was published then.
    curve_bids_min: int = 1
    # The share of the GPUs that one organization wins at most, in basis points; none is no limit, and is not written.
    cap_bp: int = 0

    @property
    def cap_gpus(self) -> int | None:
        """How many GPUs one organization wins at most: its share rounded down, but one at least; None: no limit."""
        return share_gpus(self.capacity_gpus, cap_bp=self.cap_bp) if self.cap_bp else None


@dataclass(frozen=True)
class Outcome:
    """What an auction gave. `passed_over` bids ranked before a winner and lost for their size alone.

    `capped` bids lost because their organization would have won more than the cap; None where there is none.
    """

    price_micros: int
    charged_micros: int
    winners: tuple[str, ...]
    bids: int
    eligible: int
    passed_over: int
    demanded_gpus: int
    allocated_gpus: int
    demand: tuple[tuple[int, int], ...]
    capped: int | None = None

    def published(self) -> bytes:
        """Return everything that is published, in its one form; the winners as a hash, since bids are sealed."""
        shown = asdict(self) | {"winners": len(self.winners), "winners_sha256": digest("\n".join(self.winners))}
        if self.capped is None:
            del shown["capped"]
        return json.dumps(shown, sort_keys=True, separators=(",", ":")).encode()


def share_gpus(gpus: int, *, cap_bp: int) -> int:
    """Return how many of these GPUs one organization may win: its share rounded down, but one at least."""
    return max(1, gpus * cap_bp // BASIS)


def digest(content: str | bytes) -> str:
    """Return the SHA-256 of a text or of bytes, in hex."""
    return sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def clear(rules: Rules, bids: Sequence[Bid]) -> Outcome:
    """Hold the auction. The order of `bids` does not matter; ties go to who runs, then to who bid first, then by id."""
    reserve, bonus = rules.reserve_micros, BASIS + rules.hysteresis_bp
    ranked = [
        (-price * (bonus if incumbent else BASIS), not incumbent, placed, name, gpus, price, owner)
        for name, gpus, price, incumbent, placed, owner in bids
        if price >= reserve
    ]
    ranked.sort()
    left, most = rules.capacity_gpus, rules.cap_gpus
    won: dict[str, int] = {}
    winners: list[str] = []
    lowest_winning: int | None = None
    highest_losing = 0
    lost = passed_over = capped = 0
    for _, _, _, name, gpus, price, owner in ranked:
        if most is not None and won.get(owner, 0) + gpus > most:
            capped += 1
        elif gpus <= left:
            won[owner] = won.get(owner, 0) + gpus
            left -= gpus
            winners.append(name)
            lowest_winning = price if lowest_winning is None else min(price, lowest_winning)
            passed_over = lost
        else:
            lost += 1
            highest_losing = max(price, highest_losing)
    demand = _demand(ranked, bids_min=rules.curve_bids_min)
    price_micros = max(reserve, highest_losing if lowest_winning is None else min(lowest_winning, highest_losing))
    return Outcome(
        price_micros=price_micros,
        charged_micros=charged(rules, price_micros),
        winners=tuple(winners),
        bids=len(bids),
        eligible=len(ranked),
        passed_over=passed_over,
        demanded_gpus=sum(one[4] for one in ranked),
        allocated_gpus=rules.capacity_gpus - left,
        demand=demand,
        capped=None if most is None else capped,
    )


def charged(rules: Rules, price_micros: int) -> int:
    """Return what winners pay: the price, but no more than `rise_bp` above what was charged last; never below reserve.

    Rounded up to a whole micro, so that it moves at all.
    """
    if rules.last_charged_micros is None:
        return price_micros
    risen = -(-rules.last_charged_micros * (BASIS + rules.rise_bp) // BASIS)
    return max(rules.reserve_micros, min(price_micros, risen))


def _demand(
    ranked: Iterable[tuple[int, bool, int, str, int, int, str]], *, bids_min: int
) -> tuple[tuple[int, int], ...]:
    """Return how many GPUs are asked for at each price or more, from the highest price down: nobody's bid alone.

    Each step adds `bids_min` bids or more to the one above it; the last holds all, and there is none for fewer.
    """
    steps: list[tuple[int, int]] = []
    asked = fresh = 0
    for price, bids in groupby(sorted(((one[5], one[4]) for one in ranked), reverse=True), key=itemgetter(0)):
        found = [gpus for _, gpus in bids]
        asked, fresh = asked + sum(found), fresh + len(found)
        if fresh >= bids_min:
            steps.append((price, asked))
            fresh = 0
    if fresh and steps:
        steps[-1] = (price, asked)
    if len(steps) <= CURVE_STEPS_MAX:
        return tuple(steps)
    stride = -(-len(steps) // (CURVE_STEPS_MAX - 1))
    return (*steps[:-1:stride], steps[-1])


def book(rules: Rules, bids: Iterable[Bid]) -> bytes:
    """Return the book in its one form: a line of rules, then a line for each bid in the order of their ids.

    Where there is no cap, nothing says whose a bid is, and the book is the same as before there were caps.
    """
    written = asdict(rules)
    if not rules.cap_bp:
        del written["cap_bp"]
    header = json.dumps(written, sort_keys=True, separators=(",", ":"))
    lines = [
        f"{name} {gpus} {price} {int(incumbent)} {placed}{f' {owner}' if rules.cap_bp else ''}"
        for name, gpus, price, incumbent, placed, owner in sorted(bids)
    ]
    return "\n".join([header, *lines, ""]).encode()


def read(content: bytes) -> tuple[Rules, list[Bid]]:
    """Return what a book holds. Raises ValueError, TypeError or KeyError for what is no book."""
    header, *lines = content.decode().splitlines()
    bids = []
    for line in lines:
        name, gpus, price, incumbent, placed, *owner = line.split(" ")
        bids.append(Bid(name, int(gpus), int(price), incumbent == "1", int(placed), *owner))
    return Rules(**json.loads(header)), bids


def replay(content: bytes) -> Outcome:
    """Hold the auction of a book again. `published` of what comes out is, byte for byte, what was published."""
    return clear(*read(content))
