"""Verifiers that crash, hang, fill the disk, reach for the network or answer both ways; and what silence says."""

from datetime import timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from django.utils import timezone

from billing.models import Outcome
from marketplace.access import Actor
from marketplace.contracts import answering, claims, disputing, judging, runs, settling, sweeping, verifying
from marketplace.contracts.terms import canonical
from marketplace.errors import BadOrder, Conflict, IllegalState, NotFound
from marketplace.models import Claim, Project, Side, VerifierRun
from provisioning import engine
from provisioning.models import Instance, Node
from provisioning.steps import PLAN
from tests.conftest import Fleet, Run
from tests.nodes import keep_folder
from tests.outcomes import BY_CUSTOMER, PRICE, WHOLE, Deal, Work, make_deal, make_work

pytestmark = pytest.mark.django_db
KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
PARTY = {"name": "Checkers AS", "organization": None, "public_key": KEY.public_key().public_bytes_raw().hex()}
BY_PARTY = {"verifier": {"kind": "third_party", "party": PARTY, "answer_within_s": 3600, "on_silence": "fail"}}
RUNS: dict[str, Any] = {"timeout_s": 60, "runs": 2, "on_silence": "fail"}


def fresh(claim: Claim) -> Claim:
    return Claim.objects.select_related("version", "contract__seller", "organization", "task").get(pk=claim.pk)


def signed(claim: Claim, result: str, *, key: Ed25519PrivateKey = KEY, **differs: Any) -> dict[str, Any]:
    text = {**verifying.verdict_text(claim, result=result, run=claim.run), **differs}
    signature = key.sign(canonical(text).encode()).hex()
    return {"claim": claim, "result": result, "detail": "", "signature": signature, "run": claim.run}


@pytest.fixture
def party_claim(acme: Any, project: Project) -> Claim:
    return make_deal(acme, **BY_PARTY).claim(project, "frame 1")


def test_a_signed_verdict_counts_once_and_a_forged_replayed_or_late_one_does_not(
    acme: Any, project: Project, party_claim: Claim
) -> None:
    at, other = timezone.now(), make_deal(acme, **BY_PARTY).claim(project, "frame 1")
    for forged in (
        signed(party_claim, "pass", key=Ed25519PrivateKey.generate()),
        signed(party_claim, "pass", evidence="0" * 64),
        signed(party_claim, "pass", run=2),
        signed(party_claim, "pass") | {"result": "fail"},
        signed(other, "pass") | {"claim": party_claim},
    ):
        with pytest.raises(BadOrder) as refused:
            verifying.take_signed(**forged, at=at)
        assert refused.value.field == "signature"
    assert fresh(party_claim).state == "claimed"
    given = verifying.take_signed(**signed(party_claim, "pass"), at=at)
    assert verifying.take_signed(**signed(party_claim, "pass"), at=at) == given
    assert (fresh(party_claim).state, party_claim.verdicts.count()) == ("verified", 1)

    sweeping.advance(at=at + timedelta(hours=2), limit=10)
    assert fresh(other).state == "failed", "by the written rule of silence"
    with pytest.raises(IllegalState, match="too late"):
        verifying.take_signed(**signed(other, "pass"), at=at + timedelta(hours=2))


def test_who_answers_both_ways_is_not_believed(party_claim: Claim) -> None:
    at = timezone.now()
    verifying.take_signed(**signed(party_claim, "pass"), at=at)
    assert verifying.take_signed(**signed(party_claim, "fail"), at=at).result == "pass"
    found = fresh(party_claim)
    assert (found.state, found.disputes.get().opened_by, found.disputes.get().reason) == (
        "disputed", "platform", "verifier",
    )  # fmt: skip
    sweeping.close(at=at + timedelta(days=1), limit=10)
    assert fresh(party_claim).closed_at is not None
    assert not Outcome.objects.exists(), "nobody decided, and the terms refund then"


def test_who_takes_a_refusal_back_is_not_believed_either(acme: Any, project: Project) -> None:
    at, claim = timezone.now(), make_deal(acme, **BY_PARTY, retries=0).claim(project, "frame 1")
    verifying.take_signed(**signed(claim, "fail"), at=at)
    assert verifying.take_signed(**signed(claim, "pass"), at=at).result == "fail"
    assert (fresh(claim).state, fresh(claim).disputes.get().opened_by) == ("disputed", "platform")


