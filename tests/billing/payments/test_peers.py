"""The same payments over HTTP with the real SDK: against the bundled processor and against one that nobody here wrote.

localstripe forgets idempotency keys, so there only looking first keeps a lost answer from being a second charge. It has
no hosted pages, no Connect, no disputes and no fees; those are played by the bundled processor alone.
"""

import os
import subprocess
import sys
import threading
import urllib.request
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urlencode

import pytest
import stripe

from billing.models import Payment
from billing.payments import customers, gateway, paying, refunds
from billing.test_processor.client import new_world
from billing.test_processor.server import Keeper, serve
from marketplace.embedded.addresses import free_port
from tests.billing.makers import NOON, USD, make_organization, wallet
from tests.billing.payments.conftest import make_card
from tests.billing.payments.stage import DECLINED_LATER, GOOD, MINUTE, NEEDS_PROOF, moved, order
from tests.billing.payments.test_refunds import refund_of
from tests.marketplace.embedded.conftest import wait_until

SECRET = "sk_test_ours"


def answers(url):
    try:
        urllib.request.urlopen(url, timeout=1)
    except URLError as error:
        return hasattr(error, "code")
    return True


@contextmanager
def bundled(home):
    port = free_port()
    world = new_world(base_url=f"http://127.0.0.1:{port}", api_key=SECRET)
    keeper = Keeper(world, file=home / "world.json", webhook_url="http://127.0.0.1:9/", secret="whsec_ours")
    server = serve(keeper, port=port)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{port}", keeper
    server.shutdown()
    server.server_close()
    thread.join()


@contextmanager
def localstripe(home):
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("localstripe_here.py")), str(port)],
        env={**os.environ, "TMPDIR": str(home)},
    )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: answers(f"{url}/v1/customers"), within_s=60)
        yield url, None
    finally:
        process.terminate()
        process.wait(timeout=20)


@pytest.fixture(scope="module", params=[bundled, localstripe], ids=["bundled", "localstripe"])
def peer(request, tmp_path_factory):
    with request.param(tmp_path_factory.mktemp("peer")) as found:
        yield found


class Lossy(stripe.RequestsClient):
    """Carries calls, and loses the answer to the next payment when told to."""

    loses = False

    def request(self, method, url, headers, post_data=None):
        answer = super().request(method, url, headers, post_data)
        if Lossy.loses and method == "post" and url.endswith("/v1/payment_intents"):
            Lossy.loses = False
            raise stripe.APIConnectionError("the answer was lost", should_retry=True)
        return answer


@pytest.fixture
def customer(db, peer, settings, monkeypatch):
    settings.STRIPE_API_BASE = peer[0]
    monkeypatch.setattr(gateway, "transport", Lossy)
    Lossy.loses = False
    return make_organization()


def save_card(organization, number=GOOD):
    """Save a card as the processor's page would: no card number is ever known to the till."""
    far = gateway._client().v1
    given = {"number": number, "exp_month": 12, "exp_year": 2030, "cvc": "123"}
    made = far.payment_methods.create({"type": "card", "card": given})
    far.payment_methods.attach(made.id, {"customer": customers.customer_id(organization)})
    return make_card(organization, processor_id=made.id)


def charges_of(payment):
    """What the processor has of a payment's key."""
    customer = customers.known_id(payment.organization_id)
    found = gateway._client().v1.payment_intents.list({"customer": customer, "limit": 100})
    return [one for one in found.data if one.to_dict()["metadata"].get("gpumarket") == payment.processor_key]


def sent(organization):
    return paying.send(payment_id=order(organization, key=f"peer {organization.pk}").pk, at=NOON)


def test_a_saved_card_pays_once(customer):
    save_card(customer)
    payment = sent(customer)
    assert (payment.state, moved(payment)) == ("succeeded", [20 * USD])
    assert gateway.intent(payment.processor_id).received_micros == 20 * USD
    assert len(charges_of(payment)) == 1


def test_a_declined_card_moves_nothing(customer):
    save_card(customer, DECLINED_LATER)
    payment = sent(customer)
    assert (payment.state, moved(payment)) == ("failed", [])
    assert payment.failure_text == "Your card was declined."


def test_a_card_that_asks_for_proof_waits_for_its_owner(customer):
    save_card(customer, NEEDS_PROOF)
    payment = sent(customer)
    assert (payment.state, moved(payment)) == ("needs_action", [])
    assert paying.cancel(payment=payment, at=NOON).state == "cancelled"


def test_a_lost_answer_is_found_and_charged_once(customer):
    save_card(customer)
    Lossy.loses = True
    payment = sent(customer)
    assert (payment.state, moved(payment)) == ("unknown", [])
    assert paying.look(payment_id=payment.pk, at=NOON + MINUTE).state == "succeeded"
    assert len(charges_of(payment)) == 1
    assert moved(payment) == [20 * USD]


def test_without_looking_first_a_processor_that_forgets_keys_would_charge_twice(customer, peer, monkeypatch):
    save_card(customer)
    monkeypatch.setattr(gateway, "find_intent", lambda **asked: None)
    Lossy.loses = True
    payment = sent(customer)
    paying.look(payment_id=payment.pk, at=NOON + MINUTE)
    forgets_keys = peer[1] is None
    assert len(charges_of(payment)) == (2 if forgets_keys else 1)


def test_a_refund_goes_back_once(customer):
    save_card(customer)
    payment = sent(customer)
    refund = refund_of(payment)
    assert refunds.look(refund_id=refund.pk, at=NOON).state == "succeeded"
    assert gateway.find_refund(intent_id=payment.processor_id, key=refund.processor_key).amount_micros == 5 * USD
    assert wallet(customer).cash_micros == 15 * USD


@contextmanager
def listening():
    """A door for webhooks that keeps what it is told."""
    heard = []

    class Door(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            heard.append((body, self.headers["Stripe-Signature"]))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *said):
            pass

    server = HTTPServer(("127.0.0.1", 0), Door)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/", heard
    server.shutdown()
    server.server_close()
    thread.join()


def test_its_webhooks_carry_a_signature_that_we_accept(customer, peer):
    save_card(customer)
    url, keeper = peer
    with listening() as (door, heard):
        if keeper is None:
            told = urlencode({"url": door, "secret": "whsec_ours"}).encode()
            urllib.request.urlopen(f"{url}/_config/webhooks/ours", data=told)
        else:
            keeper.webhook_url = door
        payment = sent(customer)
        if keeper is not None:
            keeper.deliver()

        def told_of_it():
            read = [gateway.signed_event(body=body, signature=signature) for body, signature in list(heard)]
            return (payment.processor_id, "payment_intent.succeeded") in {(one.object_id, one.type) for one in read}

        wait_until(told_of_it, within_s=20)
    assert Payment.objects.get().state == "succeeded"
