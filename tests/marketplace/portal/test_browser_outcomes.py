"""A real browser agrees to a product, submits a job under it, sees a result paid, disputes it, and sees the refund."""

from datetime import timedelta
from typing import Any

import pytest
from django.urls import reverse
from django.utils import timezone

from billing.models import Outcome
from marketplace.contracts import offering, sweeping
from marketplace.models import Claim, Job, Organization, User
from marketplace.receipts import writing
from tests.conftest import Fleet
from tests.marketplace.jobs.conftest import Works, works
from tests.marketplace.portal.looking import look, tour
from tests.marketplace.portal.test_browser import browser, pytestmark, sign_in, window
from tests.outcomes import LEFT, PRICE, Deal, make_seller, put_up, terms

__all__ = ["browser", "pytestmark", "window", "works"]


@pytest.fixture
def deal(db: None) -> Deal:
    """A product in the catalogue that nobody has agreed to yet."""
    seller, merchant = make_seller()
    version = offering.draft(
        actor=merchant, seller=seller, title="Rendered frames", at=timezone.now(), terms=terms(unit={"name": "frame"})
    )
    put_up(version, merchant, at=timezone.now())
    return Deal(seller, merchant, version)


def sweep() -> None:
    for _ in range(3):
        sweeping.advance(at=timezone.now() + timedelta(seconds=1), limit=10)


def agree(window: Any, deal: Deal) -> None:
    window.goto(reverse("outcomes"))
    assert "A task counts once its command ended" in window.inner_text("main")
    look(window, "catalogue")
    window.click("text=See all terms")
    window.wait_for_selector("h2:has-text('What counts')")
    look(window, "product")
    window.click("#accept")
    window.wait_for_selector(f"text=contract: {deal.version.public_id}")
    look(window, "agreed")


def submit(window: Any, deal: Deal) -> Job:
    window.click("#new-job")
    window.wait_for_selector("#contract")
    assert window.input_value("#contract") == deal.version.public_id
    window.select_option("#offer", "h200-narvik")
    for name, value in (("name", "frames"), ("command", "render $GPUMARKET_TASK"), ("array", "2"), ("outputs", "out")):
        window.fill(f"#{name}", value)
    window.click("#check-job")
    window.wait_for_selector(".cost-main:has-text('$1.00')")
    look(window, "job-form")
    window.click("#submit-job")
    window.wait_for_selector("h1:has-text('frames')")
    look(window, "job-begun")
    return Job.objects.get()


def finish(window: Any, works: Works, job: Job) -> None:
    """Let its commands end and its results be verified, and see the open page follow by itself."""
    works.go()
    for attempt in works.running(job):
        for node in works.fleet.nodes.values():
            node.leaves[attempt.instance.public_id] = LEFT
    works.exit_all(job)
    for _ in range(3):
        works.go()
        sweep()
    window.wait_for_selector("text=2 of 2")
    assert window.locator(".task-grid path.task-succeeded").count() == 1
    assert "of at most $1.00" in window.inner_text("main")
    look(window, "job-finished")


def accept_the_first(window: Any) -> Claim:
    window.click("td a[href*='/claims/']")
    window.click("#do-accept")
    window.wait_for_selector("text=Accepted: it is paid out of what was set aside.")
    sweep()
    window.reload()
    assert "$0.50" in window.inner_text("main")
    claim = Claim.objects.get(task__index=0)
    assert (claim.state, claim.paid_micros) == ("settled", PRICE)
    return claim


def dispute_it(window: Any, claim: Claim) -> None:
    window.click("text=Dispute it")
    window.fill("#dispute-reason", "Frame 0 is black")
    look(window, "claim")
    window.click("#do-dispute")
    window.wait_for_selector("text=Answer the dispute")
    window.fill("#answer", "See the log")
    window.click("#do-answer")
    window.wait_for_selector("text=See the log")
    look(window, "disputed")


def decide(window: Any, deal: Deal) -> None:
    window.goto(reverse("console-claim-disputes"))
    look(window, "console-disputes")
    window.click("main a.btn-primary")
    window.fill("#id_due_bps", "0")
    window.fill("#id_note", "It is black")
    look(window, "console-decide")
    window.click("main form button")
    window.wait_for_selector("text=Decided.")
    for name, address in (
        ("console-contracts", reverse("console-contracts")),
        ("console-contract", reverse("console-contract", args=[deal.version.public_id])),
        ("console-new", reverse("console-contract-new")),
        ("console-margins", reverse("console-margins")),
    ):
        window.goto(address)
        look(window, name)


def see_the_refund(window: Any, job: Job, claim: Claim) -> None:
    window.goto(reverse("claim", args=[claim.public_id]))
    said = window.inner_text("main")
    assert "Reversed" in said
    assert "It is black" in said
    look(window, "claim-reversed")
    window.goto(reverse("job", args=[job.public_id]))
    assert "$0.00" in window.inner_text("dl.figures")
    assert "$0.50 given back" in window.inner_text("dl.figures")
    look(window, "job-reversed")
    window.goto(reverse("job-task", args=[job.public_id, 0]))
    assert "−$0.50" in window.inner_text("main")
    look(window, "task")
    window.goto(reverse("balance"))
    # The other result is still to be accepted, so its price is set aside.
    assert "$999.50" in window.inner_text("dl.figures")
    assert "Given back for results" in window.inner_text("main")
    look(window, "balance-refunded")


def test_a_product_is_bought_its_result_disputed_and_refunded(
    window: Any, deal: Deal, works: Works, fleet: Fleet, alice: User, acme: Organization, carol: User
) -> None:
    sign_in(window, alice)
    agree(window, deal)
    job = submit(window, deal)
    finish(window, works, job)
    claim = accept_the_first(window)
    window.goto(reverse("job", args=[job.public_id]))
    assert "$0.50" in window.inner_text("dl.figures")
    window.goto(reverse("claim", args=[claim.public_id]))
    dispute_it(window, claim)

    window.context.clear_cookies()
    sign_in(window, carol)
    decide(window, deal)

    window.context.clear_cookies()
    sign_in(window, alice)
    writing.issue_due(at=timezone.now(), limit=9)
    see_the_refund(window, job, claim)
    claim.refresh_from_db()
    assert (claim.state, claim.paid_micros, claim.reversed_micros) == ("reversed", PRICE, PRICE)
    assert Outcome.objects.filter(kind="reversed").get().amount_micros == PRICE
    assert Claim.objects.get(task__index=1).state == "verified", "only what is disputed stands still"
    for name in ("jobs", "claims", "claim-disputes", "receipts"):
        window.goto(reverse(name))
        look(window, name)
    of_one = [("outcome", deal.version.public_id), ("job", job.public_id), ("claim", claim.public_id)]
    tour(
        window,
        [reverse(name) for name in ("outcomes", "jobs", "job-new", "claims", "claim-disputes", "receipts", "balance")]
        + [reverse(name, args=[which]) for name, which in of_one]
        + [reverse("job-task", args=[job.public_id, 0])],
        language="ja",
    )
