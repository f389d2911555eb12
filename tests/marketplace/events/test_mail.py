"""E-mail about reservations: who is told what, once."""

from datetime import timedelta
from typing import Any

import pytest
from django.core import mail
from django.utils import timezone

from marketplace.access import Actor
from marketplace.events import mail as event_mail
from marketplace.models import EventMail, Organization, Project, ReservationState, Role
from provisioning.calendar import hour_of
from tests.blocks import Buyer, sell_blocks
from tests.conftest import Fleet, make_member
from tests.marketplace.events.conftest import published


def test_owners_and_developers_are_told_when_a_reservation_begins_and_ends(
    actor: Actor, acme: Organization, project: Project, fleet: Fleet
) -> None:
    make_member(acme, "dev@acme.example", Role.DEVELOPER)
    make_member(acme, "viewer@acme.example", Role.VIEWER)
    sell_blocks(fleet.h200)
    buyer = Buyer(actor, project, fleet.h200, hour_of(timezone.now()) + timedelta(hours=1))
    reservation = buyer.buy(4, 2, 4)
    buyer.go_to(2.5)
    published()
    assert event_mail.send_due(at=timezone.now(), limit=10) == 1
    assert event_mail.send_due(at=timezone.now(), limit=10) == 0
    buyer.go_to(5)
    published()
    event_mail.send_due(at=timezone.now(), limit=10)
    assert [letter.subject for letter in mail.outbox] == [
        "Your reservation has begun: h200-narvik", "Your reservation ends soon: h200-narvik",
        "Your reservation is over: h200-narvik",
    ]  # fmt: skip
    for letter in mail.outbox:
        assert letter.to == sorted([actor.user.email, "dev@acme.example"])
        assert reservation.public_id in letter.body
        assert "4 GPUs of h200-narvik" in letter.body


def test_a_letter_that_cannot_be_sent_is_sent_later(
    actor: Actor, project: Project, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    sell_blocks(fleet.h200)
    buyer = Buyer(actor, project, fleet.h200, hour_of(timezone.now()) + timedelta(hours=1))
    buyer.buy(4, 2, 4)
    buyer.go_to(2.5)
    published()

    def refuses(*args: Any, **kwargs: Any) -> None:
        raise OSError("no mail server")

    at = timezone.now()
    with monkeypatch.context() as patched:
        patched.setattr("django.core.mail.EmailMessage.send", refuses)
        assert event_mail.send_due(at=at, limit=10) == 0
    assert event_mail.send_due(at=at, limit=10) == 0
    assert event_mail.send_due(at=at + timedelta(minutes=3), limit=10) == 1
    assert EventMail.objects.get().tries == 2


def test_what_is_told_are_states_that_there_are() -> None:
    assert {name.partition(".")[2] for name in event_mail.TOLD} <= set(ReservationState.values)
