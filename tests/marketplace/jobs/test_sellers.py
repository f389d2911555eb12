"""What work of one seller costs the platform unpaid is bounded over all of its customers together."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from threading import Barrier, Thread
from time import sleep
from typing import Any

import pytest
import time_machine
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone, translation

from billing import books, usage
from billing.models import Escrow, OutcomeCost
from billing.outcomes import costs, sharing
from marketplace.access import person
from marketplace.contracts import offering, runs, sellers, sweeping
from marketplace.errors import BadOrder
from marketplace.jobs import bounding
from marketplace.jobs.spec import BadSpec
from marketplace.models import Claim, Job, Membership, Project, SellerLimit, User
from provisioning import engine, told
from tests.billing.makers import PRICE, start
from tests.billing.results import JOB, item, release, set_aside, settle
from tests.blocks import Buyer, sell_blocks
from tests.conftest import make_organization, make_person
from tests.marketplace.jobs.conftest import Works, latest
from tests.outcomes import Deal, make_deal, make_seller, terms
from tests.standing import frozen

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
HOUR_MICROS = 2_490_000  # an attempt of an hour on one H200
ALONE = (
    "may cost the platform [$]{} together .* all unpaid work under contracts of Seller .* may cost it [$]{}[.] Nothing"
)
SAID = "has cost the platform as much as it allows this seller"

pytestmark = pytest.mark.django_db


clock = frozen(NOON)


@pytest.fixture
def other(works: Works) -> Works:
    """Another customer with jobs of its own on the same fleet."""
    olga = make_person("olga@other.example")
    organization = make_organization("Other", olga)
    project = Project.objects.select_related("organization").get(organization=organization)
    return replace(works, actor=person(olga, "req_other"), project=project)


@pytest.fixture
def deal(works: Works, other: Works) -> Deal:
    """A product to which both customers agreed, and whose results bring the platform three hours' price each."""
    made = make_deal(
        works.project.organization, shares=[{"to": "platform", "bps": 10_000}],
        unit={"price_micros": 3 * HOUR_MICROS}, acceptance={"window_s": 0}, disputes={"window_s": 0}, retries=0,
    )  # fmt: skip
    offering.accept(
        actor=other.actor, version=made.version, organization=other.project.organization, sha256=made.version.sha256,
        at=timezone.now(),
    )  # fmt: skip
    return made


def allow(deal: Deal, micros: int) -> None:
    sellers.set_limit(
        actor=deal.merchant, seller=deal.seller, currency="USD", unpaid_micros=micros, reason="x", at=timezone.now()
    )  # fmt: skip


def under(deal: Deal, works: Works, **fields: Any) -> Job:
    return works.one(contract=deal.version.public_id, **fields)


def test_who_would_pass_what_a_sellers_customers_together_may_cost_is_refused_and_nothing_is_held(
    works: Works, other: Works, deal: Deal, clock: time_machine.Traveller
) -> None:
    allow(deal, 2 * HOUR_MICROS - 1)
    first = under(deal, works)
    for _ in range(2):
        with pytest.raises(BadSpec, match=SAID), transaction.atomic():
            under(deal, other)
        works.go()  # it runs now, and counts as much
    assert latest(first).running == 1
    assert (Job.objects.count(), Escrow.objects.count()) == (1, 1)
    # Its result is paid, so the seller's work has cost nothing unpaid, and others may have theirs.
    clock.shift(timedelta(minutes=30))
    works.exit_all(first)
    works.go()
    costs.book_costs(at=timezone.now())
    for _ in range(3):
        sweeping.advance(at=timezone.now(), limit=10)
    assert sellers.unpaid_micros(deal.seller, "USD", at=timezone.now()) == HOUR_MICROS // 2 - 3 * HOUR_MICROS
    assert under(deal, other).attempt_micros == HOUR_MICROS
    assert books.check(at=timezone.now()) == []


