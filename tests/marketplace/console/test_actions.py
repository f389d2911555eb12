"""What a capacity manager does: each form once rightly, once wrongly, and what the audit says of it."""

from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.http import HttpResponse
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from billing import accounts, prices
from billing.models import PriceList, PriceListItem, PriceVersion, Transfer
from marketplace.models import AuditEntry, Offer, Organization, Project, User
from provisioning import nodes, quotas
from provisioning.errors import StaleInstance
from provisioning.models import Fabric, Instance, JoinToken, Node, Site
from tests.conftest import Fleet, Run
from tests.marketplace.console.conftest import only_entry

USD = 1_000_000


def send(desk: Client, page: str, /, *ids: str, **fields: Any) -> HttpResponse:
    return desk.post(reverse(page, args=ids), fields)


def told(answer: Any) -> list[str]:
    return [str(message) for message in answer.context["messages"]]


@pytest.fixture
def node(fleet: Fleet) -> Node:
    return fleet.nodes["h200-1"].node


def test_cordon_and_uncordon(desk: Client, node: Node, carol: User) -> None:
    send(desk, "console-node-cordon", node.public_id, reason="noisy fan")
    node.refresh_from_db()
    assert (node.state, node.state_reason) == ("cordoned", "noisy fan")
    entry = only_entry("node.cordon")
    assert (entry.actor, entry.organization, entry.subject_id) == (carol, None, node.public_id)
    assert (entry.before, entry.after) == ({"state": "available"}, {"state": "cordoned", "reason": "noisy fan"})
    assert entry.request_id.startswith("req_")
    send(desk, "console-node-uncordon", node.public_id)
    node.refresh_from_db()
    assert node.state == "available"
    assert only_entry("node.uncordon").before == {"state": "cordoned"}


def test_a_cordon_needs_a_reason(desk: Client, node: Node) -> None:
    answer = send(desk, "console-node-cordon", node.public_id, reason="  ")
    assert answer.status_code == 422
    assert "This field is required" in answer.content.decode()
    node.refresh_from_db()
    assert node.state == "available"
    assert not AuditEntry.objects.filter(verb="node.cordon").exists()


def test_a_refused_cordon_is_told_and_keeps_what_was_typed(desk: Client, node: Node) -> None:
    Node.objects.filter(pk=node.pk).update(state="new")
    answer = send(desk, "console-node-cordon", node.public_id, reason="noisy fan")
    assert answer.status_code == 422
    assert told(answer) == ["The node's state does not allow this."]
    assert 'value="noisy fan"' in answer.content.decode()


def test_a_drain_shows_whom_it_stops_and_stops_them(desk: Client, running: Instance, run_until_idle: Run) -> None:
    node = Node.objects.get(assignments__instance=running)
    page = desk.get(reverse("console-node-drain", args=[node.public_id])).content.decode()
    assert "This stops 1 instance" in page
    assert running.name in page
    assert "Acme" in page
    running.refresh_from_db()
    assert running.phase == "running"
    send(desk, "console-node-drain", node.public_id, reason="new firmware")
    run_until_idle()
    running.refresh_from_db()
    assert (running.phase, running.reason) == ("stopped", "operator")
    assert "new firmware" in running.message
    assert only_entry("node.drain").after == {"state": "draining", "reason": "new firmware"}
    stopped = only_entry("instance.stop")
    assert (stopped.organization, stopped.subject_id) == (running.project.organization, running.public_id)


