from marketplace.models.budgets import Budget, BudgetAlert
from marketplace.models.catalogue import Offer
from marketplace.models.events import Event, EventMail, Noted, WebhookAttempt, WebhookDelivery, WebhookEndpoint
from marketplace.models.idle import IdleAction, IdleSpell
from marketplace.models.purchases import TokenPurchase
from marketplace.models.requests import QuotaRequest, QuotaRule
from marketplace.models.resale import LendingShare, ListedHour, Listing, Trade, TradeLeg
from marketplace.models.reservations import (
    BEGUN,
    OVER,
    RESERVATION_MOVES,
    USABLE,
    BlockTerms,
    Quote,
    Reservation,
    ReservationEvent,
    ReservationState,
    ReservationStrip,
    Shortfall,
)
from marketplace.models.spot import Allocation, Auction, Bid, SpotTerms
from marketplace.models.suppliers import SupplierApplication
from marketplace.models.tenants import (
    ApiToken,
    AuditEntry,
    IdempotencyRecord,
    Invitation,
    Membership,
    Organization,
    Project,
    Role,
    SshKey,
    User,
)
from marketplace.models.waiting import WaitingOrder

__all__ = [
    "BEGUN",
    "OVER",
    "RESERVATION_MOVES",
    "USABLE",
    "Allocation",
    "ApiToken",
    "Auction",
    "AuditEntry",
    "Bid",
    "BlockTerms",
    "Budget",
    "BudgetAlert",
    "Event",
    "EventMail",
    "IdempotencyRecord",
    "IdleAction",
    "IdleSpell",
    "Invitation",
    "LendingShare",
    "ListedHour",
    "Listing",
    "Membership",
    "Noted",
    "Offer",
    "Organization",
    "Project",
    "QuotaRequest",
    "QuotaRule",
    "Quote",
    "Reservation",
    "ReservationEvent",
    "ReservationState",
    "ReservationStrip",
    "Role",
    "Shortfall",
    "SpotTerms",
    "SshKey",
    "SupplierApplication",
    "TokenPurchase",
    "Trade",
    "TradeLeg",
    "User",
    "WaitingOrder",
    "WebhookAttempt",
    "WebhookDelivery",
    "WebhookEndpoint",
]
