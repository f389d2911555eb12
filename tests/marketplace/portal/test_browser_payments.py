"""A real browser adds a test card on the processor's page, tops up, proves who it is, and reads what was paid."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import time_machine
from django.urls import reverse
from django.utils import timezone
from pypdf import PdfReader

from billing import accounts
from billing.invoicing import issuing
from billing.models import Invoice, Payment
from billing.months import next_month
from billing.payments import gateway
from marketplace.models import Organization, User
from marketplace.money import shown
from tests.billing.invoicing import details, make_seller
from tests.billing.makers import account, move
from tests.billing.payments.conftest import _keys
from tests.billing.payments.test_peers import bundled
from tests.conftest import Fleet
from tests.marketplace.portal.looking import look
from tests.marketplace.portal.test_browser import browser, lively_fleet, pytestmark, sign_in, window

__all__ = ["_keys", "browser", "lively_fleet", "pytestmark", "window"]


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


def test_a_newcomer_rents_reads_the_line_behind_an_amount_and_downloads_the_invoice(
    window: Any, live_server: Any, alice: User, acme: Organization, lively_fleet: Fleet, settings: Any, tmp_path: Path
) -> None:
    settings.PUBLIC_URL = live_server.url
    make_seller("US")
    details(acme, country="US")
    move(account(acme, "promo"), "revenue", accounts.wallet(organization=acme).promo_micros)  # so that money pays
    noon = timezone.now().replace(hour=12, minute=0) + timedelta(days=1)  # all of the use is in one month
    with bundled(tmp_path) as (url, _keeper), time_machine.travel(noon, tick=True) as clock:
        settings.STRIPE_API_BASE = url
        gateway._client_of.cache_clear()
        sign_in(window, alice)
        window.goto(reverse("payment-methods"))
        window.click("a:has-text('Add a card')")
        type_card(window, "4242 4242 4242 4242")
        window.wait_for_selector("td:has-text('•••• 4242')")
        window.goto(reverse("top-up"))
        window.fill("#amount", "25")
        window.click("button:has-text('Pay')")
        window.wait_for_selector("text=The money is in your organization's cash.")
        assert accounts.wallet(organization=acme).cash_micros == 25_000_000

        window.goto(reverse("market"))
        window.click("#launch-h200-narvik")
        window.fill("#gpus", "2")
        window.fill("#command", "sleep 1000")
        window.fill("#name", "trainer")
        window.click("#launch-button")
        window.wait_for_selector("#cost:has-text('The meter is running')")
        clock.shift(timedelta(hours=3))
        window.click("#do-terminate")
        window.click("#confirm")
        window.wait_for_selector("#cost:has-text('Billing has ended')")

        window.goto(reverse("usage"))
        window.click("tbody tr:first-child td:last-child a")
        window.wait_for_selector("text=Both ways of computing it agree")
        for words in ("trainer costs $1", "2 GPU", "$2.49"):
            assert words in window.inner_text("main"), words
        look(window, "behind-an-amount")

        assert issuing.issue_due(at=next_month(timezone.now()) + timedelta(hours=3)) == 1
        invoice = Invoice.objects.get(organization=acme)
        assert 3 * 2 * 2_490_000 <= invoice.total_micros < 25_000_000
        assert accounts.wallet(organization=acme).cash_micros == 25_000_000 - invoice.total_micros
        window.goto(reverse("invoices"))
        window.click(f"a:has-text('{invoice.number}')")
        assert "trainer" in window.inner_text("main")
        with window.expect_download() as downloading:
            window.click("a:has-text('Download PDF')")
        pages = PdfReader(downloading.value.path()).pages
        text = "\n".join(page.extract_text() for page in pages)
        for words in (invoice.number, "Acme Research", "trainer", shown(invoice.total_micros, "USD")):
            assert words in text, words
