"""A platform with rows: receipts as the database keeps them, verified as anybody would."""

import json
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from django.utils import timezone

from marketplace.cli import chains, proofs
from marketplace.models import Organization, Receipt
from marketplace.receipts import chain, keys
from marketplace.receipts.chain import Entry
from tests.marketplace.receipts.papers import Platform


def entry(subject: str, event: str = "settled", **changes: Any) -> Entry:
    """An entry for the chain, with what an ordinary receipt says."""
    given = {"amount_micros": 2_776_500, "currency": "USD", "content": Platform().content()} | changes
    return Entry(**({"project": None, "subject_id": subject, "event": event} | given))


def append(organization: Organization, *subjects: str, at: datetime | None = None) -> list[Receipt]:
    """Add receipts of these subjects."""
    entries = [entry(subject) for subject in subjects]
    return chain.append(organization=organization, entries=entries, at=at or timezone.now())


def verified(receipts: Iterable[Receipt], *, head: bytes | None = None) -> list[str]:
    """What a verifier refuses of receipts as they are handed out, with the keys of now."""
    known = proofs.read_keys(json.dumps(keys.document(at=timezone.now())).encode())
    documents = [*chain.lines(receipts).splitlines(), *([head] if head else [])]
    found = [proofs.verify(str(place), data, known) for place, data in enumerate(documents)]
    linked = chains.chains(found, is_part=False)
    return [one.says for row in found for one in row.checks if one.result == proofs.REFUSED] + [
        fault for one in linked for fault in one.faults
    ]
