"""What customers see of service levels: in the API, in the portal, with the same figures."""

from datetime import UTC, datetime, timedelta

import pytest
from django.test import Client
from django.urls import reverse

from billing.sla import availability
from billing.sla.availability import Seen
from billing.sla.terms import VERSIONS
from marketplace.sla import closing
from provisioning.health import faults
from tests.conftest import make_organization, make_person, make_token
from tests.standing import frozen

pytestmark = pytest.mark.django_db
LATE = datetime(2026, 3, 30, 12, 0, tzinfo=UTC)
CLOSE = datetime(2026, 4, 1, 3, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)


clock = frozen(LATE)


@pytest.fixture
def judged(clock, running):
    """An instance that broke in March, seen in April."""
    clock.move_to(LATE + HOUR)
    faults.fail(instance=running, happened="A GPU broke.", fault_at=LATE + HOUR, at=LATE + HOUR)
    clock.move_to(CLOSE)
    closing.close_due(at=CLOSE)
    return running


def asked(token, path):
    return Client().get(f"/api/v1/{path}", headers={"Authorization": f"Bearer {token}"})


def test_the_api_gives_the_verdict_and_what_it_follows_from(judged, alice, acme):
    token = make_token(alice, acme)
    (row,) = asked(token, "service-levels").json()["data"]
    assert (row["month"], row["credit"], row["availability_ppm"]) == ("2026-03", "2.490000", 40_000)
    months = asked(token, f"instances/{judged.public_id}/sla").json()["data"]
    final = next(month for month in months if month["is_final"])
    again = availability.judge(Seen.read(final["evidence"]), VERSIONS[final["terms_version"]])
    assert again.credit_micros == 2_490_000


def test_a_stranger_sees_nothing_of_it(judged):
    user = make_person("eve@other.example")
    token = make_token(user, make_organization("Else", user))
    assert asked(token, f"instances/{judged.public_id}/sla").status_code == 404
    assert asked(token, "service-levels").json()["data"] == []


def test_the_pages_say_what_came_back(judged, alice):
    browser = Client()
    browser.force_login(alice)
    listed = browser.get(reverse("service-levels")).content.decode()
    assert "2026-03" in listed
    assert "4.00\u00a0%" in listed
    assert "$2.49" in listed
    one = browser.get(reverse("instance-sla", args=[judged.public_id])).content.decode()
    assert "2026-03-30 13:00:00" in one
    assert "100\u00a0% of $2.49" in one


def test_an_open_month_is_shown_as_such(clock, running, alice):
    clock.move_to(LATE + HOUR)
    browser = Client()
    browser.force_login(alice)
    page = browser.get(reverse("instance-sla", args=[running.public_id])).content.decode()
    assert "so far" in page
    assert "100.00\u00a0%" in page
