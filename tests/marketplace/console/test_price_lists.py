"""Price lists and commitments in the console: typed as a table, simulated, and decided by a second person."""

from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
import time_machine
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from billing import price_lists, prices
from billing.models import Commitment, PriceList, PriceListItem, PriceVersion, PriceWithdrawal, SimulatedWare, UsageSpan
from marketplace.models import AuditEntry, Offer, Organization, User
from tests.conftest import Fleet, make_person
from tests.marketplace.console.conftest import only_entry


@pytest.fixture
def other_desk(db: None) -> Client:
    """Dan's browser, who manages capacity too."""
    client = Client()
    client.force_login(make_person("dan@operator.example", is_staff=True))
    return client


@pytest.fixture
def offer(fleet: Fleet) -> Offer:
    """The first of two offers, each with a price in dollars."""
    return fleet.h200


def send(desk: Client, name: str, *ids: str, **fields: Any) -> Any:
    return desk.post(reverse(f"console-{name}", args=ids), fields)


def see(desk: Client, name: str, *ids: str, **query: str) -> str:
    answer = desk.get(reverse(f"console-{name}", args=ids), query)
    assert answer.status_code == 200
    return str(answer.content.decode())


@pytest.fixture
def draft(desk: Client, offer: Offer) -> PriceList:
    """A draft in dollars, a copy of the one price that the offer has."""
    assert send(desk, "price-list-new", currency="USD", key=str(uuid4())).status_code == 302
    return PriceList.objects.get()


def typed(desk: Client, draft: PriceList, **changed: str) -> dict[str, str]:
    """What the table of a draft sends if only this is changed."""
    answer = desk.get(reverse("console-price-list-edit", args=[draft.public_id]))
    fields = {"note": "spring"}
    for number, row in enumerate(answer.context["rows"]):
        fields |= {f"model-{number}": row.model, f"prices-{number}": row.prices, f"minimum-{number}": row.minimum}
    return fields | {name.replace("_", "-"): text for name, text in changed.items()}


TIERS = {"model_0": "graduated", "prices_0": "0-100 2.50\n100–1000: 2.25\n1000- 2"}


def approved(desk: Client, other_desk: Client, draft: PriceList) -> None:
    assert send(desk, "price-list-edit", draft.public_id, **typed(desk, draft, **TIERS)).status_code == 302
    assert send(desk, "price-list-simulate", draft.public_id).status_code == 302
    assert send(other_desk, "price-list-approve", draft.public_id).status_code == 302


def test_a_draft_is_typed_as_a_table_with_its_tiers(desk: Client, draft: PriceList, offer: Offer) -> None:
    page = see(desk, "price-list-edit", draft.public_id)
    assert f"{offer.name}, on demand" in page
    assert "Storage in" in page
    assert send(desk, "price-list-edit", draft.public_id, **typed(desk, draft, **TIERS)).status_code == 302
    item = PriceListItem.objects.get(sku=offer.sku)
    assert (item.model, item.tiers) == ("graduated", [[0, 2_500_000], [100, 2_250_000], [1000, 2_000_000]])
    shown = see(desk, "price-list", draft.public_id)
    assert "What it changes" in shown
    assert "100–1,000 h" in shown
    assert "0-100 2.5" in see(desk, "price-list-edit", draft.public_id)
    assert only_entry("price_list.draft").subject_id == only_entry("price_list.save").subject_id == draft.public_id


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"prices_0": "2.1234567"}, "is no price"),
        ({"prices_0": "cheap"}, "is no price"),
        ({"prices_0": "0-100 2.50\n200- 2", "model_0": "graduated"}, "Some hours have no price"),
        ({"prices_0": "0-100 2.50\n50- 2", "model_0": "volume"}, "Some hours have two prices"),
        ({"prices_0": "0-100 2.50\n100- 2"}, "One price has no tiers"),
        ({"prices_0": "0"}, "A price is more than nothing"),
        ({"minimum_0": "1.001"}, "in whole units of the currency that can be paid"),
        ({"minimum_0": "-5"}, "Write a minimum such as 100"),
        ({"prices_0": "", "minimum_0": "5"}, "A minimum needs a price"),
        ({"model_0": "daily"}, "Choose how it is priced"),
    ],
)
def test_what_is_wrong_stands_beside_its_row_and_nothing_is_saved(
    desk: Client, draft: PriceList, changed: dict[str, str], said: str
) -> None:
    before = list(PriceListItem.objects.values())
    answer = send(desk, "price-list-edit", draft.public_id, **typed(desk, draft, **changed))
    assert answer.status_code == 422
    page = answer.content.decode()
    assert said in page
    assert "1 row is not right. Nothing was saved." in page
    assert list(PriceListItem.objects.values()) == before


