"""An organization's chain of receipts: each names the digest of the one before, so that none can be taken out."""

import hashlib
import json
from collections.abc import Mapping
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


@transaction.atomic
def append(
    *,
    organization: Organization,
    project: Project | None,
    subject_id: str,
    event: str,
    amount_micros: int,
    currency: str,
    content: Mapping[str, Any],
    at: datetime,
) -> Receipt:
    """Sign what is to be said of one end of one claim, and add it to the chain; once, however often it is asked.

    `content` joins the body; it is made of texts, whole numbers below 2^53, true, false and null.
    """
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s, %s)", [CHAIN, organization.pk % 2**31])
    known = Receipt.objects.filter(subject_id=subject_id, event=event).first()
    if known is not None:
        return known
    last = Receipt.objects.filter(organization=organization).order_by("-sequence").first()
    public_id, sequence = new_public_id("rcp"), last.sequence + 1 if last else 1
    body = {
        **content,
        "kind": RECEIPT,
        "id": public_id,
        "issuer": settings.PUBLIC_URL,
        "organization": organization.public_id,
        "project": project.public_id if project else None,
        "sequence": sequence,
        "previous": last.digest if last else None,
        "issued_at": moment(at),
        "event": event,
    }
    text = canonical(body).decode()
    made = Receipt.objects.create(
        public_id=public_id, organization=organization, project=project, sequence=sequence,
        previous=last.digest if last else "", digest=hashlib.sha256(text.encode()).hexdigest(), text=text,
        subject_id=subject_id, event=event, amount_micros=amount_micros, currency=currency, issued_at=at,
    )  # fmt: skip
    sign(made, at=at)
    log.info("receipt", receipt=public_id, organization=organization.public_id, sequence=sequence, of=subject_id)
    return made


def sign(receipt: Receipt, *, at: datetime) -> None:
    """Put the platform's signature under a receipt, once for each key. In the caller's transaction."""
    key = keys.current(at=at)
    entry = signature(json.loads(receipt.text), private=keys.private_of(key), at=max(at, key.created_at))
    ReceiptSignature.objects.get_or_create(
        receipt=receipt, key=key, defaults={"at": max(at, key.created_at), "signature": entry["signature"]}
    )


def sign_again(*, at: datetime, limit: int) -> int:
    """Sign what only revoked keys have signed, the oldest first; return how many."""
    if not SigningKey.objects.filter(state=SigningKey.State.REVOKED).exists():
        return 0
    good = ReceiptSignature.objects.filter(receipt=OuterRef("pk")).exclude(key__state=SigningKey.State.REVOKED)
    bare = list(Receipt.objects.filter(~Exists(good)).order_by("pk")[:limit])
    for receipt in bare:
        with transaction.atomic():
            sign(receipt, at=at)
    return len(bare)


def document(receipt: Receipt) -> bytes:
    """Return a receipt as it is handed out: canonical, with the signatures that count. One query.

    Until a revoked key's receipts are signed again they carry what they have.
    """
    found = ReceiptSignature.objects.filter(receipt=receipt).select_related("key").order_by("pk")
    rows = list(found)
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
