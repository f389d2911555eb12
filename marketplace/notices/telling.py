"""Notices as messages, in the customer's language."""

from datetime import datetime

from django.conf import settings
from django.core.mail import EmailMessage
from django.urls import reverse

from billing.models import Notice
from marketplace import declines, outbox
from marketplace.invoices.words import minute
from marketplace.money import shown
from marketplace.notices.words import DID, HELLO, ONLINE, THEN, WORDS

# Facts that are moments, and those that are amounts in the notice's currency.
MOMENTS = ("until", "stops_at", "due_at", "next_at")
AMOUNTS = {"burn_micros_per_hour": "burn", "left_micros": "left"}


def send_due(*, at: datetime, limit: int) -> int:
    """Send the notices that were not sent yet; return how many were."""
    rows = Notice.objects.select_related("organization__billing_details")
    return outbox.deliver(rows, written, at=at, limit=limit)


def written(notice: Notice) -> EmailMessage:
    """Return the message that tells a notice."""
    language = outbox.language_of(notice.organization)
    subject, body = WORDS[language][notice.kind]
    facts = _said(notice, language)
    facts["then"] = THEN[language].get(facts.get("next", ""), "").format(**facts)
    facts["did"] = DID[language].get(facts.get("did", ""), "")
    online = ONLINE[language].format(url=settings.PUBLIC_URL + reverse("balance"))
    return EmailMessage(
        subject=subject.format(**facts),
        body="\n\n".join((HELLO[language], body.format(**facts), online)) + "\n",
        to=outbox.receivers(notice.organization),
    )


def _said(notice: Notice, language: str) -> dict[str, str]:
    facts = {"organization": notice.organization.name, **notice.facts}
    if facts.get("failure_code"):
        facts["why"] = declines.said(facts["failure_code"], facts["why"], language=language)
    currency = facts.get("currency", notice.organization.currency)
    moments = {name: f"{minute(datetime.fromisoformat(facts[name]))} UTC" for name in MOMENTS if facts.get(name)}
    amounts = {said: shown(int(facts[name]), currency) for name, said in AMOUNTS.items() if name in facts}
    return facts | moments | amounts