def test_a_drain_passes_over_what_moved_by_itself_meanwhile(
    desk: Client, running: Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_late(**order: object) -> None:
        raise StaleInstance("somebody was faster")

    monkeypatch.setattr("provisioning.instances.stop", too_late)
    node = Node.objects.get(assignments__instance=running)
    send(desk, "console-node-drain", node.public_id, reason="new firmware")
    node.refresh_from_db()
    assert node.state == "draining"
    assert not AuditEntry.objects.filter(verb="instance.stop").exists()


def test_a_join_token_is_shown_once_with_the_command(desk: Client, node: Node, settings: Any) -> None:
    settings.PUBLIC_URL = "https://gpu.example.org"
    asked = desk.get(reverse("console-node-join-token", args=[node.public_id])).content.decode()
    assert "gmj_" not in asked
    answer = send(desk, "console-node-join-token", node.public_id)
    page = answer.content.decode()
    secret = page.split("GPUMARKET_JOIN_TOKEN=")[1].split()[0]
    assert f"{secret} gpumarket-agent --url https://gpu.example.org --home" in page
    assert JoinToken.objects.get(node=node, used_at=None).secret_hash == nodes.digest(secret)
    entry = only_entry("node.join_token")
    assert secret not in str([entry.before, entry.after])
    assert "no-store" in answer.headers["Cache-Control"]


def machine(fleet: Fleet, **overrides: Any) -> dict[str, Any]:
    fabric = Fabric.objects.get(site=fleet.h200.site)
    ordinary = {"name": "h200-3", "offer": fleet.h200.public_id, "fabric": fabric.public_id, "rack": "r2"}
    return ordinary | overrides


def test_a_node_is_announced_and_filled_in_from_its_offer(desk: Client, fleet: Fleet) -> None:
    answer = send(desk, "console-node-new", **machine(fleet))
    node = Node.objects.get(name="h200-3")
    assert answer.headers["Location"] == reverse("console-node", args=[node.public_id])
    assert (node.state, node.gpu_model, node.gpu_count, node.gpu_memory_mib) == ("new", "H200", 8, 141 * 1024)
    assert only_entry("node.announce").subject_id == node.public_id


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("name", "h200-1", "There is a node named h200-1 already."),
        ("name", "no spaces", "valid"),
        ("name", "x" * 10_000, "at most 63"),
        ("gpu_model", "L40S", "The offer is made of H200 GPUs."),
        ("gpu_count", "4", "A node of this offer has 8 GPUs."),
        ("gpu_count", "-1", "greater than or equal to 1"),
        ("gpu_count", "9" * 30, "less than or equal to"),
        ("offer", "ofr_unknown", "Select a valid choice"),
        ("fabric", "", "This field is required"),
    ],
)
def test_a_bad_announcement_names_its_field_and_loses_nothing(
    desk: Client, fleet: Fleet, field: str, value: str, complaint: str
) -> None:
    answer = send(desk, "console-node-new", **machine(fleet, **{"rack": "r77", field: value}))
    assert answer.status_code == 422
    assert complaint in str(answer.context["form"].errors[field])
    assert 'value="r77"' in answer.content.decode()
    assert Node.objects.count() == 3


def test_a_fabric_of_another_site_is_refused(desk: Client, fleet: Fleet) -> None:
    elsewhere = Site.objects.get()
    elsewhere.pk, elsewhere.public_id, elsewhere.slug = None, "sit_elsewhere", "elsewhere"
    elsewhere.save()
    fabric = Fabric.objects.create(site=elsewhere, name="f", kind="roce")
    answer = send(desk, "console-node-new", **machine(fleet, fabric=fabric.public_id))
    assert "fabric" in answer.context["form"].errors


def test_full_width_digits_are_understood(desk: Client, fleet: Fleet) -> None:
    send(desk, "console-node-new", **machine(fleet, gpu_count="８"))
    assert Node.objects.filter(name="h200-3").exists()


SITE = {
    "name": "Teesside", "slug": "teesside", "kind": "core", "city": "Middlesbrough", "country": "GB",
    "jurisdiction": "GB", "latitude": "54.57420", "longitude": "-1.23490", "grid_zone": "GB", "power_source": "wind",
    "pue": "1.20", "volume_kind": "local", "certifications": "ISO 27001, ISO 50001",
}  # fmt: skip


def test_a_site_and_its_fabric_are_made(desk: Client) -> None:
    send(desk, "console-site-new", **SITE)
    site = Site.objects.get()
    assert site.certifications == ["ISO 27001", "ISO 50001"]
    send(desk, "console-fabric-new", site.public_id, name="rail-1", kind="infiniband")
    assert Fabric.objects.get().site == site
    again = send(desk, "console-fabric-new", site.public_id, name="rail-1", kind="roce")
    assert again.context["form"].errors["name"] == ["Teesside has a fabric of this name already."]
    assert [entry.verb for entry in AuditEntry.objects.order_by("pk")] == ["site.create", "fabric.create"]


@pytest.mark.parametrize(
    ("field", "value"),
    [("country", "Norway"), ("pue", "0.9"), ("pue", "NaN"), ("latitude", "91"), ("slug", "a b"), ("kind", "moon")],
)
def test_a_bad_site_names_its_field(desk: Client, field: str, value: str) -> None:
    answer = send(desk, "console-site-new", **(SITE | {field: value}))
    assert answer.status_code == 422
    assert list(answer.context["form"].errors) == [field]
    assert not Site.objects.exists()


