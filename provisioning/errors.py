"""What the engine room refuses. Whoever faces the customer turns these into words."""


class ProvisioningError(Exception):
    """An expected refusal; nothing was changed."""


class IllegalMove(ProvisioningError):
    """The map of moves forbids it."""


class StaleInstance(ProvisioningError):
    """Somebody else moved the instance first; look again."""


class StaleInterruption(ProvisioningError):
    """The interruption was called off, carried out or ended meanwhile; look again."""


class NoCapacity(ProvisioningError):
    """There are not enough free GPUs now."""


class NoRoom(ProvisioningError):
    """No node can keep a volume now."""


class QuotaExceeded(ProvisioningError):
    """The project may not hold that many GPUs."""

    def __init__(self, *, wanted: int, held: int, limit: int) -> None:
        super().__init__(f"{wanted} more GPUs would exceed the project's quota: {held} of {limit} are held")
        self.wanted, self.held, self.limit = wanted, held, limit


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


class OutsideFault(ProvisioningError):
    """Somebody else's service did not answer, or not as it should: try again later, lose nothing."""
