"""Work that runs to an end: on which nodes, for whose money. What happens to its files is in `agent/test_files.py`."""

from dataclasses import replace

import pytest
from django.utils import timezone

from billing.models import Hold, UsageSpan
from marketplace import budget_watch, rentals
from marketplace.access import Actor
from marketplace.models import Budget, Project
from provisioning import decisions, instances
from provisioning.errors import NoCapacity
from provisioning.models import Assignment, Instance, PlacementDecision
from provisioning.work import Work
from tests.conftest import Fleet, Rent, Run, order

pytestmark = pytest.mark.django_db


def test_work_never_runs_on_the_nodes_that_it_avoids_and_the_decision_says_so(rent: Rent, fleet: Fleet) -> None:
    first, second = (fleet.nodes[name].node for name in ("h200-1", "h200-2"))
    found = rent(work=Work(avoid_nodes=(first.public_id,)))
    assert Assignment.objects.get(instance=found).node == second
    assert PlacementDecision.objects.get(instance=found).rejected == {"barred": 1}
    with pytest.raises(NoCapacity) as refused:
        rent(work=Work(avoid_nodes=(first.public_id, second.public_id)))
    assert refused.value.decision is not None
    decisions.keep(refused.value)
    assert PlacementDecision.objects.get(outcome="refused").rejected == {"barred": 2}


def test_who_pays_for_an_instances_hours_is_written_into_its_span_and_its_owner_is_asked_for_nothing(
    rent: Rent, run_until_idle: Run, project: Project
) -> None:
    instance = rent(work=Work(paid_by="job_1"))
    run_until_idle()
    span = UsageSpan.objects.get(resource_id=instance.public_id)
    assert (span.covered_by, span.micros_per_unit_hour) == ("job_1", 0)
    assert not Hold.objects.filter(resource_id=instance.public_id).exists()
    assert instance.attach == Instance.Attach.FORBID
    budget = Budget(organization=project.organization)
    assert not budget_watch.running_on(budget).exists()


def test_a_new_run_of_what_somebody_else_pays_for_holds_nothing_either(
    rent: Rent, run_until_idle: Run, actor: Actor
) -> None:
    rent(work=Work(paid_by="job_1"))
    run_until_idle()
    instances.stop(instance=Instance.objects.get(), at=timezone.now())
    run_until_idle()
    rentals.start(actor=actor, instance=Instance.objects.get(), at=timezone.now())
    run_until_idle()
    assert set(UsageSpan.objects.values_list("covered_by", flat=True)) == {"job_1"}
    assert not Hold.objects.exists()


def test_what_an_order_says_of_its_work_stands_in_its_instance(rent: Rent, fleet: Fleet) -> None:
    work = Work(
        inputs="a" * 64, outputs=("out/*.txt", "model"), checkpoint="state", checkpoint_sha256="b" * 64,
        has_network=False, avoid_nodes=("nod_1",), paid_by="job_1", disk_bytes=1 << 30,
    )  # fmt: skip
    ordered = replace(order(fleet.h200), work=work)
    row = Instance.objects.get(pk=rent(work=ordered.work).pk)
    found = {
        name: getattr(row, name) for name in ("inputs", "checkpoint", "checkpoint_sha256", "has_network", "paid_by")
    }
    assert found == {
        "inputs": "a" * 64, "checkpoint": "state", "checkpoint_sha256": "b" * 64, "has_network": False,
        "paid_by": "job_1",
    }  # fmt: skip
    assert row.disk_bytes == 1 << 30
    assert (row.outputs, row.avoid_nodes) == (["out/*.txt", "model"], ["nod_1"])
