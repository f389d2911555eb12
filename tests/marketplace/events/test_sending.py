"""Webhooks: signed, at least once, ever more seldom, and given up in the end."""

import json
from datetime import timedelta
from typing import Any

import pytest
from django.core import mail
from django.urls import reverse
from django.utils import timezone
from standardwebhooks import Webhook, WebhookVerificationError

from marketplace.access import Actor
from marketplace.errors import BadOrder, Conflict
from marketplace.events import endpoints, sending
from marketplace.events.reach import Answer
from marketplace.models import AuditEntry, Organization, WebhookAttempt, WebhookDelivery, WebhookEndpoint
from tests.conftest import Rent, Run
from tests.marketplace.events.conftest import Listening, Receiver, published


def sent_all(rounds: int = 30) -> None:
    for _ in range(rounds):
        if not sending.send_due(at=timezone.now()):
            return


def test_every_event_arrives_and_its_signature_is_good(
    rent: Rent, run_until_idle: Run, listening: Listening, receiver: Receiver
) -> None:
    rent()
    run_until_idle()
    events = published()
    sent_all()
    assert len(receiver.came) == len(events)
    for headers, body in receiver.came:
        told = Webhook(listening.secret).verify(body, headers)
        assert told["id"] == headers["webhook-id"]
        assert headers["content-type"] == "application/json"
    assert {json.loads(body)["id"] for _, body in receiver.came} == {event.public_id for event in events}
    assert set(WebhookDelivery.objects.values_list("state", flat=True)) == {"delivered"}
    headers, body = receiver.came[0]
    with pytest.raises(WebhookVerificationError):
        Webhook(listening.secret).verify(body + b" ", headers)


def test_only_chosen_types_are_sent(actor: Actor, rent: Rent, run_until_idle: Run, listening: Listening) -> None:
    endpoints.change(
        actor=actor, endpoint=listening.endpoint, url=listening.endpoint.url, types=["instance.running"],
        description="", is_enabled=True,
    )  # fmt: skip
    rent()
    run_until_idle()
    published()
    assert list(WebhookDelivery.objects.values_list("event__type", flat=True)) == ["instance.running"]


def test_while_a_secret_is_replaced_both_are_good(actor: Actor, listening: Listening, receiver: Receiver) -> None:
    at = timezone.now()
    fresh = endpoints.rotate(actor=actor, endpoint=listening.endpoint, at=at)
    endpoints.test(actor=actor, endpoint=listening.endpoint, at=at)
    sent_all()
    headers, body = receiver.came[0]
    for secret in (listening.secret, fresh):
        assert Webhook(secret).verify(body, headers)["type"] == "webhook.test"
    listening.endpoint.refresh_from_db()
    later = sending.signed(listening.endpoint, "evt_1", "{}", at=at + timedelta(hours=25))
    assert " " not in later["webhook-signature"]


def test_what_fails_is_tried_again_ever_more_seldom_and_given_up(
    actor: Actor, listening: Listening, receiver: Receiver
) -> None:
    receiver.status = 500
    at = timezone.now()
    endpoints.test(actor=actor, endpoint=listening.endpoint, at=at)
    waits = []
    for number in range(1, sending.TRIES_MAX + 1):
        assert sending.send_due(at=at) == 0
        row = WebhookDelivery.objects.get()
        assert row.tries == number == len(receiver.came)
        if row.state == "pending":
            waits.append(row.next_try_at - timezone.now())
            assert sending.send_due(at=row.next_try_at - timedelta(seconds=1)) == 0
            at = row.next_try_at
    assert row.state == "failed"
    assert len(receiver.came) == sending.TRIES_MAX
    assert waits == sorted(waits)
    for waited, meant in zip(waits, sending.WAITS, strict=True):
        assert meant * 0.79 <= waited <= meant * 1.2
    assert WebhookAttempt.objects.filter(status=500).count() == sending.TRIES_MAX


def test_a_receiver_that_is_gone_is_disabled_and_its_owners_told(
    actor: Actor, listening: Listening, receiver: Receiver, django_capture_on_commit_callbacks: Any
) -> None:
    receiver.status = 410
    endpoints.test(actor=actor, endpoint=listening.endpoint, at=timezone.now())
    with django_capture_on_commit_callbacks(execute=True):
        sending.send_due(at=timezone.now())
    endpoint = WebhookEndpoint.objects.get()
    assert (endpoint.is_enabled, endpoint.disabled_because) == (False, "It answered 410: gone.")
    assert WebhookDelivery.objects.get().state == "failed"
    (letter,) = mail.outbox
    assert letter.to == [actor.user.email]
    assert letter.subject == f"Webhook disabled: {endpoint.url}"
    assert "It answered 410: gone." in letter.body
    assert reverse("webhook", args=[endpoint.public_id]) in letter.body
    with pytest.raises(Conflict):
        endpoints.test(actor=actor, endpoint=endpoint, at=timezone.now())


