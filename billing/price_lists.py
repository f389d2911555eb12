"""Price lists: drafted, simulated, approved by a second person, scheduled; what is in force is told by the clock."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from uuid import UUID

from django.db import IntegrityError, connection, transaction
from django.db.models import Max, QuerySet

from billing import moves, prices, tiers
from billing.errors import (
    BadPrice,
    BadTiers,
    KeyReused,
    PriceAlreadyHolds,
    PriceAlreadyPublished,
    PriceListMoved,
    RetroactivePrice,
    SecondPersonNeeded,
)
from billing.invoicing.rounding import minor_unit_micros
from billing.models import PriceList, PriceListItem, PriceModel, PriceVersion, SimulatedBill, SimulatedWare, Unit
from billing.models.prices import terms_of

SIMULATED_OVER = timedelta(days=30)
# Until how long before its moment a list can be called off: who starts at that moment must not read it still.
LAST_CALL = timedelta(minutes=1)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)  # the one month as which a simulation takes its days

State = PriceList.State
MOVES: dict[State, tuple[State, ...]] = {
    State.DRAFT: (State.DRAFT, State.SIMULATED, State.WITHDRAWN),
    State.SIMULATED: (State.DRAFT, State.SIMULATED, State.APPROVED, State.WITHDRAWN),
    State.APPROVED: (State.SCHEDULED, State.WITHDRAWN),
    State.SCHEDULED: (State.WITHDRAWN,),  # by two people, before its moment: `price_withdrawals`
    State.WITHDRAWN: (),
}
# What each customer used in a stretch of time, by thing and version. What was paid ahead, floats or is committed to
# keeps its price whatever a list says.
USED = """
SELECT span.organization_id, price.sku, price.id, sum(span.quantity::numeric * round(1000 * extract(epoch FROM
    least(%(until)s, coalesce(span.ended_at, %(until)s)) - greatest(%(since)s, span.started_at))))
FROM billing_usagespan span JOIN billing_priceversion price ON price.id = span.price_version_id
WHERE price.currency = %(currency)s AND NOT price.is_floating AND span.covered_by = ''
  AND span.started_at < %(until)s AND coalesce(span.ended_at, 'infinity') > %(since)s
  AND NOT EXISTS (
      SELECT FROM billing_commitmentprice agreed
      WHERE agreed.organization_id = span.organization_id AND agreed.sku = price.sku AND agreed.is_agreed
        AND agreed.starts_at < %(until)s AND agreed.ends_at > %(since)s
  )
