from marketplace.models.catalogue import Offer
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
    "ApiToken",
    "AuditEntry",
    "IdempotencyRecord",
    "Invitation",
    "Membership",
    "Offer",
    "Organization",
    "Project",
    "Role",
    "SshKey",
    "User",
]
