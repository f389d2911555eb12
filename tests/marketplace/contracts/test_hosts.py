"""Where results are verified: with nobody who earns by them, where there is room, and beside the customer's quota."""

from datetime import timedelta
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from marketplace import access
from marketplace.access import Actor
from marketplace.contracts import hosting, runs, verifying
from marketplace.errors import Forbidden
from marketplace.jobs import running
from marketplace.models import Claim, Job, Offer, Organization, Project, User
from provisioning import policies, quotas
from provisioning.models import Fabric, Instance, Node, Site
from tests.conftest import Fleet, announce, join, make_offer
from tests.marketplace.contracts.test_verifying import RUNS, ends, fresh, on_a_node, starts
from tests.outcomes import WHOLE, Deal, make_seller

__all__ = ["on_a_node"]
pytestmark = pytest.mark.django_db
BY_RERUN: dict[str, Any] = {"kind": "rerun", "rate_bps": 10_000, **RUNS}
BY_COMMAND: dict[str, Any] = {"kind": "command", "gpus": 1, **RUNS}


def owned_by(organization: Organization, offer: Offer) -> None:
    Offer.objects.filter(pk=offer.pk).update(supplier=organization)


def another(fleet: Fleet, site: Site, name: str, *, gpu_model: str = "H200", price_micros: int = 1) -> Offer:
    """Let another supplier sell GPUs in the same site, on a node of its own."""
    supplier, _ = make_seller(name)
    offer = make_offer(supplier, site, slug=name.lower(), gpu_model=gpu_model, price_micros=price_micros)
    fleet.nodes[name] = join(announce(offer, Fabric.objects.get(site=site), name=name))
    return offer


@pytest.mark.parametrize("verifier", [BY_RERUN, BY_COMMAND], ids=["rerun", "command"])
def test_whoever_earns_by_a_result_never_verifies_it_on_another_node_of_its_own(
    on_a_node: Any, fleet: Fleet, site: Site, verifier: dict[str, Any]
) -> None:
    deal: Deal
    deal, _, claim = on_a_node(verifier)
    owned_by(deal.seller, fleet.h200)
    owned_by(deal.seller, fleet.l40s)
    for _ in range(3):
        verifying.look(claim=claim, at=timezone.now())
    assert (fresh(claim).state, claim.verifier_runs.count()) == ("claimed", 0)
    said = list(claim.events.filter(message__startswith="It waits").values_list("message", flat=True))
    assert said == [
        "It waits: every host that could verify it belongs to its customer, or to somebody who earns by its contract."
    ]
    offer = another(fleet, site, "Apart")
    instance = starts(claim, fleet)
    assert (instance.offer, instance.phase) == (offer, "running")
    ends(instance, exit_code=0, outputs_sha256=WHOLE)
    verifying.look(claim=claim, at=timezone.now())
    assert fresh(claim).state == "verified"


@pytest.mark.parametrize("verifier", [BY_RERUN, BY_COMMAND], ids=["rerun", "command"])
def test_whoever_pays_for_a_result_never_verifies_it_on_a_node_of_its_own(
    on_a_node: Any, fleet: Fleet, site: Site, acme: Organization, verifier: dict[str, Any]
) -> None:
    deal: Deal
    deal, _, claim = on_a_node(verifier)
    own = another(fleet, site, "Own")
    owned_by(deal.seller, fleet.h200)
    owned_by(deal.seller, fleet.l40s)
    owned_by(acme, own)
    verifying.look(claim=claim, at=timezone.now())
    assert (fresh(claim).state, claim.verifier_runs.count()) == ("claimed", 0)
    assert hosting.hosts(claim.version, fleet.h200, None) == [own], "for anybody else it could"
    apart = another(fleet, site, "Apart")
    assert starts(claim, fleet).offer == apart


@pytest.mark.parametrize("verifier", [BY_RERUN, BY_COMMAND], ids=["rerun", "command"])
def test_whoever_pays_for_a_result_neither_ends_nor_enters_what_verifies_it(
    on_a_node: Any, fleet: Fleet, actor: Actor, alice: User, verifier: dict[str, Any]
) -> None:
    _, _, claim = on_a_node(verifier)
    instance = starts(claim, fleet)
    assert instance.is_off_limits
    assert access.instance_for(actor, instance.public_id, verb="instance.view") == instance
    with pytest.raises(Forbidden, match="ends by itself"):
        access.instance_for(actor, instance.public_id, verb="instance.change")
    owner = Client()
    owner.force_login(alice)
    page = owner.get(reverse("instance", args=[instance.public_id])).content.decode()
    assert reverse("instance-terminate", args=[instance.public_id]) not in page
    assert owner.post(reverse("instance-terminate", args=[instance.public_id])).status_code == 403
    assert Instance.objects.get(pk=instance.pk).phase == "running"
    ends(instance, exit_code=0, outputs_sha256=WHOLE)
    verifying.look(claim=claim, at=timezone.now())
    assert fresh(claim).state == "verified"


