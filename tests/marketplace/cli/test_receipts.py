"""gpumarket receipts: what it lists and saves, which gpumarket verify then takes."""

import json

import pytest

from provisioning.agent.signing import canonical
from tests.marketplace.cli.shop import Shop
from tests.marketplace.receipts.papers import Platform

ROW = {
    "id": "rcp_2", "organization": "org_a", "project": None, "sequence": 2, "digest": "0" * 64, "previous": "1" * 64,
    "claim": "clm_b", "event": "settled", "amount": "2.776500", "currency": "USD", "issued_at": "2026-11-26T12:00:00Z",
}  # fmt: skip


class ShopWithReceipts(Shop):
    """A shop that has signed some receipts."""

    def __init__(self):
        super().__init__()
        self.platform = Platform()
        for _ in range(3):
            self.platform.add()

    def answer(self, method, words, query, headers, body):
        match method, words:
            case "GET", ["receipts"]:
                return 200, {"data": [ROW], "next_cursor": None}
            case "GET", ["receipts", "head"]:
                return 200, canonical(self.platform.head())
            case "GET", ["keys"]:
                return 200, self.platform.keys
            case "GET", ["receipts", "chain"]:
                later = [one for one in self.platform.documents if one["body"]["sequence"] > int(query["after"])]
                return 200, b"".join(canonical(one) + b"\n" for one in later[:2])
        return super().answer(method, words, query, headers, body)


@pytest.fixture
def shop():
    shop = ShopWithReceipts()
    shop.open()
    yield shop
    shop.close()


def test_the_list_says_what_each_cost(gpumarket):
    said = gpumarket("receipts", "list")
    assert said.code == 0
    for text in ("clm_b", "settled", "2.7765", "rcp_2"):
        assert text in said.out
    assert gpumarket("receipts", "list", "--json").json["data"] == [ROW]


def test_all_are_downloaded_and_then_verified(gpumarket, empty_home, monkeypatch):
    monkeypatch.setattr("marketplace.cli.receipts.PAGE", 2)
    said = gpumarket("receipts", "download", "--output", "mine", "--json")
    assert said.json == {"folder": "mine", "receipts": 3}
    assert sorted(path.name for path in (empty_home / "mine").iterdir()) == [
        "000001-rcp_1.json", "000002-rcp_2.json", "000003-rcp_3.json", "head.json", "keys.json",
    ]  # fmt: skip
    assert gpumarket("verify", "mine").code == 0
    assert gpumarket("receipts", "download", "--output", "mine").code == 0
    (empty_home / "mine" / "000002-rcp_2.json").unlink()
    refused = gpumarket("verify", "mine")
    assert (refused.code, "Missing: 2" in refused.out) == (1, True)


def test_a_folder_that_cannot_be_written_is_said_so(gpumarket, empty_home):
    (empty_home / "file").write_text("")
    said = gpumarket("receipts", "download", "--output", "file")
    assert said.code == 1
    assert "--output FOLDER" in said.err


def test_a_name_that_would_leave_the_folder_is_refused(gpumarket, shop, empty_home):
    document = json.loads(canonical(shop.platform.documents[0]))
    document["body"]["id"] = "../../somewhere"
    shop.platform.documents = [document]
    said = gpumarket("receipts", "download")
    assert said.code == 1
    assert "no name" in said.err
