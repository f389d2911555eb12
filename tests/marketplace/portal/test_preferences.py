"""What a reader prefers, as their cookies say."""

from collections.abc import Iterator

import pytest
from django.test import Client, RequestFactory
from django.urls import reverse

from marketplace.portal import preferences


@pytest.fixture
def times_read(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[None]]:
    """Say that this machine knows one zone, and note each time that it is asked."""
    asked: list[None] = []

    def one_zone() -> set[str]:
        asked.append(None)
        return {"Asia/Tokyo"}

    monkeypatch.setattr(preferences, "available_timezones", one_zone)
    preferences._zones.cache_clear()
    yield asked
    preferences._zones.cache_clear()


def test_the_zones_of_this_machine_are_looked_for_once_and_not_with_every_page(times_read: list[None]) -> None:
    seen = []
    for name in ("Asia%2FTokyo", "Asia%2FNowhere", "Asia/Tokyo", ""):
        request = RequestFactory().get("/")
        request.COOKIES[preferences.ZONE_COOKIE] = name
        seen.append(preferences.zone_of(request).key)
    assert seen == ["Asia/Tokyo", "UTC", "Asia/Tokyo", "UTC"]
    assert len(times_read) == 1


@pytest.mark.parametrize("wanted", ["home", "-1", "a\x00b", "//elsewhere.example/", "https://elsewhere.example/", ""])
def test_a_small_form_leads_back_to_a_page_of_ours_or_home(client: Client, db: None, wanted: str) -> None:
    answer = client.post(reverse("theme"), {"theme": "dark", "next": wanted})
    assert (answer.status_code, answer.headers["Location"]) == (302, reverse("home"))
