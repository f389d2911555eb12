"""The marketplace: what is for sale, filtered by its address."""

from typing import Any

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from provisioning import nodes
from provisioning.models import Instance, Node, NodeHold
from tests.conftest import Fleet
from tests.marketplace.portal.reading import Page, faults, read


def market(client: Client, **asked: Any) -> Page:
    answer = client.get(reverse("market"), asked)
    assert answer.status_code == 200
    return read(answer)


def slugs(page: Page) -> list[str]:
    return [element.text for element in page.all("span", class_="id")]


def test_offers_come_with_price_site_power_and_what_is_free_when(owner: Client, fleet: Fleet) -> None:
    page = market(owner)
    for words in ("H200", "Narvik, Norway", "hydropower", "16 free", "up to 8 on one node", "$2.49", "as of"):
        assert words in page.text
    assert faults(page) == []


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ({}, ["l40s-narvik", "h200-narvik"]),
        ({"sort": "-price"}, ["h200-narvik", "l40s-narvik"]),
        ({"sort": "free"}, ["h200-narvik", "l40s-narvik"]),
        ({"sort": "no such order"}, ["l40s-narvik", "h200-narvik"]),
        ({"gpu_model": "h200"}, ["h200-narvik"]),
        ({"country": "no"}, ["l40s-narvik", "h200-narvik"]),
        ({"country": "JP"}, []),
        ({"min_gpus": "16", "available": "true"}, ["h200-narvik"]),
        ({"min_gpus": "many"}, ["l40s-narvik", "h200-narvik"]),
        ({"min_gpus": "9" * 100}, ["l40s-narvik", "h200-narvik"]),
        ({"min_gpus": "17"}, []),
    ],
)
def test_filters_and_order_live_in_the_address(
    owner: Client, fleet: Fleet, asked: dict[str, str], found: list[str]
) -> None:
    assert slugs(market(owner, **asked)) == found


def test_with_no_match_it_says_which_filter_excludes(owner: Client, fleet: Fleet) -> None:
    page = market(owner, gpu_model="H200", country="JP")
    assert "No offer is like that" in page.text
    assert "Country: Japan 1 offer without it" in page.text
    assert "GPU model: H200 0 offers without it" in page.text
    without_country = page.all("a", id="relax-1")[0].attributes["href"]
    assert slugs(read(owner.get(without_country))) == ["h200-narvik"]


def test_the_filters_can_be_copied_as_a_command(owner: Client, fleet: Fleet) -> None:
    page = market(owner, gpu_model="H200", country="NO", min_gpus="2", available="true")
    assert page.all("pre", id="copy-cli")[0].text == (
        "gpumarket offers --gpu-model H200 --country NO --min-gpus 2 --available"
    )


def test_what_is_taken_or_unreachable_is_not_free(owner: Client, fleet: Fleet, running: Instance) -> None:
    Node.objects.filter(name="h200-2").update(reachability="unreachable")
    assert "7 free" in market(owner, gpu_model="H200").text


def test_what_a_held_node_has_is_not_free(owner: Client, fleet: Fleet, running: Instance) -> None:
    nodes.hold(node=Node.objects.get(name="h200-2"), kind=NodeHold.Kind.HEALTH, reason="test", at=timezone.now())
    assert "7 free" in market(owner, gpu_model="H200").text


def test_the_open_page_asks_only_for_the_rows(owner: Client, fleet: Fleet) -> None:
    fragment = read(owner.get(reverse("market"), headers={"HX-Request": "true"}))
    assert slugs(fragment) == ["l40s-narvik", "h200-narvik"]
    assert not fragment.all("html")


def test_who_may_not_rent_is_offered_no_launch(viewer: Client, fleet: Fleet) -> None:
    assert not market(viewer).all("a", id="launch-h200-narvik")


def test_an_empty_market_says_so(owner: Client, db: None) -> None:
    assert "Nothing is for sale yet" in market(owner).text
