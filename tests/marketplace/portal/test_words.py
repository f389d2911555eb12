"""How states, money, time and errors are written; and that no code is without its words."""

import ast
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from django.test import Client, RequestFactory
from django.urls import reverse
from django.utils import translation

import marketplace
from billing.models import (
    BankTransfer,
    Commitment,
    CreditLine,
    CreditProposal,
    InvoiceDispute,
    Payout,
    RateCard,
    Refund,
    SupplierAdjustment,
)
from marketplace import errors as market_errors
from marketplace import money
from marketplace.models import User
from marketplace.permissions import SCOPES, VERBS
from marketplace.portal import errors, words
from marketplace.templatetags import console, portal
from provisioning import errors as provisioning_errors
from provisioning.models import Instance, Phase
from tests.marketplace.portal.reading import Page, faults, read


@pytest.mark.parametrize("phase", Phase)
def test_every_state_is_icon_and_word_and_colour(phase: Phase) -> None:
    page = Page(portal.phase(Instance(phase=phase)))
    assert page.text == phase.label
    assert page.all("svg", aria_hidden="true")
    assert page.elements[0].attributes["class"].startswith("state state-")


def test_a_silent_node_is_said_instead_of_running() -> None:
    assert Page(portal.phase(Instance(phase="running", health="unreachable"))).text == "Unreachable"


DECIDED = (Commitment, CreditProposal, CreditLine, BankTransfer, InvoiceDispute, RateCard, Refund, SupplierAdjustment)


@pytest.mark.parametrize("row", [kind(state=state) for kind in DECIDED for state in kind.State])
def test_every_proposal_says_how_far_it_is(row: Any) -> None:
    page = Page(console.decision(row))
    assert page.text == row.get_state_display()
    assert page.all("svg", aria_hidden="true")


@pytest.mark.parametrize("state", Payout.State)
def test_every_payout_says_where_it_stands(state: Payout.State) -> None:
    assert Page(portal.payout_state(Payout(state=state))).text == state.label


@pytest.mark.parametrize(
    ("milliseconds", "shown"),
    [
        (None, "–"),
        (0, "0.0 s"),
        (999, "0.9 s"),
        (9_999, "9.9 s"),
        (10_000, "10 s"),
        (61_000, "1 min 1 s"),
        (3_660_000, "1 h 1 min"),
        (90_000_000, "1 d 1 h"),
    ],
)
def test_time_spans_have_at_most_two_units(milliseconds: int | None, shown: str) -> None:
    assert portal.duration(milliseconds) == shown


def test_a_moment_says_itself_in_utc_too() -> None:
    page = Page(portal.moment(datetime(2026, 3, 2, 12, 0, 5, tzinfo=UTC), "second"))
    assert page.text == "2026-03-02 12:00:05"
    assert page.elements[0].attributes["title"] == "2026-03-02 12:00:05 UTC"


def test_every_verb_and_scope_has_words() -> None:
    assert set(words.VERBS) == set(VERBS)
    assert set(words.SCOPES) == set(SCOPES)


def written_by(call: ast.Call) -> set[str]:
    """Return the verbs that a call of a function named like `record` or `_record_dispute` names."""
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    if not re.match(r"_?record", name):
        return set()
    told = [*call.args, *(keyword.value for keyword in call.keywords if keyword.arg == "verb")]
    texts = [node.value for node in told if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return {text for text in texts if re.fullmatch(r"[a-z_]+\.[a-z_]+", text)}


def test_everything_that_is_audited_has_words() -> None:
    sources = [ast.parse(path.read_text()) for path in Path(marketplace.__path__[0]).rglob("*.py")]
    calls = [node for source in sources for node in ast.walk(source) if isinstance(node, ast.Call)]
    written = set().union(*map(written_by, calls))
    assert len(written) > 100
    assert written <= set(words.AUDITED)


def refusals(module: object) -> list[type[Exception]]:
    return [
        found
        for found in vars(module).values()
        if isinstance(found, type) and issubclass(found, Exception) and found.__module__ == module.__name__  # type: ignore[attr-defined]
    ]


def test_every_refusal_of_the_shop_front_has_a_page() -> None:
    missing = set(refusals(market_errors)) - set(errors.KINDS) - {market_errors.MarketError}
    assert missing == set()
    expected = {provisioning_errors.IllegalMove, provisioning_errors.NoCapacity, provisioning_errors.QuotaExceeded}
    assert expected <= set(errors.KINDS)


@pytest.mark.parametrize("kind", errors.KINDS)
@pytest.mark.parametrize("language", ["en", "ja"])
def test_every_refusal_says_five_things(kind: type[Exception], language: str) -> None:
    made = {
        errors.InsufficientFunds: lambda: errors.InsufficientFunds(
            needed_micros=2_000_000, available_micros=1_000_000, currency="USD"
        ),
        errors.PaymentsPastDue: lambda: errors.PaymentsPastDue(
            owed_micros=1_000_000, currency="USD", number="INV-000001"
        ),
        errors.QuotaExceeded: lambda: errors.QuotaExceeded(wanted=2, held=1, limit=2),
        errors.BadOrder: lambda: errors.BadOrder("gpus", "Ask for less."),
    }
    error = made.get(kind, lambda: kind("The reason."))()
    with translation.override(language):
        refusal = errors.refusal_of(error, reference="req_1")
        said = [refusal.title, refusal.why, refusal.charged, refusal.remedy, refusal.reference]
    assert all(said)
    assert 400 <= refusal.status < 600
    assert len(set(said)) == 5


def test_an_unknown_address_is_a_page_of_ours_with_a_reference(client: Client, db: None) -> None:
    answer = client.get("/no/such/page")
    page = read(answer)
    assert answer.status_code == 404
    assert faults(page) == []
    assert answer.headers["X-Request-Id"] in page.html


def test_an_error_of_ours_asks_nothing_of_what_may_be_broken(rf: RequestFactory) -> None:
    # The test has neither database nor session, and asking who this person is would need both.
    request = rf.get("/")
    request.user = User(email="alice@acme.example")
    request.COOKIES["theme"] = "dark"
    for answer, status in (
        (errors.server_error(request), 500),
        (errors.bad_request(request, ValueError()), 400),
        (errors.csrf_failure(request), 403),
    ):
        page = read(answer)
        assert answer.status_code == status
        assert faults(page) == []
        assert "Nothing was started, changed or charged." in page.text
        assert page.all("html", data_bs_theme="dark")


def test_a_form_of_another_session_is_refused(alice: object, acme: object) -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(alice)  # type: ignore[arg-type]
    answer = client.post(reverse("projects"), {"name": "research"})
    assert answer.status_code == 403
    assert "This form is out of date" in read(answer).text


def test_what_is_broken_inside_is_an_honest_page(
    owner: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("marketplace.portal.spending.of", lambda *_, **__: 1 / 0)
    owner.raise_request_exception = False
    answer = owner.get(reverse("home"))
    page = read(answer)
    assert answer.status_code == 500
    assert "Something went wrong on our side" in page.text
    assert answer.headers["X-Request-Id"] in page.html
    assert "ZeroDivisionError" not in page.html


@pytest.mark.parametrize(
    ("micros", "currency", "words"),
    [(10_850_480, "USD", "$10.85"), (12_345, "USD", "$0.01"), (9_999, "USD", "$0.009999"), (0, "USD", "$0.00"),
     (412_400_000, "JPY", "¥412"), (500_000, "JPY", "¥0.5")],
)  # fmt: skip
def test_a_brief_amount_is_exact_only_below_the_minor_unit(micros: int, currency: str, words: str) -> None:
    assert money.brief(micros, currency) == words
