"""What the demo world sells by its outcome, so that a newcomer can buy finished work within a minute.

A supplier sells it, and not the operator, whose hosts it runs on: so hosts of somebody who does not sell it verify the
results, and the operator, who has a share, may decide disputes, and refunds what it leaves undecided.
"""

from datetime import datetime
from typing import Any

from marketplace.access import Actor
from marketplace.contracts import offering
from marketplace.contracts.terms import PLATFORM, SCHEMA, SELLER
from marketplace.models import Contract, Organization

CENT = 10_000
# Short windows: whoever tries it sees money move while they look. A real product gives its customers days.
COMMON: dict[str, Any] = {
    "schema": SCHEMA,
    "kind": "per_task",
    "currency": "USD",
    "unit": {"name": "task", "per": 1, "price_micros": 2 * CENT, "most": 1},
    "measured": None,
    "evidence": ["exit_code", "inputs", "outputs", "gpu_uuids", "node_signature"],
    "acceptance": {"window_s": 60, "on_silence": "accept"},
    "disputes": {
        "window_s": 120, "decided_by": "operator", "arbiter": None, "decide_within_s": 86_400, "if_undecided": "refund",
    },
    "retries": 1,
    # The hours are the platform's: small tasks, and not many that nobody pays for.
    "work": {
        "offers": None, "gpus": 1, "seconds": 1800, "attempts": 3, "attempt_micros": 500 * CENT,
        "unpaid_micros": 5_000 * CENT,
    },
    "deadline": None,
    "cap": None,
    "floor": None,
    "clawback_s": 7 * 86_400,
    "shares": [{"to": SELLER, "bps": 8000}, {"to": PLATFORM, "bps": 2000}],
    "guarantee": None,
    "revenue": None,
}  # fmt: skip
PRODUCTS: dict[str, dict[str, Any]] = {
    "Finished tasks": {
        "counts": "A task counts once its command ended with exit code 0 and every output that it declares is there.",
        "verifier": {"kind": "outputs"},
    },
    "Checked tasks": {
        "counts": "A task counts once a command of your own, which runs on another host with the outputs and without a "
        "network, ended with exit code 0.",
        "unit": {"name": "task", "per": 1, "price_micros": 3 * CENT, "most": 1},
        "verifier": {"kind": "command", "timeout_s": 120, "runs": 2, "on_silence": "fail", "gpus": 1},
    },
    "Reproducible tasks": {
        "counts": "A task counts once it left its outputs; one in ten, drawn from its digests, is run a second time on "
        "another host and has to leave the same bytes.",
        "verifier": {"kind": "rerun", "timeout_s": 600, "runs": 2, "on_silence": "fail", "rate_bps": 1000},
    },
}


def offer_all(*, actor: Actor, manager: Actor, seller: Organization, at: datetime) -> None:
    """Put each product into the catalogue, once, as a capacity manager approves it."""
    for title, terms in PRODUCTS.items():
        if not Contract.objects.filter(seller=seller, buyer=None, title=title).exists():
            version = offering.draft(actor=actor, seller=seller, title=title, terms=COMMON | terms, at=at)
            offering.offer(actor=actor, version=version, at=at)
            offering.approve(actor=manager, version=version, at=at)
