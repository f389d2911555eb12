"""What events say is written in English, whoever acts, and read by each in their own language."""

import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.urls import reverse
from django.utils import timezone, translation

from marketplace.access import Actor
from marketplace.contracts import answering, claims, sweeping, timeline
from marketplace.models import ClaimEvent, Organization, Project, User
from provisioning import told
from tests.conftest import Fleet
from tests.marketplace.portal.conftest import browser
from tests.marketplace.portal.reading import read
from tests.outcomes import BY_CUSTOMER, make_deal, make_work

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _english() -> Iterator[None]:
    """A request leaves its language behind in the thread."""
    with translation.override("en"):
        yield


@pytest.mark.parametrize(
    ("english", "japanese"),
    [
        (timeline.NOT_PAID(), "支払いなし"),
        (timeline.TRIED_AGAIN(number=3), "3"),
        (timeline.said("outputs", timeline.ALL_THERE()), "終了コード"),
        (timeline.VERIFIER_ENDED(number=2, result=timeline.RESULTS["crashed"]()), "2"),
    ],
)
def test_a_text_of_ours_is_read_in_japanese_with_its_values(english: str, japanese: str) -> None:
    assert english.isascii()
    with translation.override("ja"):
        shown = told.shown(english)
    assert japanese in shown
    assert not re.search(r"[a-z]{3}", shown)
    with translation.override("en"):
        assert told.shown(english) == english


@pytest.mark.parametrize(
    "typed", ["Frame 17 is black. 3 of 4 tasks failed.", "Look: it is black", "Passed, I think", "", "%(number)s"]
)
def test_what_people_wrote_stays_as_it_is(typed: str) -> None:
    with translation.override("ja"):
        assert told.shown(typed) == typed
        assert typed in told.shown(timeline.DISPUTED_AFTERWARDS(text=typed))


def test_each_value_of_a_verdict_is_translated_too() -> None:
    lacking = ", ".join(timeline.EVIDENCE[name]() for name in ("counter", "node_signature"))
    with translation.override("ja"):
        shown = told.shown(timeline.said("outputs", timeline.EVIDENCE_MISSING(lacking=lacking)))
        assert str(timeline.EVIDENCE["counter"].text) in shown
        assert str(timeline.EVIDENCE["node_signature"].text) in shown
    assert "counter readings" not in shown


def test_the_timeline_of_a_claim_is_english_where_it_is_kept_and_japanese_for_who_reads_japanese(
    acme: Organization, alice: User, actor: Actor, project: Project, fleet: Fleet
) -> None:
    at = timezone.now()
    work = make_work(make_deal(acme), project, fleet.h200, actor, tasks=1, at=at)
    claim = claims.open(task=work.succeeds(0), at=at)
    with translation.override("ja"):
        sweeping.advance(at=at, limit=10)
        sweeping.advance(at=at + timedelta(hours=1), limit=10)
    kept = list(ClaimEvent.objects.filter(claim=claim).exclude(message="").values_list("message", flat=True))
    assert kept == [timeline.said("outputs", timeline.ALL_THERE()), timeline.SILENCE_ACCEPTS()]
    for language, is_english in [("en", True), ("ja", False)]:
        text = read(browser(alice, language=language).get(reverse("claim", args=[claim.public_id]))).text
        assert all((message in text) is is_english for message in kept)
    assert "顧客" in text


def test_what_an_answer_in_japanese_writes_down_is_english(
    acme: Organization, alice: User, actor: Actor, project: Project, fleet: Fleet
) -> None:
    at = timezone.now()
    work = make_work(make_deal(acme, **BY_CUSTOMER), project, fleet.h200, actor, tasks=1, at=at)
    claim: Any = claims.open(task=work.succeeds(0, exit_code=1), at=at)
    with translation.override("ja"):
        answering.accept(actor=actor, claim=claim, at=at)
    claim.refresh_from_db()
    assert claim.message == timeline.said("outputs", timeline.EXIT_CODE(code=1))
    assert claim.message.isascii()


def test_no_event_is_written_in_the_language_of_whoever_acts() -> None:
    """A text for an event is a `Told`; gettext would keep it in the language of the request."""
    for source in sorted((Path(settings.BASE_DIR) / "marketplace").rglob("*.py")):
        wrong = re.findall(r"(?:\.note\(|\bmessage=|\bnote=)(?:gettext|_)\(", source.read_text())
        assert not wrong, source.name
