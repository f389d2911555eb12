from billing.models.ledger import Account, Hold, Transfer
from billing.models.usage import UNITS, Charge, PriceVersion, Runway, Unit, UsageSpan

__all__ = ["UNITS", "Account", "Charge", "Hold", "PriceVersion", "Runway", "Transfer", "Unit", "UsageSpan"]
