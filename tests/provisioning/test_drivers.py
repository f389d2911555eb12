"""One contract for every driver: keyed by our id, each call repeatable, nothing started twice, nothing left."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from django.utils import timezone

from marketplace import rentals
from marketplace.access import Actor
from marketplace.models import Offer
from provisioning.drivers import registry
from provisioning.drivers.agent import AgentDriver
from provisioning.drivers.fake import FakeDriver
from provisioning.drivers.protocol import Driver
from provisioning.drivers.slurm import SlurmDriver
from provisioning.models import Assignment, GpuHold, Node
from tests.conftest import Rent, Run
from tests.packages import needs

pytestmark = pytest.mark.django_db


@dataclass
class DataCentre:
    """A driver, and how its machines catch up and end a command."""

    driver: Driver
    settle: Callable[[], None]
    exit: Callable[[Assignment, int], None]
    offer: Offer
    command: list[str] = field(default_factory=lambda: ["sleep", "1000"])


# A driver joins the contract by a function that returns its data centre, and a line here.
@pytest.fixture(params=["agent", "fake", pytest.param("slurm", marks=needs("slurmctld"))])
def data_centre(request: pytest.FixtureRequest) -> DataCentre:
    makers = {"agent": _agents, "fake": _fake, "slurm": _slurm}
    return makers[request.param](request)


def _fake(request: pytest.FixtureRequest) -> DataCentre:
    fake, fleet = FakeDriver(), request.getfixturevalue("fleet")

    def end(row: Assignment, exit_code: int) -> None:
        fake.exit(row, exit_code=exit_code, at=timezone.now())

    return DataCentre(fake, lambda: None, end, fleet.h200)


def _agents(request: pytest.FixtureRequest) -> DataCentre:
    fleet = request.getfixturevalue("fleet")

    def settle() -> None:
        for _ in range(3):  # fetch, do, tell
            fleet.sync()

    def end(row: Assignment, exit_code: int) -> None:
        for played in fleet.nodes.values():
            played.exit_codes[row.instance.public_id] = exit_code
        settle()

    return DataCentre(AgentDriver(), settle, end, fleet.h200)


def _slurm(request: pytest.FixtureRequest) -> DataCentre:
    stage = request.getfixturevalue("slurm")
    word = Path(tempfile.mkdtemp(dir=stage.daemons.folder)) / "exit"
    word.parent.chmod(0o755)

    def end(row: Assignment, exit_code: int) -> None:
        part = word.with_suffix(".part")
        part.write_text(str(exit_code))
        part.rename(word)
        stage.until(lambda: Assignment.objects.get(pk=row.pk).observed == "exited")

    script = f"until [ -f {word} ]; do sleep 0.05; done; exit $(cat {word})"
    return DataCentre(SlurmDriver(), stage.settle, end, stage.offer, ["sh", "-c", script])


@pytest.fixture
def assignment(rent: Rent, data_centre: DataCentre) -> Assignment:
    instance = rent(gpus=2, offer=data_centre.offer, command=data_centre.command)
    return Assignment.objects.select_related("instance").get(instance=instance)


def look(data_centre: DataCentre, assignment: Assignment) -> Any:
    data_centre.settle()
    assignment.refresh_from_db()
    return data_centre.driver.observe(assignment)


def test_what_was_created_is_prepared_with_its_gpus_and_not_started(
    data_centre: DataCentre, assignment: Assignment
) -> None:
    for _ in range(2):
        data_centre.driver.create(assignment)
        seen = look(data_centre, assignment)
        assert (seen.state, seen.gpu_uuids) == ("prepared", tuple(assignment.gpu_uuids))
    assert len(seen.gpu_uuids) == 2


def test_what_was_started_runs_and_is_not_created_anew(data_centre: DataCentre, assignment: Assignment) -> None:
    data_centre.driver.create(assignment)
    data_centre.settle()
    for _ in range(2):
        data_centre.driver.start(assignment)
        assert look(data_centre, assignment).state == "running"
    data_centre.driver.create(assignment)
    assert look(data_centre, assignment).state == "running"


def test_a_command_that_ended_says_how_and_is_never_started_again(
    data_centre: DataCentre, assignment: Assignment
) -> None:
    data_centre.driver.create(assignment)
    data_centre.settle()
    data_centre.driver.start(assignment)
    data_centre.settle()
    data_centre.exit(assignment, 3)
    data_centre.driver.start(assignment)
    seen = look(data_centre, assignment)
    assert (seen.state, seen.exit_code) == ("exited", 3)
    assert abs((seen.exited_at - datetime.now(UTC)).total_seconds()) < 5


@pytest.mark.parametrize("how_far", ["not created", "created", "started", "ended"])
def test_destroying_leaves_nothing_whatever_was_there(
    data_centre: DataCentre, assignment: Assignment, how_far: str
) -> None:
    if how_far != "not created":
        data_centre.driver.create(assignment)
        data_centre.settle()
    if how_far in {"started", "ended"}:
        data_centre.driver.start(assignment)
        data_centre.settle()
    if how_far == "ended":
        data_centre.exit(assignment, 0)
    data_centre.driver.destroy(assignment)
    assert look(data_centre, assignment).state == "gone"
    assert data_centre.driver.destroy(assignment)
    assert data_centre.driver.destroy(assignment)


def test_a_late_worker_does_not_bring_back_what_is_to_go(data_centre: DataCentre, assignment: Assignment) -> None:
    data_centre.driver.create(assignment)
    data_centre.settle()
    data_centre.driver.destroy(assignment)
    data_centre.driver.create(assignment)
    data_centre.driver.start(assignment)
    assert look(data_centre, assignment).state == "gone"


def test_an_instance_lives_its_whole_life_on_another_driver(
    rent: Rent, run_until_idle: Run, actor: Actor, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeDriver()
    monkeypatch.setitem(registry.DRIVERS, "fake", fake)
    Node.objects.update(driver="fake")
    instance = rent(gpus=8, replicas=2)
    run_until_idle()
    instance.refresh_from_db()
    assert instance.phase == "running"
    assert {thing.state for thing in fake.things.values()} == {"running"}
    rentals.terminate(actor=actor, instance=instance, at=timezone.now())
    run_until_idle()
    instance.refresh_from_db()
    assert instance.phase == "terminated"
    assert {thing.state for thing in fake.things.values()} == {"gone"}
    assert not GpuHold.objects.filter(released_at=None).exists()
