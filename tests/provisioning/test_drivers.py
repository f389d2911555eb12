"""One contract for every driver: keyed by our id, each call repeatable, nothing started twice, nothing left."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from django.utils import timezone

from marketplace import rentals
from marketplace.access import Actor
from marketplace.models import Offer
from provisioning import nodes, reports
from provisioning.agent.sync import assignment_report
from provisioning.drivers import registry
from provisioning.drivers.agent import AgentDriver
from provisioning.drivers.fake import FakeDriver
from provisioning.drivers.protocol import Driver
from provisioning.drivers.slurm import SlurmDriver
from provisioning.models import Assignment, Fabric, GpuHold, Node
from provisioning.protocol import Inventory, Report
from tests.conftest import Rent, Run, make_offer
from tests.nodes import announce
from tests.packages import needs
from tests.provisioning.agent.boxes import cdi_devices
from tests.provisioning.agent.cast import Node as Machine
from tests.provisioning.agent.cast import eventually
from tests.provisioning.agent.conftest import boxes, home, images, node

__all__ = ["boxes", "home", "images", "node"]  # Fixtures of the agent's own tests.

pytestmark = pytest.mark.django_db


@dataclass
class DataCentre:
    """A driver, and how its machines catch up and end a command."""

    driver: Driver
    settle: Callable[[], None]
    exit: Callable[[Assignment, int], None]
    offer: Offer
    command: list[str] = field(default_factory=lambda: ["sleep", "1000"])
    image: str = ""


# A driver, or a runtime of the agent's, joins the contract by a function that returns its data centre, and a line here.
@pytest.fixture(
    params=[
        "fake",
        "played",
        "process",
        pytest.param("podman", marks=needs("podman")),
        pytest.param("slurm", marks=needs("slurmctld")),
    ]
)
def data_centre(request: pytest.FixtureRequest) -> DataCentre:
    makers = {"fake": _fake, "played": _played, "process": _process, "podman": _podman, "slurm": _slurm}
    return makers[request.param](request)


def _fake(request: pytest.FixtureRequest) -> DataCentre:
    fake, fleet = FakeDriver(), request.getfixturevalue("fleet")

    def end(row: Assignment, exit_code: int) -> None:
        fake.exit(row, exit_code=exit_code, at=timezone.now())

    return DataCentre(fake, lambda: None, end, fleet.h200)


def _played(request: pytest.FixtureRequest) -> DataCentre:
    fleet = request.getfixturevalue("fleet")

    def settle() -> None:
        for _ in range(3):  # fetch, do, tell
            fleet.sync()

    def end(row: Assignment, exit_code: int) -> None:
        for played in fleet.nodes.values():
            played.exit_codes[row.instance.public_id] = exit_code
        settle()

    return DataCentre(AgentDriver(), settle, end, fleet.h200)


def _process(request: pytest.FixtureRequest) -> DataCentre:
    """An agent's own runtime that runs processes."""
    return _agent(request, request.getfixturevalue("node"), runtime="process", word="word")


def _podman(request: pytest.FixtureRequest) -> DataCentre:
    """An agent's own runtime that runs containers, in a real podman."""
    boxes, folder = request.getfixturevalue("boxes"), request.getfixturevalue("tmp_path")
    devices = cdi_devices(boxes.gpus, folder)
    devices.__enter__()
    request.addfinalizer(lambda: devices.__exit__(None, None, None))
    return _agent(request, boxes, runtime="podman", word="/workspace/word", image=boxes.image)


def _agent(request: pytest.FixtureRequest, machine: Machine, *, runtime: str, word: str, image: str = "") -> DataCentre:
    operator, site = request.getfixturevalue("operator"), request.getfixturevalue("site")
    offer = make_offer(operator, site, slug=f"h200-{runtime}", gpu_model="H200", price_micros=1_000_000)
    gpus = len(machine.gpus)
    Offer.objects.filter(pk=offer.pk).update(runtime=runtime, gpus_per_node=gpus)
    offer.refresh_from_db()
    fabric = Fabric.objects.create(site=site, name=f"fabric-{runtime}", kind="ethernet")
    node = announce(offer, fabric, name=f"machine-{runtime}", gpus=gpus)
    line = Line(machine, node)
    line.join(runtime)

    def settle() -> None:
        eventually(line.is_settled, seconds=30)

    def end(row: Assignment, exit_code: int) -> None:
        (machine.work(row.public_id) / "word").write_text(str(exit_code))
        eventually(lambda: line.exchange() and Assignment.objects.get(pk=row.pk).observed == "exited", seconds=30)

    script = f"until [ -s {word} ]; do sleep 0.05; done; exit $(cat {word})"
    return DataCentre(AgentDriver(), settle, end, offer, ["sh", "-c", script], image)


@dataclass
class Line:
    """Carries the words of an agent's runtime, stepped by hand, to the control plane and back, without HTTP."""

    machine: Machine
    node: Node
    seq: int = 0

    def join(self, runtime: str) -> None:
        inventory = msgspec.convert(self.machine.monitor.inventory().as_json(), Inventory)
        nodes.join(
            secret=nodes.issue_join_token(node=self.node, at=timezone.now()),
            key_hash=nodes.digest("key"),
            boot_id="boot",
            facts={"hostname": "machine", "agent_version": "1", "runtime": runtime, "gpu_source": "simulated"},
            gpus=inventory.gpus,
            at=timezone.now(),
        )

    def exchange(self) -> bool:
        """Let the machine take a step, tell of it, and hear what should be."""
        self.machine.runtime.step()
        self.seq += 1
        report = {
            "node": self.node.public_id,
            "key": "key",
            "boot_id": "boot",
            "agent_epoch": 1,
            "seq": self.seq,
            "desired_seen": self.machine.home.document().generation,
            "assignments": [assignment_report(one) for one in self.machine.runtime.observed],
            "events": self.machine.journal.waiting(100),
        }
        [answer] = reports.take_all([msgspec.convert(report, Report)], at=timezone.now())
        assert answer["status"] == "ok"
        self.machine.journal.note_seen(answer.get("events_seen", 0))
        if "desired" in answer:
            self.machine.home.adopt_document(generation=answer["desired_generation"], desired=answer["desired"])
        return True

    def is_settled(self) -> bool:
        """Exchange once; return whether everything is as it should be, or ended by itself."""
        self.exchange()
        ends = {"exited", "failed", "gone"}
        rows = Assignment.objects.filter(node=self.node)
        return all(row.observed in {row.desired} | (ends if row.desired != "gone" else set()) for row in rows)


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
    instance = rent(gpus=2, offer=data_centre.offer, command=data_centre.command, image=data_centre.image)
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
