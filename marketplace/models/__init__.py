from marketplace.models.catalogue import Offer
from marketplace.models.requests import QuotaRequest, QuotaRule
from marketplace.models.spot import Allocation, Auction, Bid, SpotTerms
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
    "Allocation",
    "ApiToken",
    "Auction",
    "AuditEntry",
    "Bid",
    "IdempotencyRecord",
    "Invitation",
    "Membership",
    "Offer",
    "Organization",
    "Project",
    "QuotaRequest",
    "QuotaRule",
    "Role",
    "SpotTerms",
    "SshKey",
    "User",
    "WaitingOrder",
]