def test_no_attempt_starts_that_could_pass_the_limit_whoevers_it_is(
    works: Works, other: Works, deal: Deal, clock: time_machine.Traveller
) -> None:
    most = 3 * HOUR_MICROS + 1
    allow(deal, most)
    jobs = [under(deal, works, array=5), under(deal, other, array=5)]
    works.go()
    assert sum(latest(job).running for job in jobs) == 3
    assert any(SAID in latest(job).hindrance for job in jobs)
    clock.shift(timedelta(hours=1))
    for job in jobs:
        works.exit_all(job, 1)
    works.settle()
    works.go()
    # What has ended and is not booked yet counts, too.
    assert not OutcomeCost.objects.exists()
    assert sellers.unpaid_micros(deal.seller, "USD", at=timezone.now()) == 3 * HOUR_MICROS
    costs.book_costs(at=timezone.now())
    for _ in range(3):
        clock.shift(timedelta(seconds=40))
        works.go()
        sweeping.advance(at=timezone.now(), limit=100)
    assert sum(OutcomeCost.objects.values_list("amount_micros", flat=True)) == 3 * HOUR_MICROS <= most
    assert {(latest(job).state, latest(job).reason) for job in jobs} == {("failed", "cost")}
    assert set(Escrow.objects.values_list("state", flat=True)) == {"closed"}
    with pytest.raises(BadSpec, match=SAID), transaction.atomic():
        under(deal, works)
    allow(deal, 10 * HOUR_MICROS)
    assert under(deal, works).pk


def test_that_a_sellers_limit_is_used_up_is_written_in_english_and_read_in_the_readers_language(
    works: Works, deal: Deal
) -> None:
    allow(deal, HOUR_MICROS)
    job = under(deal, works, array=2)
    with translation.override("ja"):
        works.go()
        assert SAID in latest(job).hindrance
        assert "この販売者に認められた額" in told.shown(latest(job).hindrance)
        with pytest.raises(BadSpec, match="この販売者に認められた額"), transaction.atomic():
            under(deal, works)


@pytest.fixture
def checked(works: Works) -> Deal:
    """A product whose results a command of the customer's verifies: twice at most, for half an hour each."""
    verifier = {"kind": "command", "gpus": 1, "runs": 2, "timeout_s": 1800, "on_silence": "fail"}
    return make_deal(works.project.organization, verifier=verifier, command=["./check"], retries=0)


def test_what_verifying_may_cost_counts_from_when_work_is_accepted_and_what_was_not_used_comes_back(
    works: Works, checked: Deal, clock: time_machine.Traveller
) -> None:
    allow(checked, 3 * HOUR_MICROS)
    job = under(checked, works, array=2)
    assert (job.attempt_micros, job.verify_micros) == (HOUR_MICROS, HOUR_MICROS)
    works.go()
    assert latest(job).running == 1, "the second one has no room beside what verifying the first may cost"
    left = partial(bounding.of_seller, checked.version)
    with transaction.atomic():
        assert left(at=timezone.now()) == HOUR_MICROS
    clock.shift(timedelta(minutes=30))
    works.exit_all(job)
    works.go()
    claim = Claim.objects.get()
    with transaction.atomic():
        assert left(at=timezone.now()) == 3 * HOUR_MICROS - HOUR_MICROS // 2 - HOUR_MICROS
    for _ in range(3):
        sweeping.advance(at=timezone.now(), limit=10)
        works.settle()
    tried = claim.verifier_runs.get()
    clock.shift(timedelta(minutes=15))
    with transaction.atomic():  # It has run for a while, and still counts whole, and once.
        assert left(at=timezone.now()) == 3 * HOUR_MICROS - HOUR_MICROS // 2 - HOUR_MICROS
    for node in works.fleet.nodes.values():
        node.exit_codes[tried.instance.public_id] = 0
    engine.wake(tried.instance_id)
    for _ in range(3):
        works.settle()
        sweeping.advance(at=timezone.now(), limit=10)
    claim.refresh_from_db()
    assert claim.state == "verified"
    with transaction.atomic():
        assert left(at=timezone.now()) == 3 * HOUR_MICROS - HOUR_MICROS // 2 - HOUR_MICROS // 4
    works.go()
    assert latest(job).running == 1, "what the verifier did not use lets the second one start"


