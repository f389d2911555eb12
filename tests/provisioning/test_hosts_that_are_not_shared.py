"""From the moment in which a policy is set nobody joins its tenant's hosts, whatever was under way just then."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.db import connections, transaction
from django.utils import timezone

from marketplace import rentals
from marketplace.access import Actor
from marketplace.models import Project
from provisioning import policies
from provisioning.models import Instance, Node, Policy
from provisioning.shards import LiveShard, Tenant
from tests.conftest import Fleet, Rent, order

PATIENCE_S = 20


def in_its_own_connection(call: Callable[[], Any]) -> Callable[[], Any]:
    def called() -> Any:
        try:
            return call()
        finally:
            connections.close_all()

    return called


@pytest.mark.django_db(transaction=True)
def test_who_sets_the_policy_waits_for_a_claim_under_way_and_closes_its_host(
    actor: Actor, project: Project, fleet: Fleet
) -> None:
    has_claimed, may_end = threading.Event(), threading.Event()

    @in_its_own_connection
    def claim() -> None:
        with transaction.atomic():
            rentals.rent(actor=actor, project=project, order=order(fleet.h200), at=timezone.now())
            has_claimed.set()
            assert may_end.wait(PATIENCE_S)

    @in_its_own_connection
    def set_policy() -> None:
        policies.replace(
            project_id=project.pk, document={"no_shared_host": True}, version=None, at=timezone.now()
        )  # fmt: skip

    with ThreadPoolExecutor(2) as pool:
        claiming = pool.submit(claim)
        assert has_claimed.wait(PATIENCE_S)
        setting = pool.submit(set_policy)
        with pytest.raises(TimeoutError):
            setting.result(timeout=0.5)
        may_end.set()
        claiming.result(PATIENCE_S)
        setting.result(PATIENCE_S)
    node = Node.objects.get(assignments__instance=Instance.objects.get())
    assert node.exclusive_to == project.organization


@pytest.mark.django_db
def test_a_claim_that_looked_before_the_policy_was_set_looks_again(
    rent: Rent, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    refresh = LiveShard.refresh

    def overtaken(live: LiveShard, *args: Any, **options: Any) -> Tenant:
        tenant = refresh(live, *args, **options)
        Policy.objects.get_or_create(project=project, defaults={"document": {"no_shared_host": True}})
        return tenant

    monkeypatch.setattr(LiveShard, "refresh", overtaken)
    node = Node.objects.get(assignments__instance=rent())
    assert node.exclusive_to == project.organization
