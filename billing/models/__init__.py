from billing.models.invoices import (
    BillingDetails,
    CreditProposal,
    Invoice,
    InvoiceItem,
    InvoiceLine,
    InvoiceMail,
    InvoiceSeries,
)
from billing.models.ledger import Account, Hold, Transfer
from billing.models.usage import UNITS, Charge, PricePoint, PriceVersion, Runway, Unit, UsageSpan

__all__ = [
    "UNITS",
    "Account",
    "BillingDetails",
    "Charge",
    "CreditProposal",
    "Hold",
    "Invoice",
    "InvoiceItem",
    "InvoiceLine",
    "InvoiceMail",
    "InvoiceSeries",
    "PricePoint",
    "PriceVersion",
    "Runway",
    "Transfer",
    "Unit",
    "UsageSpan",
]
