"""Who may do what: one literal table of verbs and roles. `access` asks it, and a test walks every route against it."""

from marketplace.models import Role

OWNER, ADMIN, BILLING, DEVELOPER, VIEWER = Role.OWNER, Role.ADMIN, Role.BILLING, Role.DEVELOPER, Role.VIEWER

EVERYBODY = frozenset(Role)

# verb -> the roles that may, and the scope that a token needs for it.
VERBS: dict[str, tuple[frozenset[Role], str]] = {
    "organization.view": (EVERYBODY, "read"),
    "organization.change": (frozenset({OWNER, ADMIN}), "manage"),
    "project.view": (EVERYBODY, "read"),
    "project.create": (frozenset({OWNER, ADMIN}), "manage"),
    "project.change": (frozenset({OWNER, ADMIN}), "manage"),
    "member.view": (EVERYBODY, "read"),
    "member.change": (frozenset({OWNER, ADMIN}), "manage"),
    "invitation.view": (frozenset({OWNER, ADMIN}), "manage"),
    "invitation.change": (frozenset({OWNER, ADMIN}), "manage"),
    "token.view": (EVERYBODY, "read"),
    "token.change": (EVERYBODY, "manage"),
    "ssh_key.view": (EVERYBODY, "read"),
    "ssh_key.change": (frozenset({OWNER, ADMIN, DEVELOPER}), "rent"),
    "registry.view": (EVERYBODY, "read"),
    "registry.change": (frozenset({OWNER, ADMIN, DEVELOPER}), "rent"),
    "instance.view": (EVERYBODY, "read"),
    "instance.change": (frozenset({OWNER, ADMIN, DEVELOPER}), "rent"),
    "bid.view": (EVERYBODY, "read"),
    "bid.change": (frozenset({OWNER, ADMIN, DEVELOPER}), "rent"),
    "volume.view": (EVERYBODY, "read"),
    "volume.change": (frozenset({OWNER, ADMIN, DEVELOPER}), "rent"),
    "artifact.view": (EVERYBODY, "read"),
    "artifact.change": (frozenset({OWNER, ADMIN, DEVELOPER}), "rent"),
    "policy.view": (EVERYBODY, "read"),
    "policy.change": (frozenset({OWNER, ADMIN}), "manage"),
    "organization_policy.change": (frozenset({OWNER, ADMIN}), "manage"),
    "reservation.view": (EVERYBODY, "read"),
    "reservation.change": (frozenset({OWNER, ADMIN, DEVELOPER}), "rent"),
    "usage.view": (EVERYBODY, "read"),
    "balance.view": (EVERYBODY, "read"),
    "receipt.view": (EVERYBODY, "read"),
    "invoice.view": (frozenset({OWNER, ADMIN, BILLING}), "read"),
    "dispute.change": (frozenset({OWNER, ADMIN, BILLING}), "manage"),
    "billing_details.view": (frozenset({OWNER, ADMIN, BILLING}), "read"),
    "billing_details.change": (frozenset({OWNER, ADMIN, BILLING}), "manage"),
    "commitment.view": (EVERYBODY, "read"),
    "commitment.change": (frozenset({OWNER, ADMIN, BILLING}), "manage"),
    "payment.view": (frozenset({OWNER, ADMIN, BILLING}), "read"),
    "payment.change": (frozenset({OWNER, ADMIN, BILLING}), "manage"),
    "revenue.view": (frozenset({OWNER, ADMIN, BILLING}), "read"),
    "revenue.change": (frozenset({OWNER, ADMIN, BILLING}), "manage"),
    "supplier.view": (frozenset({OWNER, ADMIN, BILLING}), "read"),
    "supplier.change": (frozenset({OWNER, ADMIN}), "manage"),
    "quota.view": (EVERYBODY, "read"),
    "quota_request.create": (frozenset({OWNER, ADMIN, DEVELOPER}), "manage"),
    "budget.view": (EVERYBODY, "read"),
    "budget.change": (frozenset({OWNER, ADMIN, BILLING}), "manage"),
    "wait.view": (EVERYBODY, "read"),
    "wait.change": (frozenset({OWNER, ADMIN, DEVELOPER}), "rent"),
    "contract.view": (EVERYBODY, "read"),
    "contract_acceptance.create": (frozenset({OWNER, ADMIN}), "manage"),
    "contract_sale.change": (frozenset({OWNER, ADMIN}), "manage"),
    "claim.view": (EVERYBODY, "read"),
    "claim.change": (frozenset({OWNER, ADMIN, DEVELOPER}), "rent"),
    "claim_sale.change": (frozenset({OWNER, ADMIN}), "manage"),
    "job.view": (EVERYBODY, "read"),
    "job.change": (frozenset({OWNER, ADMIN, DEVELOPER}), "rent"),
    "event.view": (EVERYBODY, "read"),
    "webhook.view": (frozenset({OWNER, ADMIN}), "manage"),
    "webhook.change": (frozenset({OWNER, ADMIN}), "manage"),
    "audit.view": (frozenset({OWNER, ADMIN}), "manage"),
    # What capacity managers of the operator do, whatever their role anywhere.
    "operator.change": (frozenset(), "manage"),
}

# What a token of one project may not do, whatever its owner's role.
ORGANIZATION_WIDE = frozenset(
    {
        "organization.change",
        "organization_policy.change",
        "project.create",
        "budget.change",
        "member.view",
        "member.change",
        "invitation.view",
        "invitation.change",
        "contract_acceptance.create",
        "contract_sale.change",
        "claim_sale.change",
        "webhook.view",
        "webhook.change",
        "audit.view",
        "invoice.view",
        "revenue.view",
        "revenue.change",
        "supplier.view",
        "supplier.change",
        "commitment.change",
        "dispute.change",
        "billing_details.view",
        "billing_details.change",
        "payment.view",
        "payment.change",
    }
)

SCOPES = ("read", "rent", "manage")


def allows(role: Role, verb: str) -> bool:
    """Return whether a member with this role may do this verb."""
    return role in roles_of(verb)


def roles_of(verb: str) -> frozenset[Role]:
    """Return the roles that may do this verb."""
    return VERBS[verb][0]


def scope_of(verb: str) -> str:
    """Return the scope that a token needs for this verb."""
    return VERBS[verb][1]