def test_a_list_is_approved_by_somebody_else_and_scheduled(
    desk: Client, other_desk: Client, draft: PriceList, offer: Offer
) -> None:
    assert "Not simulated yet" in see(desk, "price-list", draft.public_id)
    assert send(desk, "price-list-edit", draft.public_id, **typed(desk, draft, **TIERS)).status_code == 302
    send(desk, "price-list-simulate", draft.public_id)
    assert "They would have paid" in see(desk, "price-list", draft.public_id)
    mine = send(desk, "price-list-approve", draft.public_id)
    assert mine.status_code == 422
    assert "somebody else has to approve it" in mine.content.decode()
    assert send(other_desk, "price-list-approve", draft.public_id).status_code == 302
    begins = timezone.localtime() + timedelta(days=1)
    past = send(desk, "price-list-schedule", draft.public_id, effective_from="2020-01-01T00:00")
    assert past.status_code == 422
    assert "A price cannot begin in the past" in past.content.decode()
    assert PriceVersion.objects.filter(price_list=draft).count() == 0
    answer = send(desk, "price-list-schedule", draft.public_id, effective_from=f"{begins:%Y-%m-%dT%H:%M}")
    assert answer.status_code == 302
    assert prices.current(skus=[offer.sku], currency="USD", at=begins)[offer.sku].model == "graduated"
    assert only_entry("price_list.schedule").after["prices"] == 1  # type: ignore[index]
    assert "scheduled" in see(desk, "price-lists", currency="USD")
    assert "100–1,000 h" in see(desk, "offer", offer.public_id)


def test_an_approved_list_is_not_edited_and_can_be_withdrawn(
    desk: Client, other_desk: Client, draft: PriceList
) -> None:
    fields = typed(desk, draft, **TIERS)
    approved(desk, other_desk, draft)
    answer = send(desk, "price-list-edit", draft.public_id, **fields)
    assert answer.status_code == 422
    assert "The list is in another state now" in answer.content.decode()
    assert send(desk, "price-list-withdraw", draft.public_id).status_code == 302
    assert "withdrawn" in see(desk, "price-list", draft.public_id)


def test_a_scheduled_list_is_withdrawn_by_two_people(
    desk: Client, other_desk: Client, draft: PriceList, offer: Offer
) -> None:
    approved(desk, other_desk, draft)
    begins = timezone.localtime() + timedelta(days=1)
    send(desk, "price-list-schedule", draft.public_id, effective_from=f"{begins:%Y-%m-%dT%H:%M}")
    assert "Somebody else has to approve this" in see(desk, "price-list-withdraw", draft.public_id)
    assert send(desk, "price-list-withdraw", draft.public_id, reason="", key=str(uuid4())).status_code == 422
    key = str(uuid4())
    for _ in range(2):
        assert send(desk, "price-list-withdraw", draft.public_id, reason="Wrong", key=key).status_code == 302
    made = PriceWithdrawal.objects.get()
    assert "Withdrawals that wait for a second person" in see(desk, "price-lists")
    mine = send(desk, "price-withdrawal-approve", made.public_id)
    assert (mine.status_code, "somebody else has to decide" in mine.content.decode()) == (422, True)
    assert "Wrong" in see(other_desk, "price-withdrawal-approve", made.public_id)
    assert send(other_desk, "price-withdrawal-approve", made.public_id).status_code == 302
    assert "withdrawn" in see(desk, "price-list", draft.public_id)
    assert prices.current(skus=[offer.sku], currency="USD", at=begins)[offer.sku].model == "flat"
    for verb in ("propose", "approve"):
        assert only_entry(f"price_withdrawal.{verb}").after["reason"] == "Wrong"  # type: ignore[index]


def test_a_withdrawal_that_is_declined_or_too_late_leaves_the_list(
    desk: Client, other_desk: Client, draft: PriceList, offer: Offer
) -> None:
    approved(desk, other_desk, draft)
    begins = timezone.localtime() + timedelta(days=1)
    send(desk, "price-list-schedule", draft.public_id, effective_from=f"{begins:%Y-%m-%dT%H:%M}")
    send(desk, "price-list-withdraw", draft.public_id, reason="Wrong", key=str(uuid4()))
    made = PriceWithdrawal.objects.get()
    with time_machine.travel(begins + timedelta(hours=1)):
        late = send(other_desk, "price-withdrawal-approve", made.public_id)
        assert (late.status_code, "Schedule another one" in late.content.decode()) == (422, True)
        assert send(other_desk, "price-withdrawal-decline", made.public_id).status_code == 302
        again = send(desk, "price-list-withdraw", draft.public_id, reason="Wrong", key=str(uuid4()))
        assert again.status_code == 422
    assert prices.current(skus=[offer.sku], currency="USD", at=begins)[offer.sku].model == "graduated"
    assert only_entry("price_withdrawal.decline").subject_id == made.public_id


