"""Invoices at the same moment, senders that die and batches that fail: no gap, no double, on real connections."""

from contextlib import suppress
from datetime import UTC, datetime
from uuid import uuid4

import pytest
from django.apps import apps
from django.db import connection, connections
from django.db.models import QuerySet

from billing import accounts, books, ledger, usage
from billing.invoicing import crediting, issuing, sellers, writing
from billing.models import CreditProposal, Invoice, InvoiceItem, InvoiceSeries
from tests.billing.invoicing import CLOSE, MAY, charged, close, make_seller, use
from tests.billing.makers import HOUR, NOON, USD, at_the_same_moment, make_organization, make_price

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def the_books_balance(transactional_db, request):
    yield
    if "without" not in request.node.name:
        assert books.check(at=datetime(2030, 1, 1, tzinfo=UTC)) == []
        assert books.recompute() == []


def customers(count, *, price=None):
    price = price or make_price()
    found = [make_organization(cash=100 * USD) for _ in range(count)]
    for organization in found:
        use(organization, begin=NOON, resource_id=f"ins_{organization.pk}", price=price)
    return found


def numbers():
    return sorted(Invoice.objects.filter(kind="invoice").values_list("sequence", flat=True))


def issue_twice_at_the_same_moment(monkeypatch, meet):
    make_seller()
    (acme,) = customers(1)
    original = accounts.lock_many

    def then_meet(keys):
        found = original(keys)
        meet()
        return found

    monkeypatch.setattr(accounts, "lock_many", then_meet)
    return at_the_same_moment(
        lambda: issuing.issue(organization=acme, at=CLOSE), lambda: issuing.issue(organization=acme, at=CLOSE + HOUR)
    )


def test_without_the_lock_two_invoices_would_have_the_same_use(monkeypatch, meet):
    monkeypatch.setattr(QuerySet, "select_for_update", lambda self, **options: self)
    outcomes = issue_twice_at_the_same_moment(monkeypatch, meet)
    assert outcomes != ["NothingToInvoice", "done"]


def test_of_two_who_invoice_at_the_same_moment_one_wins(monkeypatch, meet):
    assert issue_twice_at_the_same_moment(monkeypatch, meet) == ["NothingToInvoice", "done"]
    assert numbers() == [1]


def test_two_sweeps_at_the_same_moment_issue_each_invoice_once(monkeypatch):
    make_seller()
    customers(7)
    monkeypatch.setattr(issuing, "BATCH", 2)
    assert at_the_same_moment(close, close, close) == ["done"] * 3
    assert numbers() == list(range(1, 8))


def test_numbers_have_no_gap_however_many_are_undone(monkeypatch):
    """Threads issue one invoice after the other; every third transaction is undone after it took its number."""
    make_seller()
    price = make_price()
    organizations = customers(6, price=price)
    write, tries = writing.write, iter(range(1000))

    def fails_sometimes(drafts, *, numbers, at):
        invoices = write(drafts, numbers=numbers, at=at)
        if next(tries) % 3 == 0:
            raise RuntimeError("killed before the commit")
        return invoices

    monkeypatch.setattr(writing, "write", fails_sometimes)

    def issue_again_and_again(organization):
        for _ in range(6):
            with suppress(Exception):
                issuing.issue(organization=organization, at=CLOSE)

    calls = [lambda one=one: issue_again_and_again(one) for one in organizations]
    assert at_the_same_moment(*calls) == ["done"] * 6
    assert numbers() == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("place", ["take_numbers", "write", "move_all"])
def test_a_sweep_whose_connection_is_killed_leaves_nothing_and_the_next_does_it_all(monkeypatch, place):
    make_seller()
    customers(3)
    owner = {"take_numbers": sellers, "write": writing, "move_all": ledger}[place]
    original = getattr(owner, place)

    def killed(*args, **kwargs):
        found = original(*args, **kwargs)
        with connection.cursor() as cursor, suppress(Exception):
            cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        return found

    monkeypatch.setattr(owner, place, killed)
    with suppress(Exception):
        close()
    connections["default"].close()
    assert numbers() == []
    assert InvoiceSeries.objects.get(kind="invoice").next_number == 1
    monkeypatch.setattr(owner, place, original)
    assert close() == 3
    assert numbers() == [1, 2, 3]


def test_one_organization_that_cannot_be_invoiced_does_not_keep_the_others_from_theirs(monkeypatch):
    make_seller()
    organizations = customers(3)
    original = issuing.drafted

    def refuses_one(*, payer, **rest):
        if payer.cash.organization_id == organizations[1].pk:
            raise RuntimeError("no")
        return original(payer=payer, **rest)

    monkeypatch.setattr(issuing, "drafted", refuses_one)
    assert close() == 2
    monkeypatch.setattr(issuing, "drafted", original)
    assert close() == 1
    assert numbers() == [1, 2, 3]


def test_a_meter_that_stops_while_its_invoice_is_issued_is_invoiced_once():
    make_seller()
    acme = make_organization(cash=10_000 * USD)
    price = make_price()
    charged(use(acme, begin=CLOSE - 20 * HOUR, hours=None, price=price), through=CLOSE)
    outcomes = at_the_same_moment(close, lambda: usage.stop(resource_id="ins_1", at=CLOSE - 10 * HOUR))
    assert outcomes == ["done", "done"]
    use(acme, begin=CLOSE + HOUR, hours=40, resource_id="ins_2", price=price)
    close(at=MAY + 2 * HOUR)
    of_first = InvoiceItem.objects.filter(span__resource_id="ins_1").values_list("amount_micros", flat=True)
    assert sum(of_first) == 50 * USD


def test_of_two_who_approve_at_the_same_moment_one_wins():
    make_seller()
    customers(1)
    close()
    users = apps.get_model("marketplace", "User").objects
    carol, dan, eve = (users.create_user(f"{name}@operator.example").pk for name in ("carol", "dan", "eve"))
    proposal = crediting.propose(
        invoice=Invoice.objects.get(), net_micros=USD, reason="slow", by=carol, key=uuid4(), at=CLOSE
    )
    outcomes = at_the_same_moment(
        *(
            lambda by=by: crediting.approve(
                proposal=CreditProposal.objects.select_related("invoice__organization").get(pk=proposal.pk),
                by=by,
                at=CLOSE,
            )
            for by in (dan, eve)
        )
    )
    assert outcomes == ["AlreadyDecided", "done"]
    assert Invoice.objects.filter(kind="credit_note").count() == 1
