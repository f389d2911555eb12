"""Receipts in the portal: what they say, in both languages, and their files."""

import json

from django.test import Client
from django.urls import reverse
from django.utils import timezone

from marketplace.access import Actor
from marketplace.contracts import claims
from marketplace.models import Organization, Project, User
from tests.conftest import Fleet
from tests.marketplace.portal.conftest import browser
from tests.marketplace.portal.reading import faults, read
from tests.marketplace.receipts.conftest import append
from tests.outcomes import make_deal, make_seller, make_work


def test_a_receipt_shows_its_arithmetic_its_nodes_and_its_chain(alice: User, acme: Organization) -> None:
    rows = append(acme, "clm_1", "clm_2")
    client = browser(alice)
    page = read(client.get(reverse("receipt", args=[rows[1].public_id])))
    for words in ("Receipt 2", "1,234 frame", "2.7765", "90", "nod_a", "2 GPUs", "signed by the node", rows[0].digest):
        assert words in page.text, words
    assert page.all("a", href=reverse("receipt", args=[rows[0].public_id]))
    japanese = browser(alice, language="ja")
    assert faults(read(japanese.get(reverse("receipt", args=[rows[1].public_id])))) == []


def test_the_list_pages_and_everything_is_downloaded_with_its_head(alice: User, acme: Organization) -> None:
    client: Client = browser(alice)
    assert "No receipts yet" in read(client.get(reverse("receipts"))).text
    append(acme, *(f"clm_{number}" for number in range(1, 53)))
    page = read(client.get(reverse("receipts")))
    assert "clm_52" in page.text
    assert "clm_2 " not in page.text
    older = read(client.get(reverse("receipts") + "?before=3"))
    assert "clm_2" in older.text
    answer = client.get(reverse("receipts-file"))
    lines = b"".join(answer.streaming_content).splitlines()  # type: ignore[arg-type]
    assert [json.loads(line)["body"]["sequence"] for line in lines] == [*range(1, 53), 52]


def test_both_sides_of_a_claim_are_led_to_its_receipt_and_a_stranger_to_nothing(
    owner: Client, fleet: Fleet, acme: Organization, actor: Actor, project: Project
) -> None:
    deal, at = make_deal(acme), timezone.now()
    claim = claims.open(task=make_work(deal, project, fleet.h200, actor, tasks=1, at=at).succeeds(0), at=at)
    (receipt,) = append(acme, claim.public_id)
    where, leads_to = reverse("claim", args=[claim.public_id]), reverse("receipt", args=[receipt.public_id])
    for client in (owner, browser(deal.merchant.user)):
        page = read(client.get(where))
        assert faults(page) == []
        assert page.all("a", href=leads_to)
        assert client.get(leads_to).status_code == 200
    stranger = browser(make_seller("Strangers AS")[1].user)
    assert [stranger.get(path).status_code for path in (where, leads_to)] == [404, 404]