def test_a_customer_who_lets_no_host_verify_is_named_in_the_timeline(
    on_a_node: Any, fleet: Fleet, actor: Actor, project: Project
) -> None:
    _, _, claim = on_a_node(BY_COMMAND)
    policies.replace(project_id=project.pk, document={"countries": {"deny": ["NO"]}}, version=None, at=timezone.now())
    for _ in range(2):
        verifying.look(claim=claim, at=timezone.now())
    verifying.look(claim=claim, at=timezone.now() + verifying.WAIT_MAX + timedelta(minutes=3))
    said = list(claim.events.filter(message__startswith="It waits").values_list("message", flat=True))
    assert said == [
        "It waits: its customer is suspended, or a policy of theirs excludes every host that may verify it."
    ]
    assert fresh(claim).state == "failed"


def test_a_second_run_is_on_the_same_model_and_where_there_is_none_the_rule_of_silence_holds(
    on_a_node: Any, fleet: Fleet, site: Site
) -> None:
    deal, _, claim = on_a_node(BY_RERUN)
    owned_by(deal.seller, fleet.h200)
    another(fleet, site, "Other", gpu_model="GB300")
    assert hosting.hosts(claim.version, Offer.objects.get(pk=fleet.h200.pk), None) == []
    verifying.look(claim=claim, at=timezone.now() + verifying.WAIT_MAX + timedelta(minutes=3))
    assert (fresh(claim).state, claim.verdicts.get().verifier) == ("failed", "silence")


def test_where_hosts_are_full_or_sell_no_so_few_gpus_the_next_one_is_asked(
    on_a_node: Any, fleet: Fleet, site: Site, acme: Organization
) -> None:
    _, _, claim = on_a_node(BY_COMMAND)
    Node.objects.filter(offer__in=[fleet.h200, fleet.l40s]).update(state="cordoned")
    large = another(fleet, site, "Large")
    Offer.objects.filter(pk=large.pk).update(min_gpus=8)
    last = another(fleet, site, "Last")
    assert starts(claim, fleet).offer == last


def test_a_verifier_takes_none_of_its_customers_quota(on_a_node: Any, fleet: Fleet, actor: Actor) -> None:
    _, _, claim = on_a_node(BY_COMMAND)
    quotas.open_for(project_id=claim.project_id)
    quotas.set_limit(project_id=claim.project_id, limit=0)
    instance = starts(claim, fleet)
    assert (instance.phase, quotas.miscounted()) == ("running", [])
    ends(instance, exit_code=0)
    verifying.look(claim=claim, at=timezone.now())
    assert fresh(claim).state == "verified"
    assert quotas.miscounted() == []


def test_so_many_verifiers_of_one_customer_run_at_once_and_no_more(
    on_a_node: Any, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "AT_ONCE_MAX", 1)
    first: Claim
    (_, _, first), (_, _, second) = on_a_node(BY_COMMAND), on_a_node(BY_COMMAND)
    instance = starts(first, fleet)
    verifying.look(claim=second, at=timezone.now())
    assert second.verifier_runs.count() == 0
    ends(instance, exit_code=0)
    verifying.look(claim=first, at=timezone.now())
    assert starts(second, fleet).phase == "running"
    assert Instance.objects.filter(env__GPUMARKET_CLAIM=second.public_id).count() == 1


def test_what_waits_to_be_verified_has_the_first_of_the_gpus_that_come_free(
    on_a_node: Any, fleet: Fleet, actor: Actor
) -> None:
    _, work, claim = on_a_node(BY_RERUN)
    nodes = Node.objects.filter(offer=fleet.h200)
    nodes.update(state="cordoned")
    verifying.look(claim=claim, at=timezone.now())
    assert claim.verifier_runs.count() == 0
    nodes.update(state="available")
    Node.objects.filter(name="h200-2").update(free_gpus=1)
    Job.objects.filter(pk=work.job.pk).update(state="active", look_at=timezone.now())
    running.work_on(work.job.pk)
    assert claim.verifier_runs.count() == 1, "though it was not due for some seconds"