def test_where_one_attempt_and_its_verifier_alone_pass_a_sellers_limit_both_figures_are_told(
    works: Works, checked: Deal
) -> None:
    told_both = ALONE.format("4.98", "4.90")
    job = under(checked, works)
    allow(checked, 4_900_000)
    with pytest.raises(BadSpec, match=told_both), transaction.atomic():
        under(checked, works)  # an hour of the task, and two half ones of its verifier
    works.go()
    now = latest(job)
    assert (now.state, now.reason) == ("failed", "cost"), "it does not wait for what can never be"
    assert now.events.filter(message__regex=told_both).exists()
    allow(checked, 2 * HOUR_MICROS)
    assert under(checked, works).pk


def test_what_verifying_costs_is_looked_up_once_for_jobs_that_are_sent_together(works: Works, checked: Deal) -> None:
    job = f"offer: h200-narvik, command: [work], time_limit: 1h, contract: {checked.version.public_id}"
    looks = []
    for count in (1, 5):
        lines = "".join(f"  - {{{job}}}\n" for _ in range(count))
        with CaptureQueriesContext(connection) as asked:
            works.submit(f"jobs:\n{lines}")
        looks.append([query["sql"] for query in asked if '"is_listed"' in query["sql"]])
        assert not any('SUM("provisioning_node"."free_gpus")' in query["sql"] for query in asked)
    assert len(looks[0]) == len(looks[1]) == 3  # its offer, and twice the hosts


def test_terms_whose_verifier_alone_would_pass_the_sellers_limit_are_not_offered(works: Works) -> None:
    seller, merchant = make_seller()
    verifier = {"kind": "command", "gpus": 8, "runs": 5, "timeout_s": 86_400, "on_silence": "fail"}
    version = offering.draft(
        actor=merchant, seller=seller, title="Frames", terms=terms(verifier=verifier), at=timezone.now()
    )  # fmt: skip
    with pytest.raises(BadOrder, match=r"may cost the platform [$]2,390[.]40 .* may cost it [$]1,000[.]00,") as refused:
        offering.offer(actor=merchant, version=version, at=timezone.now())
    assert (refused.value.field, version.state) == ("verifier", "draft")
    allow(Deal(seller, merchant, version), 2_390_400_000)
    offering.offer(actor=merchant, version=version, at=timezone.now())
    assert version.state == "submitted"


