from marketplace.models.catalogue import Offer
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
    "Role",
    "SpotTerms",
    "SshKey",
    "User",
]
