"""What instances say of themselves: written in English, read by each in their own language."""

from django.utils.translation import gettext_lazy as _

from provisioning.models import Interruption
from provisioning.told import Told

NO_GPUS = Told(_("No %(gpus)s became free within %(minutes)s minutes."))
SUSPENDED = Told(_("Its project was suspended before it could start."))
NOT_ASKED = Told(_("The nodes could not be asked within %(time)s."))
NOT_READY = Told(_("The nodes did not get ready within %(time)s."))
NOT_CHECKED = Told(_("The nodes could not be checked within %(time)s."))
NOT_BEGUN = Told(_("The nodes did not start the command within %(time)s."))
NOT_PREPARED = Told(_("The node could not prepare the instance."))
UNHEALTHY = Told(_("A GPU of node %(node)s is not healthy any more."))
SILENT = Told(_("Node %(node)s stopped answering."))
LOST = Told(_("The node lost the instance."))
EXITED = Told(_("Its command ended with exit code %(code)s."))
EXITED_BY_NODE = Told(_("Its node ended its command with exit code %(code)s: %(why)s."))
# As a node says it (`agent/disk.py`).
DISK_FILLED = Told(_("the workload filled its disk share: %(used)s of %(most)s"))

OFF = Told(_("Node %(node)s is off: a capacity manager confirmed it."))
RESTARTED = Told(_("Node %(node)s restarted, which ended all that ran there."))
UNHEARD = Told(
    _(
        "Node %(node)s has not answered since %(since)s UTC; it ends by itself what it runs when it has not heard from "
        "us for %(seconds)s s."
    )
)
LIED = Told(_("Its node sent something else than it said."))
NO_OUTPUTS = Told(_("Its node did not send what it left behind."))

WHY = {
    Interruption.Reason.OUTBID: Told(_("It was outbid")),
    Interruption.Reason.CAPACITY: Told(_("Its GPUs are needed")),
    Interruption.Reason.MAINTENANCE: Told(_("Its node needs maintenance")),
    Interruption.Reason.RESERVATION_END: Told(_("Its reservation ends")),
    Interruption.Reason.OWNER_RECALL: Told(_("The holder of the reservation wants the GPUs back")),
    Interruption.Reason.SIMULATED: Told(_("An interruption was simulated")),
}
TOLD_TO_GO = Told(_("%(why)s: it ends at %(at)s UTC."))
CUT_BEFORE = Told(_("%(why)s before it ran; nothing is charged for that."))
