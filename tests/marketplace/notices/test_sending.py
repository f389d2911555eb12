"""Notices by e-mail: in the customer's language, once, and every kind has its words."""

from datetime import timedelta
from typing import Any

import pytest
from django.core import mail
from django.utils import timezone

from billing.invoicing import sellers
from billing.models import Notice
from billing.notices import News, tell
from marketplace import declines, rentals, tasks, volumes
from marketplace.models import Organization
from marketplace.notices.words import WORDS
from tests.conftest import Rent, Run

FACTS = {
    "until": "2026-12-01T12:00:00+00:00", "stops_at": "2026-12-01T12:30:00+00:00", "burn_micros_per_hour": "2490000",
    "count": "3", "gib": "120", "name": "datasets", "number": "INV-000001", "due_at": "2026-12-01T00:00:00+00:00",
    "left_micros": "12500000", "next": "restrict", "next_at": "2026-12-08T00:00:00+00:00",
    "why": "Insufficient funds.", "answer": "It ran.", "payment": "pay_1", "page": "https://x.example/payments/pay_1",
    "reason": "Welcome",
}  # fmt: skip


def told(organization: Organization, kind: str) -> Any:
    tell([News(organization.pk, Notice.Kind(kind), f"{kind}:test", FACTS)], at=timezone.now())
    tasks.send_notices()
    return mail.outbox[-1]


@pytest.mark.parametrize("kind", Notice.Kind.values)
def test_every_kind_is_told_in_english(acme: Organization, kind: str) -> None:
    message = told(acme, kind)
    assert message.to == ["alice@acme.example"]
    assert "{" not in message.subject + message.body
    assert "What to do:" in message.body
    assert message.body.startswith("Hello,")


@pytest.mark.parametrize("kind", Notice.Kind.values)
def test_every_kind_is_told_in_japanese(acme: Organization, kind: str) -> None:
    sellers.save_details(
        organization=acme,
        legal_name="アクメ研究所",
        address="大阪府",
        country="JP",
        language="ja",
        email="k@acme.example",
    )
    message = told(acme, kind)
    assert message.to == ["k@acme.example"]
    assert "{" not in message.subject + message.body
    assert "対応：" in message.body
    assert WORDS["ja"].keys() == WORDS["en"].keys() == set(Notice.Kind.values)


def test_a_notice_is_sent_once(acme: Organization) -> None:
    told(acme, "used_up")
    tasks.send_notices()
    assert len(mail.outbox) == 1
    assert tell([News(acme.pk, Notice.Kind.USED_UP, "used_up:test", FACTS)], at=timezone.now()) == 0


def test_a_mail_server_that_is_away_delays_it_only(acme: Organization, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: Any, **__: Any) -> None:
        raise OSError

    with monkeypatch.context() as broken:
        broken.setattr("django.core.mail.EmailMessage.send", away)
        tell([News(acme.pk, Notice.Kind.USED_UP, "used_up:away", FACTS)], at=timezone.now())
        tasks.send_notices()
    row = Notice.objects.get()
    assert (row.tries, row.sent_at) == (1, None)
    Notice.objects.update(next_try_at=timezone.now())
    tasks.send_notices()
    assert len(mail.outbox) == 1


def test_what_runs_out_is_told_and_stopped(acme: Organization, rent: Rent, run_until_idle: Run) -> None:
    rent()
    run_until_idle()

    later = timezone.now() + timedelta(hours=500)
    assert rentals.stop_what_nobody_can_pay_for(at=later, limit=10) == 1
    assert Notice.objects.get().kind == "used_up"
    assert volumes.mind_unpaid(at=later, limit=10) == 0


@pytest.mark.parametrize(
    ("language", "code", "words"),
    [
        ("en", "insufficient_funds", "The card has not enough money."),
        ("ja", "insufficient_funds", "カードの残高または利用枠が足りません。"),
        ("en", "stolen_card", "gave no reason"),  # nobody learns more than that
        ("ja", "stolen_card", "カードが承認されませんでした"),
        ("ja", "a_code_of_tomorrow", "The bank says: Your card is too green."),
    ],
)
def test_why_a_card_was_declined_is_told_in_the_customers_language(
    acme: Organization, language: str, code: str, words: str
) -> None:
    sellers.save_details(organization=acme, legal_name="A", address="B", country="JP", language=language)
    facts = FACTS | {"why": "Your card is too green.", "failure_code": code}
    tell([News(acme.pk, Notice.Kind.CHARGE_FAILED, "failed", facts)], at=timezone.now())
    tasks.send_notices()
    assert words.removeprefix("The bank says: ") in mail.outbox[-1].body


def test_every_code_has_its_words_in_both_languages() -> None:
    for english, japanese in declines.WORDS.values():
        assert english.isascii()
        assert not japanese.isascii()
