"""What falls due: one step for each claim whose moment has come, so that nobody's silence leaves money set aside."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from functools import partial

import structlog
from django.db import transaction

from marketplace.contracts import answering, claims, disputing, floors, hosting, runs, settling, verifying
from marketplace.contracts import terms as written
from marketplace.models import TO_SETTLE, Claim, ClaimState, VerifierRun

log = structlog.get_logger("marketplace.contracts")

State = ClaimState
# While a job may still try a failed one again, its money stays set aside.
RETRY_LOOK = timedelta(minutes=1)
# What cannot take its step now is looked at again, after the others.
TROUBLE_PAUSE = timedelta(seconds=30)
# From claimed to accepted, where all windows are zero.
STEPS_MAX = 3
# So many are paid in one transaction: their customer's account is locked meanwhile.
PAID_MAX = 25


def advance(*, at: datetime, limit: int) -> int:
    """Take the steps that are due of each claim, the longest due first; return how many claims took theirs.

    What is to be paid out of one escrow is paid together. One that cannot take its step waits a moment, so that it
    keeps none of the others waiting.
    """
    taken, to_pay = set[int](), defaultdict[str, list[Claim]](list)
    for claim in list(Claim.objects.filter(due_at__lte=at).order_by("due_at", "pk")[:limit]):
        if claim.state not in TO_SETTLE and _tried(claim, partial(_steps, claim, at), at):
            taken.add(claim.pk)
        if claim.state in TO_SETTLE and claim.due_at is not None and claim.due_at <= at:
            to_pay[claim.escrow_id].append(claim)
    for escrow_id, found in to_pay.items():
        for begin in range(0, len(found), PAID_MAX):
            taken |= _pay(escrow_id, found[begin : begin + PAID_MAX], at)
    return len(taken)


def _tried(claim: Claim, step: Callable[[], object], at: datetime) -> bool:
    """Take a step of a claim; where it cannot be taken, let it wait a moment, and return False."""
    try:
        step()
    except Exception:  # one that cannot take its step must not keep the others from theirs
        log.exception("no step", claim=claim.public_id)
        Claim.objects.filter(pk=claim.pk, due_at__lte=at).update(due_at=at + TROUBLE_PAUSE)
        return False
    return True


def _pay(escrow_id: str, found: Sequence[Claim], at: datetime) -> set[int]:
    """Pay claims of one escrow together, or where that cannot be each by itself; return which were."""
    try:
        settling.settle_all(escrow_id=escrow_id, keys=[claim.pk for claim in found], at=at)
    except Exception:  # whichever is to blame, the others are paid
        log.exception("not settled together", escrow=escrow_id)
        alone = partial(settling.settle_all, escrow_id=escrow_id, at=at)
        return {claim.pk for claim in found if _tried(claim, partial(alone, keys=[claim.pk]), at)}
    return {claim.pk for claim in found}


def start_verifiers(*, at: datetime, limit: int) -> int:
    """Let claims that wait for GPUs to be verified on look again now, before others take what came free."""
    waiting = Claim.objects.filter(
        state=State.CLAIMED, due_at__lte=at + runs.NO_ROOM_WAIT, version__terms__verifier__kind__in=hosting.ON_NODES
    )
    waiting = waiting.exclude(verifier_runs__result=VerifierRun.Result.RUNNING).order_by("due_at", "pk")
    return sum(_tried(claim, partial(_steps, claim, at), at) for claim in list(waiting[:limit]))


def _steps(claim: Claim, at: datetime) -> None:
    """Take one step after the other while one is due, so that what is decided at once is decided in one look."""
    for _ in range(STEPS_MAX):
        if claim.state in TO_SETTLE:
            return
        before = claim.state
        step(claim=claim, at=at)
        claim.refresh_from_db(fields=["state", "due_at", "closed_at"])
        if claim.state == before or claim.due_at is None or claim.due_at > at:
            return


def close(*, at: datetime, limit: int) -> None:
    """Decide disputes by their rule, give back what nothing needs any more, end what verified, charge floors."""
    disputing.decide_due(at=at, limit=limit)
    settling.release_over(at=at, limit=limit)
    runs.end_left_over(at=at, limit=limit)
    floors.true_up(at=at, limit=limit)


def step(*, claim: Claim, at: datetime) -> None:
    """Take the one step that is due for a claim. Safe to repeat."""
    if claim.state == State.CLAIMED:
        verifying.look(claim=claim, at=at)
    elif claim.state in TO_SETTLE:
        settling.settle(claim=claim, at=at)
    elif claim.state == State.DISPUTED:
        disputing.decide_due_of(claim=claim, at=at)
    elif claim.state in RULES:
        _by_rule(claim, at)


@transaction.atomic
def _by_rule(claim: Claim, at: datetime) -> None:
    claim = claims.locked(claim)
    if claim.due_at is not None and claim.due_at <= at and claim.state in RULES:
        RULES[claim.state](claim, at)


def _silent(claim: Claim, at: datetime) -> None:
    answering.by_silence(claim, at=at)


def _give_back(claim: Claim, at: datetime) -> None:
    """Close what is not paid, or leave it open while it is tried again, and for its seller to contest after that."""
    until = at + RETRY_LOOK
    if not claims.may_retry(claim) or not claims.is_tried_on(claim):
        until = _contested_until(claim)
    if until <= at:
        settling.close(claim, at=at)
    else:
        Claim.objects.filter(pk=claim.pk).update(due_at=until)


def _contested_until(claim: Claim) -> datetime:
    """Return until when a claim that is not paid may be contested: while it was tried again it could not be."""
    since = claim.state_since
    if claims.may_retry(claim) and claim.task is not None:
        since = max(since, claim.task.state_since)
    return since + written.of(claim.version.terms).seconds("disputes", "window_s")


RULES: dict[str, Callable[[Claim, datetime], None]] = {
    State.VERIFIED: _silent,
    State.FAILED: _give_back,
    State.REJECTED: _give_back,
}
