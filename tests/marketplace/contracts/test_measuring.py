"""Units of a result, counted from its output; what cannot be counted is not paid."""

import json
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from marketplace.access import Actor
from marketplace.api import contract_answers
from marketplace.contracts import answering, claims, disputing, door, sweeping, verifying, wording
from marketplace.contracts import terms as written
from marketplace.errors import BadOrder
from marketplace.models import Claim, Project, Receipt, Side
from marketplace.receipts import writing
from provisioning import artifacts
from provisioning.agent import manifest
from provisioning.agent.manifest import Entry
from provisioning.models import CounterSample
from tests.conftest import Fleet
from tests.marketplace.contracts.test_verifying import BY_PARTY, signed
from tests.marketplace.receipts.conftest import verified
from tests.outcomes import BY_CUSTOMER, SELLERS_ALONE, make_deal, make_work

pytestmark = pytest.mark.django_db
UNIT = {"name": "tokens", "per": 1000, "price_micros": 333, "most": 5000}
HUGE = "9" * 5000
PER_UNIT: dict[str, Any] = {"kind": "per_unit", "unit": UNIT, "measured": {"kind": "output", "path": "out/units.json"}}


@pytest.fixture
def left(project: Project, settings: Any, tmp_path: Any) -> Any:
    """Keep a folder in which a result left this, and return its digest."""
    settings.ARTIFACTS = tmp_path

    def kept(said: str) -> str:
        at, data = timezone.now(), said.encode()
        file = artifacts.keep(project_id=project.pk, data=data, at=at)
        entry = Entry(path="out/units.json", sha256=file, size=len(data), mode=0o644)
        return artifacts.keep(project_id=project.pk, at=at, data=manifest.written([entry]))

    return kept


@pytest.mark.parametrize(
    ("said", "units", "micros"),
    [
        ("1500", 1500, 500),
        (json.dumps({"units": 1500, "model": "m"}), 1500, 500),
        ("0", 0, 0),
        ("99999", 5000, 1665),
        *((wrong, None, 0) for wrong in ("", "1.5", "-1", "true", "[1]", '{"units": "7"}', "NaN", "{", HUGE)),
    ],
)
def test_units_are_counted_from_an_output_and_what_is_no_count_does_not_pass(
    acme: Any, actor: Actor, project: Project, fleet: Fleet, left: Any, said: str, units: int | None, micros: int
) -> None:
    at = timezone.now()
    work = make_work(make_deal(acme, **PER_UNIT), project, fleet.h200, actor, tasks=1, at=at)
    claim = claims.open(task=work.succeeds(0, outputs=left(said)), at=at)
    assert (claim.units, claim.amount_micros) == (5000, 1665), "until it is counted it may be the most"
    sweeping.advance(at=at, limit=10)
    found = Claim.objects.get(pk=claim.pk)
    if units is None:
        assert found.state == "failed"
    else:
        assert (found.state, found.units, found.amount_micros) == ("verified", units, micros)
        assert found.evidence["units"] == int(json.loads(said)["units"] if "{" in said else said)


def counted(claim: Claim, at: Any) -> Claim:
    """Let the sweep look at a claim, which counts its units, and return it as it is then."""
    verifying.look(claim=claim, at=at)
    return Claim.objects.select_related("version").get(pk=claim.pk)


def test_what_a_third_party_signed_is_what_its_receipt_is_verified_by(
    acme: Any, actor: Actor, project: Project, fleet: Fleet, left: Any
) -> None:
    at, deal = timezone.now(), make_deal(acme, **PER_UNIT, **BY_PARTY)
    work = make_work(deal, project, fleet.h200, actor, tasks=1, at=at)
    claim = claims.open(task=work.succeeds(0, outputs=left("1500")), at=at)
    assert contract_answers.claim_with_proof(door.any_claim(claim.public_id))["to_sign"] is None
    with pytest.raises(BadOrder):
        verifying.take_signed(**signed(claim, "pass"), at=at)
    claim = counted(claim, at)
    to_sign = contract_answers.claim_with_proof(door.any_claim(claim.public_id))["to_sign"]
    assert to_sign["evidence"] == claim.evidence_sha256
    verifying.take_signed(**signed(claim, "pass"), at=at)
    for hours in (1, 2, 3):
        sweeping.advance(at=at + timedelta(hours=hours), limit=10)
    assert Claim.objects.get().paid_micros == 500
    while writing.issue_due(at=timezone.now(), limit=10):
        pass
    assert verified(Receipt.objects.all()) == []


