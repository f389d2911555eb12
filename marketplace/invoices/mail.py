"""The message that brings an invoice."""

from datetime import datetime, timedelta

from django.conf import settings
from django.core.mail import EmailMessage
from django.urls import reverse

from billing.models import Invoice, InvoiceLine, InvoiceMail
from marketplace import outbox
from marketplace.invoices import pdf
from marketplace.invoices.words import WORDS, day, title
from marketplace.money import shown


def send_due(*, at: datetime, limit: int) -> int:
    """Send the invoices that were not sent yet; return how many were."""
    rows = InvoiceMail.objects.select_related("invoice__organization", "invoice__credited")
    return outbox.deliver(rows, lambda row: written(row.invoice), at=at, limit=limit)


def written(invoice: Invoice) -> EmailMessage:
    """Return the message that brings an invoice, in its language, with the PDF."""
    said, facts = WORDS[invoice.language], _facts(invoice)
    about = "mail_credit" if invoice.is_credit_note else "mail_invoice"
    told = [said["mail_hello"], "", said[about].format(**facts), "", said["mail_total"].format(**facts)]
    if not invoice.is_credit_note:
        told += [said[name].format(**facts) for name in ("mail_paid", "mail_due")]
    told += ["", said["mail_online"].format(**facts), "", invoice.seller["name"]]
    message = EmailMessage(
        subject=said["mail_subject"].format(**facts),
        body="\n".join(told) + "\n",
        to=outbox.receivers(invoice.organization),
    )
    lines = InvoiceLine.objects.filter(invoice=invoice).order_by("pk")
    message.attach(f"{invoice.number}.pdf", pdf.drawn(invoice, lines), "application/pdf")
    return message


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
