"""Policies and orders for later: a quote, hours of others and a place in a queue are refused where nothing may run."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any
from urllib.parse import urlencode

import pytest
from django.db import transaction
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from billing.models import Hold
from marketplace import outlook, quotes, reservations, trades, waiting
from marketplace import policies as doors
from marketplace.models import Organization, Project, Quote, Reservation, Trade, User, WaitingOrder
from provisioning import calendar, decisions, quotas
from provisioning.errors import PolicyExcludes
from provisioning.models import PlacementDecision
from tests.blocks import Buyer
from tests.conftest import make_token, order
from tests.marketplace.api.program import Program

pytestmark = pytest.mark.django_db

Rule = Callable[..., None]


@pytest.fixture
def rule(other_buys: Buyer) -> Rule:
    """Replace the policy of the other customer's project."""

    def made(**document: Any) -> None:
        doors.replace(
            actor=other_buys.actor, scope=other_buys.project, document=document, version=None, at=timezone.now()
        )

    return made


def wait(buyer: Buyer, **overrides: Any) -> WaitingOrder:
    at = timezone.now()
    return waiting.wait(
        actor=buyer.actor, project=buyer.project, order=order(buyer.offer, **overrides),
        max_micros_per_gpu_hour=2_490_000, until=at + timedelta(hours=5), at=at,
    )  # fmt: skip


def test_a_quote_that_a_policy_excludes_is_refused_with_the_rule_and_its_decision(
    other_buys: Buyer, acme_buys: Buyer, rule: Rule
) -> None:
    rule(countries={"deny": ["NO"]})
    with pytest.raises(PolicyExcludes, match="in a country that a policy excludes") as refused:
        other_buys.quote(4, 24, 34)
    assert not Quote.objects.exists()
    kept = PlacementDecision.objects.get(public_id=decisions.keep(refused.value))
    assert (kept.project, kept.instance, kept.outcome) == (other_buys.project, None, "refused")
    assert (kept.rejected, kept.request) == ({"countries": 2}, {"replicas": 1, "gpus": 4})
    assert acme_buys.quote(4, 24, 34).gpus == 4


def test_a_quote_is_not_used_once_a_policy_excludes_it_and_serves_when_that_is_gone(
    other_buys: Buyer, rule: Rule
) -> None:
    quote = other_buys.quote(4, 24, 34)
    rule(suppliers={"allow": []})
    with pytest.raises(PolicyExcludes), transaction.atomic():
        reservations.buy(actor=other_buys.actor, quote=quote, at=other_buys.at(0))
    assert not Reservation.objects.exists()
    assert not Hold.objects.filter(purpose="reservation").exists()
    rule()
    assert reservations.buy(actor=other_buys.actor, quote=quote, at=other_buys.at(0)).state == "scheduled"


def test_what_was_reserved_stays_and_is_not_extended_where_a_policy_excludes_it(other_buys: Buyer, rule: Rule) -> None:
    kept = other_buys.buy(4, 24, 34)
    quote = quotes.for_extension(reservation=kept, ends_at=other_buys.at(36), at=other_buys.at(1))
    rule(power_sources={"deny": ["hydro"]})
    with pytest.raises(PolicyExcludes):
        quotes.for_extension(reservation=kept, ends_at=other_buys.at(36), at=other_buys.at(1))
    with pytest.raises(PolicyExcludes), transaction.atomic():
        reservations.extend(actor=other_buys.actor, reservation=kept, quote=quote, at=other_buys.at(1))
    kept.refresh_from_db()
    assert (kept.state, kept.ends_at) == ("scheduled", other_buys.at(34))
    # Whoever forbids a place may leave it.
    leave = quotes.for_cancellation(reservation=kept, at=other_buys.at(1))
    reservations.cancel(actor=other_buys.actor, reservation=kept, quote=leave, at=other_buys.at(1))


