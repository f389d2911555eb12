"""Verifiers that run on a node: an instance on another host, with the outputs as its inputs and no network.

Its host belongs to nobody who earns by the contract or pays for it, and nobody of the customer's project enters or ends
it; where no such host has GPUs it waits, and the claim says so. Exit code 0 passes and 1 does not; anything else is no
answer but a crash, as is being killed for memory or disk, of which it has the share that the task had: a command of the
customer's beside the outputs that it judges. Its hours are paid by the job's contract, and its GPUs are none of the
customer's quota.
"""

from dataclasses import replace
from datetime import datetime, timedelta

import structlog
from django.db import transaction
from django.db.models import Count, F, Q, QuerySet, Sum

from billing.errors import BillingError
from marketplace import instance_texts, offers, rentals
from marketplace.access import Actor
from marketplace.contracts import hosting, timeline
from marketplace.contracts import terms as written
from marketplace.errors import MarketError, ProjectSuspended
from marketplace.models import (
    Acceptance,
    Attempt,
    Claim,
    ClaimState,
    Job,
    TaskState,
    VerifierRun,
)
from marketplace.rentals import Order
from provisioning import artifacts, instances
from provisioning.agent.manifest import BadManifest
from provisioning.errors import NoArtifact, PolicyExcludes, ProvisioningError
from provisioning.models import AT_REST, INFRASTRUCTURE, Assignment, Instance, Phase, Reason
from provisioning.work import Work

log = structlog.get_logger("marketplace.contracts")

Result = VerifierRun.Result
# GPUs that become free are taken at once by others, so it looks often.
NO_ROOM_WAIT = timedelta(seconds=5)
# Of one organization at a time: they take none of its quota.
AT_ONCE_MAX = 32
OFFERS_TRIED_MAX = 10
# For a node to fetch inputs and begin; what takes longer is tried elsewhere.
START_MAX = timedelta(hours=1)
PASSED, FAILED = 0, 1
# What keeps a verifier from every host by its customer's own doing.
OWN = (PolicyExcludes, ProjectSuspended)
VERIFIER_ENV = "GPUMARKET_CLAIM"


def order_of_check(claim: Claim, acceptance: Acceptance, *, gpus: int) -> Order:
    """Return how the customer's command is run: it finds the outputs in its work folder, and reaches nothing else.

    Its offer is the one where the task ran; `start` says where it runs itself.
    """
    attempt = attempt_of(claim)
    return Order(
        offer=attempt.instance.offer,
        command=acceptance.check_command,
        image=acceptance.check_image,
        gpus=gpus,
        env={VERIFIER_ENV: claim.public_id},
        work=Work(
            inputs=claim.evidence["outputs"],
            has_network=False,
            avoid_nodes=hosts_of(attempt),
            paid_by=claim.escrow_id,
            disk_bytes=_disk_beside_outputs(claim, attempt.instance),
            time_limit_s=_limit_s(claim),
            is_off_limits=True,
        ),
        takes_quota=False,
    )


def _disk_beside_outputs(claim: Claim, first: Instance) -> int | None:
    """Return how much a verifier may keep: the task's share, and the outputs, which could fill that by themselves."""
    if first.disk_bytes is None:
        return None
    try:
        outputs = artifacts.files_of(claim.project_id, claim.evidence["outputs"])
    except (NoArtifact, BadManifest):
        outputs = ()
    return first.disk_bytes + sum(entry.size for entry in outputs)


def order_of_rerun(claim: Claim) -> Order:
    """Return how the task itself is run a second time: the same in all, on another host. Jobs under it use no volumes.

    Its offer is the one where the task ran; `start` says where it runs itself.
    """
    attempt = attempt_of(claim)
    first = attempt.instance
    return Order(
        offer=first.offer,
        command=first.command,
        image=first.image,
        gpus=first.gpus_per_replica,
        replicas=first.replicas,
        env=first.env,
        work=Work(
            inputs=first.inputs,
            outputs=tuple(first.outputs),
            has_network=first.has_network,
            avoid_nodes=hosts_of(attempt),
            paid_by=claim.escrow_id,
            disk_bytes=first.disk_bytes,
            time_limit_s=_limit_s(claim),
            is_off_limits=True,
        ),
        takes_quota=False,
    )