def test_what_is_tried_again_after_a_refusal_is_not_disputed_for_it(
    acme: Any, actor: Actor, project: Project, fleet: Fleet
) -> None:
    at = timezone.now()
    work = make_work(make_deal(acme, **BY_PARTY, retries=1), project, fleet.h200, actor, tasks=1, at=at)
    claim = claims.open(task=work.succeeds(0), at=at)
    verifying.take_signed(**signed(claim, "fail"), at=at)
    verifying.take_signed(**signed(claim, "pass"), at=at)
    assert (fresh(claim).state, claim.disputes.count()) == ("failed", 0)
    assert "both ways" in claim.events.latest("pk").message


def test_a_seller_may_contest_a_refusal_for_its_whole_window_once_the_retry_has_failed(
    acme: Any, actor: Actor, project: Project, fleet: Fleet
) -> None:
    at, hour = timezone.now(), timedelta(hours=1)
    deal = make_deal(acme, retries=1, disputes={"window_s": 3600})
    work = make_work(deal, project, fleet.h200, actor, tasks=2, at=at)
    opened = [claims.open(task=work.succeeds(index, exit_code=3), at=at) for index in (0, 1)]
    sweeping.advance(at=at, limit=10)
    for index in (0, 1):
        work.moves(work.task(index), "pending", at)
    sweeping.advance(at=at + 5 * hour, limit=10)
    asked = {"actor": deal.merchant, "side": Side.SELLER, "reason": "verifier", "text": "It was whole."}
    with pytest.raises(IllegalState, match="tried again"):
        disputing.open(claim=opened[0], at=at + 5 * hour, **asked)
    for index in (0, 1):
        work.moves(work.task(index), "failed", at + 5 * hour)
    sweeping.advance(at=at + 6 * hour - timedelta(minutes=1), limit=10)
    disputing.open(claim=opened[0], at=at + 6 * hour - timedelta(minutes=1), **asked)
    sweeping.advance(at=at + 6 * hour, limit=10)
    assert [fresh(one).state for one in opened] == ["disputed", "failed"]
    assert [fresh(one).is_open for one in opened] == [True, False]


def test_a_late_opposite_verdict_about_the_first_run_freezes_no_later_one(party_claim: Claim) -> None:
    at, key = timezone.now(), {"verifier": "third_party", "verifier_version": PARTY["public_key"]}
    judging.record(party_claim, result="fail", at=at, **key)
    party_claim.move_to("claimed", at=at, message="Tried again.", run=2, due_at=at)
    judging.record(party_claim, result="pass", at=at, **key)
    judging.record(party_claim, result="pass", run=1, at=at, **key)
    assert (fresh(party_claim).state, party_claim.disputes.count()) == ("verified", 0)
    assert "both ways" in party_claim.events.latest("pk").message
    judging.record(party_claim, result="fail", run=2, at=at, **key)
    assert fresh(party_claim).state == "disputed", "the run that is to be paid"


