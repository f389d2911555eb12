"""Price lists as capacity managers make them. Every change leaves an audit entry; approval takes a second person."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db import transaction
from django.utils.translation import gettext as _

from billing import price_lists, price_withdrawals
from billing.errors import BadPrice, PriceAlreadyHolds, PriceListMoved, SecondPersonNeeded
from billing.models import (
    PriceList,
    PriceListItem,
    PriceModel,
    PriceVersion,
    PriceWithdrawal,
    SimulatedBill,
    SimulatedWare,
)
from billing.price_lists import Item, Phase
from marketplace import audit, wares
from marketplace.access import Actor
from marketplace.console import simulation_chart
from marketplace.console.simulation_chart import SimulationChart
from marketplace.errors import BadOrder, Conflict, NotFound

BILLS_SHOWN = 50


@dataclass(frozen=True, slots=True)
class Simulation:
    """What the last 30 days cost and would have cost, with the customers whom it changes most first."""

    bills: list[SimulatedBill]
    customers: int
    before_micros: int
    after_micros: int
    chart: SimulationChart

    @property
    def change_micros(self) -> int:
        return self.after_micros - self.before_micros


def list_for(list_id: str) -> PriceList:
    """Return any price list, or raise NotFound."""
    found = price_lists.lists().filter(public_id=list_id).first()
    if found is None:
        raise NotFound
    return found


def named(rows: Sequence[PriceList], *, at: datetime) -> list[tuple[PriceList, Phase]]:
    """Return lists with where they stand."""
    phases = price_lists.phases(rows, at=at)
    return [(row, phases[row.pk]) for row in rows]


def before(row: PriceList, *, against: PriceList | None, at: datetime) -> dict[str, PriceListItem | PriceVersion]:
    """Return what a list is compared with: another list, else what was or is in force before it."""
    if against is not None:
        return {item.sku: item for item in price_lists.items(against)}
    if row.scheduled_at is not None:
        at = row.scheduled_at
    return dict(price_lists.in_force(currency=row.currency, at=at))


def simulation(row: PriceList) -> Simulation | None:
    """Return what was simulated of a list as it is now."""
    if row.simulated_at is None:
        return None
    bills = list(SimulatedBill.objects.filter(price_list=row).select_related("organization"))
    bills.sort(key=lambda bill: (-abs(bill.after_micros - bill.before_micros), bill.pk))
    return Simulation(
        bills=bills[:BILLS_SHOWN],
        customers=len(bills),
        before_micros=sum(bill.before_micros for bill in bills),
        after_micros=sum(bill.after_micros for bill in bills),
        chart=simulation_chart.drawn(SimulatedWare.objects.filter(price_list=row), currency=row.currency),
    )


@transaction.atomic
def propose(
    *, actor: Actor, sku: str, currency: str, amount_micros: int, key: UUID, at: datetime, drops_tiers: bool = False
) -> PriceList:
    """Open a draft in which one thing has another price, without tiers; all else is as it is in force.

    Raises BadOrder where the thing has tiers or a minimum and nobody has said that these are to go.
    """
    now = price_lists.in_force(currency=currency, at=at).get(sku)
    if now is not None and (now.tiers or now.minimum_micros) and not drops_tiers:
        raise BadOrder(
            "drops_tiers",
            _("Its price has tiers or a minimum, which one price would drop. Say that they are to go, or edit a price"
              " list instead."),
        )  # fmt: skip
    ware = next(ware for ware in wares.all_of_them() if ware.sku == sku)
    price = Item(
        sku=sku, name=ware.name, unit=ware.unit, model=PriceModel.FLAT, rows=((0, None, amount_micros),)
    )  # fmt: skip
    with _said():
        return draft(actor=actor, currency=currency, key=key, at=at, price=price)


@transaction.atomic
def draft(
    *,
    actor: Actor,
    currency: str,
    key: UUID,
    at: datetime,
    restores: PriceList | None = None,
    price: Item | None = None,
) -> PriceList:
    """Open a draft: a copy of what is in force but for one price, or of an earlier list to go back to."""
    row = price_lists.draft(
        currency=currency,
        by=actor.user.pk,
        key=key,
        at=at,
        names={ware.sku: ware.name for ware in wares.all_of_them()},
        restores=restores,
        price=price,
    )
    if not audit.is_recorded("price_list.draft", row.public_id):
        _record(actor, row, "price_list.draft", restores=restores.public_id if restores else None)
    return row


@transaction.atomic
def save(*, actor: Actor, price_list: PriceList, content: Sequence[Item], note: str) -> None:
    """Let a draft say this and nothing else; it has to be simulated again."""
    with _said():
        price_lists.save(price_list=price_list, content=content, note=note, by=actor.user.pk)
    _record(actor, price_list, "price_list.save", items=len(content), note=note)


@transaction.atomic
def simulate(*, actor: Actor, price_list: PriceList, at: datetime) -> None:
    """Work out what the last 30 days would have cost."""
    with _said():
        price_lists.simulate(price_list=price_list, at=at)
    _record(actor, price_list, "price_list.simulate")


@transaction.atomic
def approve(*, actor: Actor, price_list: PriceList, at: datetime) -> None:
    """Let a list be final; not by whoever drafted or edited it."""
    with _said():
        price_lists.approve(price_list=price_list, by=actor.user.pk, at=at)
    _record(actor, price_list, "price_list.approve")


@transaction.atomic
def schedule(*, actor: Actor, price_list: PriceList, effective_from: datetime, at: datetime) -> int:
    """Publish an approved list for a moment to come; return how many prices it changes then."""
    with _said():
        found = price_lists.schedule(price_list=price_list, effective_from=effective_from, by=actor.name, at=at)
    changed = sum(version.price_list_id == price_list.pk for version in found)
    _record(actor, price_list, "price_list.schedule", effective_from=effective_from.isoformat(), prices=changed)
    return changed


@transaction.atomic
def withdraw(*, actor: Actor, price_list: PriceList) -> None:
    """Give up a list that was not scheduled."""
    with _said():
        price_lists.withdraw(price_list=price_list)
    _record(actor, price_list, "price_list.withdraw")


def withdrawal_for(withdrawal_id: str) -> PriceWithdrawal:
    """Return any proposal to withdraw a scheduled list, or raise NotFound."""
    found = price_withdrawals.listed().filter(public_id=withdrawal_id).first()
    if found is None:
        raise NotFound
    return found


@transaction.atomic
def propose_withdrawal(*, actor: Actor, price_list: PriceList, reason: str, key: UUID, at: datetime) -> PriceWithdrawal:
    """Propose that a scheduled list never comes into force; somebody else decides."""
    with _said():
        made = price_withdrawals.propose(price_list=price_list, reason=reason, by=actor.user.pk, key=key, at=at)
    if not audit.is_recorded("price_withdrawal.propose", made.public_id):
        _record_withdrawal(actor, made, "price_withdrawal.propose")
    return made


@transaction.atomic
def approve_withdrawal(*, actor: Actor, withdrawal: PriceWithdrawal, at: datetime) -> None:
    """Withdraw the list; not by whoever proposed it."""
    if actor.user.pk == withdrawal.proposed_by_id:
        raise Conflict(_("You proposed this; somebody else has to decide."))
    with _said():
        price_withdrawals.approve(withdrawal=withdrawal, by=actor.user.pk, name=actor.name, at=at)
    _record_withdrawal(actor, withdrawal, "price_withdrawal.approve")


@transaction.atomic
def decline_withdrawal(*, actor: Actor, withdrawal: PriceWithdrawal, at: datetime) -> None:
    """Let the list come into force as it is scheduled."""
    price_withdrawals.decline(withdrawal=withdrawal, by=actor.user.pk, at=at)
    _record_withdrawal(actor, withdrawal, "price_withdrawal.decline")


def _record_withdrawal(actor: Actor, row: PriceWithdrawal, verb: str) -> None:
    after = {"list": str(row.price_list), "effective_from": row.effective_from.isoformat(), "reason": row.reason}
    audit.record(actor=actor, organization=None, verb=verb, subject_id=row.public_id, after=after)


@contextmanager
def _said() -> Iterator[None]:
    """Turn what the till refuses into the reader's language."""
    try:
        yield
    except SecondPersonNeeded as error:
        raise Conflict(_("You drafted or edited this list; somebody else has to approve it.")) from error
    except PriceListMoved as error:
        raise Conflict(
            _("The list is in another state now, and that does not allow this. Nothing was changed.")
        ) from error
    except PriceAlreadyHolds as error:
        raise Conflict(
            _("The list is in force, or will be within a minute. Schedule another one to take its place.")
        ) from error
    except BadPrice as error:
        raise Conflict(problem(error)) from error


def problem(error: BadPrice) -> str:
    """Return what is wrong with a price, in the reader's language."""
    said = {
        "count": _("Write 1 to 20 tiers."),
        "gap": _("Some hours have no price: each tier begins where the one before ends, and the last has no end."),
        "overlap": _(
            "Some hours have two prices: each tier begins where the one before ends, and the last has no end."
        ),
        "order": _("A tier ends after it begins."),
        "price": _("A price is more than nothing and at most a billion."),
        "flat": _("One price has no tiers: choose graduated or volume."),
        "model": _("Choose how it is priced."),
        "minimum": _("A minimum is zero or more, in whole units of the currency that can be paid."),
        "floats": _("The market makes this price."),
        "unit": _("It is sold per another unit."),
        "twice": _("It is named twice."),
        "empty": _("The list names nothing."),
    }
    return said.get(error.problem, str(error))


def _record(actor: Actor, row: PriceList, verb: str, **after: Any) -> None:
    audit.record(actor=actor, organization=None, verb=verb, subject_id=row.public_id, after={"list": str(row), **after})
