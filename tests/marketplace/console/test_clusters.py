"""Slurm clusters in the console."""

from datetime import timedelta
from typing import Any

import pytest
from django.core.management import call_command
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from marketplace.models import AuditEntry
from provisioning import clusters
from provisioning.models import Cluster, GpuHold, Instance, Node, SlurmNode
from provisioning.secrets import unseal
from tests.conftest import Fleet, Rent
from tests.marketplace.console.conftest import only_entry

TOKEN = "eyJhbGciOiJIUzI1NiJ9.e30.abc"


@pytest.fixture
def fields(fleet: Fleet) -> dict[str, Any]:
    fleet.h200.runtime = "slurm"
    fleet.h200.save()
    return {
        "name": "north",
        "offer": fleet.h200.public_id,
        "fabric": fleet.nodes["h200-1"].node.fabric.public_id,
        "base_url": "https://slurm.example:6820",
        "user": "gpumarket",
        "token": TOKEN,
        "partition": "gpumarket",
    }


@pytest.fixture
def cluster(desk: Client, fields: dict[str, Any]) -> Cluster:
    desk.post(reverse("console-cluster-new"), fields)
    return Cluster.objects.get()


def test_a_cluster_is_added_and_its_token_is_shown_nowhere(desk: Client, cluster: Cluster) -> None:
    assert unseal(cluster.token_sealed) == TOKEN
    assert TOKEN not in str(only_entry("cluster.add").after)
    for page in ("console-cluster", "console-cluster-token"):
        assert TOKEN not in desk.get(reverse(page, args=[cluster.public_id])).content.decode()
    assert "north" in desk.get(reverse("console-clusters")).content.decode()


@pytest.mark.parametrize(
    ("field", "value"), [("base_url", "slurm.example"), ("token", ""), ("log_path", "relative"), ("offer", "ofr_none")]
)
def test_what_cannot_be_is_said_beside_its_field(desk: Client, fields: dict[str, Any], field: str, value: str) -> None:
    answer = desk.post(reverse("console-cluster-new"), fields | {field: value})
    assert answer.status_code == 422
    assert field in answer.context["form"].errors
    assert not Cluster.objects.exists()


def test_only_offers_of_slurm_jobs_can_be_chosen(desk: Client, fields: dict[str, Any], fleet: Fleet) -> None:
    answer = desk.post(reverse("console-cluster-new"), fields | {"offer": fleet.l40s.public_id})
    assert "offer" in answer.context["form"].errors


def test_a_name_is_taken_once(desk: Client, fields: dict[str, Any], cluster: Cluster) -> None:
    assert desk.post(reverse("console-cluster-new"), fields).status_code == 422
    assert Cluster.objects.count() == 1


def test_another_token_is_used_from_now_on_and_stands_in_the_audit_without_its_value(
    desk: Client, cluster: Cluster
) -> None:
    desk.post(reverse("console-cluster-token", args=[cluster.public_id]), {"token": "another"})
    assert unseal(Cluster.objects.get().token_sealed) == "another"
    assert "another" not in str(AuditEntry.objects.filter(verb="cluster.token").values())


def test_a_cluster_that_does_not_answer_comes_first_in_the_console(desk: Client, cluster: Cluster) -> None:
    Cluster.objects.update(last_contact=timezone.now() - timedelta(minutes=1), last_error="Slurm refused (500)")
    page = desk.get(reverse("console")).content.decode()
    assert "Slurm cluster does not answer" in page
    assert "Slurm refused (500)" in page
    assert "Slurm refused (500)" in desk.get(reverse("console-cluster", args=[cluster.public_id])).content.decode()


def test_its_page_shows_what_slurm_says_of_each_node(desk: Client, cluster: Cluster) -> None:
    node = Node.objects.get(name="h200-1")
    SlurmNode.objects.create(
        node=node, cluster=cluster, name="gpu1", state="idle+drain", reason="new cables", asked="drain", is_done=False
    )
    page = desk.get(reverse("console-cluster", args=[cluster.public_id])).content.decode()
    for shown in ("gpu1", "idle+drain", "new cables", "not done yet"):
        assert shown in page


def send(desk: Client, page: str, cluster: Cluster, **fields: str) -> Any:
    return desk.post(reverse(page, args=[cluster.public_id]), fields)


def facts(**changes: str) -> dict[str, str]:
    return {
        "name": "north", "base_url": "https://slurm.example:6820", "user": "gpumarket", "partition": "gpumarket",
        "spot_partition": "", "log_path": "",
    } | changes  # fmt: skip


@pytest.fixture
def used(cluster: Cluster, rent: Rent, fleet: Fleet) -> Instance:
    """An instance on a node of the cluster."""
    instance = rent(offer=fleet.h200)
    for node in Node.objects.filter(gpus__holds__assignment__instance=instance).distinct():
        SlurmNode.objects.create(node=node, cluster=cluster, name=node.name, state="mixed")
    return instance


