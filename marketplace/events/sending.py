"""Sending what is due: signed, at least once, ever more seldom while nobody takes it."""

import json
import logging
import random
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

from django.conf import settings
from django.core.mail import EmailMessage
from django.db import connection, transaction
from django.db.models import F, QuerySet
from django.urls import reverse
from django.utils import timezone, translation
from django.utils.translation import gettext as _
from django.utils.translation import gettext_noop
from standardwebhooks import Webhook

from marketplace import outbox
from marketplace.events import feed
from marketplace.events.reach import Answer, Unreachable, post
from marketplace.models import Role, WebhookAttempt, WebhookDelivery, WebhookEndpoint
from provisioning.secrets import Unreadable, unseal

# After the first try, each with a fifth more or less, so that not all of a broken receiver come back at once.
WAITS = tuple(
    timedelta(seconds=seconds) for seconds in (5, 300, 1800, 2 * 3600, 5 * 3600, 10 * 3600, 14 * 3600, 24 * 3600)
)
TRIES_MAX = len(WAITS) + 1
LEASE = timedelta(minutes=2)
GIVES_UP_AFTER = timedelta(days=5)
AT_ONCE, OF_ONE_ENDPOINT = 16, 4
ANSWER_KEPT = 1000
# Why no more is sent to a webhook; kept in English, told in the reader's language.
GONE = gettext_noop("It answered 410: gone.")
SILENT = gettext_noop("Nothing arrived there for 5 days.")
SENDER = 0x686F6F6B73  # an advisory lock of PostgreSQL

