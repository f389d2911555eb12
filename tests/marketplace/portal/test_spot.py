"""The pages of auctions and bids: what a bid means is said before it is sent, and nobody sees another's."""

from datetime import timedelta

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from marketplace import policies, spot, spot_terms
from marketplace.access import person
from marketplace.models import Bid, User
from provisioning import interruptions
from provisioning.models import Instance, Interruption
from tests.conftest import Fleet, Run
from tests.marketplace.portal.conftest import browser
from tests.marketplace.portal.reading import faults, read

ORDER = {
    "offer": "h200-narvik", "gpus": "2", "replicas": "1", "name": "trainer", "command": "sleep 1000", "env": "",
    "project": "", "image": "", "ports": "", "lease": "sticky", "on_failure": "", "key": "a key", "market": "spot",
    "bid_price": "1,25",
}  # fmt: skip


@pytest.fixture
def sold(fleet: Fleet) -> Fleet:
    spot_terms.set_terms(
        offer=fleet.h200, by="carol@operator.example", at=timezone.now(), reserve_micros=500_000, interval_s=60,
        min_notice_s=30,
    )  # fmt: skip
    return fleet


def bid_of(owner: Client) -> Bid:
    answer = owner.post(reverse("launch"), ORDER)
    assert answer.status_code == 302, read(answer).text
    return Bid.objects.get()


def test_the_form_says_what_an_interruption_means_and_the_worst_case_before_anything_is_sent(
    owner: Client, sold: Fleet
) -> None:
    page = read(owner.get(reverse("launch"), {"offer": "h200-narvik", "market": "spot"}))
    assert faults(page) == []
    assert "By auction, $0.50 per GPU-hour now" in page.text
    fragment = owner.post(reverse("launch-estimate"), ORDER).content.decode()
    for words in ("per hour at most", "$2.50", "30 s before", "SIGTERM", "GPUMARKET_METADATA", "set aside"):
        assert words in fragment
    assert "gpumarket bid h200-narvik --gpus 2 --max-price 1.25" in fragment
    assert "By auction" not in read(owner.get(reverse("launch"), {"offer": "l40s-narvik"})).text
    market = read(owner.get(reverse("market")))
    assert [link.attributes["href"] for link in market.all("a") if link.text == "by auction"] == ["/spot/h200-narvik"]


@pytest.mark.parametrize(
    ("price", "words"),
    [("free", "Type an amount"), ("0.10", "The reserve is"), ("9", "On demand it costs"), ("0.505", "Bid in steps of")],
)
def test_a_bid_that_would_be_refused_is_said_beside_its_field(
    owner: Client, sold: Fleet, price: str, words: str
) -> None:
    assert words in owner.post(reverse("launch-estimate"), ORDER | {"bid_price": price}).content.decode()
    answer = owner.post(reverse("launch"), ORDER | {"bid_price": price})
    assert answer.status_code == 422
    assert words in read(answer).text
    assert not Instance.objects.exists()


def test_a_bid_goes_from_the_form_to_an_auction_an_interruption_and_a_raise(
    owner: Client, sold: Fleet, run_until_idle: Run
) -> None:
    assert "No bids" in read(owner.get(reverse("bids"))).text
    placed = bid_of(owner)
    instance_page = reverse("instance", args=[placed.instance.public_id])
    assert "waits for an auction" in read(owner.get(instance_page)).text
    for address in (reverse("bids"), reverse("bid", args=[placed.public_id]), reverse("spot", args=["h200-narvik"])):
        page = read(owner.get(address))
        assert faults(page) == [], address
    held = spot.clear(offer_id=sold.h200.pk, at=timezone.now())
    run_until_idle()
    auction = read(owner.get(reverse("spot-auction", args=["h200-narvik", held.public_id])))
    assert faults(auction) == []
    for words in ("Your bids in it", "won", placed.public_id, held.book_sha256):
        assert words in auction.text
    priced = read(owner.get(reverse("spot", args=["h200-narvik"]), {"span": "hour"}))
    assert faults(priced) == []
    for words in ("Price history", "$0.50", "on demand", "2 / 16"):
        assert words in priced.text
    ask = read(owner.get(reverse("instance-interrupt", args=[placed.instance.public_id])))
    assert faults(ask) == []
    assert "30 s before" in ask.text
    owner.post(reverse("instance-interrupt", args=[placed.instance.public_id]))
    told = Interruption.objects.get()
    assert told.reason == "simulated"
    page = read(owner.get(instance_page))
    assert faults(page) == []
    assert "Raise the bid" in page.text
    assert "Interruption announced" in read(owner.get(reverse("bids"))).text
    Interruption.objects.update(reason="outbid")
    change = read(owner.get(reverse("bid", args=[placed.public_id])))
    assert "A bid that would win now calls this off, once." in change.text
    answer = owner.post(reverse("bid", args=[placed.public_id]), {"max_price": "2", "expected": "1.25"}, follow=True)
    assert "the interruption is called off" in read(answer).text
    told.refresh_from_db()
    assert told.state == "cancelled"


