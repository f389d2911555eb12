"""Reservations in the launch form: which an order may run inside, and whether there is room."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from marketplace import coverage
from marketplace.models import Offer, Project, Reservation
from provisioning.models import Instance

FORBID, STRICT = Instance.Attach.FORBID, Instance.Attach.STRICT


@dataclass(frozen=True)
class Check:
    """One thing that a launch needs, and whether it is there."""

    good: bool
    text: str
    remedy: str = ""


@dataclass(frozen=True)
class Attaching:
    """The reservations of an offer that are usable now, each with how many GPUs it has to spare, and what was chosen:
    nothing (whichever has room), `forbid`, `strict`, or the id of one."""

    usable: list[tuple[Reservation, int]]
    chosen: str

    def covering(self, gpus: int) -> Reservation | None:
        """Return the reservation that an order would run inside, as `coverage.choose` does."""
        wanted = [found for found, free in self.usable if free >= gpus and self.chosen in {"", STRICT, found.public_id}]
        return max(wanted, key=lambda found: (found.ends_at, -found.pk), default=None)

    def binds(self, gpus: int) -> bool:
        """Whether an order runs inside one, or not at all."""
        return self.chosen not in {"", FORBID} or self.covering(gpus) is not None

    def room_check(self, gpus: int) -> Check:
        """Say whether a reservation has room for an order that has to run inside one."""
        free = max((free for one, free in self.usable if self.chosen in {"", STRICT, one.public_id}), default=0)
        text = ngettext(
            "The reservation has %(free)s GPU to spare.", "The reservation has %(free)s GPUs to spare.", free
        )
        if self.covering(gpus) is not None:
            return Check(True, text % {"free": free})
        return Check(False, text % {"free": free}, _("Ask for fewer GPUs, or let it run outside."))


def attaching(project: Project, offer: Offer, *, chosen: str, at: datetime) -> Attaching | None:
    """Return what an order may run inside, or None where the project has nothing usable of the offer now."""
    usable = coverage.usable(project=project, offer=offer, at=at)
    return Attaching(usable, chosen) if usable else None


def ordered(project: Project, offer: Offer, chosen: str) -> dict[str, Any]:
    """Return how an order says what was chosen; an id that is none of the project's is said as strict."""
    if chosen in {"", FORBID, STRICT}:
        return {"attach": chosen or Instance.Attach.AUTO}
    return {"attach": STRICT, "reservation": coverage.named(project=project, offer=offer, reservation_id=chosen)}