def test_a_try_that_ended_without_an_answer_leaves_the_next_one_set_aside(
    works: Works, checked: Deal, clock: time_machine.Traveller
) -> None:
    job = under(checked, works)
    works.go()
    works.exit_all(job)
    works.go()
    claim = Claim.objects.get()
    aside = partial(runs.set_aside, Job.objects.all())
    assert aside() == HOUR_MICROS
    for _ in range(3):
        sweeping.advance(at=timezone.now(), limit=10)
        works.settle()
    for result, left in (("lost", HOUR_MICROS), ("crashed", HOUR_MICROS // 2), ("pass", HOUR_MICROS // 2)):
        claim.verifier_runs.update(result=result)
        assert aside() == left, result
    Claim.objects.filter(pk=claim.pk).update(state="verified")
    assert aside() == 0


def test_what_the_operator_itself_sells_has_no_limit(works: Works, deal: Deal, carol: User) -> None:
    allow(deal, 0)
    with pytest.raises(BadSpec, match=ALONE.format("2.49", "0.00")), transaction.atomic():
        under(deal, works)
    Membership.objects.create(organization=deal.seller, user=carol, role="admin")
    assert under(deal, works).pk


def test_a_sellers_limit_is_known_without_reading_what_it_ever_sold(
    works: Works, deal: Deal, clock: time_machine.Traveller
) -> None:
    acme, version, at = works.project.organization, deal.version.public_id, timezone.now()
    set_aside(acme, 100 * HOUR_MICROS, version=version, at=at)
    for n in range(50):
        settle(acme, item(f"task {n}", version=version), at=at)
        start(acme, resource_id=f"ins_{n}", quantity=1, covered_by=JOB, at=at)
        usage.stop(resource_id=f"ins_{n}", at=at + timedelta(hours=1))
    release(at=at)
    costs.book_costs(at=at)
    sharing.share_out(at=at)
    clock.shift(timedelta(days=8))
    with connection.cursor() as cursor:  # Else plans would follow what earlier tests left to count.
        cursor.execute("ANALYZE billing_outcome, billing_outcomecost, billing_usagespan, marketplace_attempt")
    with CaptureQueriesContext(connection) as asked:
        found = sellers.unpaid_micros(deal.seller, "USD", at=timezone.now())
    assert found == 50 * (PRICE - 1_000_000)  # the platform's part is all of it
    assert sum(map(_rows_of_history, asked.captured_queries)) == 0
    assert books.check(at=timezone.now()) == []


def _rows_of_history(query: dict[str, str]) -> int:
    """Return how many results and costs a query reads to be answered."""
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL enable_seqscan = off")
        cursor.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {query['sql']}")
        (((whole,),),) = cursor.fetchall()
    nodes, read = [whole["Plan"]], 0
    while nodes:
        node = nodes.pop()
        nodes += node.get("Plans", [])
        if node.get("Relation Name") in ("billing_outcome", "billing_outcomecost"):
            read += node["Actual Loops"] * (node["Actual Rows"] + node.get("Rows Removed by Filter", 0))
    return int(read)


@pytest.mark.django_db(transaction=True)
def test_two_customers_who_submit_at_once_are_not_promised_the_same_room(
    works: Works, other: Works, deal: Deal, monkeypatch: pytest.MonkeyPatch
) -> None:
    allow(deal, 2 * HOUR_MICROS - 1)
    gate, ends, promised = Barrier(2), [], bounding.promised

    def slowly(version: Any) -> int:
        found = promised(version)
        sleep(0.3)
        return found

    def submit(customer: Works) -> None:
        try:
            gate.wait()
            under(deal, customer)
            ends.append("submitted")
        except BadSpec as refusal:
            ends.append("refused" if SAID in str(refusal) else str(refusal))
        finally:
            connection.close()

    monkeypatch.setattr(bounding, "promised", slowly)
    pair = [Thread(target=submit, args=[customer]) for customer in (works, other)]
    for thread in pair:
        thread.start()
    for thread in pair:
        thread.join()
    assert sorted(ends) == ["refused", "submitted"]
    assert SellerLimit.objects.count() == 1


def test_inside_a_reservation_verifying_is_bounded_as_anywhere(works: Works, clock: time_machine.Traveller) -> None:
    sell_blocks(works.fleet.h200, at=NOON)
    buyer = Buyer(works.actor, works.project, works.fleet.h200, NOON)
    reservation = buyer.buy(8, 1, 25)
    clock.shift(timedelta(hours=1))
    buyer.go_to(1)
    verifier = {"kind": "command", "gpus": 1, "runs": 1, "timeout_s": 3600, "on_silence": "fail"}
    made = make_deal(works.project.organization, verifier=verifier, command=["check"])
    job = under(made, works, array=5, market="reserved", reservation=reservation.public_id)
    assert (job.attempt_micros, job.verify_micros) == (0, HOUR_MICROS)
    allow(made, 2 * HOUR_MICROS + 1)
    works.go()
    assert (latest(job).running, latest(job).pending) == (2, 3)
    assert SAID in latest(job).hindrance
    allow(made, 9 * HOUR_MICROS)
    clock.shift(timedelta(seconds=20))
    works.go()
    assert latest(job).running == 5