def test_whatever_keeps_one_claim_from_its_step_the_others_take_theirs(
    acme: Any, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    deal, at, later = make_deal(acme, **BY_CUSTOMER), timezone.now(), timezone.now() + timedelta(hours=1)
    broken, whole = (deal.claim(project, name, at=at) for name in ("frame 1", "frame 2"))
    look = verifying.look

    def breaks(*, claim: Claim, at: Any) -> Claim:
        if claim.pk == broken.pk:
            raise ZeroDivisionError
        return look(claim=claim, at=at)

    monkeypatch.setattr(verifying, "look", breaks)
    Claim.objects.update(due_at=at)
    sweeping.advance(at=at, limit=10)
    assert sweeping.advance(at=later, limit=10) == 1
    assert (fresh(broken).state, fresh(whole).state) == ("claimed", "verified")
    assert fresh(broken).due_at == later + sweeping.TROUBLE_PAUSE


@pytest.mark.parametrize("left", [{}, {"other/result": b"42"}, None])
def test_what_lacks_its_declared_outputs_fails_whatever_its_node_said(
    acme: Any, actor: Actor, project: Project, fleet: Fleet, left: Any
) -> None:
    work = make_work(make_deal(acme), project, fleet.h200, actor, tasks=2, at=timezone.now())
    digest = "a" * 64 if left is None else keep_folder(project.pk, left)
    lacks = claims.open(task=work.succeeds(0, outputs=digest), at=timezone.now())
    whole = claims.open(task=work.succeeds(1), at=timezone.now())
    sweeping.advance(at=timezone.now(), limit=10)
    assert (fresh(lacks).state, fresh(whole).state) == ("failed", "verified")
    assert "missing: out" in lacks.verdicts.get().detail


def test_only_a_third_party_that_the_terms_name_gives_signed_verdicts(acme: Any, project: Project) -> None:
    claim = make_deal(acme, **BY_CUSTOMER).claim(project, "frame 1")
    with pytest.raises(NotFound):
        verifying.take_signed(**signed(claim, "pass"), at=timezone.now())


def test_a_subject_is_claimed_once_and_only_by_its_seller_for_a_customer_who_agreed(
    acme: Any, project: Project
) -> None:
    deal = make_deal(acme, **BY_CUSTOMER)
    first = deal.claim(project, "frame 1")
    assert deal.claim(project, "frame 1") == first
    with pytest.raises(Conflict, match="paid once"):
        deal.claim(project, "frame 1", evidence={"result": "another"})
    for wrong, field in (({"subject": " "}, "subject"), ({"subject": "f", "units": 2}, "units")):
        with pytest.raises(BadOrder) as refused:
            deal.claim(project, **wrong)  # type: ignore[arg-type]
        assert refused.value.field == field
    strange = Project.objects.create(organization=deal.seller, name="strange")
    with pytest.raises(BadOrder, match="not accepted"):
        deal.claim(strange, "frame 2")
    with pytest.raises(BadOrder, match="come from jobs"):
        make_deal(acme).claim(project, "frame 3")


def test_a_customer_who_is_silent_accepts_or_rejects_as_the_terms_say(acme: Any, project: Project) -> None:
    at = timezone.now()
    for silence, state, paid in (("accept", "settled", PRICE), ("reject", "failed", 0)):
        claim = make_deal(acme, **BY_CUSTOMER, acceptance={"on_silence": silence}).claim(project, "frame 1", at=at)
        sweeping.advance(at=at + timedelta(minutes=59), limit=10)
        assert fresh(claim).state == "claimed"
        for hours in (1, 2, 3):
            sweeping.advance(at=at + timedelta(hours=hours), limit=10)
        assert (fresh(claim).state, fresh(claim).paid_micros) == (state, paid)
        assert [one.verifier for one in claim.verdicts.all()] == ["silence"]
        assert fresh(claim).closed_at is not None


def test_a_late_result_costs_what_the_deadline_leaves(acme: Any, actor: Actor, project: Project, fleet: Fleet) -> None:
    ordered = timezone.now() - timedelta(hours=2)
    deadline = {"within_s": 3600, "late": [{"after_s": 0, "price_bps": 7000}, {"after_s": 7200, "price_bps": 0}]}
    deal = make_deal(acme, deadline=deadline)
    work = make_work(deal, project, fleet.h200, actor, tasks=1, at=ordered)
    claim = claims.open(task=work.succeeds(0, at=timezone.now()), at=timezone.now())
    assert (claim.price_bps, claim.amount_micros, claim.most_micros) == (7000, PRICE * 7 // 10, PRICE)


def test_what_no_attempt_finished_is_not_claimed(acme: Any, actor: Actor, project: Project, fleet: Fleet) -> None:
    work = make_work(make_deal(acme), project, fleet.h200, actor, tasks=1, at=timezone.now())
    work.loses_its_node(0, at=timezone.now())
    with pytest.raises(IllegalState, match="nothing to claim"):
        claims.open(task=work.task(0), at=timezone.now())


def test_what_is_sent_twice_in_a_dispute_is_said_once(actor: Actor, party_claim: Claim) -> None:
    at = timezone.now()
    verifying.take_signed(**signed(party_claim, "pass"), at=at)
    dispute = disputing.open(actor=actor, claim=party_claim, side=Side.BUYER, reason="other", text="no", at=at)
    for text in ("See task 3.", " See task 3. ", "And task 4.", "See task 3."):
        disputing.answer(actor=actor, dispute=dispute, side=Side.BUYER, text=text, at=at)
    said = dispute.notes.order_by("pk").values_list("text", flat=True)
    assert list(said) == ["See task 3.", "And task 4.", "See task 3."]


def test_nobody_decides_in_their_own_cause(acme: Any, actor: Actor, project: Project, party_claim: Claim) -> None:
    at = timezone.now()
    verifying.take_signed(**signed(party_claim, "pass"), at=at)
    dispute = disputing.open(actor=actor, claim=party_claim, side=Side.BUYER, reason="other", text="no", at=at)
    with pytest.raises(Exception, match="one of the two sides"):
        disputing.resolve(actor=actor, dispute=dispute, due_bps=0, note="mine", at=at)
    with pytest.raises(IllegalState):
        answering.accept(actor=actor, claim=party_claim, at=at)


# Verifiers that run on a node


@pytest.fixture
def on_a_node(acme: Any, actor: Actor, project: Project, fleet: Fleet, run_until_idle: Run) -> Any:
    """Claim a task of a job whose result ran on h200-1, under terms with a verifier that runs on a node."""

    def claimed(verifier: dict[str, Any], **differs: Any) -> tuple[Deal, Work, Claim]:
        command = ["./check"] if verifier["kind"] == "command" else []
        deal = make_deal(acme, verifier=verifier, command=command, **differs)
        work = make_work(deal, project, fleet.h200, actor, tasks=1, at=timezone.now())
        task = work.succeeds(0)
        attempt = task.tries.get()
        attempt.instance.assignments.create(
            node=fleet.nodes["h200-1"].node, replica=0, fence=1, gpu_uuids=[], observed="gone"
        )
        return deal, work, claims.open(task=task, at=timezone.now())

    return claimed


def starts(claim: Claim, fleet: Fleet, *, at: Any = None) -> Instance:
    """Let the sweep start the verifier, and its node run it."""
    verifying.look(claim=claim, at=at or timezone.now())
    for _ in range(30):
        moved = [engine.run_one(pk, PLAN) for pk in engine.due(limit=100)]
        fleet.sync()
        if not moved:
            break
    return Instance.objects.get(pk=claim.verifier_runs.latest("number").instance_id)


def ends(instance: Instance, *, exit_code: int | None, **facts: Any) -> None:
    Instance.objects.filter(pk=instance.pk).update(
        phase="stopped", desired="stopped", reason="exited", exit_code=exit_code, **facts
    )


def test_the_customers_command_runs_on_another_host_with_the_outputs_and_without_network(
    on_a_node: Any, fleet: Fleet
) -> None:
    _, work, claim = on_a_node({"kind": "command", "gpus": 1, **RUNS})
    instance = starts(claim, fleet)
    assert (instance.phase, instance.command, instance.has_network) == ("running", ["./check"], False)
    assert (instance.inputs, instance.outputs, instance.paid_by) == (WHOLE, [], work.job.public_id)
    nodes = {one.node.name for one in instance.assignments.select_related("node")}
    assert "h200-1" not in nodes
    assert instance.avoid_nodes == [fleet.nodes["h200-1"].node.public_id]
    verifying.look(claim=claim, at=timezone.now())
    assert claim.verifier_runs.count() == 1, "while it runs no other one starts"
    ends(instance, exit_code=0)
    verifying.look(claim=claim, at=timezone.now())
    found = fresh(claim)
    assert (found.state, found.verdicts.get().verifier, found.verdicts.get().result) == ("verified", "command", "pass")
    assert Instance.objects.get(pk=instance.pk).desired == "terminated"


@pytest.mark.parametrize(("share", "has"), [(2, 2 + 2), (1 << 26, (1 << 26) + 2), (None, None)])
def test_a_verifying_command_has_the_tasks_share_of_the_disk_beside_the_outputs_that_may_fill_it(
    on_a_node: Any, fleet: Fleet, share: int | None, has: int | None
) -> None:
    _, _, claim = on_a_node({"kind": "command", "gpus": 1, **RUNS})
    Instance.objects.filter(pk=claim.task.tries.get().instance_id).update(disk_bytes=share)
    assert starts(claim, fleet).disk_bytes == has


@pytest.mark.parametrize(
    ("what", "exit_code", "facts", "result"),
    [
        ("says no", 1, {}, "fail"),
        ("crashes", 139, {}, "crashed"),
        ("fills the disk", 28, {}, "crashed"),
        ("is killed for its memory", 137, {}, "crashed"),
        ("reaches for the network", 7, {}, "crashed"),
        ("has a node that fails", None, {"phase": "failed", "reason": "node_lost"}, "lost"),
        ("is ended by somebody", None, {"phase": "terminated", "reason": "user"}, "crashed"),
    ],
)
def test_a_verifier_that(
    on_a_node: Any, fleet: Fleet, what: str, exit_code: int | None, facts: dict[str, Any], result: str
) -> None:
    _, _, claim = on_a_node({"kind": "command", "gpus": 1, **RUNS})
    instance = starts(claim, fleet)
    ends(instance, exit_code=exit_code)
    if facts:
        Instance.objects.filter(pk=instance.pk).update(**facts)
    verifying.look(claim=claim, at=timezone.now())
    tried = claim.verifier_runs.order_by("number")
    assert tried[0].result == result
    if result == "fail":
        assert fresh(claim).state == "failed"
        return
    assert fresh(claim).state == "claimed", "no answer is no verdict"
    assert len(tried) == 2, "it is tried once more"
    second = starts(claim, fleet)
    ends(second, exit_code=2)
    verifying.look(claim=claim, at=timezone.now())
    expected = {"crashed": ("failed", 2), "lost": ("claimed", 3)}
    assert (fresh(claim).state, claim.verifier_runs.count()) == expected[result], "a lost node is no try"


def test_a_verifier_that_hangs_is_ended_and_then_silence_holds(on_a_node: Any, fleet: Fleet) -> None:
    for rule, state in (("pass", "verified"), ("fail", "failed")):
        _, _, claim = on_a_node({"kind": "command", "gpus": 1, **RUNS, "on_silence": rule, "runs": 1})
        instance = starts(claim, fleet)
        assert instance.ready_at is not None
        verifying.look(claim=claim, at=instance.ready_at + timedelta(seconds=59))
        assert fresh(claim).state == "claimed"
        verifying.look(claim=claim, at=instance.ready_at + timedelta(seconds=60))
        assert (fresh(claim).state, claim.verdicts.get().verifier) == (state, "silence")
        assert VerifierRun.objects.get(claim=claim).result == "timed_out"
        assert Instance.objects.get(pk=instance.pk).desired == "terminated"


def test_a_verifier_that_nobody_waits_for_any_more_ends_and_counts_no_longer_among_those_at_once(
    on_a_node: Any, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "AT_ONCE_MAX", 1)
    deal, _, claim = on_a_node({"kind": "command", "gpus": 1, **RUNS})
    instance, at = starts(claim, fleet), timezone.now()
    sweeping.close(at=at, limit=10)
    assert VerifierRun.objects.get(claim=claim).result == "running", "its claim waits for it"
    settling.void(actor=deal.merchant, claim=claim, reason="A mistake of ours", at=at)
    sweeping.close(at=at, limit=10)
    tried = VerifierRun.objects.get(claim=claim)
    assert (tried.result, tried.ended_at, fresh(claim).state) == ("timed_out", at, "voided")
    assert Instance.objects.get(pk=instance.pk).desired == "terminated"
    assert runs.end_left_over(at=at, limit=10) == 0
    _, _, other = on_a_node({"kind": "command", "gpus": 1, **RUNS})
    assert starts(other, fleet).phase == "running"


def test_where_no_host_is_free_silence_holds_in_the_end(on_a_node: Any, fleet: Fleet) -> None:
    _, _, claim = on_a_node({"kind": "command", "gpus": 8, **RUNS})
    Node.objects.filter(name__in=["h200-2", "l40s-1"]).update(state="cordoned")
    verifying.look(claim=claim, at=timezone.now())
    assert (fresh(claim).state, claim.verifier_runs.count()) == ("claimed", 0)
    assert fresh(claim).due_at > timezone.now() + runs.NO_ROOM_WAIT / 2  # type: ignore[operator]
    verifying.look(claim=claim, at=timezone.now() + verifying.WAIT_MAX + timedelta(minutes=3))
    assert fresh(claim).state == "failed"


def test_a_second_run_passes_the_same_bytes_and_no_others(on_a_node: Any, fleet: Fleet) -> None:
    for digest, exit_code, state in ((WHOLE, 0, "verified"), ("b" * 64, 0, "failed")):
        _, work, claim = on_a_node({"kind": "rerun", "rate_bps": 10_000, **RUNS})
        instance = starts(claim, fleet)
        first = work.task(0).tries.get().instance
        assert (instance.command, instance.inputs, instance.outputs) == (first.command, first.inputs, first.outputs)
        ends(instance, exit_code=exit_code, outputs_sha256=digest)
        verifying.look(claim=claim, at=timezone.now())
        assert (fresh(claim).state, claim.verdicts.get().verifier) == (state, "rerun")


def test_second_runs_are_drawn_at_the_published_rate_and_from_what_nobody_knows_before() -> None:
    def drawn(rate: int, *, proof: str = "x") -> int:
        rows = (Claim(scope="job_1", subject_key=str(index), evidence_sha256=proof) for index in range(4000))
        return sum(verifying.is_sampled(claim, rate) for claim in rows)

    assert drawn(10_000) == 4000
    assert 320 < drawn(1000) < 480
    one = Claim(scope="job_1", subject_key="1", evidence_sha256="x")
    assert verifying.is_sampled(one, 5000) == verifying.is_sampled(one, 5000)
    assert drawn(5000) != drawn(5000, proof="y")