def offer_facts(fleet: Fleet, **overrides: Any) -> dict[str, Any]:
    return {
        "name": "B200 in Narvik", "slug": "b200-narvik", "supplier": fleet.h200.supplier.public_id,
        "site": fleet.h200.site.public_id, "gpu_model": "B200", "gpu_memory_gib": 180, "gpus_per_node": 8,
        "interconnect": "NVLink 5", "runtime": "podman", "min_gpus": 1, "max_gpus": 64, "is_listed": "on",
    } | overrides  # fmt: skip


def supplied(fleet: Fleet) -> None:
    Organization.objects.filter(pk=fleet.h200.supplier_id).update(is_supplier=True)


def test_an_offer_is_made_and_its_terms_change(desk: Client, fleet: Fleet) -> None:
    supplied(fleet)
    send(desk, "console-offer-new", **offer_facts(fleet))
    offer = Offer.objects.get(slug="b200-narvik")
    assert (offer.max_gpus, offer.is_listed) == (64, True)
    terms = {
        "name": offer.name,
        "interconnect": offer.interconnect,
        "runtime": offer.runtime,
        "min_gpus": 2,
        "max_gpus": 32,
    }
    send(desk, "console-offer-terms", offer.public_id, **terms)
    offer.refresh_from_db()
    assert (offer.min_gpus, offer.max_gpus, offer.is_listed) == (2, 32, False)
    entry = only_entry("offer.change")
    assert entry.before == {"min_gpus": 1, "max_gpus": 64, "is_listed": True}
    assert entry.after == {"min_gpus": 2, "max_gpus": 32, "is_listed": False}


def test_terms_that_change_nothing_leave_no_entry(desk: Client, fleet: Fleet) -> None:
    offer = fleet.h200
    terms = {
        "name": offer.name,
        "interconnect": offer.interconnect,
        "runtime": offer.runtime,
        "min_gpus": 1,
        "max_gpus": 16,
        "is_listed": "on",
    }
    send(desk, "console-offer-terms", offer.public_id, **terms)
    assert not AuditEntry.objects.filter(verb="offer.change").exists()


@pytest.mark.parametrize(
    ("field", "overrides"),
    [("max_gpus", {"min_gpus": 8, "max_gpus": 4}), ("slug", {"slug": "h200-narvik"}), ("min_gpus", {"min_gpus": 0})],
)
def test_a_bad_offer_names_its_field(desk: Client, fleet: Fleet, field: str, overrides: dict[str, Any]) -> None:
    supplied(fleet)
    answer = send(desk, "console-offer-new", **offer_facts(fleet, **overrides))
    assert list(answer.context["form"].errors) == [field]
    assert Offer.objects.count() == 2


@pytest.fixture
def price(fleet: Fleet) -> dict[str, Any]:
    """Another price for the first offer, as its form sends it."""
    return {"sku": fleet.h200.sku, "currency": "USD", "amount_micros": "3.735", "key": str(uuid4())}


def test_a_price_waits_in_a_draft_for_a_second_person(desk: Client, fleet: Fleet, price: dict[str, Any]) -> None:
    for _time in range(2):
        answer = send(desk, "console-offer-price", fleet.h200.public_id, **price)
        draft = PriceList.objects.get()
        assert answer.url == reverse("console-price-list", args=[draft.public_id])
    said = dict(PriceListItem.objects.values_list("sku", "micros_per_unit_hour"))
    assert said == {fleet.h200.sku: 3_735_000, fleet.l40s.sku: said[fleet.l40s.sku]}
    assert prices.history(sku=fleet.h200.sku).count() == 1
    page = desk.get(answer.url).content.decode()
    assert "$2.49" in page
    assert "$3.735" in page
    send(desk, "console-price-list-simulate", draft.public_id)
    assert send(desk, "console-price-list-approve", draft.public_id).status_code == 422
    assert only_entry("price_list.draft").subject_id == draft.public_id


def test_a_price_of_blocks_and_in_another_currency_is_a_draft_too(
    desk: Client, fleet: Fleet, price: dict[str, Any]
) -> None:
    other = price | {"sku": fleet.h200.reserved_sku, "currency": "JPY", "amount_micros": "400"}
    send(desk, "console-offer-price", fleet.h200.public_id, **other)
    item = PriceListItem.objects.get()
    assert (item.sku, item.micros_per_unit_hour, item.price_list.currency) == (
        fleet.h200.reserved_sku, 400 * USD, "JPY"
    )  # fmt: skip
    assert not PriceVersion.objects.filter(currency="JPY").exists()


