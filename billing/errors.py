"""What the till refuses. Nothing here knows of HTTP; amounts are micro-units of the organization's currency."""


class BillingError(Exception):
    """A refusal that somebody can do something about. Nothing was changed."""


class InsufficientFunds(BillingError):
    """There is less money than asked for."""

    def __init__(self, *, needed_micros: int, available_micros: int, currency: str) -> None:
        super().__init__(f"{needed_micros} micros {currency} are needed, {available_micros} are available")
        self.needed_micros = needed_micros
        self.available_micros = available_micros
        self.currency = currency


class KeyReused(BillingError):
    """The key was used before, for something else."""

    def __init__(self, key: str) -> None:
        super().__init__(f"{key} was used for something else")
        self.key = key


class HoldClosed(BillingError):
    """The hold has less left than was asked of it: it was posted, voided or expired."""

    def __init__(self, *, key: str, needed_micros: int, left_micros: int) -> None:
        super().__init__(f"hold {key} has {left_micros} micros left, {needed_micros} are needed")
        self.key = key
        self.needed_micros = needed_micros
        self.left_micros = left_micros


class RetroactivePrice(BillingError):
    """A price cannot begin before it is published: somebody may have used the thing at the old one."""


class PriceAlreadyPublished(BillingError):
    """Another price begins at the same moment; prices are never changed."""


class UnitMismatch(BillingError):
    """A meter counts one unit, and its price is for an hour of that unit."""

    def __init__(self, *, expected: str, found: str) -> None:
        super().__init__(f"a price per {found}-hour instead of per {expected}-hour")
        self.expected = expected
        self.found = found


class CurrencyMismatch(BillingError):
    """Money moves between accounts of one currency, and a price is in the currency of who pays it."""

    def __init__(self, *, expected: str, found: str) -> None:
        super().__init__(f"{found} instead of {expected}")
        self.expected = expected
        self.found = found
