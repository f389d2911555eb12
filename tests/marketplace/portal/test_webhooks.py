"""Events and webhooks in the browser."""

from typing import Any

from django.test import Client
from django.urls import reverse
from django.utils import timezone

from marketplace.events import sending
from marketplace.models import WebhookEndpoint
from tests.conftest import Rent, Run
from tests.marketplace.events.conftest import Receiver, published, receiver
from tests.marketplace.portal.reading import Page, faults, read

__all__ = ["receiver"]


def opened(client: Client, name: str, *ids: str) -> Page:
    answer = client.get(reverse(name, args=ids))
    assert answer.status_code == 200
    page = read(answer)
    assert faults(page) == []
    return page


def test_events_are_listed_the_newest_first(owner: Client, rent: Rent, run_until_idle: Run) -> None:
    assert "No events yet" in opened(owner, "events").text
    rent(name="trainer")
    run_until_idle()
    published()
    text = opened(owner, "events").text
    assert text.index("instance.running") < text.index("instance.queued")
    assert "trainer" in text
    some = read(owner.get(reverse("events"), {"type": "reservation.*"}))
    assert "No events yet" in some.text


def test_a_webhook_is_added_tested_and_removed(owner: Client, receiver: Receiver) -> None:
    assert "No webhooks yet" in opened(owner, "webhooks").text
    answer = owner.post(reverse("webhooks"), {"url": receiver.url, "types": "instance.*", "description": "pager"})
    assert answer.status_code == 200
    page = read(answer)
    assert faults(page) == []
    assert "whsec_" in answer.content.decode()
    endpoint = WebhookEndpoint.objects.get()
    assert "whsec_" not in owner.get(reverse("webhook", args=[endpoint.public_id])).content.decode()
    owner.post(reverse("webhook-test", args=[endpoint.public_id]))
    sending.send_due(at=timezone.now())
    text = opened(owner, "webhook", endpoint.public_id).text
    assert "webhook.test" in text
    assert "Delivered" in text
    rotated = owner.post(reverse("webhook-rotate", args=[endpoint.public_id]))
    assert "whsec_" in rotated.content.decode()
    assert "The former secret signs as well" in read(rotated).text
    assert owner.post(reverse("webhook-remove", args=[endpoint.public_id])).status_code == 302
    assert not WebhookEndpoint.objects.exists()


def test_a_bad_address_keeps_what_was_typed(owner: Client) -> None:
    form: dict[str, Any] = {"url": "http://10.0.0.1/", "types": "instance.*", "description": "mine"}
    answer = owner.post(reverse("webhooks"), form)
    page = read(answer)
    assert (answer.status_code, faults(page)) == (422, [])
    assert "Use https" in page.text
    assert 'value="mine"' in answer.content.decode()