def test_a_form_that_is_sent_again_with_another_price_changes_nothing(
    desk: Client, fleet: Fleet, price: dict[str, Any]
) -> None:
    send(desk, "console-offer-price", fleet.h200.public_id, **price)
    answer = send(desk, "console-offer-price", fleet.h200.public_id, **price | {"amount_micros": "4"})
    assert answer.status_code == 422
    assert PriceListItem.objects.get(sku=fleet.h200.sku).micros_per_unit_hour == 3_735_000


def test_an_offers_form_prices_nothing_else(desk: Client, fleet: Fleet, price: dict[str, Any]) -> None:
    answer = send(desk, "console-offer-price", fleet.h200.public_id, **price | {"sku": fleet.l40s.sku})
    assert (answer.status_code, list(answer.context["form"].errors)) == (422, ["sku"])
    assert not PriceList.objects.exists()


@pytest.mark.parametrize("amount", ["0", "-1", "1.2345678", "free", "1e400", "NaN", "1,50", ""])
def test_a_price_that_is_no_amount_is_refused(desk: Client, fleet: Fleet, price: dict[str, Any], amount: str) -> None:
    answer = send(desk, "console-offer-price", fleet.h200.public_id, **price | {"amount_micros": amount})
    assert (answer.status_code, list(answer.context["form"].errors)) == (422, ["amount_micros"])
    assert prices.history(sku=fleet.h200.sku).count() == 1


def test_a_scheduled_price_is_shown_as_such(desk: Client, fleet: Fleet) -> None:
    now = timezone.now()
    prices.publish(
        sku=fleet.h200.sku, currency="USD", micros_per_unit_hour=3 * USD, effective_from=now + timedelta(days=1),
        by="test", at=now,
    )  # fmt: skip
    page = desk.get(reverse("console-offer", args=[fleet.h200.public_id])).content.decode()
    assert page.index("scheduled") < page.index("in force")


@pytest.mark.parametrize(("verb", "phase"), [("stop", "stopped"), ("terminate", "terminated")])
def test_the_operator_ends_an_instance(
    desk: Client, running: Instance, run_until_idle: Run, verb: str, phase: str, acme: Organization
) -> None:
    send(desk, f"console-instance-{verb}", running.public_id, reason="abuse")
    run_until_idle()
    running.refresh_from_db()
    assert (running.phase, running.reason) == (phase, "operator")
    assert "abuse" in running.message
    entry = only_entry(f"instance.{verb}")
    assert (entry.organization, entry.before) == (acme, {"phase": "running"})


def test_ending_what_has_ended_is_told(desk: Client, running: Instance) -> None:
    Instance.objects.filter(pk=running.pk).update(phase="terminated")
    answer = send(desk, "console-instance-stop", running.public_id, reason="abuse")
    assert told(answer) == ["The instance has moved on, and its state does not allow this any more."]


def test_a_quota_changes_with_a_reason(desk: Client, project: Project, acme: Organization) -> None:
    send(desk, "console-quota", project.public_id, limit="64", reason="bigger training run")
    assert project.quotas.get().limit == 64
    entry = only_entry("quota.change")
    assert (entry.organization, entry.before) == (acme, {"limit": quotas.DEFAULT_LIMIT})
    assert entry.after == {"limit": 64, "reason": "bigger training run"}


@pytest.mark.parametrize("limit", ["-1", "many", "9" * 20, ""])
def test_a_bad_quota_changes_nothing(desk: Client, project: Project, limit: str) -> None:
    assert send(desk, "console-quota", project.public_id, limit=limit, reason="x").status_code == 422
    assert project.quotas.get().limit == quotas.DEFAULT_LIMIT


def test_a_project_is_suspended_once_and_resumed(desk: Client, project: Project) -> None:
    for _ in range(2):
        send(desk, "console-project-suspend", project.public_id, reason="unpaid")
    project.refresh_from_db()
    assert project.is_suspended
    assert only_entry("project.suspend").after == {"reason": "unpaid"}
    for _ in range(2):
        send(desk, "console-project-resume", project.public_id)
    project.refresh_from_db()
    assert not project.is_suspended
    assert only_entry("project.resume").subject_id == project.public_id


def credit_form(desk: Client, acme: Organization) -> dict[str, Any]:
    form = desk.get(reverse("console-credit", args=[acme.public_id])).context["form"]
    return {"amount_micros": "25.50", "reason": "sorry for the outage", "key": form["key"].value()}


