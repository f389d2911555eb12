"""Money by bank: two people, each line of the statement once, matched to an invoice or to cash."""

from datetime import date
from uuid import uuid4

import pytest
from django.db import transaction
from django.db.utils import IntegrityError

from billing import bank, books, ledger
from billing.errors import AlreadyDecided, BadBankTransfer, InsufficientFunds, KeyReused, SecondPersonNeeded
from billing.invoicing import debts
from billing.models import BankTransfer, Collection, Invoice
from tests.billing.invoicing import APRIL, CLOSE, MAY, close, make_seller, use
from tests.billing.makers import HOUR, NOON, USD, at_the_same_moment, make_organization, make_price, wallet
from tests.billing.people import give_credit_line, two_people

pytestmark = pytest.mark.django_db
IN, OUT = BankTransfer.Direction.IN, BankTransfer.Direction.OUT


def recorded(organization, micros=100 * USD, *, direction=IN, reference=None, invoice=None, key=None, **more):
    ordinary = {"value_on": date(2026, 4, 1), "by": two_people()[0], "at": CLOSE}
    return bank.record(
        organization=organization, direction=direction, amount_micros=micros, invoice=invoice, key=key or uuid4(),
        bank_reference=reference or f"statement/{uuid4()}", **(ordinary | more),
    )  # fmt: skip


def approved(transfer, *, at=CLOSE + HOUR):
    bank.approve(transfer=transfer, by=two_people()[1], at=at)


