"""Quota requests at the desk: decided with a note, and rules that decide by themselves."""

from typing import Any

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from marketplace import quota_requests
from marketplace.access import Actor
from marketplace.models import Organization, Project, QuotaRequest, QuotaRule
from provisioning.models import Quota
from tests.marketplace.console.conftest import only_entry

pytestmark = pytest.mark.django_db


@pytest.fixture
def made(actor: Actor, project: Project) -> QuotaRequest:
    QuotaRule.objects.all().delete()
    return quota_requests.request(
        actor=actor, organization=project.organization, project=project, limit=99, reason="a big run",
        at=timezone.now(),
    )  # fmt: skip


def send(desk: Client, route: str, *ids: str, **fields: str) -> Any:
    return desk.post(reverse(route, args=ids), fields)


def test_a_request_is_approved_with_a_note(desk: Client, made: QuotaRequest, project: Project) -> None:
    page = desk.get(reverse("console-requests")).content.decode()
    assert "a big run" in page
    assert "99 GPUs (All GPUs)" in page
    assert "a big run" in desk.get(reverse("console-request-approve", args=[made.public_id])).content.decode()
    assert send(desk, "console-request-approve", made.public_id, note="have fun").status_code == 302
    made.refresh_from_db()
    assert (made.state, made.note) == ("approved", "have fun")
    assert project.quotas.get().limit == 99
    assert "have fun" in desk.get(reverse("console-requests")).content.decode()


def test_a_request_is_denied_and_stays_so(desk: Client, made: QuotaRequest, project: Project) -> None:
    send(desk, "console-request-deny", made.public_id, note="not yet")
    assert only_entry("quota.deny").after == {"limit": 99, "note": "not yet"}
    assert send(desk, "console-request-approve", made.public_id, note="").status_code == 422
    assert project.quotas.get().limit == 16


def test_a_rule_is_made_and_ended(desk: Client, project: Project) -> None:
    QuotaRule.objects.all().delete()
    fields = {"name": "paid", "gpus_max": "32", "paid_micros_min": "100", "currency": "USD"}
    assert send(desk, "console-request-rule-new", **fields).status_code == 302
    rule = QuotaRule.objects.get()
    assert (rule.gpus_max, rule.paid_micros_min, rule.is_active) == (32, 100_000_000, True)
    assert "Up to 32 GPUs" in desk.get(reverse("console-requests")).content.decode()
    send(desk, "console-request-rule-end", rule.public_id)
    rule.refresh_from_db()
    assert not rule.is_active


@pytest.mark.parametrize("bad", [{"gpus_max": "0"}, {"gpus_max": "many"}, {"paid_micros_min": "-1"}, {"name": ""}])
def test_a_bad_rule_is_not_made(desk: Client, bad: dict[str, str]) -> None:
    before = QuotaRule.objects.count()
    fields = {"name": "paid", "gpus_max": "32", "paid_micros_min": "100", "currency": "USD"} | bad
    assert send(desk, "console-request-rule-new", **fields).status_code == 422
    assert QuotaRule.objects.count() == before


def test_a_limit_of_spend_is_set_for_a_model_and_removed(
    desk: Client, acme: Organization, project: Project, fleet: Any
) -> None:
    words = {"gpu_model": "H200", "market": "spot", "unit": "micros_per_hour", "limit": "12.50", "reason": "x"}
    assert send(desk, "console-quota-wide", acme.public_id, **words).status_code == 302
    quota = Quota.objects.get(gpu_model="H200")
    assert (quota.limit, quota.project, quota.market) == (12_500_000, None, "spot")
    page = desk.get(reverse("console-organization", args=[acme.public_id])).content.decode()
    assert "$12.50" in page
    send(desk, "console-quota-remove", acme.public_id, quota.public_id, reason="no more")
    assert not Quota.objects.filter(gpu_model="H200").exists()


def test_half_a_gpu_is_no_limit(desk: Client, project: Project) -> None:
    assert send(desk, "console-quota", project.public_id, limit="1.5", reason="x").status_code == 422


def test_the_first_limit_is_not_removed(desk: Client, acme: Organization) -> None:
    first = acme.quotas.get(project=None)
    answer = send(desk, "console-quota-remove", acme.public_id, first.public_id, reason="x")
    assert answer.status_code == 422
    assert acme.quotas.filter(project=None).exists()