def test_going_back_opens_a_draft_with_the_earlier_content(desk: Client, draft: PriceList) -> None:
    key = str(uuid4())
    for _ in range(2):
        assert send(desk, "price-list-restore", draft.public_id, key=key).status_code == 302
    back = PriceList.objects.get(restores=draft)
    assert f"as {draft}" in see(desk, "price-lists")
    assert AuditEntry.objects.filter(verb="price_list.draft").count() == 2
    shown = see(desk, "price-list", back.public_id, against=draft.public_id)
    assert f"What differs from {draft}" in shown
    assert "Nothing." in shown


def order(offer: Offer, **changed: Any) -> dict[str, Any]:
    begins = (timezone.now().replace(day=1) + timedelta(days=40)).replace(day=1)
    ordinary = {
        "kind": "hours", "skus": [offer.sku], "hours": "1000", "discount_bps": "20", "months": "3",
        "starts_at": begins.replace(hour=0, minute=0, second=0, microsecond=0).isoformat(), "key": str(uuid4()),
        "note": "contract 7",
    }  # fmt: skip
    return ordinary | changed


def test_a_commitment_is_proposed_and_agreed_by_somebody_else(
    desk: Client, other_desk: Client, acme: Organization, offer: Offer
) -> None:
    assert "It promised nothing" in see(desk, "commitments", acme.public_id)
    assert send(desk, "commitment-new", acme.public_id, **order(offer)).status_code == 302
    made = Commitment.objects.get()
    assert "contract 7" in see(desk, "price-lists")
    assert send(desk, "commitment-agree", made.public_id).status_code == 422
    assert send(other_desk, "commitment-agree", made.public_id).status_code == 302
    page = see(desk, "commitments", acme.public_id)
    assert "1,000 hours" in page
    assert "− 20\u00a0%" in page
    assert only_entry("commitment.agree").organization == acme


@pytest.mark.parametrize(
    "changed",
    [
        {"hours": "0"},
        {"hours": ""},
        {"kind": "spend"},
        {"kind": "spend", "spend_micros": "10.005"},
        {"discount_bps": "100"},
        {"discount_bps": "1.234"},
        {"months": "0"},
        {"skus": []},
        {"skus": ["nothing"]},
        {"starts_at": "2020-01-01T00:00:00+00:00"},
    ],
)
def test_a_commitment_that_cannot_be_is_refused(
    desk: Client, acme: Organization, offer: Offer, changed: dict[str, Any]
) -> None:
    assert send(desk, "commitment-new", acme.public_id, **order(offer, **changed)).status_code == 422
    assert not Commitment.objects.exists()


def test_a_proposal_can_be_declined(desk: Client, acme: Organization, offer: Offer) -> None:
    send(desk, "commitment-new", acme.public_id, **order(offer, kind="spend", spend_micros="500"))
    made = Commitment.objects.get()
    assert send(desk, "commitment-decline", made.public_id).status_code == 302
    assert "Declined" in see(desk, "commitments", acme.public_id)
    assert send(desk, "commitment-decline", made.public_id).status_code == 422


def test_one_price_never_drops_tiers_by_itself(
    desk: Client, other_desk: Client, draft: PriceList, offer: Offer
) -> None:
    approved(desk, other_desk, draft)
    begins = timezone.now() + timedelta(seconds=1)
    PriceVersion.objects.filter(sku=offer.sku).latest("effective_from")
    price_lists.schedule(price_list=draft, effective_from=begins, by="test", at=timezone.now())
    with time_machine.travel(begins + timedelta(seconds=1)):
        desk.force_login(User.objects.get(email="carol@operator.example"))
        fields = {"sku": offer.sku, "currency": "USD", "amount_micros": "3", "key": str(uuid4())}
        answer = send(desk, "offer-price", offer.public_id, **fields)
        assert answer.status_code == 422
        assert "has tiers or a minimum" in answer.content.decode()
        assert send(desk, "offer-price", offer.public_id, **fields, drops_tiers="on").status_code == 302


def test_a_simulation_draws_what_changes_by_product(
    desk: Client, draft: PriceList, offer: Offer, acme: Organization
) -> None:
    now = timezone.now()
    price = PriceVersion.objects.get(sku=offer.sku)
    UsageSpan.objects.create(
        organization=acme, resource_id="ins_1", resource_name="x", quantity=2, price_version=price,
        started_at=now.replace(microsecond=0) - timedelta(hours=2), ended_at=now.replace(microsecond=0),
        charged_through=now.replace(microsecond=0),
    )  # fmt: skip
    send(desk, "price-list-edit", draft.public_id, **typed(desk, draft, prices_0="5"))
    send(desk, "price-list-simulate", draft.public_id)
    (ware,) = SimulatedWare.objects.all()
    assert (ware.before_micros, ware.after_micros) == (4 * price.micros_per_unit_hour, 20_000_000)
    page = see(desk, "price-list", draft.public_id)
    for words in ("What changes by product", f"{offer.name}, on demand", "+$10.04", "$20.00"):
        assert words in page
    send(desk, "price-list-edit", draft.public_id, **typed(desk, draft, prices_0="6"))
    assert not SimulatedWare.objects.exists()
