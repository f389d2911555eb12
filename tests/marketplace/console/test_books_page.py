"""Console > Books: months that are over and not closed, to whom they are shown, and what becomes of them."""

import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import time_machine
from django.test import Client
from django.urls import reverse
from django.utils import translation

from billing import adjusting
from marketplace.models import Organization, User
from marketplace.sla import closing
from provisioning.health import faults
from provisioning.models import Instance
from tests.billing.pricing import committed
from tests.conftest import Fleet, Rent

LATE = datetime(2026, 3, 30, 12, 0, tzinfo=UTC)
APRIL, MAY = datetime(2026, 4, 1, tzinfo=UTC), datetime(2026, 5, 1, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
TITLE = {"en": "Months that are over and not closed", "ja": "締め処理が完了していない月"}


@pytest.fixture(autouse=True)
def _language() -> Iterator[None]:
    """A request leaves its language behind in the thread."""
    with translation.override("en"):
        yield


@pytest.fixture
def clock() -> Iterator[time_machine.Traveller]:
    with time_machine.travel(LATE, tick=False) as clock:
        yield clock


@pytest.fixture
def broken(
    clock: time_machine.Traveller,
    fleet: Fleet,
    acme: Organization,
    rent: Rent,
    run_until_idle: Callable[[], Any],
) -> Instance:
    """An instance of Acme that ran for ten hours of April; of its commitment two were worked out, and no more comes."""
    committed(acme, skus=(fleet.h200.sku,), discount_bps=4_000, starts_at=APRIL, at=LATE)
    clock.move_to(APRIL + HOUR)
    instance = rent()
    run_until_idle()
    instance.refresh_from_db()
    adjusting.post_due(at=APRIL + 3 * HOUR)
    clock.move_to(APRIL + 11 * HOUR)
    faults.fail(instance=instance, happened="A GPU broke.", fault_at=APRIL + 11 * HOUR, at=APRIL + 11 * HOUR)
    return instance


def page(client: Client, user: User, *, language: str = "en") -> str:
    client.force_login(user)
    answer = client.get(reverse("console-books"), headers={"Accept-Language": language})
    assert answer.status_code == 200
    return answer.content.decode()


def rows(text: str, language: str = "en") -> list[list[str]]:
    """Return the cells of the table of months, without their markup."""
    _, _, after = text.partition(TITLE[language])
    table = after.partition("</table>")[0].partition("<tbody>")[2]
    return [
        [" ".join(re.sub(r"<[^>]+>", " ", cell).split()) for cell in re.findall(r"<td.*?</td>", row, re.DOTALL)]
        for row in re.findall(r"<tr>.*?</tr>", table, re.DOTALL)
    ]


def test_nobody_but_a_capacity_manager_sees_whose_months_are_open(
    broken: Instance, clock: time_machine.Traveller, client: Client, alice: User
) -> None:
    clock.move_to(MAY + 2 * DAY)
    assert client.get(reverse("console-books")).status_code == 302
    client.force_login(alice)
    answer = client.get(reverse("console-books"))
    assert answer.status_code == 404
    assert TITLE["en"] not in answer.content.decode()


def test_while_every_month_is_closed_the_page_says_so_and_shows_no_table(
    clock: time_machine.Traveller, client: Client, carol: User, broken: Instance
) -> None:
    clock.move_to(MAY + DAY - HOUR)
    text = page(client, carol)
    assert "Every month that ended more than a day ago is closed." in text
    assert TITLE["en"] not in text


def test_each_open_month_has_its_organization_what_is_missing_and_until_when_it_waits(
    broken: Instance, acme: Organization, clock: time_machine.Traveller, client: Client, carol: User
) -> None:
    clock.move_to(MAY + 2 * DAY)
    text = page(client, carol)
    assert "is closed." not in text
    found = rows(text)
    assert {(month, name) for month, name, *_ in found} == {("2026-04", "Acme")}
    said = {what: then for *_, what, then in found}
    tried = "Tried again every hour until it succeeds; the log of the worker says what is wrong."
    assert (said["Tiers, minimums or commitments"], said["Invoice"]) == (tried, tried)
    waits = said["Service level of instances: 1"]
    assert waits.startswith("Waits for what tiers or a commitment make of the price;")
    assert 'datetime="2026-05-15T00:00:00' in text
    assert reverse("console-organization", args=[acme.public_id]) in text


def test_after_two_weeks_it_is_judged_as_far_as_posted_and_waits_no_more(
    broken: Instance, clock: time_machine.Traveller, client: Client, carol: User
) -> None:
    clock.move_to(MAY + 14 * DAY - HOUR)
    closing.close_due(at=MAY + 14 * DAY - HOUR)
    assert "Service level of instances: 1" in page(client, carol)
    clock.move_to(MAY + 14 * DAY)
    closing.close_due(at=MAY + 14 * DAY)
    found = rows(page(client, carol))
    assert sorted(what for *_, what, _then in found) == ["Invoice", "Tiers, minimums or commitments"]


def test_what_could_not_be_judged_for_three_months_is_left_to_a_person(
    broken: Instance, clock: time_machine.Traveller, client: Client, carol: User
) -> None:
    for day, begins in ((20, "Tried again every hour"), (120, "Not tried any more.")):
        clock.move_to(MAY + day * DAY)
        said = {what: then for *_, what, then in rows(page(client, carol))}
        assert said["Service level of instances: 1"].startswith(begins)


def test_in_japanese_it_says_the_same(
    broken: Instance, clock: time_machine.Traveller, client: Client, carol: User
) -> None:
    clock.move_to(MAY + 2 * DAY)
    found = rows(page(client, carol, language="ja"), "ja")
    said = {what: then for *_, what, then in found}
    assert "段階料金・最低料金・利用契約" in said
    assert "請求書" in said
    waits = said["インスタンスのサービスレベル：1件"]
    assert waits.startswith("段階料金または利用契約の計算を待っています。")
