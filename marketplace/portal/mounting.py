"""The volumes of a launch form: which there are for an offer, what was chosen, and what is wrong with that."""

import re
from dataclasses import dataclass

from django.utils.translation import gettext as _

from marketplace import access
from marketplace.errors import BadOrder, NotFound
from marketplace.models import Offer, Project
from marketplace.portal.doors import Visit
from provisioning import volumes
from provisioning.models import Site, Volume

SHOWN_MOST = 50
ID_SHAPE = re.compile(r"[a-z0-9_]{1,32}")
READ_ONLY = "ro"


@dataclass(frozen=True)
class Mount:
    """A volume that was ticked, by id, with the path that was typed beside it."""

    volume: str
    path: str
    read_only: bool

    def written(self) -> str:
        """Return it as `parse` reads it, and as a command line names it."""
        return ":".join([self.volume, self.path, *([READ_ONLY] if self.read_only else [])])


@dataclass(frozen=True)
class Choice:
    """One volume as the form shows it. `refusal`: why it cannot be chosen now."""

    volume: Volume
    is_chosen: bool
    path: str
    read_only: bool
    refusal: str


def read(visit: Visit) -> str:
    """Return what is ticked in the form, a line for each volume."""
    ids = [name for name in visit.request.POST.getlist("volume") if ID_SHAPE.fullmatch(name)]
    mounts = [Mount(name, visit.text(f"path-{name}"), bool(visit.text(f"ro-{name}"))) for name in ids]
    return "\n".join(mount.written() for mount in mounts)


def parse(lines: str) -> list[Mount]:
    """Return the mounts that such lines name."""
    found = []
    for line in lines.splitlines():
        volume, _colon, path = line.strip().partition(":")
        # A path with any other colon stays whole, so that it is refused as a path.
        found.append(Mount(volume, path.removesuffix(f":{READ_ONLY}"), path.endswith(f":{READ_ONLY}")))
    return found


def uses(project: Project, lines: str) -> list[volumes.Use]:
    """Return the uses that lines mean, or raise BadOrder for a volume that is not there or not free."""
    found = []
    for mount in parse(lines):
        try:
            volume = access.volume_of(project, mount.volume)
        except NotFound as error:
            raise BadOrder("volumes", _("The project has no volume %(name)s.") % {"name": mount.volume}) from error
        if refusal := volumes.actions(volume)["attach"]:
            raise BadOrder("volumes", refusal)
        found.append(volumes.Use(volume, mount.path, mount.read_only))
    return found


def choices(visit: Visit, project: Project, offer: Offer, lines: str) -> list[Choice]:
    """Return the project's volumes that an instance of this offer could use, the newest first. Two queries."""
    if offer.runtime == Offer.Runtime.SLURM:
        return []
    chosen = {mount.volume: mount for mount in parse(lines)}
    alive = [Volume.State.CREATING, Volume.State.AVAILABLE, Volume.State.ATTACHED]
    found = access.volumes(visit.actor).filter(project=project, site=offer.site_id, state__in=alive, is_snapshot=False)
    usable = [
        volume
        for volume in found.order_by("-pk")[: SHOWN_MOST * 4]
        if volume.kind != Site.VolumeKind.LOCAL or volume.node.offer_id == offer.pk
    ]
    return [_choice(volume, chosen.get(volume.public_id) or chosen.get(volume.name)) for volume in usable[:SHOWN_MOST]]


def _choice(volume: Volume, mount: Mount | None) -> Choice:
    return Choice(
        volume=volume,
        is_chosen=mount is not None,
        path=mount.path if mount else f"/{volume.name}",
        read_only=mount is not None and mount.read_only,
        refusal=volumes.actions(volume)["attach"],
    )
