"""Whether receipts follow each other without a gap, and whether the last is the last."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from marketplace.cli.proofs import GOOD, HEAD, NOT_CHECKED, REFUSED, Verified

NAMED_MAX = 10


@dataclass
class Chain:
    """The receipts of one organization that were given."""

    organization: str
    first: int = 0
    last: int = 0
    count: int = 0
    faults: list[str] = field(default_factory=list)
    says: list[str] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        return not self.faults

    def document(self) -> dict[str, Any]:
        """Return it as programs read it."""
        return {
            "organization": self.organization, "first": self.first, "last": self.last, "receipts": self.count,
            "good": self.is_good, "faults": self.faults, "says": self.says,
        }  # fmt: skip


def chains(found: Sequence[Verified], *, is_part: bool) -> list[Chain]:
    """Return each organization's chain, and note at every receipt how it hangs in it.

    `is_part`: it is meant that the chain begins later than with number 1, as the receipts of one project do not follow.
    """
    groups: dict[str, list[Verified]] = defaultdict(list)
    for one in found:
        if one.is_whole:
            groups[one.body["organization"]].append(one)
    return [_chain(name, rows, is_part=is_part) for name, rows in sorted(groups.items())]


def _chain(organization: str, rows: Sequence[Verified], *, is_part: bool) -> Chain:
    chain = Chain(organization)
    heads = [one for one in rows if one.body["kind"] == HEAD]
    links = sorted(
        (one for one in rows if one.body["kind"] != HEAD), key=lambda one: (one.body["sequence"], one.digest)
    )
    chain.count = len(links)
    by_number: dict[int, Verified] = {}
    for one in links:
        other = by_number.setdefault(one.body["sequence"], one)
        if other.digest != one.digest:
            _refuse(chain, one, f"There are two different receipts with number {one.body['sequence']}.")
    if by_number:
        chain.first, chain.last = min(by_number), max(by_number)
        _check_gaps(chain, by_number, is_part=is_part)
        _check_links(chain, by_number)
    _check_heads(chain, by_number, heads)
    return chain


def _check_gaps(chain: Chain, by_number: dict[int, Verified], *, is_part: bool) -> None:
    begins = chain.first if is_part else 1
    missing = _spans([number for number in range(begins, chain.last) if number not in by_number])
    if missing and not is_part:
        hint = "" if chain.first == 1 else " (is only a part of the chain meant? Say so with --part)"
        chain.faults.append(f"Missing: {missing}{hint}.")
    elif missing:
        chain.says.append(f"Not given, and not checked: {missing}.")


def _check_links(chain: Chain, by_number: dict[int, Verified]) -> None:
    for number, one in by_number.items():
        before, previous = by_number.get(number - 1), one.body.get("previous")
        if number == 1 and previous is None:
            one.note("chain", GOOD, f"It is the first of {chain.organization}.")
        elif before is None:
            one.note("chain", NOT_CHECKED, f"Number {number} of {chain.organization}; the one before was not given.")
        elif before.digest == previous:
            one.note("chain", GOOD, f"Number {number} of {chain.organization}; it follows number {number - 1}.")
        else:
            _refuse(chain, one, f"Number {number} does not follow the number {number - 1} that was given.")


def _check_heads(chain: Chain, by_number: dict[int, Verified], heads: Sequence[Verified]) -> None:
    for head in heads:
        number, at = head.body["sequence"], head.body.get("as_of")
        known = by_number.get(number)
        if number == 0:
            chain.says.append(f"There was no receipt yet at {at}.")
        elif known is None:
            chain.faults.append(f"Missing at the end: there were {number} receipts at {at}.")
        elif known.digest != head.body.get("digest"):
            chain.faults.append(f"The platform signed another number {number} than the one that was given.")
        else:
            chain.says.append(f"Number {number} was the last at {at}.")
    if not heads and by_number:
        chain.says.append("Whether later ones exist is not checked: the head of the chain (head.json) was not given.")


def _refuse(chain: Chain, one: Verified, says: str) -> None:
    chain.faults.append(says)
    one.note("chain", REFUSED, says)


def _spans(numbers: Sequence[int]) -> str:
    """Return numbers in words: 3, 5 to 9."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and spans[-1][1] == number - 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    named = [str(a) if a == b else f"{a} to {b}" for a, b in spans[:NAMED_MAX]]
    return ", ".join(named) + (f" and {len(spans) - NAMED_MAX} more" if len(spans) > NAMED_MAX else "")
