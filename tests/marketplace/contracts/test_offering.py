"""Contracts: versions that nothing changes, and agreements to exactly one text."""

from typing import Any

import pytest
from django.db import DatabaseError, transaction
from django.utils import timezone

from marketplace.access import Actor, person
from marketplace.contracts import answering, claims, disputing, door, offering, sweeping, wording
from marketplace.contracts import terms as written
from marketplace.errors import BadOrder, Conflict, Forbidden, IllegalState, NotFound
from marketplace.models import (
    Acceptance,
    AuditEntry,
    ContractVersion,
    Membership,
    Organization,
    Project,
    Side,
    User,
)
from tests.agreed import GUARANTEE
from tests.conftest import make_organization, make_person
from tests.outcomes import BY_CUSTOMER, PRICE, accept, make_deal, make_seller, put_up, terms

pytestmark = pytest.mark.django_db


def test_terms_and_agreements_cannot_be_changed_even_by_who_has_the_database(acme: Organization) -> None:
    version = make_deal(acme).version
    for change in (
        lambda: ContractVersion.objects.filter(pk=version.pk).update(terms={}),
        lambda: ContractVersion.objects.filter(pk=version.pk).update(sha256="0" * 64),
        lambda: ContractVersion.objects.filter(pk=version.pk).update(number=9),
        lambda: Acceptance.objects.update(sha256="0" * 64),
        lambda: Acceptance.objects.all()._raw_delete("default"),
    ):
        with pytest.raises(DatabaseError), transaction.atomic():
            change()


def test_who_agrees_names_the_text_and_is_written_down(acme: Organization, actor: Actor) -> None:
    seller, merchant = make_seller()
    at = timezone.now()
    version = offering.draft(actor=merchant, seller=seller, title="Frames", terms=terms(), at=at)
    agree = {"actor": actor, "version": version, "organization": acme, "at": at}
    with pytest.raises(IllegalState):
        offering.accept(sha256=version.sha256, **agree)
    put_up(version, merchant, at=at)
    with pytest.raises(BadOrder, match="read it again"):
        offering.accept(sha256="0" * 64, **agree)
    made = offering.accept(sha256=version.sha256, **agree)
    assert offering.accept(sha256=version.sha256, **agree) == made
    sides = {(one.side, one.sha256, one.accepted_by_name) for one in version.acceptances.all()}
    assert sides == {("seller", version.sha256, merchant.name), ("buyer", version.sha256, actor.name)}
    assert AuditEntry.objects.filter(verb="contract.accept", organization=acme, subject_id=version.public_id).exists()
    with pytest.raises(Conflict, match="does not buy from itself"):
        offering.accept(actor=merchant, version=version, organization=seller, sha256=version.sha256, at=at)


def test_what_a_supplier_sells_to_everybody_is_in_the_catalogue_once_a_capacity_manager_approved_it(
    acme: Organization, actor: Actor, carol: User
) -> None:
    seller, merchant = make_seller()
    at = timezone.now()
    version = offering.draft(actor=merchant, seller=seller, title="Frames", terms=terms(), at=at)
    for _ in range(2):
        offering.offer(actor=merchant, version=version, at=at)
        version.refresh_from_db()
        assert (version.state, version.offered_at) == ("submitted", None)
    assert list(offering.catalogue()) == list(offering.visible_to([acme.pk])) == []
    with pytest.raises(IllegalState, match="Waiting for approval"):
        offering.accept(actor=actor, version=version, organization=acme, sha256=version.sha256, at=at)
    offering.approve(actor=person(make_person("m@operator.example", is_staff=True)), version=version, at=at)
    assert list(offering.catalogue()) == [version]
    offering.accept(actor=actor, version=version, organization=acme, sha256=version.sha256, at=at)
    # Its next terms are looked at again; what the operator itself sells is its own word.
    second = offering.amend(actor=merchant, contract=version.contract, terms=terms(retries=0), side=Side.SELLER, at=at)
    offering.offer(actor=merchant, version=second, at=at)
    assert second.state == "submitted"
    Membership.objects.create(organization=seller, user=carol, role="admin")
    offering.offer(actor=merchant, version=second, at=at)
    assert second.state == "offered"