def test_five_days_without_success_disable_and_enabling_sends_what_waited(
    actor: Actor, listening: Listening, receiver: Receiver, rent: Rent
) -> None:
    receiver.status = 503
    endpoints.test(actor=actor, endpoint=listening.endpoint, at=timezone.now())
    sending.send_due(at=timezone.now())
    WebhookEndpoint.objects.update(failing_since=timezone.now() - timedelta(days=6))
    rent()
    published()
    sending.send_due(at=timezone.now())
    endpoint = WebhookEndpoint.objects.get()
    assert not endpoint.is_enabled
    came = len(receiver.came)
    rent()
    published()
    assert sending.send_due(at=timezone.now()) == 0
    assert len(receiver.came) == came
    receiver.status = 200
    endpoints.change(actor=actor, endpoint=endpoint, url=endpoint.url, types=[], description="", is_enabled=True)
    sent_all()
    assert len(receiver.came) > came
    endpoint.refresh_from_db()
    assert endpoint.failing_since is None


def test_a_sender_that_died_in_between_sends_again_and_the_id_stays(
    actor: Actor, listening: Listening, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = timezone.now()
    endpoints.test(actor=actor, endpoint=listening.endpoint, at=at)

    def dies(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(sending, "settle", dies)
        with pytest.raises(KeyboardInterrupt):
            sending.send_due(at=at)
    assert sending.send_due(at=at) == 0
    assert sending.send_due(at=at + sending.LEASE) == 1
    (first, _), (second, _) = receiver.came
    assert first["webhook-id"] == second["webhook-id"]
    assert WebhookDelivery.objects.get().state == "delivered"


def test_what_comes_back_from_a_webhook_that_was_removed_meanwhile_is_dropped(
    actor: Actor, listening: Listening
) -> None:
    delivery = endpoints.test(actor=actor, endpoint=listening.endpoint, at=timezone.now())
    endpoints.remove(actor=actor, endpoint=listening.endpoint)
    sending.settle(delivery, sending.Outcome(Answer(200, "fine"), "", 1), at=timezone.now())
    assert not WebhookAttempt.objects.exists()


def test_a_slow_endpoint_does_not_take_the_turns_of_others(
    actor: Actor, acme: Organization, listening: Listening, receiver: Receiver
) -> None:
    other, _ = endpoints.add(actor=actor, organization=acme, url=receiver.url, types=[])
    at = timezone.now()
    for _ in range(10):
        endpoints.test(actor=actor, endpoint=listening.endpoint, at=at - timedelta(hours=1))
    endpoints.test(actor=actor, endpoint=other, at=at)
    assert sending.send_due(at=at) == sending.OF_ONE_ENDPOINT + 1


def test_only_what_did_not_arrive_is_replayed(
    actor: Actor, acme: Organization, listening: Listening, receiver: Receiver, rent: Rent, run_until_idle: Run
) -> None:
    rent()
    before = timezone.now() - timedelta(hours=1)
    published()
    receiver.status = 410
    sending.send_due(at=timezone.now())
    receiver.status = 200
    endpoint = WebhookEndpoint.objects.get()
    endpoints.change(actor=actor, endpoint=endpoint, url=endpoint.url, types=[], description="", is_enabled=True)
    lost = WebhookDelivery.objects.filter(state="failed").count()
    assert lost == 1
    assert endpoints.replay(actor=actor, endpoint=endpoint, since=before, at=timezone.now()) == lost
    sent_all()
    assert set(WebhookDelivery.objects.values_list("state", flat=True)) == {"delivered"}
    assert endpoints.replay(actor=actor, endpoint=endpoint, since=before, at=timezone.now()) == 0
    late, _ = endpoints.add(actor=actor, organization=acme, url=receiver.url, types=["instance.queued"])
    assert endpoints.replay(actor=actor, endpoint=late, since=before, at=timezone.now()) == 1


def test_no_secret_rests_readable_or_is_audited(actor: Actor, listening: Listening) -> None:
    fresh = endpoints.rotate(actor=actor, endpoint=listening.endpoint, at=timezone.now())
    row = WebhookEndpoint.objects.values().get()
    entries = list(AuditEntry.objects.filter(verb__startswith="webhook.").values())
    assert {entry["verb"] for entry in entries} == {"webhook.add", "webhook.rotate"}
    for secret in (fresh, listening.secret):
        assert secret not in str(row)
        assert secret not in str(entries)


def test_an_organization_has_only_so_many(
    actor: Actor, acme: Organization, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoints, "ENDPOINTS_MAX", 1)
    endpoints.add(actor=actor, organization=acme, url=receiver.url, types=[])
    with pytest.raises(Conflict):
        endpoints.add(actor=actor, organization=acme, url=receiver.url, types=[])
    with pytest.raises(BadOrder):
        endpoints.add(actor=actor, organization=acme, url=receiver.url, types=["nosuch"])


def test_outcomes_of_200_to_299_are_taken() -> None:
    taken = [status for status in (199, 200, 204, 299, 300, 302, 404, 500)
             if sending.Outcome(Answer(status, ""), "", 1).is_taken]  # fmt: skip
    assert taken == [200, 204, 299]
    assert not sending.Outcome(None, "no", 1).is_taken
