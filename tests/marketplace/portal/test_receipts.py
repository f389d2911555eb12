"""Receipts in the portal: what they say, in both languages, and their files."""

import json

from django.test import Client
from django.urls import reverse

from marketplace.models import Organization, User
from tests.marketplace.portal.conftest import browser
from tests.marketplace.portal.reading import faults, read
from tests.marketplace.receipts.conftest import append


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
