"""What the engine room refuses. Whoever faces the customer turns these into words."""

from collections.abc import Mapping, Sequence
from typing import Any


class ProvisioningError(Exception):
    """An expected refusal; nothing was changed."""


class IllegalMove(ProvisioningError):
    """The map of moves forbids it."""


class StaleInstance(ProvisioningError):
    """Somebody else moved the instance first; look again."""


class StaleVersion(ProvisioningError):
    """The document was replaced since it was read; read it again."""


class StaleInterruption(ProvisioningError):
    """The interruption was called off, carried out or ended meanwhile; look again."""


class NoCapacity(ProvisioningError):
    """There are not enough free GPUs now. `decision` says why; whoever rolls back may keep it (`decisions.keep`)."""

    def __init__(self, message: str, *, decision: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.decision = decision


class PolicyExcludes(NoCapacity):
    """A policy of the tenant's own lets nothing of it run there. It is never relaxed."""


class NeverFits(NoCapacity):
    """It would find no place even if all nodes of the offer were empty."""


class NoRoom(ProvisioningError):
    """No node can keep a volume now."""


class QuotaExceeded(ProvisioningError):
    """A quota of the project or its organization has no room; the words say which, empty ones stand for all."""

    def __init__(
        self,
        *,
        wanted: int,
        held: int,
        limit: int,
        is_organization: bool = False,
        gpu_model: str = "",
        market: str = "",
        unit: str = "gpus",
        reserved_in: Sequence[int] = (),
    ) -> None:
        owner = "organization" if is_organization else "project"
        things = "GPUs" if unit == "gpus" else "micros an hour"
        of = "".join(f" for {word}" for word in (gpu_model, market) if word)
        super().__init__(f"{wanted} more {things} would exceed the {owner}'s quota{of}: {held} of {limit} are held")
        self.wanted, self.held, self.limit = wanted, held, limit
        self.is_organization, self.gpu_model, self.market, self.unit = is_organization, gpu_model, market, unit
        # Keys of the quotas that refuse and of which something is reserved.
        self.reserved_in = tuple(reserved_in)


class NoArtifact(ProvisioningError):
    """The project has no artifact with this digest."""


class ArtifactTooLarge(ProvisioningError):
    """An artifact is larger than any may be, or than it was announced."""


class ArtifactsFull(ProvisioningError):
    """The project may not keep so much."""


class WrongOffset(ProvisioningError):
    """An upload does not go on where it was left off; `offset` is the next byte that is missing."""

    def __init__(self, offset: int) -> None:
        super().__init__(f"the next byte that is missing is {offset}")
        self.offset = offset


class WrongDigest(ProvisioningError):
    """What arrived is not what it was announced as; `found` is its SHA-256. Nothing of it is kept."""

    def __init__(self, found: str) -> None:
        super().__init__(f"the SHA-256 of what arrived is {found}")
        self.found = found


class BadFolder(ProvisioningError):
    """A digest names no folder that the project has whole; the message says what is wrong or missing."""


class NodeRefused(ProvisioningError):
    """A node may not join or speak; the message says why."""


class NodeUnknown(NodeRefused):
    """The token or the key is not known or no longer good."""


class JoinTokenUsed(NodeRefused):
    """Another key has joined with this token."""


class NotAssigned(NodeRefused):
    """The node asks for something of an assignment that it does not hold."""


class InventoryMismatch(NodeRefused):
    """The node does not have the GPUs that the operator announced."""


class ClusterInUse(ProvisioningError):
    """Instances hold something on a cluster; `names` are the first of them."""

    def __init__(self, names: list[str]) -> None:
        super().__init__(f"instances run there: {', '.join(names)}")
        self.names = names


class OutsideFault(ProvisioningError):
    """Somebody else's service did not answer, or not as it should: try again later, lose nothing."""
