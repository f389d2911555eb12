from billing.models.ledger import Account, Hold, Transfer
from billing.models.usage import UNITS, Charge, PricePoint, PriceVersion, Runway, Unit, UsageSpan

__all__ = [
    "UNITS",
    "Account",
    "Charge",
    "Hold",
    "PricePoint",
    "PriceVersion",
    "Runway",
    "Transfer",
    "Unit",
    "UsageSpan",
]
