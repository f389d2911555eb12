"""Sending invoices: a row says what is to be sent, so a message that was lost or a sender that died loses none."""

import logging
from datetime import datetime, timedelta

from django.conf import settings
from django.core.mail import EmailMessage
from django.db.models import F
from django.urls import reverse

from billing.models import Invoice, InvoiceLine, InvoiceMail
from marketplace.access import members
from marketplace.invoices import pdf
from marketplace.invoices.words import WORDS, day, title
from marketplace.models import Role
from marketplace.money import shown

FIRST_WAIT, LONGEST_WAIT = timedelta(minutes=2), timedelta(hours=6)
TRIES_MAX = 30

log = logging.getLogger(__name__)


def send_due(*, at: datetime, limit: int) -> int:
    """Send what is due, oldest first; return how much was sent. What cannot be sent is tried again, ever more seldom.

    A row is claimed by moving its next try, so two senders do not send the same
    invoice unless the first takes longer than a wait.
    """
    due = InvoiceMail.objects.filter(sent_at=None, next_try_at__lte=at, tries__lt=TRIES_MAX)
    sent = 0
    for row in due.select_related("invoice__organization", "invoice__credited").order_by("next_try_at", "pk")[:limit]:
        wait = min(FIRST_WAIT * 2 ** min(row.tries, 10), LONGEST_WAIT)
        mine = InvoiceMail.objects.filter(pk=row.pk, sent_at=None, tries=row.tries)
        if not mine.update(tries=F("tries") + 1, next_try_at=at + wait):
            continue
        try:
            written(row.invoice).send()
        except Exception:  # one address that refuses must not keep the others from theirs
            log.exception("invoice %s was not sent", row.invoice.number)
            continue
        InvoiceMail.objects.filter(pk=row.pk).update(sent_at=at)
        sent += 1
    return sent


def written(invoice: Invoice) -> EmailMessage:
    """Return the message that brings an invoice, in its language, with the PDF."""
    said, facts = WORDS[invoice.language], _facts(invoice)
    about = "mail_credit" if invoice.is_credit_note else "mail_invoice"
    told = [said["mail_hello"], "", said[about].format(**facts), "", said["mail_total"].format(**facts)]
    if not invoice.is_credit_note:
        told += [said[name].format(**facts) for name in ("mail_paid", "mail_due")]
    told += ["", said["mail_online"].format(**facts), "", invoice.seller["name"]]
    message = EmailMessage(
        subject=said["mail_subject"].format(**facts), body="\n".join(told) + "\n", to=receivers(invoice)
    )
    lines = InvoiceLine.objects.filter(invoice=invoice).order_by("pk")
    message.attach(f"{invoice.number}.pdf", pdf.drawn(invoice, lines), "application/pdf")
    return message


def receivers(invoice: Invoice) -> list[str]:
    """Return where an invoice goes: to the address of the billing details, else to owners and billing members."""
    details = getattr(invoice.organization, "billing_details", None)
    if details is not None and details.email:
        return [details.email]
    people = members(invoice.organization).filter(role__in=[Role.OWNER, Role.BILLING], user__is_active=True)
    return sorted(people.values_list("user__email", flat=True))


def _facts(invoice: Invoice) -> dict[str, str]:
    return {
        "title": title(invoice),
        "number": invoice.number,
        "seller": invoice.seller["name"],
        "credited": invoice.credited.number if invoice.credited else "",
        "reason": invoice.reason,
        "start": day(invoice.period_start),
        "end": day(invoice.period_end - timedelta(milliseconds=1)),
        "total": shown(invoice.total_micros, invoice.currency),
        "paid": shown(invoice.paid_micros, invoice.currency),
        "due": shown(invoice.due_micros, invoice.currency),
        "url": settings.PUBLIC_URL + reverse("invoice", args=[invoice.public_id]),
    }