@pytest.mark.parametrize(("said", "state", "paid"), [("1500", "settled", 500), ("many", "failed", 0)])
def test_who_answers_before_the_first_look_pays_what_is_counted_and_not_the_most(
    acme: Any, actor: Actor, project: Project, fleet: Fleet, left: Any, said: str, state: str, paid: int
) -> None:
    at, opened = timezone.now(), []
    for judged in (BY_CUSTOMER, BY_PARTY):
        work = make_work(make_deal(acme, **PER_UNIT, **judged), project, fleet.h200, actor, tasks=1, at=at)
        opened.append(claims.open(task=work.succeeds(0, outputs=left(said)), at=at))
    answering.accept(actor=actor, claim=opened[0], at=at)
    given = signed(opened[1], "pass")
    if paid:
        with pytest.raises(BadOrder, match="signature of this text"):
            verifying.take_signed(**given, at=at)
        given = given | {"claim": opened[1], "signature": signed(counted(opened[1], at), "pass")["signature"]}
    verdict = verifying.take_signed(**given, at=at)
    assert verdict.result == ("pass" if paid else "fail")
    if paid:
        assert verifying.take_signed(**given, at=at) == verdict, "a replay"
        answering.accept(actor=actor, claim=Claim.objects.get(pk=opened[1].pk), at=at)
    sweeping.advance(at=at, limit=10)
    rows = Claim.objects.order_by("pk").values_list("state", "amount_micros", "paid_micros")
    assert list(rows) == [(state, paid, paid)] * 2


def test_what_could_not_be_counted_costs_nothing_even_where_a_dispute_is_decided_for_its_seller(
    acme: Any, actor: Actor, project: Project, fleet: Fleet, left: Any
) -> None:
    at = timezone.now()
    deal = make_deal(acme, **PER_UNIT, disputes={"if_undecided": "pay"}, shares=SELLERS_ALONE)
    work = make_work(deal, project, fleet.h200, actor, tasks=1, at=at)
    claim = claims.open(task=work.succeeds(0, outputs=left("many")), at=at)
    sweeping.advance(at=at, limit=10)
    work.ends(at)
    disputing.open(actor=deal.merchant, claim=claim, side=Side.SELLER, reason="other", text="It did.", at=at)
    for days in (1, 2):
        sweeping.advance(at=at + timedelta(days=days), limit=10)
    found = Claim.objects.get(pk=claim.pk)
    assert (found.state, found.units, found.amount_micros, found.paid_micros) == ("settled", 0, 0, 0)


def test_what_is_counted_is_not_filed_and_what_its_seller_claims_is_not_ordered_as_a_job(
    acme: Any, project: Project
) -> None:
    with pytest.raises(BadOrder, match="counted from jobs") as refused:
        make_deal(acme, **PER_UNIT, **BY_CUSTOMER).claim(project, "mine", units=5000)
    assert refused.value.field == "version"
    claimed = make_deal(acme, **{**PER_UNIT, "measured": {"kind": "claim"}}, **BY_CUSTOMER)
    with pytest.raises(BadOrder, match="claimed by its seller") as refused:
        claims.check(version_id=claimed.version.public_id, organization=acme, tasks=1)
    assert refused.value.field == "contract"
    assert claimed.claim(project, "mine", units=7).units == 7


def test_a_counter_counts_from_the_begin_of_its_run_and_no_faster_than_the_terms_say(
    acme: Any, actor: Actor, project: Project, fleet: Fleet
) -> None:
    at = timezone.now()
    counted = {"kind": "counter", "name": "tokens_total", "most_per_s": 100}
    deal = make_deal(acme, kind="per_unit", unit=UNIT, measured=counted)
    work = make_work(deal, project, fleet.h200, actor, tasks=2, at=at)
    for index, readings in enumerate(([(4, 300)], [(4, 300), (10, 900), (12, 10**9), (20, 10**9 + 600)])):
        task = work.succeeds(index, at=at)
        instance = task.tries.get().instance
        row = instance.assignments.create(
            node=fleet.nodes["h200-1"].node, replica=0, fence=1, gpu_uuids=["GPU-1"], observed="gone"
        )
        before: tuple[int, int] | None = None
        for second, value in readings:
            since, old = before or (second, value)
            CounterSample.objects.create(
                instance=instance, assignment=row, name="tokens_total", since=at + timedelta(seconds=since),
                at=at + timedelta(seconds=second), value=value, increase=value - old,
            )  # fmt: skip
            before = (second, value)
        claims.open(task=task, at=at)
    sweeping.advance(at=at, limit=10)
    short, long = Claim.objects.order_by("pk")
    assert (short.state, short.units, short.amount_micros) == ("verified", 300, 100)
    assert (long.state, long.units) == ("verified", 300 + 600 + 600)
    (reading,) = long.evidence["readings"]
    assert (reading["first"], reading["last"], reading["readings"], reading["units"]) == (300, 10**9 + 600, 4, 1500)
    assert long.evidence_sha256 == written.digest(written.canonical(long.evidence))
    assert "300 → 1000000600" in dict(wording.proof(long.evidence)).values()
