"""Verifying a claim: each look takes one step, by the verifier that the terms name, until there is a verdict.

Whoever earns never judges: exit code and outputs are the control plane's own
record, a command or a second run works on another host, and the others are the
customer or a third party that the terms name. Where no answer comes in time
the terms say what holds.
"""

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from hashlib import sha256

from django.db import transaction
from django.utils.translation import gettext as _

from marketplace.contracts import claims, evidence, judging, measuring, runs, signed, timeline, wording
from marketplace.contracts import terms as written
from marketplace.contracts.terms import Terms
from marketplace.errors import IllegalState, NotFound
from marketplace.models import Claim, ClaimState, Verdict, VerifierRun
from marketplace.rentals import Order
from provisioning import artifacts

State = ClaimState
Kind = Verdict.Verifier
Result = Verdict.Result

LOOK_AGAIN = timedelta(seconds=2)
# For GPUs to become free, beside the time that the verifier itself may take; then the rule of silence holds.
WAIT_MAX = timedelta(hours=6)
OUTPUTS_VERSION, RERUN_VERSION = "outputs/1", "rerun/1"


class NotComplete(IllegalState):
    """Evidence that the terms name is not there, and may still come."""


@transaction.atomic
def look(*, claim: Claim, at: datetime) -> Claim:
    """Take one step towards a verdict. Looking at what is judged changes nothing."""
    claim = claims.locked(claim)
    if claim.state != State.CLAIMED:
        return claim
    terms = written.of(claim.version.terms)
    try:
        may_pass = holds(claim, at=at)
    except NotComplete:
        _look_at(claim, at + LOOK_AGAIN)
        return claim
    if may_pass:
        STEPS[terms.verifier](claim, terms, at)
    return claim


def holds(claim: Claim, *, at: datetime) -> bool:
    """Return whether a claim may pass at all: what a task left is there, and its units are counted.

    One that may not has failed with this, and units that nobody counted cost
    nothing, whatever becomes of it. Call it with the claim locked, before any
    verdict. Raises NotComplete where evidence that the terms name may still come.
    """
    if claim.task is None:
        return True
    terms = written.of(claim.version.terms)
    problem = _problem_of_outputs(claim) or _problem_of_evidence(claim, terms, at=at) or measuring.measure(claim, terms)
    if not problem:
        return True
    measuring.void(claim, terms)
    _judge(claim, Kind.OUTPUTS, OUTPUTS_VERSION, Result.FAIL, problem, at=at)
    return False


@transaction.atomic
def take_signed(*, claim: Claim, result: str, detail: str, signature: str, run: int, at: datetime) -> Verdict:
    """Take the verdict of the third party that the terms name, signed over the claim, its evidence, run and result.

    A replay returns the first verdict; one that is signed by another, or for other evidence, is refused with BadOrder.
    Where outputs are missing or units cannot be counted, that is the verdict, whatever the third party says.
    """
    claim = claims.locked(claim)
    party = written.of(claim.version.terms)["verifier"].get("party")
    if party is None:
        raise NotFound("claim")
    replayed = claim.verdicts.filter(run=run, result=result, signature=signature).exclude(signature="").first()
    if replayed is not None:
        return replayed
    # Counted before it is signed for: what it is paid by stands in the evidence that everybody verifies it with.
    may_pass = claim.state != State.CLAIMED or run != claim.run or holds(claim, at=at)
    signed.check(verdict_text(claim, result=result, run=run), signature=signature, public_key=party["public_key"])
    if not may_pass:
        return claim.verdicts.get(run=run, verifier=Kind.OUTPUTS)
    return judging.record(
        claim, verifier=Kind.THIRD_PARTY, verifier_version=party["public_key"], result=result, detail=detail,
        by=party["name"], signature=signature, run=run, at=at,
    )  # fmt: skip


def verdict_text(claim: Claim, *, result: str, run: int) -> Mapping[str, object]:
    """Return what a third party signs: a verdict about this claim, on this evidence, in this run, and no other.

    While its units are still to be counted (`measuring.is_to_count`) its evidence is not whole yet.
    """
    return {
        "schema": "gpumarket.verdict/1",
        "claim": claim.public_id,
        "contract_version": claim.version.sha256,
        "evidence": claim.evidence_sha256,
        "result": result,
        "run": run,
    }


def is_sampled(claim: Claim, rate_bps: int) -> bool:
    """Return whether a claim is among those that are run a second time.

    Drawn from its subject and evidence, so that both sides can work it out
    later, and nobody before the result is known.
    """
    drawn = sha256(f"{claim.scope}/{claim.subject_key}/{claim.evidence_sha256}".encode()).digest()
    return int.from_bytes(drawn[:8], "big") * written.BP < rate_bps << 64


def _judge(claim: Claim, kind: str, version: str, result: str, detail: str, *, at: datetime) -> None:
    inputs = {name: claim.evidence.get(name, "") for name in ("inputs", "outputs", "job_spec")}
    judging.record(claim, verifier=kind, verifier_version=version, result=result, detail=detail, inputs=inputs, at=at)


