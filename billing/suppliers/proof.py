"""What suppliers are owed, worked out a second time: in plain integers and fractions, from the rows alone.

It shares nothing with the close but the rows: not its rating, not its sharing
out, not its way to cut spans. It goes through a span from card to card and
month to month.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from itertools import pairwise
from math import floor

from billing.models import Accrual, LentUse, PricePoint, RateCard, UsageSpan

BATCH = 500
HOUR_MS = 3_600_000
HALF = Fraction(1, 2)
BPS = 10_000
Amounts = tuple[int, int, int, int]  # GPU-milliseconds, charge, payout, reserve


def findings() -> Iterator[tuple[str, str]]:
    """Tell every accrual that comes out otherwise: what it is of, and both figures. A span that runs is left out."""
    cards = list(RateCard.objects.filter(state=RateCard.State.APPROVED).order_by("effective_from"))
    spans = UsageSpan.objects.filter(is_accrued=True, accruals__isnull=False).distinct()
    last = 0
    while batch := list(spans.filter(pk__gt=last).select_related("price_version").order_by("pk")[:BATCH]):
        last = batch[-1].pk
        yield from _of_spans(batch, cards)
    by_key = {card.pk: card for card in cards}
    for one in Accrual.objects.filter(delivery__isnull=False).select_related("delivery").iterator():
        assert one.delivery is not None
        done = one.delivery
        gross, held = _owed(by_key[one.card_id], one.currency, done.amount_micros, done.unit_milliseconds)
        expected = (done.unit_milliseconds, done.amount_micros, gross, held)
        if expected != _written(one):
            yield done.key, f"accrued {_written(one)}, comes out as {expected}"


def _of_spans(spans: Sequence[UsageSpan], cards: Iterable[RateCard]) -> Iterator[tuple[str, str]]:
    rows: dict[int, dict[tuple[int, datetime], Amounts]] = defaultdict(dict)
    owners: dict[int, int] = {}
    for one in Accrual.objects.filter(span__in=spans):
        assert one.span_id is not None
        owners[one.span_id] = one.supplier_id
        if any(_written(one)):
            rows[one.span_id][one.card_id, one.month] = _written(one)
    points = _points(spans)
    lent: dict[int, list[LentUse]] = defaultdict(list)
    for use in LentUse.objects.filter(span__in=spans):
        lent[use.span_id].append(use)
    for span in spans:
        mine = [card for card in cards if card.supplier_id == owners[span.pk]]
        expected = dict(_expected(span, mine, points[span.price_version_id], lent[span.pk]))
        if expected != rows[span.pk]:
            yield span.public_id, f"accrued {rows[span.pk]}, comes out as {expected}"


def _expected(
    span: UsageSpan, cards: Sequence[RateCard], points: Sequence[PricePoint], lent: Sequence[LentUse]
) -> Iterator[tuple[tuple[int, datetime], Amounts]]:
    edges = {span.started_at, span.charged_through}
    edges |= {card.effective_from for card in cards} | set(_months(span.started_at, span.charged_through))
    cuts = sorted(edge for edge in edges if span.started_at <= edge <= span.charged_through)
    merged: dict[tuple[int, datetime], list[int]] = defaultdict(lambda: [0, 0])
    for begin, end in pairwise(cuts):
        card = _card_at(cards, span.labels.get("offer", ""), begin)
        if card is not None:
            month = begin.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
            sums = merged[card.pk, month]
            inside = [one for one in lent if begin < one.through <= end]
            sums[0] += span.quantity * _ms(end - begin) - sum(one.unit_milliseconds for one in inside)
            sums[1] += _cost(span, end, points) - _cost(span, begin, points) - sum(one.amount_micros for one in inside)
    by_key = {card.pk: card for card in cards}
    for (key, month), sums in merged.items():
        milliseconds, charge = (max(0, figure) for figure in sums)
        yield (
            (key, month),
            (milliseconds, charge, *_owed(by_key[key], span.price_version.currency, charge, milliseconds)),
        )


def _card_at(cards: Sequence[RateCard], offer: str, at: datetime) -> RateCard | None:
    """The offer's own newest card if it has any by then, else the newest for all."""
    begun = [card for card in cards if card.effective_from <= at]
    for wanted in (offer, ""):
        own = [card for card in begun if card.offer == wanted]
        if own:
            return own[-1]
    return None


def _owed(card: RateCard, currency: str, charge: int, milliseconds: int) -> tuple[int, int]:
    """Payout and reserve: each its exact part or less than one micro beside it, what is over to the largest rest."""
    if card.fixed_micros is not None and card.fixed_currency == currency:
        total = floor(Fraction(card.fixed_micros * milliseconds, HOUR_MS) + HALF)
        gross = Fraction(total)
    else:
        total, gross = charge, Fraction(charge * card.share_bps, BPS)
    held = gross * Fraction(card.reserve_bps, BPS)
    exact = [gross - held, held, total - gross]
    whole = [floor(part) for part in exact]
    for n in sorted(range(3), key=lambda n: whole[n] - exact[n])[: total - sum(whole)]:
        whole[n] += 1
    return whole[0], whole[1]


def _cost(span: UsageSpan, at: datetime, points: Sequence[PricePoint]) -> int:
    if at >= span.charged_through:
        return span.charged_micros
    if not span.price_version.is_floating:
        micros = Fraction(span.price_version.micros_per_unit_hour * _ms(at - span.started_at))
    else:
        micros = Fraction(0)
        for point, following in zip(points, [*points[1:], None], strict=True):
            begin = max(span.started_at, point.starts_at)
            end = at if following is None else min(at, following.starts_at)
            micros += point.micros_per_unit_hour * max(0, _ms(end - begin))
    return min(span.charged_micros, floor(span.quantity * micros * Fraction(1, HOUR_MS) + HALF))


def _months(begin: datetime, end: datetime) -> Iterator[datetime]:
    month = begin.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    while month < end:
        yield month
        month = (month + timedelta(days=32)).replace(day=1)


def _points(spans: Sequence[UsageSpan]) -> dict[int, list[PricePoint]]:
    found: dict[int, list[PricePoint]] = defaultdict(list)
    series = {span.price_version_id for span in spans if span.price_version.is_floating}
    for point in PricePoint.objects.filter(price_version__in=series).order_by("starts_at"):
        found[point.price_version_id].append(point)
    return found


def _ms(lasted: timedelta) -> int:
    return lasted // timedelta(milliseconds=1)


def _written(one: Accrual) -> Amounts:
    return one.unit_milliseconds, one.charge_micros, one.payout_micros, one.reserve_micros