@pytest.mark.parametrize(("seller_bps", "state"), [(10_000, "offered"), (9_999, "submitted")])
def test_a_guarantee_for_one_customer_is_approved_where_the_platform_bears_a_part_of_its_credits(
    acme: Organization, seller_bps: int, state: str
) -> None:
    seller, merchant = make_seller()
    said = terms(kind="guarantee", guarantee=GUARANTEE | {"seller_bps": seller_bps})
    version = offering.draft(
        actor=merchant, seller=seller, title="Steady", terms=said, buyer=acme, at=timezone.now()
    )  # fmt: skip
    offering.offer(actor=merchant, version=version, at=timezone.now())
    assert version.state == state


def test_a_person_of_two_organizations_agrees_for_none_but_the_one_that_it_was_negotiated_with(
    acme: Organization, alice: User, actor: Actor
) -> None:
    seller, merchant = make_seller()
    at, second = timezone.now(), make_organization("Second", alice)
    version = offering.draft(actor=merchant, seller=seller, title="Frames", terms=terms(), buyer=acme, at=at)
    offering.offer(actor=merchant, version=version, at=at)
    assert door.version_for(actor, version.public_id, verb="contract_acceptance.create") == version
    with pytest.raises(Conflict, match="for another organization"):
        offering.accept(actor=actor, version=version, organization=second, sha256=version.sha256, at=at)
    assert offering.accept(actor=actor, version=version, organization=acme, sha256=version.sha256, at=at).pk


def test_nothing_new_is_ordered_under_what_a_customer_has_left_and_what_was_begun_goes_on(
    acme: Organization, project: Project, actor: Actor
) -> None:
    at, deal, task = timezone.now(), make_deal(acme, **BY_CUSTOMER), make_deal(acme)
    claim = deal.claim(project, "frame 1")
    for one in (deal, task):
        offering.leave(actor=actor, version=one.version, organization=acme, at=at)
    with pytest.raises(BadOrder, match="ended this agreement"):
        deal.claim(project, "frame 2")
    with pytest.raises(BadOrder, match="ended this agreement"):
        claims.check(version_id=task.version.public_id, organization=acme, tasks=1)
    with pytest.raises(BadOrder, match="ended this agreement"):
        offering.accept(
            actor=actor, version=task.version, organization=acme, sha256=task.version.sha256, at=at
        )  # fmt: skip
    assert list(door.accepted(actor, acme)) == []
    answering.accept(actor=actor, claim=claim, at=at)
    sweeping.advance(at=at, limit=9)
    claim.refresh_from_db()
    assert claim.paid_micros == PRICE
    second = make_deal(acme)
    with pytest.raises(NotFound):
        offering.leave(actor=actor, version=second.version, organization=second.seller, at=at)


def test_only_suppliers_sell_and_a_supplier_who_earns_exists(acme: Organization, actor: Actor) -> None:
    with pytest.raises(Conflict, match="Only suppliers sell"):
        offering.draft(actor=actor, seller=acme, title="x", terms=terms(), at=timezone.now())
    seller, merchant = make_seller()
    for shares, why in (
        ([{"to": acme.public_id, "bps": 10_000}], "no such supplier"),
        ([{"to": seller.public_id, "bps": 10_000}], "Write “seller”"),
    ):
        with pytest.raises(BadOrder, match=why):
            offering.draft(actor=merchant, seller=seller, title="x", terms=terms(shares=shares), at=timezone.now())