def test_what_a_policy_excludes_is_neither_found_nor_free(
    alice: User, acme: Organization, acme_buys: Buyer, client: Client
) -> None:
    program, calendar_of = Program(make_token(alice, acme)), f"offers/{acme_buys.offer.slug}/calendar"
    calendar.count(at=timezone.now())
    client.force_login(alice)
    search = {"gpus": 2, "hours": 2, "before": acme_buys.at(30).isoformat()}

    def seen() -> tuple[list[str], list[int], bool, bool]:
        found = [one["offer"]["slug"] for one in program.get(f"windows?{urlencode(search)}").json()["data"]]
        shown = program.get(f"{calendar_of}?hours=2").json()
        page = client.get(reverse("hours")).content.decode()
        return found, [one["free_gpus"] for one in shown["hours"]], shown["excluded"], "Your policies exclude" in page

    slug, path = acme_buys.offer.slug, f"projects/{acme_buys.project.public_id}/policy"
    assert seen() == ([slug], [16, 16], False, False)
    assert program.ask("put", path, {"countries": {"deny": ["NO"]}}).status_code == 200
    assert seen() == ([], [0, 0], True, True)
    # Where one of several projects may use it, it is found, and the policies of one that is named count alone.
    Project.objects.create(organization=acme, name="other")
    assert seen() == ([slug], [16, 16], False, False)
    search["project"] = acme_buys.project.public_id
    assert seen()[0] == []


def test_hours_of_others_are_not_bought_where_a_policy_excludes_them(
    acme_buys: Buyer, other_buys: Buyer, rule: Rule
) -> None:
    acme_buys.put_up(acme_buys.buy(8, 24, 34), 6, 26, 30, 1_500_000)
    before = other_buys.wallet()
    rule(countries={"allow": ["SE"]})
    window = other_buys.window(4, 27, 29)
    with pytest.raises(PolicyExcludes):
        trades.look(project=other_buys.project, window=window, limit_micros=None, at=other_buys.at(0))
    with pytest.raises(PolicyExcludes, match="in a country that a policy excludes"):
        other_buys.trade(4, 27, 29, 1_600_000)
    assert not Trade.objects.exists()
    assert other_buys.wallet() == before


def test_an_order_that_a_policy_excludes_does_not_begin_to_wait(other_buys: Buyer, rule: Rule) -> None:
    rule(countries={"deny": ["NO"]})
    with pytest.raises(PolicyExcludes, match="in a country that a policy excludes"):
        wait(other_buys)
    assert not WaitingOrder.objects.exists()
    asked: dict[str, Any] = {"project": other_buys.project, "offer": other_buys.offer, "gpus": 1, "replicas": 1}
    assert not outlook.look(**asked, at=timezone.now()).fits_now
    rule()
    assert outlook.look(**asked, at=timezone.now()).fits_now


def test_an_order_that_a_later_policy_excludes_waits_says_why_and_holds_up_nobody(
    other_buys: Buyer, acme_buys: Buyer, rule: Rule
) -> None:
    quotas.set_limit(project_id=acme_buys.project.pk, limit=100)
    first, second = wait(other_buys), wait(acme_buys)
    rule(countries={"deny": ["NO"]})
    assert waiting.start_due(at=timezone.now(), limit=10) == 1
    first.refresh_from_db()
    second.refresh_from_db()
    assert (first.state, first.why, second.state) == ("waiting", "refused", "started")
    assert "in a country that a policy excludes" in waiting.told(first)
    rule()
    assert waiting.start_due(at=timezone.now(), limit=10) == 1


def test_each_door_for_later_answers_with_the_policy_and_how_it_was_decided(
    alice: User, acme: Organization, acme_buys: Buyer
) -> None:
    program = Program(make_token(alice, acme))
    calendar.count(at=timezone.now())
    document = {"countries": {"deny": ["NO"]}}
    assert program.ask("put", f"projects/{acme_buys.project.public_id}/policy", document).status_code == 200
    block = {
        "offer": acme_buys.offer.slug, "gpus": 2, "starts_at": acme_buys.at(24).isoformat(),
        "ends_at": acme_buys.at(26).isoformat(),
    }  # fmt: skip
    launch = {"offer": acme_buys.offer.slug, "command": ["true"], "max_price": "2.49"}
    until = (timezone.now() + timedelta(hours=1)).isoformat()
    asked = {
        "quotes": block,
        "trades": block | {"limit": "3"},
        "trades?dry_run=true": block | {"limit": "3"},
        "waits": launch | {"until": until},
    }
    for route, body in asked.items():
        refused = program.post(route, body, key=route)
        assert (refused.status_code, refused.json()["code"]) == (409, "policy_excludes"), route
        decision = program.get(f"placements/{refused.json()['placement']}").json()
        assert [row["rule"] for row in decision["rejected"]] == ["countries"]
