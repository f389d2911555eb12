"""Cards and payments in the portal: with the bundled processor behind it, through its own page and back."""

import json
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.test import Client
from django.urls import reverse
from stripe import WebhookSignature

from billing import accounts
from billing.models import AutomaticTopUp, Card, Payment, ProcessorEvent
from billing.payments import events
from billing.test_processor import hosted
from marketplace.models import AuditEntry, Organization, Role, User
from tests.billing.payments.conftest import _keys, processor
from tests.billing.payments.stage import DECLINED_LATER, GOOD, NEEDS_PROOF, Processor
from tests.conftest import make_member, make_organization, make_person
from tests.marketplace.portal.conftest import browser
from tests.marketplace.portal.reading import faults, read

__all__ = ["_keys", "processor"]


def text_of(client: Client, path: str) -> str:
    page = read(client.get(path))
    assert faults(page) == []
    return page.text


def pay_in(client: Client, amount: str = "20", **fields: str) -> Any:
    return client.post(reverse("top-up"), {"amount": amount, "card": "new", "key": "form-1"} | fields)


def cash(organization: Organization) -> int:
    return accounts.wallet(organization=organization).cash_micros


def test_a_newcomer_pays_with_a_card_typed_on_the_processors_page(
    owner: Client, acme: Organization, processor: Processor
) -> None:
    answer = pay_in(owner)
    assert answer.status_code == 302
    page = owner.get(answer.headers["Location"])
    payment = Payment.objects.get()
    assert f"url={reverse('payment-continue', args=[payment.public_id])}" in page.content.decode()
    away = owner.get(reverse("payment-continue", args=[payment.public_id])).headers["Location"]
    assert away.startswith("http://processor.invalid/pay/cs_")
    back = hosted.type_card(processor.world, away.rpartition("/")[2], number=GOOD)
    text = text_of(owner, urlsplit(back).path)
    assert "The money is in your organization's cash." in text
    assert cash(acme) == 20_000_000
    assert "Visa •••• 4242" in text_of(owner, reverse("payment-methods"))
    assert AuditEntry.objects.get(verb="payment.order").subject_id == payment.public_id


def test_a_saved_card_pays_with_one_click_and_a_form_sent_twice_pays_once(
    owner: Client, acme: Organization, processor: Processor
) -> None:
    card = processor.card(acme)
    for _ in range(2):
        answer = pay_in(owner, card=card.public_id)
        assert answer.headers["Location"] == reverse("payment", args=[Payment.objects.get().public_id])
    assert (cash(acme), len(processor.charges)) == (20_000_000, 1)
    assert pay_in(owner, "30", card=card.public_id).status_code == 409
    assert AuditEntry.objects.filter(verb="payment.order").count() == 1


def test_another_organizations_card_pays_nothing_for_who_may_use_both(
    owner: Client, acme: Organization, alice: User, processor: Processor
) -> None:
    processor.card(acme)
    card = processor.card(make_organization("Beta", alice))
    assert pay_in(owner, card=card.public_id).status_code == 409
    assert not Payment.objects.exists()


def test_a_form_pays_for_whom_it_was_shown_for_whatever_was_chosen_in_another_tab_since(
    owner: Client, acme: Organization, alice: User, processor: Processor
) -> None:
    beta = make_organization("Beta", alice)
    shown = owner.get(reverse("top-up")).content.decode()
    field = f'<input type="hidden" name="organization" value="{acme.public_id}">'
    assert shown.count(field) == 2
    owner.post(reverse("organization-choose"), {"organization": beta.public_id})
    pay_in(owner, organization=acme.public_id)
    assert Payment.objects.get().organization == acme
    rule = {"threshold": "10", "automatic_amount": "20", "monthly_ceiling": "40"}
    owner.post(reverse("automatic-top-up"), rule | {"organization": acme.public_id})
    assert AutomaticTopUp.objects.get().organization == acme
    stranger = make_organization("Stranger", make_person("eve@stranger.example"))
    assert pay_in(owner, organization=stranger.public_id, key="form-2").status_code == 404


def test_a_card_is_added_on_the_processors_page(owner: Client, acme: Organization, processor: Processor) -> None:
    away = owner.get(reverse("card-add")).headers["Location"]
    back = hosted.type_card(processor.world, away.rpartition("/")[2], number=GOOD)
    parts = urlsplit(back)
    assert "Default card" in text_of(owner, f"{parts.path}?{parts.query}")
    second = processor.card(acme, NEEDS_PROOF)
    assert owner.post(reverse("payment-methods"), {"card": second.public_id}).status_code == 302
    assert Card.objects.get(is_default=True).pk == second.pk
    assert owner.post(reverse("card-remove", args=[second.public_id])).status_code == 302
    assert [card.last4 for card in Card.objects.filter(removed_at=None, is_default=True)] == ["4242"]
    assert processor.world.get("payment_method", second.processor_id)["customer"] is None
    assert owner.get(reverse("card-remove", args=[second.public_id])).status_code == 404


def test_a_bank_that_asks_is_answered_and_the_payment_goes_on(
    owner: Client, acme: Organization, processor: Processor
) -> None:
    card = processor.card(acme, NEEDS_PROOF)
    path = urlsplit(pay_in(owner, card=card.public_id).headers["Location"]).path
    assert "Your bank wants to know that it is you." in text_of(owner, path)
    assert cash(acme) == 0
    away = owner.get(f"{path}/continue").headers["Location"]
    hosted.prove(processor.world, away.rpartition("/")[2], is_them=True)
    assert "The money is in your organization's cash." in text_of(owner, path)


