"""What instances and volumes say of who ended them and why: written in English, read by each in their own language."""

from django.utils.translation import gettext_lazy as _

from provisioning.told import Told

STOPPED = Told(_("Stopped by %(who)s."))
TERMINATED = Told(_("Terminated by %(who)s."))
STOPPED_BY_OPERATOR = Told(_("Stopped by the operator: %(text)s"))
TERMINATED_BY_OPERATOR = Told(_("Terminated by the operator: %(text)s"))
NO_FUNDS = Told(_("The organization's funds are used up; add credit and start it again."))
PAST_DUE = Told(_("A payment is past due; pay it and start it again."))
IDLE = Told(_("Its GPUs did nothing since %(since)s UTC. Nothing more is charged for it."))
RESERVATION_ENDS = Told(_("Its reservation ends; start it again to run on demand."))
RESERVATION_EXTENDED = Told(_("Its reservation was extended."))
VERIFIED = Told(_("It verified %(claim)s."))
VERDICT_GIVEN = Told(_("Its verdict is given."))

BID_RAISED = Told(_("Its bid was raised and would win now."))
BID_WON = Told(_("It won the next auction."))
BID_WITHDRAWN = Told(_("Its bid was withdrawn by %(who)s."))
BIDS_AGAIN = Told(_("It bids again since its GPUs were taken back."))
BIDS_NOT_YET = Told(_("It waits, and does not bid yet: %(refusal)s"))

VOLUME_DELETED = Told(_("Deleted by %(who)s."))
VOLUME_UNPAID = Told(_("The organization's funds were used up for %(days)s days; add credit and restore it."))
