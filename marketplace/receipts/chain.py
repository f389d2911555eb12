"""An organization's chain of receipts: each names the digest of the one before, so that none can be taken out."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import structlog
from django.conf import settings
from django.db import connection, transaction
from django.db.models import Exists, OuterRef

from billing.public_ids import new_public_id
from marketplace.models import Organization, Project, Receipt, ReceiptSignature, SigningKey
from marketplace.receipts import keys
from provisioning.agent.signing import canonical, moment, signature, signed

log = structlog.get_logger("marketplace.receipts")

RECEIPT, HEAD = "gpumarket.receipt.1", "gpumarket.chain-head.1"
CHAIN = 0x52637074  # half of an advisory lock of PostgreSQL, the letters of "Rcpt"; the organization is the other half


@dataclass(frozen=True)
class Entry:
    """What is to be said of one end of one claim. `content` joins the body: texts, whole numbers, true, false, null."""

    project: Project | None
    subject_id: str
    event: str
    amount_micros: int
    currency: str
    content: Mapping[str, Any]


@transaction.atomic
def append(*, organization: Organization, entries: Sequence[Entry], at: datetime) -> list[Receipt]:
    """Sign what is to be said, and add it to the chain in this order; what it says already is left out.

    Queries: seven, however many entries. Two that append to one chain wait for each other.
    """
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s, %s)", [CHAIN, organization.pk % 2**31])
    subjects = [entry.subject_id for entry in entries]
    known = set(Receipt.objects.filter(subject_id__in=subjects).values_list("subject_id", "event"))
    new = [entry for entry in entries if (entry.subject_id, entry.event) not in known]
    if not new:
        return []
    last = Receipt.objects.filter(organization=organization).order_by("-sequence").first()
    made: list[Receipt] = []
    for entry in new:
        last = _follow(last, organization, entry, at=at)
        made.append(last)
    Receipt.objects.bulk_create(made)
    _sign(made, at=at)
    log.info("receipts", organization=organization.public_id, receipts=len(made), last=made[-1].sequence)
    return made


def _follow(last: Receipt | None, organization: Organization, entry: Entry, *, at: datetime) -> Receipt:
    """Return the receipt that comes after another one, not saved yet."""
    public_id, sequence = new_public_id("rcp"), last.sequence + 1 if last else 1
    body = {
        **entry.content,
        "kind": RECEIPT,
        "id": public_id,
        "issuer": settings.PUBLIC_URL,
        "organization": organization.public_id,
        "project": entry.project.public_id if entry.project else None,
        "sequence": sequence,
        "previous": last.digest if last else None,
        "issued_at": moment(at),
        "event": entry.event,
    }
    text = canonical(body).decode()
    return Receipt(
        public_id=public_id, organization=organization, project=entry.project, sequence=sequence,
        previous=last.digest if last else "", digest=hashlib.sha256(text.encode()).hexdigest(), text=text,
        subject_id=entry.subject_id, event=entry.event, amount_micros=entry.amount_micros, currency=entry.currency,
        issued_at=at,
    )  # fmt: skip


def _sign(receipts: Sequence[Receipt], *, at: datetime) -> None:
    """Put the platform's signature under receipts, once for each key. In the caller's transaction."""
    key = keys.current(at=at)
    private, when = keys.private_of(key), max(at, key.created_at)
    ReceiptSignature.objects.bulk_create(
        ReceiptSignature(receipt=one, key=key, at=when, signature=_signature(one, private, when)) for one in receipts
    )


def _signature(receipt: Receipt, private: str, at: datetime) -> str:
    return signature(json.loads(receipt.text), private=private, at=at)["signature"]


def sign_again(*, at: datetime, limit: int) -> int:
    """Sign what only revoked keys have signed, the oldest first; return how many."""
    if not SigningKey.objects.filter(state=SigningKey.State.REVOKED).exists():
        return 0
    good = ReceiptSignature.objects.filter(receipt=OuterRef("pk")).exclude(key__state=SigningKey.State.REVOKED)
    with transaction.atomic():
        bare = Receipt.objects.filter(~Exists(good)).order_by("pk").select_for_update(of=("self",), skip_locked=True)
        found = list(bare[:limit])
        _sign(found, at=at)
    return len(found)


def document(receipt: Receipt) -> bytes:
    """Return a receipt as it is handed out: canonical, with the signatures that count. One query."""
    return _with_signatures(receipt, ReceiptSignature.objects.filter(receipt=receipt).select_related("key"))


def lines(receipts: Iterable[Receipt]) -> bytes:
    """Return receipts as they are handed out, one on each line. Two queries."""
    rows = list(receipts)
    signed_by: dict[int, list[ReceiptSignature]] = defaultdict(list)
    for one in ReceiptSignature.objects.filter(receipt__in=rows).select_related("key"):
        signed_by[one.receipt_id].append(one)
    return b"".join(_with_signatures(row, signed_by[row.pk]) + b"\n" for row in rows)


def _with_signatures(receipt: Receipt, found: Iterable[ReceiptSignature]) -> bytes:
    """Until the receipts of a revoked key are signed again they carry what they have."""
    rows = sorted(found, key=lambda row: row.pk)
    good = [row for row in rows if row.key.state != SigningKey.State.REVOKED]
    entries = [{"at": moment(row.at), "key": row.key.public_id, "signature": row.signature} for row in good or rows]
    return b'{"body":' + receipt.text.encode() + b',"signatures":' + canonical(entries) + b"}"


def head(organization: Organization, *, at: datetime) -> bytes:
    """Return a signed word on how long the chain is now, by which one that was cut short is found."""
    last = Receipt.objects.filter(organization=organization).order_by("-sequence").first()
    body = {
        "kind": HEAD,
        "issuer": settings.PUBLIC_URL,
        "organization": organization.public_id,
        "sequence": last.sequence if last else 0,
        "digest": last.digest if last else None,
        "as_of": moment(at),
    }
    with transaction.atomic():
        key = keys.current(at=at)
        return canonical(signed(body, private=keys.private_of(key), at=max(at, key.created_at)))
