"""A real browser agrees to a product, sees its result verified and paid, disputes it, and sees the refund."""

from datetime import timedelta
from typing import Any

import pytest
from django.urls import reverse
from django.utils import timezone

from billing.models import Outcome
from marketplace.access import Actor
from marketplace.contracts import claims, offering, sweeping
from marketplace.models import Claim, Organization, Project, User
from tests.conftest import Fleet
from tests.marketplace.portal.test_browser import browser, pytestmark, sign_in, window
from tests.marketplace.portal.test_browser_reservations import look
from tests.outcomes import PRICE, Deal, make_seller, make_work, terms

__all__ = ["browser", "pytestmark", "window"]


@pytest.fixture
def deal(db: None) -> Deal:
    """A product in the catalogue that nobody has agreed to yet."""
    seller, merchant = make_seller()
    version = offering.draft(
        actor=merchant, seller=seller, title="Rendered frames", at=timezone.now(), terms=terms(unit={"name": "frame"})
    )
    offering.offer(actor=merchant, version=version, at=timezone.now())
    return Deal(seller, merchant, version)


def sweep(hours: float) -> None:
    for _ in range(3):
        sweeping.advance(at=timezone.now() + timedelta(hours=hours), limit=10)


def test_a_product_is_bought_its_result_disputed_and_refunded(
    window: Any, deal: Deal, actor: Actor, project: Project, fleet: Fleet, alice: User, acme: Organization, carol: User
) -> None:
    sign_in(window, alice)
    window.goto(reverse("outcomes"))
    assert "A task counts once its command ended" in window.inner_text("main")
    look(window, "catalogue")
    window.click("text=See all terms")
    look(window, "product")
    window.click("#accept")
    window.wait_for_selector(f"text=contract: {deal.version.public_id}")
    look(window, "agreed")

    work = make_work(deal, project, fleet.h200, actor, tasks=2, at=timezone.now())
    opened = [claims.open(task=work.succeeds(index), at=timezone.now()) for index in (0, 1)]
    sweep(0)
    window.goto(reverse("claims"))
    assert window.inner_text("main").count("Verified") >= 2
    look(window, "claims")
    window.goto(reverse("claim", args=[opened[0].public_id]))
    window.click("#do-accept")
    window.wait_for_selector("text=Accepted: it is paid out of what was set aside.")
    sweep(0)
    window.goto(reverse("claim", args=[opened[0].public_id]))
    assert "$0.50" in window.inner_text("main")
    window.click("text=Dispute it")
    window.fill("#dispute-reason", "Frame 0 is black")
    look(window, "claim")
    window.click("#do-dispute")
    window.wait_for_selector("text=Answer the dispute")
    window.fill("#answer", "See the log")
    window.click("#do-answer")
    window.wait_for_selector("text=See the log")
    look(window, "disputed")

    window.context.clear_cookies()
    sign_in(window, carol)
    window.goto(reverse("console-claim-disputes"))
    look(window, "console-disputes")
    window.click("main a.btn-primary")
    window.fill("#id_due_bps", "0")
    window.fill("#id_note", "It is black")
    look(window, "console-decide")
    window.click("main form button")
    window.wait_for_selector("text=Decided.")
    window.goto(reverse("console-contracts"))
    look(window, "console-contracts")
    window.goto(reverse("console-contract", args=[deal.version.public_id]))
    look(window, "console-contract")
    window.goto(reverse("console-contract-new"))
    look(window, "console-new")

    window.context.clear_cookies()
    sign_in(window, alice)
    window.goto(reverse("claim", args=[opened[0].public_id]))
    said = window.inner_text("main")
    assert "Reversed" in said
    assert "It is black" in said
    look(window, "reversed")
    found = Claim.objects.get(pk=opened[0].pk)
    assert (found.state, found.paid_micros, found.reversed_micros) == ("reversed", PRICE, PRICE)
    assert Outcome.objects.filter(kind="reversed").get().amount_micros == PRICE
    assert Claim.objects.get(pk=opened[1].pk).state == "verified", "only what is disputed stands still"
    window.goto(reverse("claim-disputes"))
    look(window, "disputes")