GROUP BY span.organization_id, price.sku, price.id ORDER BY 1, 2, 3
"""


class Phase(StrEnum):
    """Where a list stands for customers."""

    DRAFT = "draft"
    SIMULATED = "simulated"
    APPROVED = "approved"
    WITHDRAWN = "withdrawn"
    SCHEDULED = "scheduled"
    IN_FORCE = "in_force"
    SUPERSEDED = "superseded"


@dataclass(frozen=True, slots=True)
class Item:
    """One thing of a list as it was typed: rows are (from unit-hours, up to, micros), the last up to None."""

    sku: str
    name: str
    unit: str
    model: str
    rows: tuple[tuple[int, int | None, int], ...]
    minimum_micros: int = 0


@dataclass(frozen=True, slots=True)
class Change:
    """What differs between two lists, or a list and what is in force: None where a side does not have the thing."""

    sku: str
    name: str
    before: PriceListItem | PriceVersion | None
    after: PriceListItem | PriceVersion | None


@transaction.atomic
def draft(
    *,
    currency: str,
    by: int,
    key: UUID,
    at: datetime,
    names: Mapping[str, str] | None = None,
    restores: PriceList | None = None,
    price: Item | None = None,
) -> PriceList:
    """Open a draft, once per key: a copy of what is in force, or of an earlier list to go back to. `by` is who does it.

    `names` are what things are called that have no name in the prices themselves. `price` takes the place of what the
    copy says of the same thing; raises BadPrice where it cannot be.
    """
    changed = [] if price is None else [checked(price, currency=currency)]
    _check_against_history(changed, currency=currency)
    first = PriceList.objects.filter(key=key).first()
    if first is not None:
        said = {item.sku: terms_of(item) for item in items(first)}
        is_other = any(said.get(item.sku) != terms_of(item) for item in changed)
        if is_other or (first.currency, first.restores) != (currency, restores):
            raise KeyReused(str(key))
        return first
    _take_turns(currency)  # one number after the other
    last = PriceList.objects.filter(currency=currency).aggregate(last=Max("number"))["last"] or 0
    made = PriceList.objects.create(
        key=key,
        currency=currency,
        number=last + 1,
        restores=restores,
        drafted_by_id=by,
        edited_by_id=by,
        drafted_at=at,
    )
    source: Iterable[PriceListItem | PriceVersion] = (
        items(restores) if restores is not None else in_force(currency=currency, at=at).values()
    )
    rows = {
        row.sku: PriceListItem(sku=row.sku, name=row.name or (names or {}).get(row.sku, row.sku), **terms_of(row))
        for row in source
    } | {item.sku: item for item in changed}
    for row in rows.values():
        row.price_list = made
    PriceListItem.objects.bulk_create(rows.values())
    return made


@transaction.atomic
def save(*, price_list: PriceList, content: Sequence[Item], note: str, by: int) -> None:
    """Let a draft say this and nothing else; what was simulated before is forgotten.

    Raises BadPrice for the first thing that cannot be, and PriceListMoved once the list was approved.
    """
    row = _locked(price_list, State.DRAFT)
    rows = [_row(row, item) for item in content]
    known: set[str] = set()
    for item in rows:
        if item.sku in known:
            raise BadPrice(sku=item.sku, problem="twice", said="is named twice")
        known.add(item.sku)
    _check_against_history(rows, currency=row.currency)
    PriceListItem.objects.filter(price_list=row).delete()
    _forget_simulation(row)
    PriceListItem.objects.bulk_create(rows)
    _move(row, State.DRAFT, edited_by_id=by, note=note, simulated_at=None)
    price_list.refresh_from_db()


@transaction.atomic
def simulate(*, price_list: PriceList, at: datetime) -> list[SimulatedBill]:
    """Work out what each customer paid for the use of the last 30 days, and what the draft would have asked for it.

    As if those days were one month, all of it at the draft's prices. One statement reads the use, one writes.
    """
    row = _locked(price_list, State.SIMULATED)
    new = {item.sku: tiers.terms(item) for item in items(row)}
    since = at - SIMULATED_OVER
    with connection.cursor() as cursor:
        cursor.execute(USED, {"since": since, "until": at, "currency": row.currency})
        used = [(key, sku, version, int(ms)) for key, sku, version, ms in cursor.fetchall()]
    old = {version.pk: version for version in PriceVersion.objects.filter(pk__in={version for *_, version, _ in used})}
    before: dict[int, list[tiers.Use]] = defaultdict(list)
    together: dict[int, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for key, sku, version_id, unit_ms in used:
        version = old[version_id]
        before[key].append(_use(sku, tiers.terms(version), unit_ms, version=version_id, since=version.effective_from))
        together[key][sku] += unit_ms
    bills = []
    by_ware: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for key, uses in before.items():
        after = [_use(sku, new[sku], ms) for sku, ms in together[key].items() if sku in new]
        after += [use for use in uses if use.sku not in new]
        costs = _costs(uses), _costs(after)
        for place, by_sku in enumerate(costs):
            for sku, micros in by_sku.items():
                by_ware[sku][place] += micros
        then, now = (sum(by_sku.values()) for by_sku in costs)
        bills.append(SimulatedBill(price_list=row, organization_id=key, before_micros=then, after_micros=now))
    names = {item.sku: item.name for item in items(row)}
    wares = [
        SimulatedWare(price_list=row, sku=sku, name=names.get(sku, sku), before_micros=then, after_micros=now)
        for sku, (then, now) in by_ware.items()
    ]
    _forget_simulation(row)
    SimulatedBill.objects.bulk_create(bills, batch_size=2000)
    SimulatedWare.objects.bulk_create(wares, batch_size=2000)
    _move(row, State.SIMULATED, simulated_at=at)
    price_list.refresh_from_db()
    return bills


@transaction.atomic
def approve(*, price_list: PriceList, by: int, at: datetime) -> None:
    """Let a simulated list be final. `by` is the id of somebody who neither drafted nor edited it."""
    row = _locked(price_list, State.APPROVED)
    if by in (row.drafted_by_id, row.edited_by_id):
        raise SecondPersonNeeded("somebody else has to decide about these prices")
    if not row.items.exists():
        raise BadPrice(sku=str(row), problem="empty", said="the list names nothing")
    _move(row, State.APPROVED, approved_by_id=by, approved_at=at)
    price_list.refresh_from_db()


@transaction.atomic
def schedule(*, price_list: PriceList, effective_from: datetime, by: str, at: datetime) -> list[PriceVersion]:
    """Publish an approved list for a moment that is still to come; return the prices that it changes.

    What has the same terms at that moment already keeps its version, so that no month's tiers begin anew for
    nothing. Lists that were scheduled for later say what holds from their own moments on: what this one would change
    of that is published for them again, and among what is returned. Raises RetroactivePrice for a moment that is over.
    """
    row = _locked(price_list, State.SCHEDULED)
    if effective_from <= at:
        raise RetroactivePrice(f"{row}: {effective_from:%Y-%m-%d %H:%M:%S} is over")
    _take_turns(row.currency)  # what one list changes depends on all the others
    later = _scheduled_after(row, effective_from)
    try:
        with transaction.atomic():
            _move(row, State.SCHEDULED, scheduled_at=at, effective_from=effective_from)
            row.refresh_from_db()
            published = [version for each in (row, *later) for version in _publish(each, by=by, at=at)]
    except IntegrityError as error:
        raise PriceAlreadyPublished(f"another price begins at {effective_from:%Y-%m-%d %H:%M:%S}") from error
    price_list.refresh_from_db()
    return published


@transaction.atomic
def withdraw(*, price_list: PriceList) -> None:
    """Give up a list that was not scheduled."""
    row = _locked(price_list, State.WITHDRAWN)
    if row.state == State.SCHEDULED:
        raise PriceListMoved(state=row.state, wanted=State.WITHDRAWN)
    _move(row, State.WITHDRAWN)
    price_list.refresh_from_db()


def moment_to_come(price_list: PriceList, *, at: datetime) -> datetime:
    """Return when a scheduled list begins, while it can be called off; raise PriceListMoved or PriceAlreadyHolds."""
    moment = price_list.effective_from
    if price_list.state != State.SCHEDULED or moment is None:
        raise PriceListMoved(state=price_list.state, wanted=State.WITHDRAWN)
    if moment <= at + LAST_CALL:
        raise PriceAlreadyHolds(f"{price_list} holds from {moment:%Y-%m-%d %H:%M:%S} on")
    return moment


@transaction.atomic
def call_off(*, price_list: PriceList, by: str, at: datetime) -> list[PriceVersion]:
    """Let a scheduled list never come into force: none of its prices ever holds, and its moment is free again.

    Lists that were scheduled for later still hold with all that they say: return what is published again for them.
    Raises PriceListMoved for a list that is not scheduled, and PriceAlreadyHolds from a minute before its moment on.
    """
    row = _locked(price_list, State.WITHDRAWN)
    moment = moment_to_come(row, at=at)
    _take_turns(row.currency)
    later = list(_scheduled_after(row, moment))
    PriceVersion.objects.filter(price_list=row, withdrawn_at=None).update(withdrawn_at=at)
    _move(row, State.WITHDRAWN, effective_from=None)
    published = []
    for each in later:
        _withdraw_idle(each, at=at)
        published += _publish(each, by=by, at=at)
    price_list.refresh_from_db()
    return published


def lists(*, currency: str = "") -> QuerySet[PriceList]:
    """Return all lists, the newest first."""
    found = PriceList.objects.select_related("drafted_by", "edited_by", "approved_by", "restores").order_by("-pk")
    return found.filter(currency=currency) if currency else found


def items(price_list: PriceList) -> QuerySet[PriceListItem]:
    """Return what a list says, in the order of names."""
    return PriceListItem.objects.filter(price_list=price_list).order_by("name", "sku")


def in_force(*, currency: str, at: datetime) -> dict[str, PriceVersion]:
    """Return the prices that hold at a moment by what they are for, scheduled ones included; none that float."""
    skus = PriceVersion.objects.filter(currency=currency, is_floating=False).values_list("sku", flat=True).distinct()
    return prices.current(skus=list(skus), currency=currency, at=at)


def current(*, currency: str, at: datetime) -> PriceList | None:
    """Return the list that is in force in a currency, if any ever was."""
    began = PriceList.objects.filter(currency=currency, state=State.SCHEDULED, effective_from__lte=at)
    return began.order_by("-effective_from").first()


def phases(found: Iterable[PriceList], *, at: datetime) -> dict[int, Phase]:
    """Return where each list stands at a moment, by its primary key."""
    found = list(found)
    now = {currency: current(currency=currency, at=at) for currency in {row.currency for row in found}}
    return {row.pk: _phase(row, now[row.currency], at) for row in found}


def changes(*, before: Mapping[str, PriceListItem | PriceVersion], after: PriceList) -> list[Change]:
    """Return what a list says otherwise than some prices, by what things are called."""
    new = {item.sku: item for item in items(after)}
    found = [
        Change(sku, new[sku].name if sku in new else before[sku].name or sku, before.get(sku), new.get(sku))
        for sku in {*before, *new}
        if sku not in before or sku not in new or terms_of(before[sku]) != terms_of(new[sku])
    ]
    return sorted(found, key=lambda change: (change.name, change.sku))


def checked(item: Item, *, currency: str) -> PriceListItem:
    """Return an item as it is stored, or raise BadPrice for what is wrong with it alone."""
    try:
        stored = tiers.tiers_of(item.rows)
    except BadTiers as error:
        raise BadPrice(sku=item.sku, problem=error.problem, said=str(error)) from error
    if item.model not in PriceModel.values or item.unit not in Unit.values:
        raise BadPrice(sku=item.sku, problem="model", said=f"{item.model} per {item.unit}-hour is no way to price")
    if item.model == PriceModel.FLAT and len(stored) > 1:
        raise BadPrice(sku=item.sku, problem="flat", said="one price has no tiers")
    if not 0 <= item.minimum_micros <= tiers.MICROS_MAX or item.minimum_micros % minor_unit_micros(currency):
        raise BadPrice(sku=item.sku, problem="minimum", said="a minimum can be paid: it is in whole minor units")
    return PriceListItem(
        sku=item.sku,
        name=item.name,
        unit=item.unit,
        model=item.model,
        micros_per_unit_hour=stored[0][1],
        tiers=[] if item.model == PriceModel.FLAT else stored,
        minimum_micros=item.minimum_micros,
    )


def _scheduled_after(row: PriceList, moment: datetime) -> QuerySet[PriceList]:
    found = PriceList.objects.filter(currency=row.currency, state=State.SCHEDULED, effective_from__gt=moment)
    return found.order_by("effective_from")


def _withdraw_idle(price_list: PriceList, *, at: datetime) -> None:
    """Withdraw what a list published that now holds already before it, so that no month's tiers begin anew for it."""
    assert price_list.effective_from is not None
    before = in_force(currency=price_list.currency, at=price_list.effective_from - timedelta(microseconds=1))
    own = PriceVersion.objects.filter(price_list=price_list, withdrawn_at=None)
    idle = [row.pk for row in own if row.sku in before and terms_of(row) == terms_of(before[row.sku])]
    own.filter(pk__in=idle).update(withdrawn_at=at)