def two_invoices():
    """Acme owes for March and for April: a dollar and a quarter of it as tax, twice."""
    make_seller()
    acme = make_organization()
    give_credit_line(acme, 1000 * USD)
    price = make_price(micros_per_unit_hour=USD // 2)
    use(acme, begin=NOON, price=price)
    close()
    use(acme, begin=APRIL, price=price, resource_id="ins_2")
    close(at=MAY + 2 * HOUR)
    return acme, list(Invoice.objects.order_by("pk"))


def left(organization, invoices):
    found = debts.left_due_micros(organization=organization, invoices=invoices)
    return [found[invoice.pk] for invoice in invoices]


def test_nothing_moves_until_somebody_else_approves():
    acme, (carol, _) = make_organization(), two_people()
    transfer = recorded(acme)
    assert wallet(acme).cash_micros == 0
    with pytest.raises(SecondPersonNeeded):
        bank.approve(transfer=transfer, by=carol, at=CLOSE)
    assert wallet(acme).cash_micros == 0
    approved(transfer)
    assert wallet(acme).cash_micros == 100 * USD
    with pytest.raises(AlreadyDecided):
        approved(transfer)
    assert wallet(acme).cash_micros == 100 * USD
    assert books.check(at=MAY) == []


def test_a_key_is_of_one_line_in_every_field():
    acme, (invoice, _) = two_invoices()
    line = {"micros": 1_250_000, "reference": "statement/7", "key": uuid4()}
    first = recorded(acme, **line)
    assert recorded(acme, **line) == first
    others = (
        {"micros": 1_000_000}, {"reference": "statement/8"}, {"invoice": invoice}, {"note": "Twice"},
        {"value_on": date(2026, 3, 31)}, {"direction": OUT},
    )  # fmt: skip
    for other in others:
        with pytest.raises(KeyReused):
            recorded(acme, **(line | other))


def test_the_database_too_wants_a_second_person():
    transfer = recorded(make_organization())
    with pytest.raises(IntegrityError, match="bank_transfer_needs_a_second_person"), transaction.atomic():
        BankTransfer.objects.filter(pk=transfer.pk).update(state="approved", decided_by=two_people()[0])


def test_without_a_name_the_oldest_invoice_is_paid_first():
    acme, invoices = two_invoices()
    approved(recorded(acme, 1_250_000), at=MAY + 3 * HOUR)
    assert left(acme, invoices) == [0, 1_250_000]


def test_the_invoice_that_is_named_is_paid_first_and_the_rest_pays_others_then_is_cash():
    acme, invoices = two_invoices()
    approved(recorded(acme, 1_000_000, invoice=invoices[1]), at=MAY + 3 * HOUR)
    assert left(acme, invoices) == [1_250_000, 250_000]
    approved(recorded(acme, 5_000_000, invoice=invoices[1]), at=MAY + 4 * HOUR)
    assert left(acme, invoices) == [0, 0]
    assert wallet(acme).cash_micros == 3_500_000
    assert set(Collection.objects.values_list("state", flat=True)) == {"paid"}
    assert books.check(at=MAY + 5 * HOUR) == []


def test_money_goes_back_from_free_cash_only():
    acme = make_organization(cash=10 * USD)
    transfer = recorded(acme, 11 * USD, direction=OUT)
    with pytest.raises(InsufficientFunds):
        approved(transfer)
    transfer.refresh_from_db()
    assert (transfer.state, wallet(acme).cash_micros) == ("proposed", 10 * USD)
    approved(recorded(acme, 10 * USD, direction=OUT))
    assert wallet(acme).cash_micros == 0
    assert books.check(at=MAY) == []


def test_what_makes_no_sense_is_refused_with_its_field():
    acme, other = make_organization(), make_organization()
    _, invoices = two_invoices()
    refused = [
        ({"micros": USD + 1}, "amount_micros"), ({"micros": 0}, "amount_micros"), ({"micros": -USD}, "amount_micros"),
        ({"value_on": date(2027, 1, 1)}, "value_on"), ({"invoice": invoices[0]}, "invoice"),
    ]  # fmt: skip
    for order, field in refused:
        with pytest.raises(BadBankTransfer) as error:
            recorded(acme, **order)
        assert error.value.field == field
    recorded(acme, reference="line 1")
    for organization in (acme, other):
        with pytest.raises(BadBankTransfer, match="recorded before"):
            recorded(organization, reference="line 1")
    key = uuid4()
    recorded(acme, key=key, reference="line 2")
    recorded(acme, key=key, reference="line 2")
    with pytest.raises(KeyReused):
        recorded(acme, 5 * USD, key=key, reference="line 2")
    assert wallet(acme).cash_micros == 0


def test_a_line_that_was_declined_may_be_recorded_again():
    acme = make_organization()
    bank.decline(transfer=recorded(acme, reference="line 1"), by=two_people()[0], at=CLOSE)
    approved(recorded(acme, reference="line 1"))
    assert wallet(acme).cash_micros == 100 * USD


@pytest.mark.django_db(transaction=True)
def test_two_approvals_at_once_move_money_once():
    acme, (_, dan) = make_organization(), two_people()
    transfer = recorded(acme)
    outcomes = at_the_same_moment(
        *[lambda: bank.approve(transfer=BankTransfer.objects.get(pk=transfer.pk), by=dan, at=CLOSE)] * 2
    )
    assert outcomes == ["AlreadyDecided", "done"]
    assert wallet(acme).cash_micros == 100 * USD


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("step", ["decide", "transfer", "settle", "refresh", "review"])
def test_an_approval_that_dies_at_any_step_has_done_nothing_and_can_be_repeated(step, monkeypatch):
    acme, invoices = two_invoices()
    transfer = recorded(acme, 2 * USD, invoice=invoices[1])
    place = {
        "decide": bank.decisions, "transfer": ledger, "settle": bank.receivables, "refresh": bank.runway,
        "review": bank.collecting,
    }[step]  # fmt: skip
    real = getattr(place, step)

    def dies(*args, **kwargs):
        real(*args, **kwargs)
        raise ConnectionError

    monkeypatch.setattr(place, step, dies)
    with pytest.raises(ConnectionError):
        approved(transfer)
    monkeypatch.undo()
    assert (wallet(acme).cash_micros, left(acme, invoices)) == (0, [1_250_000, 1_250_000])
    transfer = BankTransfer.objects.get(pk=transfer.pk)
    approved(transfer, at=MAY + 3 * HOUR)
    assert left(acme, invoices) == [500_000, 0]
    assert books.check(at=MAY + 4 * HOUR) == []