def test_address_name_and_partitions_change_and_the_audit_says_from_what(desk: Client, cluster: Cluster) -> None:
    page = desk.get(reverse("console-cluster-edit", args=[cluster.public_id])).content.decode()
    assert "https://slurm.example:6820" in page
    assert TOKEN not in page
    changes = {"name": "south", "base_url": "https://other.example:6820", "spot_partition": "spot"}
    assert send(desk, "console-cluster-edit", cluster, **facts(**changes)).status_code == 302
    cluster.refresh_from_db()
    assert {name: getattr(cluster, name) for name in changes} == changes
    entry = only_entry("cluster.change")
    assert entry.after == changes
    assert entry.before == {"name": "north", "base_url": "https://slurm.example:6820", "spot_partition": ""}
    send(desk, "console-cluster-edit", cluster, **facts(**changes))  # Nothing is changed, and nothing is said.
    assert only_entry("cluster.change") == entry


def test_a_name_that_another_cluster_has_is_refused(desk: Client, cluster: Cluster, fields: dict[str, Any]) -> None:
    desk.post(reverse("console-cluster-new"), fields | {"name": "south"})
    answer = send(desk, "console-cluster-edit", cluster, **facts(name="south"))
    assert "name" in answer.context["form"].errors
    assert Cluster.objects.get(pk=cluster.pk).name == "north"


@pytest.mark.parametrize(
    "change", [{"user": "another"}, {"partition": "other"}, {"spot_partition": "s"}, {"log_path": "/x"}]
)
def test_what_jobs_were_submitted_with_stays_while_they_run(
    desk: Client, cluster: Cluster, used: Instance, change: dict[str, str]
) -> None:
    answer = send(desk, "console-cluster-edit", cluster, **facts(**change))
    (field,) = change
    assert used.name in str(answer.context["form"].errors[field])
    assert not AuditEntry.objects.filter(verb="cluster.change").exists()
    assert send(desk, "console-cluster-edit", cluster, **facts(base_url="https://moved.example")).status_code == 302


def test_errands_get_a_user_of_their_own_whose_token_is_shown_nowhere(desk: Client, cluster: Cluster) -> None:
    send(desk, "console-cluster-errands", cluster, errand_user="operator", errand_token="opens nodes")
    cluster.refresh_from_db()
    assert (cluster.errand_user, unseal(cluster.errand_token_sealed)) == ("operator", "opens nodes")
    assert unseal(cluster.token_sealed) == TOKEN
    assert only_entry("cluster.errands").after == {"errand_user": "operator"}
    for name in ("console-cluster", "console-cluster-errands"):
        page = desk.get(reverse(name, args=[cluster.public_id])).content.decode()
        assert "operator" in page
        assert "opens nodes" not in page
    send(desk, "console-cluster-errands", cluster, errand_user="", errand_token="")
    cluster.refresh_from_db()
    assert (cluster.errand_user, cluster.errand_token_sealed) == ("", "")


@pytest.mark.parametrize(("user", "token", "field"), [("operator", "", "errand_token"), ("", "abc", "errand_user")])
def test_half_of_an_errand_user_is_refused(desk: Client, cluster: Cluster, user: str, token: str, field: str) -> None:
    answer = send(desk, "console-cluster-errands", cluster, errand_user=user, errand_token=token)
    assert field in answer.context["form"].errors


def test_a_cluster_on_which_something_runs_is_not_retired_and_the_refusal_says_what(
    desk: Client, cluster: Cluster, used: Instance
) -> None:
    answer = send(desk, "console-cluster-retire", cluster, reason="sold")
    assert answer.status_code == 422
    assert f"Instances run there: {used.name}." in answer.content.decode()
    cluster.refresh_from_db()
    assert cluster.retired_at is None
    assert not Node.objects.filter(state="retired").exists()


def test_a_retired_cluster_sells_nothing_keeps_no_token_and_is_looked_at_no_more(
    desk: Client, cluster: Cluster, used: Instance
) -> None:
    GpuHold.objects.update(released_at=timezone.now())
    send(desk, "console-cluster-errands", cluster, errand_user="operator", errand_token="opens nodes")
    assert send(desk, "console-cluster-retire", cluster, reason="sold").status_code == 302
    cluster.refresh_from_db()
    assert cluster.retired_at is not None
    assert (cluster.token_sealed, cluster.errand_token_sealed) == ("", "")
    assert set(Node.objects.filter(slurm__cluster=cluster).values_list("state", flat=True)) == {"retired"}
    assert only_entry("cluster.retire").after == {"reason": "sold"}
    assert clusters.due(at=timezone.now() + timedelta(hours=1), limit=10) == []
    assert not clusters.look(cluster.pk)
    for name in ("edit", "errands", "token", "retire"):
        assert desk.get(reverse(f"console-cluster-{name}", args=[cluster.public_id])).status_code == 404
    for page in (reverse("console-clusters"), reverse("console-cluster", args=[cluster.public_id])):
        assert "Retired" in desk.get(page).content.decode()
    call_command("reseal")


def test_why_an_errand_was_not_done_is_shown(desk: Client, cluster: Cluster) -> None:
    node = Node.objects.get(name="h200-1")
    SlurmNode.objects.create(
        node=node, cluster=cluster, name="gpu1", state="idle", asked="drain", is_done=False,
        asked_error="slurm_update error: Invalid user id",
    )  # fmt: skip
    page = desk.get(reverse("console-cluster", args=[cluster.public_id])).content.decode()
    assert "slurm_update error: Invalid user id" in page
