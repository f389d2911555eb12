from billing.models.ledger import Account, Hold, Transfer
from billing.models.usage import Charge, PriceVersion, Runway, UsageSpan

__all__ = ["Account", "Charge", "Hold", "PriceVersion", "Runway", "Transfer", "UsageSpan"]
