"""What the processor tells us: signed, stored once, handled by looking; in any order and however often, one ending."""

import json
from datetime import timedelta
from random import Random

import pytest
from django.db import transaction
from hypothesis import given, settings
from hypothesis import strategies as st
from stripe import WebhookSignature

from billing import books
from billing.errors import BadSignature
from billing.models import Card, Dispute, Payment, ProcessorEvent, Refund, Transfer
from billing.payments import events, gateway, objects, paying, refunds
from billing.test_processor import disputes as far_disputes
from billing.test_processor import hosted
from billing.test_processor import paying as far_paying
from tests.billing.makers import NOON, USD, make_organization
from tests.billing.payments.stage import DECLINED_LATER, GOOD, NEEDS_PROOF, moved, order
from tests.billing.payments.test_refunds import refund_of


def signed(event, *, secret="whsec_ours", at=None):
    body = json.dumps(event)
    return body.encode(), WebhookSignature.generate_signature_header(body, secret, at)


def test_a_signed_event_is_read_and_kept_once(customer, processor):
    processor.card(customer)
    body, signature = signed(processor.world.events[-1])
    event = gateway.signed_event(body=body, signature=signature)
    assert event.type == "checkout.session.completed"
    assert events.receive(event=event, at=NOON)
    assert not events.receive(event=event, at=NOON)
    assert ProcessorEvent.objects.count() == 1


def test_what_is_forged_stale_or_no_event_is_refused(customer, processor):
    processor.card(customer)
    event = processor.world.events[-1]
    body, signature = signed(event)
    forged = [
        (body, signed(event, secret="whsec_other")[1]),
        (body.replace(b"setup", b"other"), signature),
        (body, ""),
        (body, "t=1,v1="),
        (body, "nonsense"),
        (b"\xff\xfe", signature),
        signed(event, at=1_700_000_000),
        signed({"object": "event"}),
        signed([1]),
    ]
    for sent, header in forged:
        with pytest.raises(BadSignature):
            gateway.signed_event(body=sent, signature=header)


def test_an_event_is_signed_with_any_of_our_secrets(customer, processor, settings):
    settings.STRIPE_WEBHOOK_SECRET = "whsec_ours, whsec_connect"
    processor.card(customer)
    event = processor.world.events[-1]
    for secret in ("whsec_ours", "whsec_connect"):
        body, signature = signed(event, secret=secret)
        assert gateway.signed_event(body=body, signature=signature).id == event["id"]
    body, signature = signed(event, secret="whsec_other")
    with pytest.raises(BadSignature):
        gateway.signed_event(body=body, signature=signature)


def test_an_event_about_a_strangers_object_is_refused_and_moves_nothing(customer, processor, caplog):
    processor.ghost(customer, metadata={"gpumarket": "payment:pay_nobody"})
    outcomes = processor.deliver()
    refused = [outcome for outcome in outcomes if "refused: it belongs to none of our payments" in outcome]
    assert len(refused) == 2
    assert "was refused" in caplog.text
    assert (Transfer.objects.count(), Payment.objects.count()) == (0, 0)
    assert not ProcessorEvent.objects.filter(handled_at=None).exists()


def test_an_event_about_what_the_processor_does_not_know_is_refused(customer, processor):
    processor.ghost(customer)
    event = dict(processor.world.events[-1], data={"object": {"id": "pi_invented"}})
    assert "refused: No such payment_intent" in processor.deliver(event)[-1]


def test_an_event_is_tried_again_while_the_processor_is_away(customer, processor):
    processor.card(customer)
    payment = paying.send(payment_id=order(customer).pk, at=processor.at)
    last = processor.world.events[-1]
    processor.fails("silent_before", "silent_before")
    events.receive(event=objects.event_of(last), at=processor.at)
    assert events.handle_due(at=processor.later()) == 0
    assert events.handle_due(at=processor.later()) == 0
    assert events.handle_due(at=processor.later()) == 1
    assert ProcessorEvent.objects.get().outcome == f"{payment.public_id} is succeeded"