def set_aside(jobs: QuerySet[Job]) -> int:
    """Return what may still be spent on verifying results of these jobs: of what runs, and of what has no verdict yet.

    Each try counts whole until it has ended, and then not here; with the verdict nothing is set aside any more.
    """
    costly = jobs.filter(verify_micros__gt=0)
    whole = costly.aggregate(all=Sum(F("verify_micros") * (F("running") + F("verifying")), default=0))["all"]
    ended = Q(verifier_runs__run=F("run")) & ~Q(verifier_runs__result__in=[Result.RUNNING, Result.LOST])
    claims = Claim.objects.filter(task__job__in=costly, task__state=TaskState.VERIFYING)
    rows = claims.order_by().annotate(tries=Count("verifier_runs", filter=ended)).values_list(
        "task__job__verify_micros", "state", "version__terms__verifier__runs", "tries"
    )  # fmt: skip
    return int(whole) - sum(
        most if state != ClaimState.CLAIMED else most // runs * min(tries, runs) for most, state, runs, tries in rows
    )


def attempt_of(claim: Claim) -> Attempt:
    """Return the attempt whose result is claimed."""
    assert claim.task is not None
    found = claim.task.tries.select_related("instance__offer__supplier")
    return found.get(number=claim.evidence["attempt"])


def hosts_of(attempt: Attempt) -> tuple[str, ...]:
    """Return the nodes on which an attempt ran: its verifier runs on none of them."""
    rows = Assignment.objects.filter(instance=attempt.instance).values_list("node__public_id", flat=True)
    return tuple(sorted(set(rows)))


def start(claim: Claim, order: Order, *, number: int, at: datetime) -> bool:
    """Start one try at the first host that takes it; return whether one did: else it is tried again later."""
    if VerifierRun.objects.filter(result=Result.RUNNING, claim__organization=claim.organization).count() >= AT_ONCE_MAX:
        _say(claim, timeline.MANY_VERIFIERS(), at=at)
        return False
    apart = hosting.hosts(claim.version, order.offer, claim.organization)
    if not apart:
        _say(claim, timeline.ALL_HOSTS_EARN(), at=at)
        return False
    sold = offers.listings(apart, currency=claim.organization.currency, at=at)
    with_room = [one.offer for one in sold if one.largest_replica >= order.gpus]
    refusals: list[Exception] = []
    for offer in with_room[:OFFERS_TRIED_MAX]:
        refusal = _why_not(claim, replace(order, offer=offer), number=number, at=at)
        if refusal is None:
            return True
        refusals.append(refusal)
    is_own = bool(refusals) and all(isinstance(one, OWN) for one in refusals)
    _say(claim, timeline.CUSTOMER_LETS_NONE() if is_own else timeline.NO_HOST_FREE(), at=at)
    return False


def _why_not(claim: Claim, order: Order, *, number: int, at: datetime) -> Exception | None:
    """Start one try; return why it did not."""
    assert claim.task is not None
    job = claim.task.job
    actor = Actor(user=job.user, request_id=claim.public_id)
    try:
        with transaction.atomic():
            instance = rentals.rent(actor=actor, project=claim.project, order=order, at=at)
    except (ProvisioningError, BillingError, MarketError) as refusal:
        log.warning("no verifier", claim=claim.public_id, offer=order.offer.slug, why=str(refusal))
        return refusal
    VerifierRun.objects.create(claim=claim, run=claim.run, number=number, instance=instance, started_at=at)
    claim.note(timeline.VERIFIER_STARTED(number=number), at=at)
    return None


def _say(claim: Claim, message: str, *, at: datetime) -> None:
    """Note why it waits, once and not at every look."""
    latest = claim.events.order_by("pk").last()
    if latest is None or latest.message != message:
        claim.note(message, at=at)