DUE = """
SELECT id FROM (
    SELECT d.id, d.next_try_at, row_number() OVER (PARTITION BY d.endpoint_id ORDER BY d.next_try_at, d.id) AS turn
    FROM marketplace_webhookdelivery d JOIN marketplace_webhookendpoint e ON e.id = d.endpoint_id AND e.is_enabled
    WHERE d.state = 'pending' AND d.next_try_at <= %s
) AS due WHERE turn <= %s ORDER BY next_try_at, id LIMIT %s
"""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What one try came to."""

    answer: Answer | None
    error: str
    milliseconds: int

    @property
    def is_taken(self) -> bool:
        return self.answer is not None and 200 <= self.answer.status < 300


def send_due(*, at: datetime, limit: int = AT_ONCE) -> int:
    """Send what is due, a few of each endpoint and the longest waiting first; return how much arrived.

    One sender at a time, with threads: a slow receiver costs ten seconds and no
    worker more. A delivery is claimed by moving its next try, so what a sender
    that died had in hand is sent again.
    """
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_lock(%s)", [SENDER])
        if not cursor.fetchone()[0]:
            return 0
        try:
            cursor.execute(DUE, [at, OF_ONE_ENDPOINT, limit])
            mine = [delivery for (pk,) in cursor.fetchall() if (delivery := _claim(pk, at=at))]
            with ThreadPoolExecutor(AT_ONCE) as threads:
                outcomes = list(threads.map(_send, mine, [at] * len(mine)))
            for delivery, outcome in zip(mine, outcomes, strict=True):
                settle(delivery, outcome, at=timezone.now())
        finally:
            cursor.execute("SELECT pg_advisory_unlock(%s)", [SENDER])
    return sum(outcome.is_taken for outcome in outcomes)


def _claim(pk: int, *, at: datetime) -> WebhookDelivery | None:
    claimed = WebhookDelivery.objects.filter(pk=pk, state="pending", next_try_at__lte=at)
    if not claimed.update(tries=F("tries") + 1, next_try_at=at + LEASE):
        return None
    return WebhookDelivery.objects.select_related("endpoint", "event__organization", "event__project").get(pk=pk)


def _send(delivery: WebhookDelivery, at: datetime) -> Outcome:
    """Post one event. No query: it runs beside others in threads."""
    began = time.monotonic()
    body = json.dumps(feed.document(delivery.event), separators=(",", ":"), ensure_ascii=False)
    answer, error = None, ""
    try:
        headers = signed(delivery.endpoint, delivery.event.public_id, body, at=at)
        answer = post(delivery.endpoint.url, body=body.encode(), headers=headers)
    except Unreachable as unreachable:
        error = str(unreachable)
    except Unreadable:
        error = "the secret was lost with a key of ours; make a new one"
    return Outcome(answer, error, round((time.monotonic() - began) * 1000))


def signed(endpoint: WebhookEndpoint, event_id: str, body: str, *, at: datetime) -> dict[str, str]:
    """Return the headers of Standard Webhooks 1.0: both secrets sign while one is being replaced."""
    secrets = [endpoint.secret_sealed]
    if endpoint.former_until is not None and endpoint.former_until > at:
        secrets.append(endpoint.former_secret_sealed)
    signatures = [Webhook(unseal(sealed)).sign(event_id, at, body) for sealed in secrets]
    return {
        "Content-Type": "application/json",
        "User-Agent": "gpumarket-webhooks/1",
        "webhook-id": event_id,
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": " ".join(signatures),
    }


@transaction.atomic
def settle(delivery: WebhookDelivery, outcome: Outcome, *, at: datetime) -> None:
    """Write down what a try came to, and when the next one is; nothing where its webhook was removed meanwhile."""
    if not WebhookDelivery.objects.select_for_update(no_key=True).filter(pk=delivery.pk):
        return
    status = outcome.answer.status if outcome.answer else None
    body = outcome.answer.body[:ANSWER_KEPT].replace("\x00", "") if outcome.answer else ""
    WebhookAttempt.objects.create(
        delivery=delivery, at=at, status=status, error=outcome.error, answer=body, milliseconds=outcome.milliseconds
    )
    endpoint = WebhookEndpoint.objects.filter(pk=delivery.endpoint_id)
    mine = WebhookDelivery.objects.filter(pk=delivery.pk, state="pending", tries=delivery.tries)
    if outcome.is_taken:
        mine.update(state=WebhookDelivery.State.DELIVERED)
        endpoint.filter(failing_since__isnull=False).update(failing_since=None)
        return
    if delivery.tries >= TRIES_MAX or status == 410:
        mine.update(state=WebhookDelivery.State.FAILED)
    else:
        spread = random.uniform(0.8, 1.2)  # noqa: S311  nobody gains by guessing it
        mine.update(next_try_at=at + WAITS[delivery.tries - 1] * spread)
    endpoint.filter(failing_since=None).update(failing_since=at)
    if status == 410:
        _disable(endpoint.filter(is_enabled=True), GONE)
    _disable(endpoint.filter(is_enabled=True, failing_since__lte=at - GIVES_UP_AFTER), SILENT)


def _disable(found: QuerySet[WebhookEndpoint], why: str) -> None:
    """Send no more there, and tell those who may change it, once what was written is kept."""
    for endpoint in found.select_related("organization"):
        mine = WebhookEndpoint.objects.filter(pk=endpoint.pk, is_enabled=True)
        if mine.update(is_enabled=False, disabled_because=why):
            transaction.on_commit(partial(_tell, endpoint, why))


def _tell(endpoint: WebhookEndpoint, why: str) -> None:
    with translation.override(outbox.language_of(endpoint.organization)):
        facts = {"url": endpoint.url, "days": feed.KEPT_FOR.days}
        subject = _("Webhook disabled: %(url)s") % facts
        told = [
            endpoint.url,
            _(why),
            _("No events are sent there until you enable it again. They are kept for %(days)s days.") % facts,
            settings.PUBLIC_URL + reverse("webhook", args=[endpoint.public_id]),
        ]
    receivers = outbox.people(endpoint.organization, Role.OWNER, Role.ADMIN)
    try:
        EmailMessage(subject=subject, body="\n\n".join(told) + "\n", to=receivers).send()
    except Exception:  # the page says it as well
        log.exception("nobody was told that webhook %s is disabled", endpoint.public_id)