def _publish(price_list: PriceList, *, by: str, at: datetime) -> list[PriceVersion]:
    """Publish what a scheduled list says otherwise than what would hold at its moment."""
    assert price_list.effective_from is not None
    before = in_force(currency=price_list.currency, at=price_list.effective_from)
    return PriceVersion.objects.bulk_create(
        PriceVersion(
            sku=item.sku,
            name=item.name,
            currency=price_list.currency,
            price_list=price_list,
            effective_from=price_list.effective_from,
            published_at=at,
            published_by=by,
            **terms_of(item),
        )
        for item in items(price_list)
        if item.sku not in before or terms_of(item) != terms_of(before[item.sku])
    )


def _take_turns(currency: str) -> None:
    """Let nobody else number or schedule lists of a currency until the transaction ends."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(hashtext('price lists'), hashtext(%s))", [currency])


def _row(price_list: PriceList, item: Item) -> PriceListItem:
    row = checked(item, currency=price_list.currency)
    row.price_list = price_list
    return row


def _check_against_history(rows: Sequence[PriceListItem], *, currency: str) -> None:
    """Refuse a price for what floats, and one per another unit than its meter counts."""
    known = PriceVersion.objects.filter(sku__in=[row.sku for row in rows]).order_by("sku", "-pk").distinct("sku")
    units = {version.sku: version.unit for version in known}
    floating = set(
        PriceVersion.objects.filter(sku__in=units, currency=currency, is_floating=True).values_list("sku", flat=True)
    )
    for row in rows:
        if row.sku in floating:
            raise BadPrice(sku=row.sku, problem="floats", said="its price is made by the market")
        if units.get(row.sku, row.unit) != row.unit:
            raise BadPrice(sku=row.sku, problem="unit", said=f"it is sold per {units[row.sku]}-hour")


def _locked(price_list: PriceList, wanted: State) -> PriceList:
    """Lock a list, or raise PriceListMoved where it cannot move as wanted."""
    row = PriceList.objects.select_for_update(no_key=True).get(pk=price_list.pk)
    if wanted not in MOVES[State(row.state)]:
        raise PriceListMoved(state=row.state, wanted=wanted)
    return row


def _move(row: PriceList, state: State, **changed: object) -> None:
    if not moves.move(row, state, MOVES, **changed):
        raise PriceListMoved(state=row.state, wanted=state)


def _phase(row: PriceList, now: PriceList | None, at: datetime) -> Phase:
    if row.state != State.SCHEDULED:
        return Phase(row.state)
    assert row.effective_from is not None
    if row.effective_from > at:
        return Phase.SCHEDULED
    return Phase.IN_FORCE if now is not None and now.pk == row.pk else Phase.SUPERSEDED


def _use(sku: str, terms: tiers.Terms, unit_ms: int, *, version: int = 0, since: datetime = EPOCH) -> tiers.Use:
    return tiers.Use(
        price_version_id=version,
        sku=sku,
        effective_from=since,
        terms=terms,
        month=EPOCH,
        is_over=True,
        unit_ms=unit_ms,
        base_micros=0,
    )


def _forget_simulation(row: PriceList) -> None:
    SimulatedBill.objects.filter(price_list=row).delete()
    SimulatedWare.objects.filter(price_list=row).delete()


def _costs(uses: Iterable[tiers.Use]) -> Counter[str]:
    """Return what use costs, by the thing that was used."""
    rated, _ = tiers.rate(uses, [])
    found: Counter[str] = Counter()
    for each in rated:
        found[each.use.sku] += each.rated_micros
    return found
