"""Claims in any order of verdicts, answers, silence, disputes, retries, losses and replays, against a small model."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

import pytest
import time_machine
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from django.db import transaction
from django.utils import timezone
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from billing import books
from billing.models import Escrow, Outcome
from marketplace.access import Actor, person
from marketplace.contracts import answering, claims, disputing, reversing, settling, sweeping, verifying
from marketplace.contracts.terms import canonical
from marketplace.errors import MarketError
from marketplace.jobs import cancelling
from marketplace.models import Claim, ClaimDispute, Job, Offer, Project, Side, Task, Verdict, VerifierRun
from provisioning.errors import IllegalMove
from provisioning.models import Instance
from tests.conftest import Fleet, make_person
from tests.outcomes import PRICE, SELLERS_ALONE, TERMS, WHOLE, make_deal, make_work

START = datetime.fromisoformat("2027-03-01T00:00:00+00:00")
TASKS = 4
KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
PARTY = {"name": "Checkers AS", "organization": None, "public_key": KEY.public_key().public_bytes_raw().hex()}
RUNS = {"timeout_s": 600, "runs": 2}
REFUSED = (MarketError, IllegalMove)

# Written apart from the code: what each act may make of a claim in each state; everything else is refused.
PAYABLE = {"accepted", "auto_accepted", "upheld", "partial"}
MODEL: dict[str, dict[str, set[str]]] = {
    "accept": {"verified": {"accepted"}, "claimed": {"accepted", "failed"}},
    "reject": {"verified": {"rejected"}, "claimed": {"failed"}},
    "dispute of the customer": {"verified": {"disputed"}, "auto_accepted": {"disputed"}, "settled": {"settled"}},
    "dispute of the seller": {"failed": {"disputed"}, "rejected": {"disputed"}},
    "decision": {
        "disputed": {"upheld", "partial", "rejected"}, "settled": {"settled", "reversed"},
    },
    "withdrawal": {"disputed": {"upheld", "rejected"}, "settled": {"settled"}},
    "void": {state: {"voided"} for state in ("claimed", "verified", "failed", "rejected", "disputed", *PAYABLE)},
    "reversal": {"settled": {"reversed"}},
    "verdict": {
        "claimed": {"verified", "failed"}, "verified": {"disputed"}, "auto_accepted": {"disputed"},
        "failed": {"disputed"},
    },
    "retry": {"failed": {"claimed"}},
    "time": {
        "claimed": {"verified", "failed"}, "verified": {"auto_accepted", "rejected"}, "failed": set(),
        "rejected": set(), "disputed": {"upheld", "rejected"}, "settled": {"reversed"},
        **{state: {"settled"} for state in PAYABLE},
    },
}  # fmt: skip


class Claims(RuleBasedStateMachine):
    """A job under a contract with one of the verifiers; whatever happens to its results, the money keeps its rules."""

    stage: Any = None

    @initialize(
        verifier=st.sampled_from(["outputs", "customer", "third_party", "command", "rerun"]),
        silence=st.sampled_from(["accept", "reject"]),
        undecided=st.sampled_from(["pay", "refund"]),
        cap=st.sampled_from([None, 2 * PRICE + 7]),
        retries=st.integers(0, 2),
    )
    def begins(self, verifier: str, silence: str, undecided: str, cap: int | None, retries: int) -> None:
        self.savepoint = transaction.atomic()
        self.savepoint.__enter__()
        self.clock = time_machine.travel(START, tick=False)
        self.traveller = self.clock.__enter__()
        actor, project, offer = self.stage
        self.actor: Actor = actor
        self.judge = person(make_person("judge@operator.example", is_staff=True), "req_judge")
        kinds: dict[str, Any] = {
            "outputs": {"kind": "outputs"}, "customer": {"kind": "customer"},
            "third_party": {
                "kind": "third_party", "party": PARTY, "answer_within_s": 3600,
                "on_silence": "pass" if silence == "accept" else "fail",
            },
            "command": {"kind": "command", "gpus": 1, **RUNS, "on_silence": "pass" if silence == "accept" else "fail"},
            "rerun": {"kind": "rerun", "rate_bps": 10_000, **RUNS, "on_silence": "fail"},
        }  # fmt: skip
        deal = make_deal(
            project.organization, verifier=kinds[verifier], acceptance={"on_silence": silence}, retries=retries,
            disputes={"if_undecided": undecided}, cap=cap and {"period": "month", "micros": cap},
            shares=SELLERS_ALONE if undecided == "pay" else TERMS["shares"],
            command=["./check"] if verifier == "command" else (),
        )  # fmt: skip
        self.deal = deal
        self.work = make_work(deal, project, offer, actor, tasks=TASKS, at=START)
        self.most = Escrow.objects.get(resource_id=self.work.job.public_id).amount_micros
        assert self.most == min(TASKS * PRICE, cap or TASKS * PRICE)

    def teardown(self) -> None:
        if not hasattr(self, "savepoint"):
            return
        try:
            self._comes_to_an_end()
        finally:
            transaction.set_rollback(True)
            self.savepoint.__exit__(None, None, None)
            self.clock.__exit__(None, None, None)

    def _comes_to_an_end(self) -> None:
        """Nobody does anything any more: every hold is resolved by the rules alone, and the books agree."""
        self.work.ends(timezone.now())
        for _ in range(12):
            self.traveller.shift(timedelta(days=1))
            self._sweep()
        assert not Claim.objects.filter(closed_at=None).exists(), "each claim reached an end by itself"
        escrow = Escrow.objects.get(resource_id=self.work.job.public_id)
        assert escrow.state == "closed"
        assert (escrow.posted_micros + escrow.voided_micros, escrow.left_micros) == (self.most, 0)
        self.keeps_its_promises()
        assert books.check(at=timezone.now()) == []

    def _sweep(self) -> None:
        for _ in range(6):
            if not sweeping.advance(at=timezone.now(), limit=50):
                break
        sweeping.close(at=timezone.now(), limit=50)

    def _some(self, data: st.DataObject) -> Claim:
        found = Claim.objects.order_by("pk").values_list("pk", flat=True)
        return Claim.objects.select_related("version", "contract", "task").get(
            pk=data.draw(st.sampled_from(list(found)))
        )

    def _does(self, act: str, claim: Claim, verb: Callable[[], object]) -> None:
        """Do something to a claim: what the model knows may happen, and what it does not know is refused."""
        before, was_closed = claim.state, claim.closed_at is not None
        refused = False
        try:
            with transaction.atomic():
                verb()
        except REFUSED:
            refused = True
        after = Claim.objects.get(pk=claim.pk).state
        known = MODEL[act].get(before, set())
        if was_closed and before != "settled":
            known = set()
        assert after == before or after in known, f"{act}: {before} became {after}"
        assert not refused or after == before

    @precondition(lambda self: self.work.job and Task.objects.filter(state="pending").exists())
    @rule(data=st.data(), is_whole=st.booleans())
    def an_attempt_succeeds(self, data: st.DataObject, is_whole: bool) -> None:
        found = (
            Task.objects.filter(job=self.work.job, state="pending").order_by("index").values_list("index", flat=True)
        )
        index = data.draw(st.sampled_from(list(found)))
        task = self.work.succeeds(index, outputs=WHOLE if is_whole else "")
        claim = Claim.objects.filter(task=task).first()
        opened = claims.open(task=self.work.task(index), at=timezone.now())
        if claim is not None:
            assert opened.pk == claim.pk, "a task has one claim"
            assert opened.state == ("claimed" if claims.may_retry(claim) else claim.state)

    @precondition(lambda self: Task.objects.filter(state="pending").exists())
    @rule(data=st.data())
    def a_node_is_lost(self, data: st.DataObject) -> None:
        found = (
            Task.objects.filter(job=self.work.job, state="pending").order_by("index").values_list("index", flat=True)
        )
        self.work.loses_its_node(data.draw(st.sampled_from(list(found))), at=timezone.now())

    @precondition(lambda self: Claim.objects.exists())
    @rule(data=st.data())
    def it_is_claimed_again(self, data: st.DataObject) -> None:
        claim = self._some(data)
        before = Claim.objects.filter(pk=claim.pk).values().get()
        assert claims.open(task=self.work.task(claim.task.index), at=timezone.now()).pk == claim.pk  # type: ignore[union-attr]
        assert Claim.objects.filter(pk=claim.pk).values().get() == before

    @precondition(lambda self: Claim.objects.filter(state="failed", closed_at=None).exists())
    @rule(data=st.data())
    def the_job_tries_again(self, data: st.DataObject) -> None:
        found = Claim.objects.filter(state="failed", closed_at=None).order_by("pk").values_list("pk", flat=True)
        claim = Claim.objects.select_related("version", "task__job").get(pk=data.draw(st.sampled_from(list(found))))
        assert claim.task is not None
        if claims.may_retry(claim) and claim.task.job.state == "active":
            self.work.moves(claim.task, "pending", timezone.now())

    @precondition(lambda self: Claim.objects.exists())
    @rule(data=st.data(), is_good=st.booleans(), replay=st.booleans(), is_forged=st.booleans())
    def a_third_party_answers(self, data: st.DataObject, is_good: bool, replay: bool, is_forged: bool) -> None:
        claim, result = self._some(data), "pass" if is_good else "fail"
        said = verifying.verdict_text(claim, result=result, run=claim.run)
        key = Ed25519PrivateKey.generate() if is_forged else KEY
        signature = key.sign(canonical(dict(said)).encode()).hex()

        def gives() -> None:
            for _ in range(2 if replay else 1):
                verifying.take_signed(
                    claim=claim, result=result, detail="", signature=signature, run=claim.run, at=timezone.now()
                )

        verdicts = Verdict.objects.filter(claim=claim).count()
        self._does("verdict", claim, gives)
        assert not (is_forged and Verdict.objects.filter(claim=claim).count() > verdicts)

    @precondition(lambda self: Claim.objects.filter(state="claimed").exists())
    @rule(data=st.data())
    def the_sweep_looks(self, data: st.DataObject) -> None:
        claim = self._some(data)
        self._does("verdict", claim, lambda: verifying.look(claim=claim, at=timezone.now()))
        assert VerifierRun.objects.filter(claim=claim, result="running").count() <= 1

    @precondition(lambda self: VerifierRun.objects.filter(result="running").exists())
    @rule(
        data=st.data(),
        how=st.sampled_from([("exited", 0), ("exited", 1), ("exited", 139), ("node_lost", None)]),
        is_same=st.booleans(),
    )
    def a_verifier_ends(self, data: st.DataObject, how: tuple[str, int | None], is_same: bool) -> None:
        found = VerifierRun.objects.filter(result="running").order_by("pk").values_list("pk", flat=True)
        tried = VerifierRun.objects.select_related("claim").get(pk=data.draw(st.sampled_from(list(found))))
        claim, is_rerun = tried.claim, tried.claim.version.terms["verifier"]["kind"] == "rerun"
        reason, exit_code = how
        Instance.objects.filter(pk=tried.instance_id).update(
            phase="stopped", desired="stopped", reason=reason, exit_code=exit_code,
            outputs_sha256=WHOLE if is_same else "b" * 64,
        )  # fmt: skip
        was_asked = claim.state == "claimed" and claim.run == tried.run
        self._does("verdict", claim, lambda: verifying.look(claim=claim, at=timezone.now()))
        if was_asked and reason == "exited":
            passes = exit_code == 0 and (is_same or not is_rerun)
            fails = (exit_code == 1 and not is_rerun) or (exit_code == 0 and is_rerun and not is_same)
            state = Claim.objects.get(pk=claim.pk).state
            assert not passes or state == "verified"
            assert not fails or state == "failed"

    @precondition(lambda self: Claim.objects.exists())
    @rule(data=st.data(), is_good=st.booleans())
    def the_customer_answers(self, data: st.DataObject, is_good: bool) -> None:
        claim, at = self._some(data), timezone.now()
        if is_good:
            self._does("accept", claim, lambda: answering.accept(actor=self.actor, claim=claim, at=at))
        else:
            self._does("reject", claim, lambda: answering.reject(actor=self.actor, claim=claim, reason="no", at=at))

    @precondition(lambda self: Claim.objects.exists())
    @rule(data=st.data(), side=st.sampled_from([Side.BUYER, Side.SELLER]))
    def somebody_disputes(self, data: st.DataObject, side: Side) -> None:
        claim, at = self._some(data), timezone.now()
        act = "dispute of the customer" if side == Side.BUYER else "dispute of the seller"
        self._does(act, claim, lambda: disputing.open(
            actor=self.actor, claim=claim, side=side, reason="other", text="no", at=at
        ))  # fmt: skip

    @precondition(lambda self: ClaimDispute.objects.exists())
    @rule(data=st.data(), due_bps=st.sampled_from([0, 1, 3333, 9999, 10_000]), is_withdrawn=st.booleans())
    def a_dispute_is_decided(self, data: st.DataObject, due_bps: int, is_withdrawn: bool) -> None:
        found = list(ClaimDispute.objects.order_by("pk").values_list("pk", flat=True))
        dispute = ClaimDispute.objects.select_related("claim").get(pk=data.draw(st.sampled_from(found)))
        at = timezone.now()
        if is_withdrawn:
            side = Side(dispute.opened_by)
            self._does("withdrawal", dispute.claim, lambda: disputing.withdraw(
                actor=self.actor, dispute=dispute, side=side, at=at
            ))  # fmt: skip
        else:
            self._does("decision", dispute.claim, lambda: disputing.resolve(
                actor=self.judge, dispute=dispute, due_bps=due_bps, note="looked at it", at=at
            ))  # fmt: skip

    @precondition(lambda self: Claim.objects.exists())
    @rule(data=st.data(), is_reversed=st.booleans())
    def the_seller_takes_it_back(self, data: st.DataObject, is_reversed: bool) -> None:
        claim, at, merchant = self._some(data), timezone.now(), self.deal.merchant
        if is_reversed:
            self._does("reversal", claim, lambda: reversing.reverse(actor=merchant, claim=claim, reason="sorry", at=at))
        else:
            self._does("void", claim, lambda: settling.void(actor=merchant, claim=claim, reason="sorry", at=at))

    @precondition(lambda self: Job.objects.filter(state="active", pending__gt=0).exists())
    @rule()
    def what_waits_is_cancelled(self) -> None:
        job = cancelling.cancel(actor=self.actor, job=self.work.job, at=timezone.now())
        still = Claim.objects.filter(escrow_id=job.public_id, closed_at=None)
        # A task whose claim was taken back is over at the job's next step, and gives its part back then.
        unfinished = Task.objects.filter(job=job, state__in=["running", "verifying"])
        unclaimed = unfinished.exclude(pk__in=still.filter(task__isnull=False).values("task")).count()
        needed = sum(claim.most_micros for claim in still) + unclaimed * PRICE
        escrow = Escrow.objects.get(resource_id=job.public_id)
        assert escrow.left_micros <= needed, "what nothing needs any more is not set aside"

    @rule(minutes=st.sampled_from([0, 5, 45, 90, 240, 2000]))
    def time_passes(self, minutes: int) -> None:
        self.traveller.shift(timedelta(minutes=minutes))
        before = {claim.pk: claim.state for claim in Claim.objects.all()}
        self._sweep()
        for claim in Claim.objects.all():
            if claim.state != before[claim.pk]:
                assert any(claim.state in _reached(before[claim.pk], depth) for depth in range(1, 6))

    @invariant()
    def keeps_its_promises(self) -> None:
        if not hasattr(self, "work"):
            return
        escrow = Escrow.objects.get(resource_id=self.work.job.public_id)
        rows = list(Claim.objects.prefetch_related("verdicts", "disputes"))
        assert escrow.amount_micros == escrow.posted_micros + escrow.voided_micros + escrow.left_micros
        assert escrow.posted_micros == sum(claim.paid_micros for claim in rows) <= self.most
        still = sum(min(claim.amount_micros, PRICE) for claim in rows if claim.closed_at is None)
        assert escrow.left_micros >= min(still, self.most - escrow.posted_micros), "what is open is set aside"
        paid = Outcome.objects.filter(kind="outcome").values_list("subject", flat=True)
        assert len(paid) == len(set(paid)), "no subject is paid twice"
        for claim in rows:
            good = {verdict.run for verdict in claim.verdicts.all() if verdict.result == "pass"}
            decided = {one.state for one in claim.disputes.all()} & {"upheld", "partial", "withdrawn"}
            assert not claim.paid_micros or claim.run in good or decided, "nothing is paid without a verdict"
            assert claim.paid_micros <= PRICE
            if claim.closed_at is None:
                assert claim.due_at is not None


def _reached(state: str, steps: int) -> set[str]:
    """Return where time alone may bring a claim in so many steps."""
    found = {state}
    for _ in range(steps):
        found |= {after for one in found for after in MODEL["time"].get(one, set())}
    return found


@pytest.fixture
def stage(actor: Actor, project: Project, fleet: Fleet) -> Iterator[tuple[Actor, Project, Offer]]:
    Claims.stage = (actor, project, fleet.h200)
    with suppress(AttributeError):
        yield Claims.stage
    Claims.stage = None


@pytest.mark.django_db
def test_whatever_happens_in_whatever_order_what_is_set_aside_is_paid_or_given_back(stage: Any) -> None:
    run_state_machine_as_test(
        Claims,
        settings=settings(
            max_examples=25, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
