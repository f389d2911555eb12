"""E-mail about events that people want to know of at once; rows say what is to be sent, so none is lost."""

from datetime import datetime

from django.conf import settings
from django.core.mail import EmailMessage
from django.urls import reverse
from django.utils import translation
from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from marketplace import outbox
from marketplace.models import EventMail, Role

# Who is told: all who may change a reservation.
MAY_CHANGE = (Role.OWNER, Role.ADMIN, Role.DEVELOPER)
# What is told, and what it means for the customer.
TOLD: dict[str, tuple[Promise, Promise]] = {
    "reservation.payment_failed": (
        gettext_lazy("Your reservation could not be paid"),
        gettext_lazy("Its hours were given back and nothing was paid. Add credit, then order again."),
    ),
    "reservation.active": (
        gettext_lazy("Your reservation has begun"),
        gettext_lazy("Launch inside it now: nothing more is charged for what runs there."),
    ),
    "reservation.delayed": (
        gettext_lazy("Your reservation is delayed"),
        gettext_lazy("GPUs that cannot be had cost nothing: each missing hour is given back by itself."),
    ),
    "reservation.partially_fulfilled": (
        gettext_lazy("A part of your reservation is missing"),
        gettext_lazy("GPUs that cannot be had cost nothing: each missing hour is given back by itself."),
    ),
    "reservation.ending": (
        gettext_lazy("Your reservation ends soon"),
        gettext_lazy("What runs inside is asked to stop before the end. Save its work, or extend the reservation."),
    ),
    "reservation.expired": (
        gettext_lazy("Your reservation is over"),
        gettext_lazy("What ran inside was stopped. Volumes are kept and cost on."),
    ),
    "reservation.cancelled": (
        gettext_lazy("Your reservation is cancelled"),
        gettext_lazy("What comes back by its terms is on your balance."),
    ),
}


def send_due(*, at: datetime, limit: int) -> int:
    """Send what was not sent yet; return how much was."""
    return outbox.deliver(EventMail.objects.select_related("event__organization"), written, at=at, limit=limit)


def written(mail: EventMail) -> EmailMessage:
    """Return the message that tells of an event, in the language of the organization's billing details."""
    event = mail.event
    with translation.override(outbox.language_of(event.organization)):
        subject, meaning = TOLD[event.type]
        data = event.data
        facts = {
            "offer": data["offer"], "gpus": data["gpus"], "start": data["starts_at"][:16].replace("T", " "),
            "end": data["ends_at"][:16].replace("T", " "),
        }  # fmt: skip
        what = _("%(gpus)s GPUs of %(offer)s, %(start)s to %(end)s UTC.") % facts
        where = _("See it: %(url)s") % {"url": settings.PUBLIC_URL + reverse("reservation", args=[event.subject_id])}
        parts = [what, data["message"], str(meaning), where]
        return EmailMessage(
            subject=f"{subject}: {data['offer']}", body="\n\n".join(part for part in parts if part) + "\n",
            to=outbox.people(event.organization, *MAY_CHANGE),
        )  # fmt: skip