def test_credit_is_granted_once_however_often_the_form_is_sent(desk: Client, acme: Organization) -> None:
    before = accounts.wallet(organization=acme).promo_micros
    form = credit_form(desk, acme)
    for _ in range(2):
        assert send(desk, "console-credit", acme.public_id, **form).status_code == 302
    assert accounts.wallet(organization=acme).promo_micros == before + 25_500_000
    entry = only_entry("credit.grant")
    assert (entry.organization, entry.subject_id) == (acme, Transfer.objects.latest("pk").public_id)


def test_two_forms_grant_twice(desk: Client, acme: Organization) -> None:
    before = accounts.wallet(organization=acme).promo_micros
    for _ in range(2):
        send(desk, "console-credit", acme.public_id, **credit_form(desk, acme))
    assert accounts.wallet(organization=acme).promo_micros == before + 51_000_000


def test_a_form_that_was_sent_with_another_amount_is_refused(desk: Client, acme: Organization) -> None:
    form = credit_form(desk, acme)
    send(desk, "console-credit", acme.public_id, **form)
    answer = send(desk, "console-credit", acme.public_id, **(form | {"amount_micros": "99"}))
    assert answer.status_code == 422
    assert "sent before with other values" in told(answer)[-1]


def test_a_grant_by_somebody_with_the_longest_address_fits_the_ledger(
    desk: Client, carol: User, acme: Organization
) -> None:
    User.objects.filter(pk=carol.pk).update(email=f"{'c' * 240}@o.example")
    form = credit_form(desk, acme) | {"reason": "r" * 100}
    assert send(desk, "console-credit", acme.public_id, **form).status_code == 302


def test_a_form_without_its_key_is_refused(desk: Client, acme: Organization) -> None:
    answer = send(desk, "console-credit", acme.public_id, amount_micros="1", reason="x", key="1")
    assert (answer.status_code, list(answer.context["form"].errors)) == (422, ["key"])


def test_forms_carry_their_own_token_and_work_without_javascript(carol: User, fleet: Fleet) -> None:
    strict = Client(enforce_csrf_checks=True)
    strict.force_login(carol)
    node = fleet.nodes["h200-1"].node
    path = reverse("console-node-cordon", args=[node.public_id])
    assert strict.post(path, {"reason": "x"}).status_code == 403
    token = strict.get(path).content.decode().split('csrfmiddlewaretoken" value="')[1].split('"')[0]
    assert strict.post(path, {"reason": "x", "csrfmiddlewaretoken": token}).status_code == 302


def test_a_silent_node_is_confirmed_off_with_a_reason_and_an_audit_entry(
    desk: Client, running: Instance, node: Node, carol: User
) -> None:
    there = Node.objects.get(assignments__instance=running)
    answer = send(desk, "console-node-confirm-off", there.public_id, reason="pulled the plug")
    assert (answer.status_code, told(answer)) == (422, ["The node's state does not allow this."])
    Node.objects.filter(pk=there.pk).update(reachability="unreachable")
    assert "Confirm off" in desk.get(reverse("console-node", args=[there.public_id])).content.decode()
    assert "saw it" in desk.get(reverse("console-node-confirm-off", args=[there.public_id])).content.decode()
    send(desk, "console-node-confirm-off", there.public_id, reason="pulled the plug")
    entry = only_entry("node.confirm_off")
    assert (entry.actor, entry.subject_id) == (carol, there.public_id)
    assert entry.after is not None
    assert (entry.after["confirmed"], entry.after["given_up"]) == ("pulled the plug", 1)
    assert running.assignments.get().observed == "gone"


def test_what_an_offer_runs_is_changed_only_while_it_has_no_nodes(desk: Client, fleet: Fleet) -> None:
    offer = fleet.h200
    terms = {"name": offer.name, "interconnect": offer.interconnect, "min_gpus": 1, "max_gpus": 16, "is_listed": "on"}
    path = reverse("console-offer-terms", args=[offer.public_id])
    answer = desk.post(path, {**terms, "runtime": "podman"})
    assert "make a new offer instead" in answer.content.decode()
    offer.refresh_from_db()
    assert offer.runtime == "process"
    offer.nodes.update(offer=fleet.l40s)
    assert desk.post(path, {**terms, "runtime": "podman"}).status_code == 302
    offer.refresh_from_db()
    assert offer.runtime == "podman"