def test_a_bid_that_changed_meanwhile_is_not_changed_again_and_can_be_withdrawn(owner: Client, sold: Fleet) -> None:
    placed = bid_of(owner)
    answer = owner.post(reverse("bid", args=[placed.public_id]), {"max_price": "2", "expected": "1.00"})
    assert answer.status_code == 409
    assert "2.50" not in read(owner.get(reverse("bid", args=[placed.public_id]))).text
    page = read(owner.get(reverse("bid-withdraw", args=[placed.public_id])))
    assert faults(page) == []
    owner.post(reverse("bid-withdraw", args=[placed.public_id]))
    assert "No bids" in read(owner.get(reverse("bids"))).text
    assert "Ended" in read(owner.get(reverse("bids"), {"all": "true"})).text


def test_the_same_form_sent_twice_bids_once(owner: Client, sold: Fleet) -> None:
    for _ in range(2):
        owner.post(reverse("launch"), ORDER)
    assert Bid.objects.count() == 1


def test_others_see_prices_but_neither_bids_nor_their_pages(owner: Client, sold: Fleet, charlie: User) -> None:
    placed = bid_of(owner)
    held = spot.clear(offer_id=sold.h200.pk, at=timezone.now())
    other = browser(charlie)
    page = read(other.get(reverse("spot-auction", args=["h200-narvik", held.public_id])))
    assert "You had none." in page.text
    assert placed.public_id not in page.text
    for name in ("bid", "bid-withdraw"):
        assert other.get(reverse(name, args=[placed.public_id])).status_code == 404
    assert placed.public_id not in read(other.get(reverse("bids"))).text


def test_a_bid_of_long_ago_is_told_where_its_gpus_go(owner: Client, sold: Fleet, run_until_idle: Run) -> None:
    bid_of(owner)
    spot.clear(offer_id=sold.h200.pk, at=timezone.now())
    run_until_idle()
    spot_terms.set_terms(offer=sold.h200, by="x", at=timezone.now(), buffer_gpus=16)
    spot.clear(offer_id=sold.h200.pk, at=timezone.now() + timedelta(minutes=1))
    interruptions.announce_due(at=timezone.now(), limit=9)
    assert (
        "The capacity is needed" in read(owner.get(reverse("instance", args=[Instance.objects.get().public_id]))).text
    )


def test_a_bid_that_a_policy_excludes_says_so_in_the_list_on_its_page_and_at_its_instance(
    owner: Client, sold: Fleet, alice: User
) -> None:
    placed = bid_of(owner)
    policies.replace(
        actor=person(alice), scope=placed.project, document={"countries": {"deny": ["NO"]}}, version=None,
        at=timezone.now(),
    )  # fmt: skip
    for address in (
        reverse("bids"),
        reverse("bid", args=[placed.public_id]),
        reverse("instance", args=[placed.instance.public_id]),
    ):
        page = read(owner.get(address))
        assert faults(page) == [], address
        assert "the offer is in a country that a policy excludes" in page.text, address
    answer = owner.post(reverse("launch"), ORDER | {"key": "another", "name": "second"})
    assert answer.status_code == 409
    assert "in a country that a policy excludes" in read(answer).text
    assert Bid.objects.count() == 1


def test_a_demand_whose_curve_is_hidden_is_not_said_to_be_none(owner: Client, sold: Fleet) -> None:
    held = spot.clear(offer_id=sold.h200.pk, at=timezone.now())
    pages = (reverse("spot", args=["h200-narvik"]), reverse("spot-auction", args=["h200-narvik", held.public_id]))
    for address in pages:
        assert "Nobody bid the reserve or more." in read(owner.get(address)).text
    bid_of(owner)
    held = spot.clear(offer_id=sold.h200.pk, at=timezone.now() + timedelta(minutes=1))
    for address in (pages[0], reverse("spot-auction", args=["h200-narvik", held.public_id])):
        page = read(owner.get(address))
        assert faults(page) == []
        assert "1 bid of the reserve or more asked for 2 GPUs. Its price stays sealed" in page.text
        assert "Nobody bid" not in page.text
