from billing.models.bank import BankTransfer, InvoiceDispute
from billing.models.collecting import Collection, DunningEvent, DunningStep, InvoicePayment
from billing.models.credit import CreditGrant, CreditLine
from billing.models.daily import DailyRevenue, RevenueToSum
from billing.models.decisions import Proposal
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
from billing.models.notices import Notice, RunwayWatch
from billing.models.payments import (
    AutomaticTopUp,
    BalanceEntry,
    Card,
    Dispute,
    Payment,
    ProcessorCustomer,
    ProcessorEvent,
    ReconciliationCase,
    Refund,
)
from billing.models.payouts import (
    Payout,
    PayoutAccount,
    StatementItem,
    StatementLine,
    StatementSeries,
    SupplierStatement,
)
from billing.models.prepaid import InvoicePrepaid, PrepaidItem
from billing.models.prices import (
    Adjustment,
    AdjustmentPosting,
    Commitment,
    CommitmentPrice,
    InvoiceAdjustment,
    PriceList,
    PriceListItem,
    SimulatedBill,
)
from billing.models.sla import SlaVerdict, SupplierAdjustment
from billing.models.suppliers import Accrual, Delivery, Earning, RateCard
from billing.models.usage import UNITS, Charge, PriceModel, PricePoint, PriceVersion, Runway, Unit, UsageSpan

__all__ = [
    "UNITS",
    "Account",
    "Accrual",
    "Adjustment",
    "AdjustmentPosting",
    "AutomaticTopUp",
    "BalanceEntry",
    "BankTransfer",
    "BillingDetails",
    "Card",
    "Charge",
    "Collection",
    "Commitment",
    "CommitmentPrice",
    "CreditGrant",
    "CreditLine",
    "CreditProposal",
    "DailyRevenue",
    "Delivery",
    "Dispute",
    "DunningEvent",
    "DunningStep",
    "Earning",
    "Hold",
    "Invoice",
    "InvoiceAdjustment",
    "InvoiceDispute",
    "InvoiceItem",
    "InvoiceLine",
    "InvoiceMail",
    "InvoicePayment",
    "InvoicePrepaid",
    "InvoiceSeries",
    "Notice",
    "Payment",
    "Payout",
    "PayoutAccount",
    "PrepaidItem",
    "PriceList",
    "PriceListItem",
    "PriceModel",
    "PricePoint",
    "PriceVersion",
    "ProcessorCustomer",
    "ProcessorEvent",
    "Proposal",
    "RateCard",
    "ReconciliationCase",
    "Refund",
    "RevenueToSum",
    "Runway",
    "RunwayWatch",
    "SimulatedBill",
    "SlaVerdict",
    "StatementItem",
    "StatementLine",
    "StatementSeries",
    "SupplierAdjustment",
    "SupplierStatement",
    "Transfer",
    "Unit",
    "UsageSpan",
]
