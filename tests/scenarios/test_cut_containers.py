"""A node that runs containers is cut off and heals, with leases of seconds; all as for processes in `test_cut`."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from django.db import transaction
from django.utils import timezone

from billing import books
from billing.models import UsageSpan
from marketplace import rentals
from marketplace.access import Actor
from marketplace.models import Offer, Organization, Project
from provisioning.models import Assignment, Fabric, Gpu, GpuHold, Heartbeat, Instance, Site
from tests.conftest import make_offer
from tests.packages import needs
from tests.provisioning.agent.boxes import ImageStore, cdi_devices, home_label, remove_all_of
from tests.provisioning.agent.conftest import images
from tests.scenarios.namespaces import Machine, bridge
from tests.scenarios.play import Scene, Times, clocks, control_plane, phase, wait

__all__ = ["images"]

pytestmark = [needs("ip"), needs("podman"), pytest.mark.django_db(transaction=True)]

TIMES = Times(cut=0, strict=4, sticky=90, grace=4, drift=0.5, suspect=1.5, unreachable=2.5, sweep=0.3)
COMMAND = ["sh", "-c", "trap 'exit 0' TERM; while :; do usleep 50000; done"]


@pytest.fixture
def offer(operator: Organization, site: Site) -> Offer:
    offer = make_offer(operator, site, slug="cut", gpu_model="H200", price_micros=2_490_000)
    offer.runtime = "podman"
    offer.save()
    return offer


class Boxes:
    """The containers of the homes in a folder, as podman tells of them."""

    def __init__(self, images: ImageStore, folder: Path) -> None:
        self.images, self.folder = images, folder

    def labels(self) -> list[str]:
        return [home_label(seed.read_text()) for seed in self.folder.glob("*/seed")]

    def all(self) -> list[dict[str, Any]]:
        ask = self.images.podman.ask
        listed = [one for label in self.labels() for one in ask("ps", "--all", "--filter", label, "--format", "json")]
        return [found for one in listed if (found := self.images.podman.find(one["Id"]))]

    def of(self, instance: Instance, *, run: int) -> dict[str, Any]:
        """The state of the only container of a run."""
        name = Assignment.objects.get(instance=instance, fence=run).public_id
        (found,) = [one for one in self.all() if name in str(one["Config"]["Labels"])]
        return dict(found["State"])


@pytest.fixture
def boxes(images: ImageStore, tmp_path: Path) -> Iterator[Boxes]:
    boxes = Boxes(images, tmp_path)
    yield boxes
    for label in boxes.labels():
        remove_all_of(images.podman, label)


def moment(text: str) -> datetime:
    """Return when podman says that something was; it tells nanoseconds."""
    return datetime.fromisoformat(f"{text[:26].rstrip('Z')}+00:00" if text.endswith("Z") else text)


def test_a_cut_ends_the_strict_container_before_its_replacement_starts_and_leaves_the_sticky_one(
    actor: Actor, project: Project, offer: Offer, boxes: Boxes, tmp_path: Path
) -> None:
    fabric = Fabric.objects.create(site=offer.site, name="fabric-1", kind="ethernet")
    options = ("--runtime", "podman", "--podman-config", boxes.images.podman.env["CONTAINERS_CONF"])
    with clocks(TIMES), bridge() as switch, control_plane(switch.address, TIMES) as url:
        scene = Scene(switch=switch, url=url, folder=tmp_path, offer=offer, fabric=fabric, options=options)
        with ExitStack() as stack:
            stack.callback(scene.close)
            play(scene, boxes, actor, project, node=partial(node, scene, stack))
    assert not GpuHold.objects.filter(released_at=None).exists()
    assert books.check(at=timezone.now()) == []


def node(scene: Scene, stack: ExitStack, name: str) -> Machine:
    """Start a node whose GPUs containers find."""
    machine = scene.node(name)
    uuids = list(Gpu.objects.filter(node__name=name).order_by("index").values_list("uuid", flat=True))
    devices = scene.folder / f"{name}-devices"
    devices.mkdir()
    stack.enter_context(cdi_devices(uuids, devices))
    return machine


def play(scene: Scene, boxes: Boxes, actor: Actor, project: Project, *, node: Callable[[str], Machine]) -> None:
    left = node("left")
    rented = {}
    for lease in ("strict", "sticky"):
        order = rentals.Order(
            offer=scene.offer, command=COMMAND, name=lease, lease=lease, on_failure="restart",
            image=boxes.images.plain,
        )  # fmt: skip
        with transaction.atomic():
            rented[lease] = rentals.rent(actor=actor, project=project, order=order, at=timezone.now())
    wait(lambda: all(phase(one) == "running" for one in rented.values()), seconds=90, what="both run")
    running = Assignment.objects.filter(observed="running")  # By then its container has begun.
    wait(lambda: running.count() == len(rented), seconds=90, what="both containers")
    node("right")
    sticky_began = boxes.of(rented["sticky"], run=1)["StartedAt"]

    left.cut()
    second_run = Assignment.objects.filter(instance=rented["strict"], fence=2)
    wait(second_run.filter(observed="running").exists, seconds=90, what="the replacement")
    last_heard = Heartbeat.objects.get(node__name="left").last_seen
    first, second, sticky = (
        boxes.of(rented["strict"], run=1), boxes.of(rented["strict"], run=2), boxes.of(rented["sticky"], run=1),
    )  # fmt: skip
    assert second_run.get().node.name == "right"
    assert (first["Running"], second["Running"], sticky["Running"]) == (False, True, True)
    lease, grace, drift = (timedelta(seconds=one) for one in (TIMES.strict, TIMES.grace, TIMES.drift))
    assert last_heard < moment(first["FinishedAt"]) < last_heard + lease + grace
    assert moment(second["StartedAt"]) > last_heard + lease + grace + drift
    (cut_short,) = UsageSpan.objects.filter(resource_id=rented["sticky"].public_id)
    assert cut_short.ended_at is not None
    assert abs(cut_short.ended_at - last_heard) <= timedelta(milliseconds=1.5)

    left.heal()
    wait(
        UsageSpan.objects.filter(resource_id=rented["sticky"].public_id, ended_at=None).exists,
        seconds=60, what="the sticky one is charged again",
    )  # fmt: skip
    wait(lambda: len(boxes.all()) == 2, seconds=60, what="the strict one's first container is removed")
    assert boxes.of(rented["sticky"], run=1)["StartedAt"] == sticky_began
    assert Instance.objects.get(pk=rented["sticky"].pk).run == 1
    for instance in rented.values():
        rentals.terminate(actor=actor, instance=Instance.objects.get(pk=instance.pk), at=timezone.now())
    wait(lambda: all(phase(one) == "terminated" for one in rented.values()), seconds=90, what="both have ended")
    assert boxes.all() == []
