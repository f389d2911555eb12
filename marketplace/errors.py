"""What the shop front refuses, beside what the engine room and the till refuse."""


class MarketError(Exception):
    """An expected refusal; nothing was changed and nothing charged."""


class Forbidden(MarketError):
    """The person may know that it exists, but may not do this."""


class NotFound(MarketError):
    """It does not exist, or the person may not know that it does; `field` names where its id was given, if known."""

    def __init__(self, field: str = "") -> None:
        super().__init__(f"There is no such {field}." if field else "")
        self.field = field


class ProjectSuspended(MarketError):
    """The project or its organization is suspended; nothing new may start there."""


class BudgetExceeded(MarketError):
    """The worst case of the order would pass a budget; the message has the arithmetic."""


class BadOrder(MarketError):
    """The order does not make sense; `field` names what to change."""

    def __init__(self, field: str, detail: str) -> None:
        super().__init__(detail)
        self.field = field


class Conflict(MarketError):
    """It contradicts what is there already."""


class IllegalState(MarketError):
    """Its state does not allow this; the message says why."""


class LastOwner(Conflict):
    """An organization must keep an owner."""