def observe(tried: VerifierRun, claim: Claim, *, limit: timedelta, at: datetime) -> None:
    """See how a try stands, and end it when it answered, crashed, or took too long."""
    result = _result_of(tried, limit=limit, at=at)
    if result != Result.RUNNING:
        _end(tried, claim, result, at=at)


def _end(tried: VerifierRun, claim: Claim, result: str, *, at: datetime) -> None:
    if result == Result.PASS and tried.claim_id and _is_rerun(claim):
        result = Result.PASS if tried.instance.outputs_sha256 == claim.evidence["outputs"] else Result.FAIL
    VerifierRun.objects.filter(pk=tried.pk, result=Result.RUNNING).update(result=result, ended_at=at)
    tried.result, tried.ended_at = result, at
    ended = timeline.VERIFIER_ENDED(number=tried.number, result=timeline.RESULTS[tried.result]())
    claim.note(ended, at=at)
    try:
        instances.terminate(instance=tried.instance, at=at, message=instance_texts.VERIFIED(claim=claim.public_id))
    except ProvisioningError:
        # It moved this very moment; what stands still is ended by `end_left_over`.
        log.warning("not ended", instance=tried.instance.public_id, exc_info=True)


def said(tried: VerifierRun, claim: Claim) -> str:
    """Return in words what a try found, for the verdict."""
    if _is_rerun(claim):
        same = tried.result == Result.PASS
        return timeline.SAME_BYTES() if same else timeline.OTHER_BYTES()
    return timeline.COMMAND_ENDED(code=tried.instance.exit_code)


def end_left_over(*, at: datetime, limit: int) -> int:
    """End tries that nobody waits for any more, and terminate instances of those that are over; return how many."""
    left = list(_not_waited_for()[:limit])
    for tried in left:
        _give_up(tried, at=at)
    ended = len(left)
    done = VerifierRun.objects.exclude(result=Result.RUNNING).exclude(instance__desired=Instance.Desired.TERMINATED)
    for tried in done.select_related("instance").order_by("pk")[:limit]:
        try:
            instances.terminate(instance=tried.instance, at=at, message=instance_texts.VERDICT_GIVEN())
            ended += 1
        except ProvisioningError:
            log.warning("not ended", instance=tried.instance.public_id, exc_info=True)
    return ended


def _not_waited_for() -> QuerySet[VerifierRun]:
    """Return what runs though its claim is past that run, such as one that its seller withdrew: it never comes back."""
    running = VerifierRun.objects.filter(result=Result.RUNNING).select_related("claim__version", "instance")
    return running.exclude(claim__state=ClaimState.CLAIMED, claim__run=F("run")).order_by("pk")


@transaction.atomic
def _give_up(tried: VerifierRun, *, at: datetime) -> None:
    result = _result_of(tried, limit=timedelta(0), at=at)
    _end(tried, tried.claim, Result.TIMED_OUT if result == Result.RUNNING else result, at=at)


def _limit_s(claim: Claim) -> int:
    """Return for how long a try is charged at most, however late somebody sees that it takes longer."""
    return int(written.of(claim.version.terms)["verifier"]["timeout_s"])


def _is_rerun(claim: Claim) -> bool:
    return written.of(claim.version.terms).verifier == "rerun"


def _result_of(tried: VerifierRun, *, limit: timedelta, at: datetime) -> str:
    instance = tried.instance
    if instance.reason == Reason.EXITED and instance.exit_code is not None:
        known = {PASSED: Result.PASS} if _is_rerun(tried.claim) else {PASSED: Result.PASS, FAILED: Result.FAIL}
        return known.get(instance.exit_code, Result.CRASHED)
    if instance.phase in AT_REST or instance.phase == Phase.TERMINATING:
        return Result.LOST if instance.reason in INFRASTRUCTURE or not instance.ready_at else Result.CRASHED
    if instance.ready_at is None:
        return Result.LOST if at >= tried.started_at + START_MAX else Result.RUNNING
    return Result.TIMED_OUT if at >= instance.ready_at + limit else Result.RUNNING
