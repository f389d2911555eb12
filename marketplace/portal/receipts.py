"""Receipts: the list, one with all that it vouches for, and the files to verify elsewhere."""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

from django.db.models import QuerySet
from django.http import HttpResponse, StreamingHttpResponse
from django.utils.dateparse import parse_datetime

from marketplace import access_receipts
from marketplace.models import AttemptState, ClaimState, Receipt, Verdict
from marketplace.portal.doors import Visit, page
from marketplace.receipts import chain

PAGE = 50
PIECE = 500
ENDS = {
    ClaimState.SETTLED: ("good", "check"),
    ClaimState.FAILED: ("quiet", "cross"),
    ClaimState.REJECTED: ("quiet", "cross"),
    ClaimState.VOIDED: ("quiet", "minus"),
    ClaimState.REVERSED: ("warn", "arrow"),
}
MOMENTS = frozenset({"at", "began_at", "ended_at", "started_at", "closed_at", "claimed_at", "issued_at"})


@page()
def listed(visit: Visit) -> HttpResponse:
    """List receipts, newest first."""
    organization = visit.organization(verb="receipt.view")
    rows = access_receipts.receipts(visit.actor, organization).order_by("-pk")
    before = visit.query("before")
    if before:
        rows = rows.filter(sequence__lt=int(before) if before.isdecimal() and len(before) < 19 else 0)
    found = list(rows[: PAGE + 1])
    more, found = len(found) > PAGE, found[:PAGE]
    context = {
        "organization": organization,
        "receipts": [(row, *_end(row)) for row in found],
        "older": found[-1].sequence if more else "",
        "before": before,
    }
    return visit.page("receipts/list.html", context)


@page()
def shown(visit: Visit, receipt_id: str) -> HttpResponse:
    """Show what a receipt vouches for, and how it hangs in its chain."""
    row = access_receipts.receipt_for(visit.actor, receipt_id, verb="receipt.view")
    document = json.loads(chain.document(row))
    body, price = document["body"], document["body"]["price"]
    before, after = access_receipts.neighbours(visit.actor, row)
    context = {
        "receipt": row,
        "end": _end(row),
        "body": _timed(body),
        "price": {name: int(value) if name.endswith("_micros") else value for name, value in price.items()},
        "signatures": _timed(document["signatures"]),
        "before": before,
        "after": after,
        "filename": _filename(row),
        "attempt_states": dict(AttemptState.choices),
        "verifiers": dict(Verdict.Verifier.choices),
        "results": dict(Verdict.Result.choices),
        "claim_states": dict(ClaimState.choices),
    }
    return visit.page("receipts/show.html", context)


@page()
def file(visit: Visit, receipt_id: str) -> HttpResponse:
    """Download a receipt as it was signed."""
    row = access_receipts.receipt_for(visit.actor, receipt_id, verb="receipt.view")
    answer = HttpResponse(chain.document(row), content_type="application/json")
    answer["Content-Disposition"] = f'attachment; filename="{_filename(row)}"'
    return answer


@page()
def whole(visit: Visit) -> HttpResponse:
    """Download the whole chain as JSON lines, its signed head last."""
    organization = visit.organization(verb="receipt.view")
    head = chain.head(organization, at=visit.at)
    rows = access_receipts.receipts(visit.actor, organization)
    answer = StreamingHttpResponse(_pieces(rows, head), content_type="application/jsonl")
    answer["Content-Disposition"] = f'attachment; filename="receipts-{organization.public_id}.jsonl"'
    return cast(HttpResponse, answer)  # It may be hundreds of megabytes; pages hand on what they are given.


def _pieces(rows: QuerySet[Receipt], head: bytes) -> Iterator[bytes]:
    """Yield receipts up to the head: what comes meanwhile is in the next download."""
    last = json.loads(head)["body"]["sequence"]
    after = 0
    while found := list(rows.filter(sequence__gt=after, sequence__lte=last).order_by("sequence")[:PIECE]):
        yield chain.lines(found)
        after = found[-1].sequence
    yield head + b"\n"


def _filename(row: Receipt) -> str:
    """Return the name that `gpumarket receipts download` gives it, too."""
    return f"{row.sequence:06d}-{row.public_id}.json"


def _end(row: Receipt) -> tuple[Any, str, str]:
    """Return how a claim ended in words, its tone and its icon."""
    tone, icon = ENDS.get(ClaimState(row.event), ("quiet", "info"))
    return ClaimState(row.event).label, tone, icon


def _timed(value: Any) -> Any:
    """Return a document with its times as times, so that a page can show them in the reader's zone."""
    if isinstance(value, Mapping):
        return {name: _at(one) if name in MOMENTS else _timed(one) for name, one in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [_timed(one) for one in value]
    return value


def _at(text: Any) -> Any:
    return parse_datetime(text) if isinstance(text, str) else text
