"""Verdicts: what a verifier said of a claim, once for each run, and where the claim goes by it."""

from datetime import datetime
from typing import Any

from django.db import IntegrityError, transaction
from django.utils.translation import gettext as _

from marketplace.contracts import claims, timeline
from marketplace.contracts import terms as written
from marketplace.errors import IllegalState
from marketplace.models import Claim, ClaimDispute, ClaimState, Side, Verdict

State = ClaimState
Result = Verdict.Result


def record(
    claim: Claim,
    *,
    verifier: str,
    verifier_version: str,
    result: str,
    at: datetime,
    detail: str = "",
    inputs: dict[str, Any] | None = None,
    by: str = "",
    signature: str = "",
    run: int | None = None,
) -> Verdict:
    """Write a verdict and move its claim along. Call it with the claim locked.

    Said again it changes nothing. Who says the opposite of what they said
    before is not believed in either: the first verdict stays, and what is not
    paid yet is disputed by the platform. Raises IllegalState for a verdict of another run, or one that comes too late.
    """
    run = claim.run if run is None else run
    known = claim.verdicts.filter(run=run, verifier=verifier, verifier_version=verifier_version).first()
    if known is not None:
        if known.result != result:
            _contradicted(claim, known, result, at=at)
        return known
    if run != claim.run or claim.state != State.CLAIMED:
        raise IllegalState(
            _("This verdict is too late: the claim is %(state)s.") % {"state": claim.get_state_display()}
        )
    made = Verdict.objects.create(
        claim=claim, run=run, verifier=verifier, verifier_version=verifier_version, result=result, detail=detail[:2000],
        inputs=inputs or {"evidence": claim.evidence_sha256}, by_name=by, signature=signature, at=at,
    )  # fmt: skip
    terms = written.of(claim.version.terms)
    message = timeline.said(verifier, detail)
    if result == Result.PASS:
        claim.move_to(
            State.VERIFIED, at=at, message=message, by=by, due_at=at + terms.seconds("acceptance", "window_s")
        )
    else:
        claim.move_to(State.FAILED, at=at, message=message, by=by, due_at=at + terms.seconds("disputes", "window_s"))
    return made


def by_silence(claim: Claim, *, result: str, at: datetime) -> None:
    """Let the written rule of silence judge where no verifier answered."""
    record(
        claim, verifier=Verdict.Verifier.SILENCE, verifier_version=claim.version.sha256, result=result, at=at,
        detail=timeline.NO_VERDICT(),
    )  # fmt: skip


def _contradicted(claim: Claim, known: Verdict, result: str, *, at: datetime) -> None:
    """Believe neither of two opposite verdicts: somebody looks at it, if it is not paid, over, or tried again."""
    message = timeline.BOTH_WAYS(
        verifier=timeline.VERIFIERS[known.verifier](), first=timeline.RESULTS[known.result](),
        second=timeline.RESULTS[result](),
    )  # fmt: skip
    is_tried_again = claims.may_retry(claim) and claims.is_tried_on(claim)
    stands = claim.state in (State.VERIFIED, State.AUTO_ACCEPTED, State.FAILED) and claim.is_open
    if known.run != claim.run or is_tried_again or not stands:
        claim.note(message, at=at)
        return
    open_dispute(
        claim, side=Side.PLATFORM, by="gpumarket", reason=ClaimDispute.Reason.VERIFIER, text=message, at=at
    )  # fmt: skip


def open_dispute(claim: Claim, *, side: Side, by: str, reason: str, text: str, at: datetime) -> ClaimDispute:
    """Write a dispute, and freeze the claim where its money is still set aside. Call it with the claim locked."""
    decide_by = at + written.of(claim.version.terms).seconds("disputes", "decide_within_s")
    try:
        with transaction.atomic():
            made = ClaimDispute.objects.create(
                claim=claim, opened_by=side, opened_by_name=by, claim_state=claim.state, reason=reason, text=text,
                opened_at=at, decide_by=decide_by,
            )  # fmt: skip
    except IntegrityError as error:
        if "claim_has_one_open_dispute" not in str(error):
            raise
        return claim.disputes.get(state=ClaimDispute.State.OPEN)
    if claim.state == State.SETTLED:
        claim.note(timeline.DISPUTED_AFTERWARDS(text=text), at=at, by=by)
    else:
        claim.move_to(State.DISPUTED, at=at, message=text, by=by, due_at=decide_by)
    return made
