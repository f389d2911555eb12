"""What is told of reservations: payment, delivery, changes and their end."""

from django.utils.translation import gettext_lazy as _

from provisioning.told import Told

PAYMENT_GONE = Told(_("The money held for it was given back before it was taken."))
EXTENDED = Told(_("Extended until %(until)s UTC."))
CANCELLED = Told(_("Cancelled by %(who)s."))
LENT = Told(_("Idle GPUs are lent."))
NOT_LENT = Told(_("Nothing is lent any more."))
ALL_THERE = Told(_("All of its GPUs are there."))
MISSING = Told(_("%(missing)s of its %(held)s GPUs cannot be had now. You pay nothing for them, and may cancel."))
NO_HOST = Told(
    _(
        "For %(missing)s of its %(held)s GPUs no host is free of others, and a policy lets nobody share them. "
        "You pay nothing for them, and may cancel."
    )
)
ENDS = Told(_("It ends at %(end)s UTC; instances in it are asked to stop at %(drain)s UTC."))
