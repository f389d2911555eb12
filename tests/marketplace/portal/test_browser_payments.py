"""A real browser adds a test card on the processor's page, tops up, proves who it is, and reads what was paid."""

from pathlib import Path
from typing import Any

from django.urls import reverse

from billing import accounts
from billing.models import Payment
from billing.payments import gateway
from marketplace.models import Organization, User
from tests.billing.payments.conftest import _keys
from tests.billing.payments.test_peers import bundled
from tests.marketplace.portal.looking import look
from tests.marketplace.portal.test_browser import browser, pytestmark, sign_in, window

__all__ = ["_keys", "browser", "pytestmark", "window"]


def type_card(window: Any, number: str) -> None:
    window.wait_for_selector("text=This is the bundled test processor")
    window.fill("#number", number)
    window.click("button")


def test_a_newcomer_adds_a_card_tops_up_and_proves_who_they_are(
    window: Any, live_server: Any, alice: User, acme: Organization, settings: Any, tmp_path: Path
) -> None:
    settings.PUBLIC_URL = live_server.url
    with bundled(tmp_path) as (url, keeper):
        settings.STRIPE_API_BASE = url
        gateway._client_of.cache_clear()
        keeper.webhook_url = f"{live_server.url}{reverse('stripe-webhook')}"
        sign_in(window, alice)
        window.goto(reverse("payment-methods"))
        window.click("a:has-text('Add a card')")
        type_card(window, "4242 4242 4242 4242")
        window.wait_for_selector("td:has-text('•••• 4242')")
        look(window, "methods")

        window.goto(reverse("top-up"))
        look(window, "top-up")
        window.fill("#amount", "25")
        window.dblclick("button:has-text('Pay')")
        window.wait_for_selector("text=The money is in your organization's cash.")
        look(window, "paid")
        assert accounts.wallet(organization=acme).cash_micros == 25_000_000

        window.goto(reverse("top-up"))
        window.fill("#amount", "30")
        window.select_option("#card", "new")
        window.click("button:has-text('Pay')")
        type_card(window, "4000 0027 6000 3184")
        window.click("button:has-text('Yes, it is me')")
        window.wait_for_selector("text=The money is in your organization's cash.")
        assert accounts.wallet(organization=acme).cash_micros == 55_000_000
        assert Payment.objects.filter(state="succeeded").count() == 2

        keeper.deliver()
        assert not [event for event in keeper.world.events if event["pending_webhooks"]]
        alice.is_staff = True
        alice.save()
        window.goto(reverse("console-reconcile"))
        window.click("button:has-text('Read and compare')")
        window.wait_for_selector("text=Both agree")
        look(window, "reconciliation")
        window.goto(reverse("console-payments"))
        look(window, "payments")
