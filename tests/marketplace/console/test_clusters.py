"""Slurm clusters in the console."""

from datetime import timedelta
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from marketplace.models import AuditEntry
from provisioning.models import Cluster, Node, SlurmNode
from provisioning.secrets import unseal
from tests.conftest import Fleet
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
