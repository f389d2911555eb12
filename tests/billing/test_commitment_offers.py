"""Commitments that are asked for, offered and accepted: nobody promises for a customer but the customer."""

from uuid import uuid4

import pytest
from django.db import DatabaseError, transaction

from billing import commitment_requests, commitments
from billing.errors import (
    AlreadyCommitted,
    AlreadyDecided,
    AlreadyProposed,
    BadCommitment,
    KeyReused,
    SecondPersonNeeded,
)
from billing.models import Commitment, CommitmentPrice, CommitmentRequest, Notice
from tests.billing.makers import HOUR, NOON, make_organization
from tests.billing.pricing import APRIL, MAY, SKU, committed, in_force, item, person

pytestmark = pytest.mark.django_db


@pytest.fixture
def acme(db):
    in_force(item(name="H100"), begins=NOON - HOUR)
    return make_organization()


@pytest.fixture
def offered(acme):
    made = committed(acme, agreed=False)
    with pytest.raises(SecondPersonNeeded):
        commitments.offer(commitment=made, by=person(), at=NOON)
    commitments.offer(commitment=made, by=person("bob"), at=NOON)
    return made


def ask(organization, *, key=None, **changes):
    wanted = {"kind": "hours", "skus": [SKU], "amount": 100, "starts_at": APRIL, "months": 2, "note": "x"} | changes
    return commitment_requests.ask(
        organization=organization, by=person("alice"), key=key or uuid4(), at=NOON, **wanted
    )  # fmt: skip


def test_what_is_offered_holds_once_its_customer_accepts(offered):
    assert not CommitmentPrice.objects.filter(is_agreed=True).exists()
    assert Notice.objects.get().kind == "commitment_offered"
    commitments.accept(commitment=offered, by=person("alice"), at=NOON)
    assert (offered.state, offered.answered_by_id) == ("agreed", person("alice"))
    assert CommitmentPrice.objects.get().is_agreed
    with pytest.raises(AlreadyDecided):
        commitments.refuse(commitment=offered, by=person("alice"), at=NOON)


def test_what_is_refused_is_over_and_an_operator_cannot_agree_in_its_place(offered):
    with pytest.raises(AlreadyDecided):
        commitments.agree(commitment=offered, by=person("bob"), at=NOON)
    with pytest.raises(AlreadyDecided):
        commitments.decline(commitment=offered, by=person("bob"), at=NOON)
    commitments.refuse(commitment=offered, by=person("alice"), at=NOON)
    assert offered.state == "declined"
    with pytest.raises(AlreadyDecided):
        commitments.accept(commitment=offered, by=person("alice"), at=NOON)


def test_an_offer_cannot_be_accepted_late_nor_beside_another_commitment(acme, offered):
    with pytest.raises(BadCommitment):
        commitments.accept(commitment=offered, by=person("alice"), at=APRIL)
    committed(acme)
    with pytest.raises(AlreadyCommitted):
        commitments.accept(commitment=offered, by=person("alice"), at=NOON)


def test_what_was_not_offered_cannot_be_accepted(acme):
    with pytest.raises(AlreadyDecided):
        commitments.accept(commitment=committed(acme, agreed=False), by=person("alice"), at=NOON)


def test_the_database_keeps_what_was_offered_as_it_is(offered):
    with pytest.raises(DatabaseError, match="refused"), transaction.atomic():
        Commitment.objects.update(discount_bps=1)
    commitments.accept(commitment=offered, by=person("alice"), at=NOON)
    with pytest.raises(DatabaseError, match="refused"), transaction.atomic():
        Commitment.objects.update(state="declined")


def test_a_customer_asks_once_at_a_time_and_an_offer_answers_it(acme):
    key = uuid4()
    made = ask(acme, key=key)
    assert ask(acme, key=key) == made
    with pytest.raises(KeyReused):
        ask(acme, key=key, amount=5)
    with pytest.raises(AlreadyProposed):
        ask(acme)
    commitment_requests.answer(request=made, commitment=committed(acme, agreed=False), at=NOON)
    with pytest.raises(AlreadyDecided):
        commitment_requests.withdraw(request=made, at=NOON)
    second = ask(acme, starts_at=MAY)
    commitment_requests.decline(request=second, answer="Too few", at=NOON)
    assert [row.state for row in commitment_requests.listed()] == ["declined", "answered"]


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("skus", {"skus": ["none"]}), ("skus", {"skus": []}), ("amount", {"amount": 0}), ("kind", {"kind": "love"}),
        ("months", {"months": 61}), ("starts_at", {"starts_at": NOON}),
    ],
)  # fmt: skip
def test_what_nobody_can_promise_is_refused(acme, field, change):
    with pytest.raises(BadCommitment) as refused:
        ask(acme, **change)
    assert refused.value.field == field
    assert not CommitmentRequest.objects.exists()
