"""The pages of volumes: what is said before money is spent or data is lost."""

from uuid import uuid4

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from billing import prices
from billing.models import PriceListItem
from marketplace import volumes
from marketplace.models import User
from provisioning.models import Heartbeat, Volume
from tests.conftest import Storage
from tests.marketplace.portal.conftest import browser
from tests.marketplace.portal.reading import faults, read

NEW = {"name": "data", "size_gib": "100", "site": "narvik", "offer": "h200-narvik", "source": "", "project": ""}


def test_the_list_says_plainly_that_volumes_cost_while_they_exist(owner: Client, storage: Storage) -> None:
    assert "No volumes yet" in read(owner.get(reverse("volumes"))).text
    storage.make()
    page = read(owner.get(reverse("volumes")))
    assert faults(page) == []
    for words in ("A volume costs while it exists, also when nothing runs.", "data", "100 GiB", "$0.01", "$7.30"):
        assert words in page.text


def test_a_volume_is_made_with_its_cost_before_the_eyes(owner: Client, storage: Storage) -> None:
    page = read(owner.get(reverse("volume-new")))
    assert "$7.30 per month (730 h)" in page.text
    assert "It costs while it exists, also when nothing runs." in page.text
    fragment = owner.post(reverse("volume-estimate"), NEW | {"size_gib": "1000"}).content.decode()
    assert "$73.00" in fragment
    assert "<html" not in fragment
    answer = owner.post(reverse("volume-new"), NEW)
    volume = Volume.objects.get()
    assert answer.headers["Location"] == reverse("volume", args=[volume.public_id])
    assert faults(read(owner.get(answer.headers["Location"]))) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "Not good"}, "Use 1 to 63 lower-case letters"),
        ({"size_gib": "0"}, "A volume has 1 to 16,384 GiB."),
        ({"size_gib": "much"}, "A volume has 1 to 16,384 GiB."),
        ({"name": "taken"}, "has a volume named taken already"),
    ],
)
def test_a_mistake_is_said_beside_its_field(
    owner: Client, storage: Storage, changes: dict[str, str], words: str
) -> None:
    storage.make("taken")
    answer = owner.post(reverse("volume-new"), NEW | changes)
    assert answer.status_code == 422
    page = read(answer)
    assert words in page.text
    assert faults(page) == []


def test_a_deletion_says_what_is_lost_and_when_and_can_be_taken_back(owner: Client, storage: Storage) -> None:
    volume = storage.make()
    asked = read(owner.get(reverse("volume-delete", args=[volume.public_id])))
    assert "After 72 hours everything in it is removed for good." in asked.text
    assert "Charges end the moment you delete it." in asked.text
    owner.post(reverse("volume-delete", args=[volume.public_id]))
    page = read(owner.get(reverse("volume", args=[volume.public_id])))
    assert "it can be restored; then everything in it is removed for good." in page.text
    owner.post(reverse("volume-restore", args=[volume.public_id]))
    volume.refresh_from_db()
    assert volume.state == "available"


def test_what_cannot_be_done_is_said_instead_of_asked(owner: Client, storage: Storage) -> None:
    volume = storage.make()
    assert (
        "There is no deletion of data to take back."
        in read(owner.get(reverse("volume-restore", args=[volume.public_id]))).text
    )


def test_the_page_says_full_unpaid_and_unreachable(owner: Client, storage: Storage) -> None:
    volume = storage.make()
    page = reverse("volume", args=[volume.public_id])
    Volume.objects.update(used_bytes=volume.size_bytes * 95 // 100)
    assert "It is 95 % full." in read(owner.get(page)).text
    Volume.objects.update(used_bytes=volume.size_bytes * 2)
    assert "It holds more than its size." in read(owner.get(page)).text
    Volume.objects.update(health="unreachable")
    assert "Its node does not answer. Nothing is charged until it does." in read(owner.get(page)).text
    Volume.objects.update(unpaid_since=timezone.now())
    assert "Nothing is lost yet: add credit before" in read(owner.get(page)).text
    assert "not paid for" in read(owner.get(reverse("volumes"))).text


def test_snapshot_resize_rename_by_their_pages(owner: Client, storage: Storage) -> None:
    volume = storage.make()
    owner.post(reverse("volume-snapshot", args=[volume.public_id]), {"name": "monday"})
    storage.settle(volume)
    owner.post(reverse("volume-resize", args=[volume.public_id]), {"size_gib": "200"})
    owner.post(reverse("volume-rename", args=[volume.public_id]), {"name": "big"})
    page = read(owner.get(reverse("volume", args=[volume.public_id])))
    for words in ("big", "200 GiB", "monday", "snapshot"):
        assert words in page.text
    assert owner.post(reverse("volume-resize", args=[volume.public_id]), {"size_gib": "0"}).status_code == 422


@pytest.mark.parametrize("count", [1, 8])
def test_the_list_asks_as_often_however_long_it_is(owner: Client, storage: Storage, count: int) -> None:
    for number in range(count):
        storage.make(f"data-{number}")
    owner.get(reverse("volumes"))
    with CaptureQueriesContext(connection) as captured:
        owner.get(reverse("volumes"))
    assert len(captured) <= 12, [query["sql"][:120] for query in captured.captured_queries]


def test_usage_shows_gib_as_gib(owner: Client, storage: Storage) -> None:
    storage.make()
    page = read(owner.get(reverse("usage")))
    assert faults(page) == []
    assert "GiB-ms" in page.text
    assert "per GiB-hour" in page.text


def test_a_capacity_manager_sells_storage_and_sees_what_is_kept(carol: User, storage: Storage) -> None:
    desk = browser(carol)
    volume = storage.make()
    Heartbeat.objects.filter(node=volume.node).update(stray_volumes=["vol_stray"])
    path = reverse("console-site-storage", args=[storage.site.public_id])
    page = desk.get(path).content.decode()
    for words in (volume.public_id, "$0.0001", "vol_stray", "Acme"):
        assert words in page
    versions = prices.history(sku=storage.site.storage_sku).count()
    asked = {"currency": "USD", "amount_micros": "0.0002", "key": str(uuid4())}
    drafted = desk.post(path, asked)
    item = PriceListItem.objects.get(sku=storage.site.storage_sku)
    assert drafted.url == reverse("console-price-list", args=[item.price_list.public_id])  # type: ignore[attr-defined]
    assert (item.micros_per_unit_hour, item.unit, item.price_list.state) == (200, "gib", "draft")
    assert prices.history(sku=storage.site.storage_sku).count() == versions
    assert volumes.rate(price=volume.price_version, size_gib=100).per_hour_micros == 10_000