def _by_outputs(claim: Claim, terms: Terms, at: datetime) -> None:
    _judge(claim, Kind.OUTPUTS, OUTPUTS_VERSION, Result.PASS, timeline.ALL_THERE(), at=at)


def _by_customer(claim: Claim, terms: Terms, at: datetime) -> None:
    until = claim.state_since + terms.seconds("acceptance", "window_s")
    result = Result.PASS if terms["acceptance"]["on_silence"] == "accept" else Result.FAIL
    _wait_or_silence(claim, until, result, at)


def _by_third_party(claim: Claim, terms: Terms, at: datetime) -> None:
    _wait_or_silence(
        claim, claim.state_since + terms.seconds("verifier", "answer_within_s"), terms["verifier"]["on_silence"], at
    )


def _by_command(claim: Claim, terms: Terms, at: datetime) -> None:
    acceptance = claims.acceptance_of(claim)
    version = written.digest(written.canonical({"image": acceptance.check_image, "command": acceptance.check_command}))
    order = runs.order_of_check(claim, acceptance, gpus=terms["verifier"]["gpus"])
    _run(claim, terms, order, kind=Kind.COMMAND, version=version, at=at)


def _by_rerun(claim: Claim, terms: Terms, at: datetime) -> None:
    if is_sampled(claim, terms["verifier"]["rate_bps"]):
        _run(claim, terms, runs.order_of_rerun(claim), kind=Kind.RERUN, version=RERUN_VERSION, at=at)
    else:
        detail = timeline.NOT_DRAWN(rate=terms["verifier"]["rate_bps"])
        _judge(claim, Kind.OUTPUTS, OUTPUTS_VERSION, Result.PASS, detail, at=at)


STEPS: dict[str, Callable[[Claim, Terms, datetime], None]] = {
    "outputs": _by_outputs,
    "command": _by_command,
    "rerun": _by_rerun,
    "customer": _by_customer,
    "third_party": _by_third_party,
}


def _wait_or_silence(claim: Claim, until: datetime, result: str, at: datetime) -> None:
    if at >= until:
        judging.by_silence(claim, result=result, at=at)
    elif claim.due_at != until:
        _look_at(claim, until)


def _run(claim: Claim, terms: Terms, order: Order, *, kind: str, version: str, at: datetime) -> None:
    """Let a verifier run on another host, again where it crashed or its node failed, as often as the terms say."""
    verifier = terms["verifier"]
    tried = list(claim.verifier_runs.filter(run=claim.run).select_related("instance").order_by("number"))
    current = tried[-1] if tried and tried[-1].result == VerifierRun.Result.RUNNING else None
    if current is not None:
        runs.observe(current, claim, limit=timedelta(seconds=verifier["timeout_s"]), at=at)
    answered = next((one for one in tried if one.result in Result.values), None)
    if answered is not None:
        _judge(claim, kind, version, answered.result, runs.said(answered, claim), at=at)
        return
    if current is not None and current.result == VerifierRun.Result.RUNNING:
        _look_at(claim, at + LOOK_AGAIN)
        return
    spent = sum(one.result != VerifierRun.Result.LOST for one in tried)
    most = verifier["runs"] * timedelta(seconds=verifier["timeout_s"]) + WAIT_MAX
    if spent >= verifier["runs"] or at >= claim.state_since + most:
        judging.by_silence(claim, result=verifier["on_silence"], at=at)
        return
    started = runs.start(claim, order, number=len(tried) + 1, at=at)
    _look_at(claim, at + (LOOK_AGAIN if started else runs.NO_ROOM_WAIT))


def _look_at(claim: Claim, due_at: datetime) -> None:
    Claim.objects.filter(pk=claim.pk).update(due_at=due_at)
    claim.due_at = due_at


def _problem_of_evidence(claim: Claim, terms: Terms, *, at: datetime) -> str:
    """Return what is missing of the evidence that its terms name; raises NotComplete while it may still come."""
    lacking = evidence.missing(claim, terms)
    if lacking and at < claim.state_since + evidence.WAIT:
        text = _(
            "Its evidence is not complete yet (%(lacking)s); try again in a minute. Nothing is charged before that."
        )
        raise NotComplete(text % {"lacking": ", ".join(str(wording.EVIDENCE[name]) for name in lacking)})
    names = ", ".join(timeline.EVIDENCE[name]() for name in lacking)
    return timeline.EVIDENCE_MISSING(lacking=names) if lacking else ""


def _problem_of_outputs(claim: Claim) -> str:
    """Return what is missing of exit code 0 and the declared outputs, by our own record; empty where nothing is."""
    assert claim.task is not None
    proof = claim.evidence
    if proof.get("exit_code") != 0:
        return timeline.EXIT_CODE(code=proof.get("exit_code"))
    declared = runs.attempt_of(claim).instance.outputs
    lacking = artifacts.lacking(project_id=claim.project_id, sha256=proof.get("outputs") or "", patterns=declared)
    return timeline.OUTPUTS_MISSING(names=", ".join(lacking)) if lacking else ""