def test_events_that_never_came_are_fetched(customer, processor):
    ordered = paying.top_up(organization=customer, amount_micros=20 * USD, key="p", at=NOON)
    payment = paying.send(payment_id=ordered.pk, at=NOON)
    url = paying.continue_url(payment=payment, at=NOON)
    hosted.type_card(processor.world, url.rpartition("/")[2], number=GOOD)
    assert events.fetch_missed(at=processor.at) == len(processor.world.events)
    assert events.fetch_missed(at=processor.at) == 0
    processor.deliver()
    payment.refresh_from_db()
    assert (payment.state, moved(payment)) == ("succeeded", [20 * USD])


def test_a_card_that_was_removed_at_the_processor_is_removed_here(customer, processor):
    card = processor.card(customer)
    processor.deliver()
    far_paying.detach(processor.world, {}, thing=card.processor_id)
    assert processor.deliver()[-1] == "looked at the cards"
    assert not Card.objects.filter(removed_at=None).exists()


def a_history(processor, customer):
    """Play what a customer may live through; nobody has told us anything of what happened at the processor."""
    paid = paying.send(payment_id=order(customer, key="1", card=processor.card(customer)).pk, at=NOON)
    paying.send(payment_id=order(customer, key="2", card=processor.card(customer, DECLINED_LATER)).pk, at=NOON)
    proved = paying.send(payment_id=order(customer, key="3", card=processor.card(customer, NEEDS_PROOF)).pk, at=NOON)
    url = paying.continue_url(payment=proved, at=NOON)
    hosted.prove(processor.world, url.rpartition("/")[2], is_them=True)
    ordered = paying.top_up(organization=customer, amount_micros=30 * USD, key="4", at=NOON)
    page = paying.continue_url(payment=paying.send(payment_id=ordered.pk, at=NOON), at=NOON)
    hosted.type_card(processor.world, page.rpartition("/")[2], number=GOOD)
    refund = refund_of(paid, 5 * USD)
    refunds.look(refund_id=refund.pk, at=NOON)
    disputed = far_disputes.open_dispute(processor.world, proved.processor_id)
    far_disputes.close_dispute(processor.world, disputed["id"], is_won=True)
    far_paying.fail_refund(processor.world, processor.world.get("refund", Refund.objects.get().processor_id))


def the_ending(customer):
    return (
        sorted(Payment.objects.values_list("key", "state", "failure_code")),
        list(Refund.objects.values_list("state", flat=True)),
        list(Dispute.objects.values_list("state", flat=True)),
        sorted(Card.objects.values_list("last4", "removed_at")),
        {account.kind: account.balance_micros for account in customer.accounts.all()},
        sorted(Transfer.objects.values_list("amount_micros", "source__kind", "target__kind")),
    )


def played(processor, retell):
    """Live through the history in a fresh world, hear of it as `retell` has it, and return how everything ended."""
    begin = transaction.savepoint()  # which no call to the processor takes for a transaction of ours
    processor.fresh()
    customer = make_organization()
    a_history(processor, customer)
    for event in retell(list(processor.world.events)):
        processor.deliver(event)
    events.fetch_missed(at=processor.at)
    events.handle_due(at=processor.later(timedelta(hours=1)), limit=1000)
    assert books.check(at=NOON) == []
    ending = the_ending(customer)
    transaction.savepoint_rollback(begin)
    return ending


@pytest.mark.django_db
def test_any_order_and_repetition_of_events_ends_the_same(processor):
    straight = played(processor, lambda told: told)
    assert {key: state for key, state, _ in straight[0]} == {
        "1": "succeeded", "2": "failed", "3": "succeeded", "4": "succeeded",
    }  # fmt: skip
    assert (straight[1], straight[2], straight[4]["cash"]) == (["failed"], ["won"], 70 * USD)

    @settings(max_examples=6, deadline=None)
    @given(seed=st.integers(0, 10**6), repeats=st.integers(0, 20), lost=st.integers(0, 10))
    def in_any_order(seed, repeats, lost):
        def retell(told):
            chance = Random(seed)
            told = told + chance.choices(told, k=repeats)
            chance.shuffle(told)
            return told[lost:]

        assert played(processor, retell) == straight

    in_any_order()
