"""Contracts that were agreed to, as rows: for tests of what follows from them, not of how they come about."""

from datetime import datetime
from hashlib import sha256
from typing import Any

from marketplace.contracts.terms import canonical
from marketplace.models import Acceptance, Contract, ContractVersion, Organization, Side, User
from tests import outcomes

REVENUE = {
    "share_bps": 1_500, "period": "month", "minimum_micros": 100_000_000, "cap_micros": None, "true_up": "none",
    "statement_within_s": 5 * 86_400, "if_overdue": "last_statement", "covers": None,
}  # fmt: skip
GUARANTEE = {
    "metric": "throughput", "counter": "tokens_total", "floor_milli": 2_500_000,
    "curve": [{"below_bps": 10_000, "credit_bps": 500}, {"below_bps": 8_000, "credit_bps": 10_000}],
    "cap_bps": 10_000, "seller_bps": 7_500,
}  # fmt: skip


def make_version(
    *, seller: Organization, buyer: Organization, by: User, kind: str, at: datetime, title: str = "Shared", **terms: Any
) -> ContractVersion:
    """Return a version that was negotiated with a buyer, who agreed to it."""
    said = outcomes.terms(kind=kind, currency=buyer.currency, **terms)
    text = canonical(said)
    contract = Contract.objects.create(seller=seller, buyer=buyer, title=title, kind=kind, created_by=by, created_at=at)
    version = ContractVersion.objects.create(
        contract=contract, number=1, terms=said, text=text, sha256=sha256(text.encode()).hexdigest(), state="offered",
        created_by=by, created_at=at, offered_at=at,
    )  # fmt: skip
    Acceptance.objects.create(
        version=version, organization=buyer, side=Side.BUYER, sha256=version.sha256, accepted_by=by,
        accepted_by_name=by.email, at=at,
    )  # fmt: skip
    return version


def share_revenue(seller: Organization, buyer: Organization, by: User, at: datetime, **revenue: Any) -> ContractVersion:
    return make_version(
        seller=seller, buyer=buyer, by=by, kind="revenue_share", at=at, title="Share of sales",
        revenue=REVENUE | revenue,
    )  # fmt: skip


def guarantee(seller: Organization, buyer: Organization, by: User, at: datetime, **terms: Any) -> ContractVersion:
    return make_version(
        seller=seller, buyer=buyer, by=by, kind="guarantee", at=at, title="Steady tokens", guarantee=GUARANTEE | terms
    )
