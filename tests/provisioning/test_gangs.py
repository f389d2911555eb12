"""A gang, which is an instance of several replicas, starts together and ends together."""

import pytest
from django.utils import timezone

from marketplace import rentals
from marketplace.access import Actor
from provisioning import engine
from provisioning.drivers import registry
from provisioning.drivers.fake import FakeDriver
from provisioning.drivers.protocol import Observation
from provisioning.models import Assignment, GpuHold, Instance, Node
from provisioning.steps import PLAN
from tests.conftest import Fleet, Rent, Run

pytestmark = pytest.mark.django_db


@pytest.fixture
def data_centre(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    """Makes the H200 nodes machines of a fake data centre."""
    driver = FakeDriver()
    monkeypatch.setitem(registry.DRIVERS, "fake", driver)
    Node.objects.filter(name__startswith="h200").update(driver="fake")
    for played in fleet.nodes.values():
        played.is_silent = True
    return driver


@pytest.fixture
def gang(rent: Rent, data_centre: FakeDriver, run_until_idle: Run) -> Instance:
    """Two replicas that run."""
    instance = rent(replicas=2, gpus=5)
    run_until_idle()
    return fresh(instance)


def fresh(instance: Instance) -> Instance:
    return Instance.objects.select_related("project__organization").get(pk=instance.pk)


def replicas_of(instance: Instance) -> list[Assignment]:
    return list(Assignment.objects.filter(instance=instance).order_by("replica"))


def states(data_centre: FakeDriver) -> list[str]:
    return [seen.state for seen in data_centre.things.values()]


def test_a_gang_runs_when_all_of_it_does(gang: Instance, data_centre: FakeDriver) -> None:
    assert gang.phase == "running"
    assert states(data_centre) == ["running", "running"]
    assert len({assignment.node_id for assignment in replicas_of(gang)}) == 2


def test_nothing_starts_while_one_replica_is_not_ready(
    rent: Rent, data_centre: FakeDriver, run_until_idle: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = data_centre.create
    monkeypatch.setattr(data_centre, "create", lambda assignment: None if assignment.replica else create(assignment))
    preparing = Observation(state="preparing")
    monkeypatch.setattr(data_centre, "observe", lambda row: data_centre.things.get(row.public_id, preparing))
    instance = rent(replicas=2, gpus=1)
    run_until_idle()
    assert fresh(instance).phase == "provisioning"
    assert states(data_centre) == ["prepared"]


def test_one_replica_that_ends_badly_ends_the_gang_with_its_code(
    gang: Instance, data_centre: FakeDriver, run_until_idle: Run
) -> None:
    data_centre.exit(replicas_of(gang)[1], exit_code=3, at=timezone.now())
    engine.wake(gang.pk)
    run_until_idle()
    gang = fresh(gang)
    assert (gang.phase, gang.exit_code) == ("stopped", 3)
    assert states(data_centre) == ["gone", "gone"]
    assert not GpuHold.objects.filter(released_at=None).exists()


def test_a_gang_ends_well_when_its_last_replica_does(
    gang: Instance, data_centre: FakeDriver, run_until_idle: Run
) -> None:
    for assignment in replicas_of(gang):
        assert fresh(gang).phase == "running"
        data_centre.exit(assignment, exit_code=0, at=timezone.now())
        engine.wake(gang.pk)
        engine.run_one(gang.pk, PLAN)
    run_until_idle()
    gang = fresh(gang)
    assert (gang.phase, gang.exit_code) == ("stopped", 0)


def test_gpus_are_given_back_only_when_every_replica_is_gone(
    gang: Instance, data_centre: FakeDriver, run_until_idle: Run, actor: Actor, monkeypatch: pytest.MonkeyPatch
) -> None:
    destroy = data_centre.destroy
    asked = []

    def slow(assignment: Assignment) -> bool:
        asked.append(assignment.replica)
        return assignment.replica > 0 and destroy(assignment)

    monkeypatch.setattr(data_centre, "destroy", slow)
    rentals.terminate(actor=actor, instance=gang, at=timezone.now())
    run_until_idle()
    assert fresh(gang).phase == "terminating"
    assert asked == [0, 1]
    assert GpuHold.objects.filter(released_at=None).count() == 10
    monkeypatch.setattr(data_centre, "destroy", destroy)
    engine.wake(gang.pk)
    run_until_idle()
    assert fresh(gang).phase == "terminated"
    assert not GpuHold.objects.filter(released_at=None).exists()