def test_a_payment_that_waits_can_be_cancelled(owner: Client, acme: Organization, processor: Processor) -> None:
    path = urlsplit(pay_in(owner).headers["Location"]).path
    assert owner.post(f"{path}/cancel").status_code == 302
    assert "It was ended before anything was charged." in text_of(owner, path)
    assert AuditEntry.objects.filter(verb="payment.cancel").count() == 1


def test_a_declined_card_says_so(owner: Client, acme: Organization, processor: Processor) -> None:
    card = processor.card(acme, DECLINED_LATER)
    path = urlsplit(pay_in(owner, card=card.public_id).headers["Location"]).path
    assert (
        "The bank declined the card and gave no reason. Ask it, or use another card. Nothing was charged."
        in text_of(owner, path)
    )


@pytest.mark.parametrize("amount", ["-20", "0", "1", "20.001", "12345678901234", "1e3", "", "20.0000001"])
def test_an_amount_that_cannot_be_paid_is_told_beside_its_field(
    owner: Client, acme: Organization, processor: Processor, amount: str
) -> None:
    answer = pay_in(owner, amount)
    assert answer.status_code == 422
    assert read(answer).value("amount") == amount
    assert not Payment.objects.exists()


def test_another_currency_is_refused(owner: Client, acme: Organization, processor: Processor) -> None:
    answer = pay_in(owner, currency="EUR")
    assert answer.status_code == 422
    assert "This organization pays in USD." in answer.content.decode()


def test_automatic_top_up_is_set_shown_and_switched_off(
    owner: Client, acme: Organization, processor: Processor
) -> None:
    typed = {"threshold": "10", "automatic_amount": "20", "monthly_ceiling": "100"}
    assert owner.post(reverse("automatic-top-up"), typed).status_code == 302
    assert "$0.00 of $100.00 this month" in text_of(owner, reverse("top-up"))
    refused = owner.post(reverse("automatic-top-up"), typed | {"monthly_ceiling": "5"})
    assert (refused.status_code, read(refused).value("monthly_ceiling")) == (422, "5")
    owner.post(reverse("automatic-top-up"), {"off": "1"})
    assert not AutomaticTopUp.objects.get().is_on
    assert AuditEntry.objects.filter(verb="automatic_top_up.change").count() == 2


def test_without_keys_the_pages_say_that_cards_cannot_be_used(owner: Client, acme: Organization, settings: Any) -> None:
    settings.STRIPE_API_KEY = ""
    for name in ("payment-methods", "top-up"):
        assert "The operator" in text_of(owner, reverse(name)) or "the operator" in text_of(owner, reverse(name))
    assert pay_in(owner).status_code == 409
    assert owner.get(reverse("card-add")).status_code == 409
    assert owner.get(reverse("balance")).status_code == 200
    assert owner.post(reverse("stripe-webhook"), b"{}", "application/json").status_code == 404


def test_the_balance_says_how_to_add_credit_with_cards_and_who_can(
    owner: Client, developer: Client, processor: Processor
) -> None:
    assert "Top up by card" in text_of(owner, reverse("balance"))
    assert "ask an owner or billing member" in text_of(developer, reverse("balance"))


def test_the_balance_says_how_to_add_credit_without_cards(owner: Client, developer: Client, settings: Any) -> None:
    settings.STRIPE_API_KEY = ""
    for somebody in (owner, developer):
        text = text_of(somebody, reverse("balance"))
        assert "To add credit, ask the operator." in text
        assert "Top up by card" not in text


def test_a_billing_member_may_pay_and_a_developer_may_not(
    acme: Organization, developer: Client, processor: Processor
) -> None:
    bill = browser(make_member(acme, "bill@acme.example", Role.BILLING))
    card = processor.card(acme)
    assert pay_in(bill, card=card.public_id).status_code == 302
    assert pay_in(developer, card=card.public_id).status_code == 403
    assert developer.get(reverse("payment", args=[Payment.objects.get().public_id])).status_code == 403


def test_a_strangers_card_cannot_be_charged(stranger: Client, acme: Organization, processor: Processor) -> None:
    card = processor.card(acme)
    assert pay_in(stranger, card=card.public_id).status_code == 404
    assert not Payment.objects.exists()


def told(client: Client, event: dict[str, Any], *, secret: str = "whsec_ours", at: int | None = None) -> int:
    body = json.dumps(event)
    signature = WebhookSignature.generate_signature_header(body, secret, at)
    return client.post(
        reverse("stripe-webhook"), body, "application/json", headers={"Stripe-Signature": signature}
    ).status_code


def test_a_webhook_is_kept_once_answered_and_handled_later(
    client: Client, acme: Organization, processor: Processor
) -> None:
    strict = Client(enforce_csrf_checks=True)
    processor.card(acme)
    event = processor.world.events[-1]
    assert [told(strict, event), told(strict, event)] == [200, 200]
    assert ProcessorEvent.objects.get().handled_at is None
    assert events.handle_due(at=ProcessorEvent.objects.get().received_at) == 1


def test_a_forged_or_stale_webhook_is_refused_and_kept_nowhere(
    client: Client, acme: Organization, processor: Processor
) -> None:
    processor.card(acme)
    event = processor.world.events[-1]
    assert told(client, event, secret="whsec_other") == 400
    assert told(client, event, at=1_700_000_000) == 400
    assert client.post(reverse("stripe-webhook"), event, "application/json").status_code == 400
    assert client.get(reverse("stripe-webhook")).status_code == 405
    assert not ProcessorEvent.objects.exists()