def test_a_contract_for_one_customer_is_negotiated_by_both_and_seen_by_nobody_else(
    acme: Organization, actor: Actor, charlie: User
) -> None:
    seller, merchant = make_seller()
    at = timezone.now()
    first = offering.draft(actor=merchant, seller=seller, title="Frames", terms=terms(), buyer=acme, at=at)
    own, others = [acme.pk], list(Organization.objects.filter(memberships__user=charlie).values_list("pk", flat=True))
    assert list(offering.visible_to(own)) == []
    offering.offer(actor=merchant, version=first, at=at)
    assert list(offering.visible_to(own)) == [first]
    assert list(offering.visible_to(others)) == list(offering.catalogue()) == []

    cheaper = terms(unit={"price_micros": PRICE // 2})
    second = offering.amend(actor=actor, contract=first.contract, terms=cheaper, side=Side.BUYER, at=at)
    assert (second.number, second.state, second.proposed_by) == (2, "draft", "buyer")
    assert offering.acceptance_of(second, acme) is not None, "who proposes agrees with that"
    with pytest.raises(BadOrder, match="no longer offered"):
        claims.check(version_id=second.public_id, organization=acme, tasks=1)
    offering.offer(actor=merchant, version=second, at=at)
    assert claims.check(version_id=second.public_id, organization=acme, tasks=3).most_micros == 3 * PRICE // 2
    with pytest.raises(BadOrder, match="kind"):
        offering.amend(
            actor=merchant, contract=first.contract, side=Side.SELLER, at=at,
            terms=terms(kind="per_unit", measured={"kind": "claim"}),
        )  # fmt: skip


def test_products_of_the_catalogue_are_not_negotiated(acme: Organization, actor: Actor) -> None:
    version = make_deal(acme).version
    with pytest.raises(Conflict):
        offering.amend(actor=actor, contract=version.contract, terms=terms(), side=Side.BUYER, at=timezone.now())


def test_nothing_is_ordered_under_a_version_that_is_strange_withdrawn_or_not_accepted(acme: Organization) -> None:
    deal = make_deal(acme)
    other = make_deal(acme, cap={"period": "month", "micros": 5 * PRICE})
    assert claims.check(version_id=deal.version.public_id, organization=acme, tasks=9).most_micros == 9 * PRICE
    bound = claims.check(version_id=other.version.public_id, organization=acme, tasks=9)
    assert (bound.per_task_micros, bound.most_micros) == (PRICE, 5 * PRICE)
    offering.withdraw(actor=deal.merchant, version=deal.version, at=timezone.now())
    for version_id, organization in (
        ("ctv_" + "a" * 20, acme),
        (deal.version.public_id, acme),
        (other.version.public_id, deal.seller),
    ):
        with pytest.raises(BadOrder) as refused:
            claims.check(version_id=version_id, organization=organization, tasks=1)
        assert refused.value.field == "contract"


def test_a_verifying_command_is_chosen_by_the_customer_where_the_terms_say_so_and_stays(acme: Organization) -> None:
    by_command = {"kind": "command", "timeout_s": 60, "runs": 2, "on_silence": "fail", "gpus": 1}
    deal = make_deal(acme, verifier=by_command, command=["./check"])
    found = offering.acceptance_of(deal.version, acme)
    assert found is not None
    assert found.check_command == ["./check"]
    with pytest.raises(Conflict, match="another verifying command"):
        accept(acme, deal.version, command=["true"])
    with pytest.raises(BadOrder, match="which command judges"):
        make_deal(acme, verifier=by_command)
    with pytest.raises(BadOrder, match="another verifier"):
        make_deal(acme, command=["true"])


def test_a_buyer_who_proposes_a_verifying_command_chooses_it_when_they_accept(acme: Organization, actor: Actor) -> None:
    seller, merchant = make_seller()
    at, by_command = timezone.now(), {"kind": "command", "timeout_s": 60, "runs": 2, "on_silence": "fail", "gpus": 1}
    first = offering.draft(actor=merchant, seller=seller, title="Frames", terms=terms(), buyer=acme, at=at)
    proposed = offering.amend(
        actor=actor, contract=first.contract, terms=terms(verifier=by_command), side=Side.BUYER, at=at
    )
    assert offering.acceptance_of(proposed, acme) is None, "nobody knows the command yet"
    offering.offer(actor=merchant, version=proposed, at=at)
    accept(acme, proposed, command=["./check"])
    found = offering.acceptance_of(proposed, acme)
    assert found is not None
    assert found.check_command == ["./check"]


def test_every_term_has_a_sentence(acme: Organization) -> None:
    deadline = {"within_s": 7200, "late": [{"after_s": 0, "price_bps": 8000}, {"after_s": 90, "price_bps": 0}]}
    said = dict(wording.sentences(written.of(terms(deadline=deadline, cap={"period": "day", "micros": 5_000_000}))))
    assert said["Price"] == "$0.50 per task"
    assert said["At most"] == "$0.50 for each result, whatever happens."
    assert said["Deadline"] == (
        "Within 2 hours of the order, not counting what its customer holds back itself; 80 % of the price when later, "
        "0 % of the price after 90 seconds more."
    )
    assert said["Cap"] == "At most $5.00 a day (UTC); what is beyond it is free."
    assert said["Who gets it"] == "the seller 80 %, the platform 20 %"
    assert "Guarantee" not in said


KEY = "ab" * 32
BY_PARTY = {
    "kind": "third_party", "party": {"name": "Independent Lab", "organization": None, "public_key": KEY},
    "answer_within_s": 60, "on_silence": "fail",
}  # fmt: skip


def test_a_third_party_has_a_say_only_where_the_customer_names_its_key(acme: Organization, actor: Actor) -> None:
    seller, merchant = make_seller()
    at = timezone.now()
    version = offering.draft(actor=merchant, seller=seller, title="Frames", terms=terms(verifier=BY_PARTY), at=at)
    put_up(version, merchant, at=at)
    agree: dict[str, Any] = {
        "actor": actor,
        "version": version,
        "organization": acme,
        "sha256": version.sha256,
        "at": at,
    }
    for named in ([], ["cd" * 32], [KEY, "cd" * 32]):
        with pytest.raises(BadOrder) as refused:
            offering.accept(**agree, third_parties=named)
        assert refused.value.field == "third_parties"
    assert offering.acceptance_of(version, acme) is None
    offering.accept(**agree, third_parties=[KEY])
    assert offering.acceptance_of(version, acme) is not None


def test_the_operator_does_not_decide_about_what_it_sells_and_refunds_what_it_has_a_share_of(
    acme: Organization, carol: User
) -> None:
    seller, merchant = make_seller("Operator")
    arbiter = {"name": "Court", "organization": None, "public_key": KEY}

    def drafted(**differs: Any) -> ContractVersion:
        return offering.draft(
            actor=merchant, seller=seller, title="Frames", terms=terms(**differs), at=timezone.now()
        )  # fmt: skip

    with pytest.raises(BadOrder) as refused:
        drafted(disputes={"if_undecided": "pay"})
    assert refused.value.field == "disputes/if_undecided"
    drafted(disputes={"if_undecided": "pay"}, shares=[{"to": "seller", "bps": 10_000}])
    drafted()
    Membership.objects.create(organization=seller, user=carol, role="admin")
    with pytest.raises(BadOrder) as refused:
        drafted(shares=[{"to": "seller", "bps": 10_000}])
    assert refused.value.field == "disputes/decided_by"
    drafted(disputes={"decided_by": "third_party", "arbiter": arbiter})


def test_the_operators_share_by_the_id_of_its_own_organization_is_one_of_the_platform(carol: User) -> None:
    seller, merchant = make_seller()
    own, _owner = make_seller("Operator")
    Membership.objects.create(organization=own, user=carol, role="admin")
    shares = [{"to": "seller", "bps": 8_000}, {"to": own.public_id, "bps": 2_000}]

    def drafted(if_undecided: str) -> ContractVersion:
        said = terms(disputes={"if_undecided": if_undecided}, shares=shares)
        return offering.draft(actor=merchant, seller=seller, title="Frames", terms=said, at=timezone.now())

    with pytest.raises(BadOrder) as refused:
        drafted("pay")
    assert refused.value.field == "disputes/if_undecided"
    drafted("refund")


def test_who_has_a_share_of_the_price_does_not_decide_about_it(
    acme: Organization, project: Project, actor: Actor
) -> None:
    partner, _owner = make_seller("Partner")
    shares = [{"to": "seller", "bps": 5_000}, {"to": partner.public_id, "bps": 5_000}]
    claim = make_deal(acme, **BY_CUSTOMER, shares=shares).claim(project, "frame 1")
    at = timezone.now()
    answering.accept(actor=actor, claim=claim, at=at)
    sweeping.advance(at=at, limit=10)
    dispute = disputing.open(actor=actor, claim=claim, side=Side.BUYER, reason="other", text="no", at=at)
    judge = make_person("judge@operator.example", is_staff=True)
    seat = Membership.objects.create(organization=partner, user=judge, role="viewer")
    with pytest.raises(Forbidden, match="has a share"):
        disputing.resolve(actor=person(judge), dispute=dispute, due_bps=10_000, note="It is good.", at=at)
    seat.delete()
    disputing.resolve(actor=person(judge), dispute=dispute, due_bps=10_000, note="It is good.", at=at)


def test_of_what_the_operator_already_sold_it_decides_for_the_customer_alone(
    acme: Organization, project: Project, actor: Actor, carol: User
) -> None:
    deal, at = make_deal(acme, **BY_CUSTOMER), timezone.now()
    Membership.objects.create(organization=deal.seller, user=carol, role="admin")
    claim = deal.claim(project, "frame 1", at=at)
    answering.accept(actor=actor, claim=claim, at=at)
    sweeping.advance(at=at, limit=10)
    dispute = disputing.open(actor=actor, claim=claim, side=Side.BUYER, reason="other", text="no", at=at)
    judge = person(make_person("judge@operator.example", is_staff=True))
    for due_bps in (10_000, 1):
        with pytest.raises(Forbidden, match="decide for the customer"):
            disputing.resolve(actor=judge, dispute=dispute, due_bps=due_bps, note="It is good.", at=at)
    disputing.resolve(actor=judge, dispute=dispute, due_bps=0, note="It is not.", at=at)
