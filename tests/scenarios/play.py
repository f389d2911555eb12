"""One node is cut off and heals: a strict and a sticky instance on it, a spare node, and what each log and bill says.

The control plane runs in threads of this process, the agents are real and each in a network namespace of its own.
"""

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.servers.basehttp import ThreadedWSGIServer, WSGIRequestHandler
from django.core.wsgi import get_wsgi_application
from django.db import connections, transaction
from django.test import override_settings
from django.utils import timezone

from billing import rating
from billing.models import Charge, UsageSpan
from marketplace import rentals, restarts
from marketplace.access import Actor
from marketplace.models import Offer, Project
from provisioning import engine, leases, nodes
from provisioning.agent.clock import boottime
from provisioning.models import Assignment, Fabric, Heartbeat, Instance
from provisioning.steps import PLAN
from tests.nodes import announce
from tests.scenarios.conftest import ROOT
from tests.scenarios.namespaces import Bridge, Machine, bridge

# Says in a file that all share that it runs, and when: boot time, which every process of this machine reads alike.
COMMAND = (
    'while read -r up rest < /proc/uptime; do echo "$GPUMARKET_ASSIGNMENT_ID $up" >> "$STAMPS"; sleep "$TICK"; done'
)
GPUS = 2


@dataclass(frozen=True)
class Times:
    """All in seconds. The defaults are those of the product."""

    cut: float
    strict: float = 120
    sticky: float = 900
    grace: float = 30
    drift: float = 10
    suspect: float = 25
    unreachable: float = 40
    sweep: float = 5
    tick: float = 0.2
    settle: float = 60


@dataclass(frozen=True)
class Span:
    """A meter that was open, in seconds after the cut, and what was taken for it."""

    started: float
    ended: float
    charged_micros: int
    due_micros: int


@dataclass(frozen=True)
class Figures:
    """What was seen; times are seconds after the cut, on the one clock of this machine."""

    times: Times
    last_heard: float  # the last report of the cut node that counted
    strict_stopped: float  # the last stamp of its first run
    strict_replaced: float  # the first stamp of its second
    sticky_pause_longest: float  # between two stamps, over the whole scene
    sticky_run: int
    healed: float
    heard_again: float
    replaced_on: str
    strict_spans: list[Span] = field(default_factory=list)
    sticky_spans: list[Span] = field(default_factory=list)
    stamps_by_two: int = 0  # of two runs of one instance at the same time

    def as_json(self) -> dict[str, Any]:
        """Return the figures as JSON has them, with the one that matters most."""
        return asdict(self) | {"strict_gap": round(self.strict_replaced - self.strict_stopped, 3)}


def wait(ask: Callable[[], Any], *, seconds: float, what: str) -> Any:
    deadline = time.monotonic() + seconds
    while not (answer := ask()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.05)
    return answer


class QuietHandler(WSGIRequestHandler):
    def log_message(self, *_args: Any) -> None:
        """Say nothing of requests that went well."""


@contextlib.contextmanager
def control_plane(address: str, times: Times) -> Iterator[str]:
    """Answer nodes at this address, run workflows, and sweep as the worker does."""
    server = ThreadedWSGIServer((address, 0), QuietHandler)
    server.set_app(get_wsgi_application())
    over = threading.Event()
    errors: list[BaseException] = []

    def work() -> None:
        swept_at = 0.0
        try:
            while not over.wait(0.05):
                for workflow_id in engine.due(limit=100):
                    engine.run_one(workflow_id, PLAN)
                if time.monotonic() - swept_at > times.sweep:
                    swept_at = time.monotonic()
                    nodes.notice_silence(at=timezone.now(), limit=100)
                    nodes.resume_meters(at=timezone.now(), limit=100)
                    restarts.start_again(at=timezone.now(), limit=100)
        except BaseException as error:
            errors.append(error)
            raise
        finally:
            connections.close_all()

    threads = [threading.Thread(target=work), threading.Thread(target=server.serve_forever, args=(0.1,))]
    for thread in threads:
        thread.start()
    try:
        yield f"http://{address}:{server.server_port}"
    finally:
        over.set()
        server.shutdown()
        for thread in threads:
            thread.join()
        server.server_close()
    assert not errors, errors


@contextlib.contextmanager
def clocks(times: Times) -> Iterator[None]:
    """Set every time of the control plane."""
    kept = [(owner, name, getattr(owner, name)) for owner, name in (
        (leases, "GRACE"), (leases, "DRIFT"), (nodes, "SUSPECT_AFTER"), (nodes, "UNREACHABLE_AFTER"),
    )]  # fmt: skip
    seconds = (times.grace, times.drift, times.suspect, times.unreachable)
    for (owner, name, _), value in zip(kept, seconds, strict=True):
        setattr(owner, name, timedelta(seconds=value))
    lease_s = {"strict": times.strict, "sticky": times.sticky}
    try:
        with override_settings(ASSIGNMENT_LEASE_S=lease_s, ALLOWED_HOSTS=["*"]):
            yield
    finally:
        for owner, name, value in kept:
            setattr(owner, name, value)


@dataclass
class Scene:
    """The bridge, the control plane's address, the folder of the agents' homes, and more options of theirs."""

    switch: Bridge
    url: str
    folder: Path
    offer: Offer
    fabric: Fabric
    options: Sequence[str] = ()  # of the agents
    agents: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def node(self, name: str) -> Machine:
        """Announce a node, start its agent in a namespace of its own, and wait until it is heard."""
        node = announce(self.offer, self.fabric, name=name, gpus=GPUS)
        token = nodes.issue_join_token(node=node, at=timezone.now())
        machine = self.switch.machine()
        command = [
            sys.executable, "-m", "provisioning.agent.main", "--url", self.url, "--home", str(self.folder / name),
            "--gpus", f"simulated:{node.gpu_model}:{GPUS}:{node.gpu_memory_mib}", "--hostname", machine.address,
            *self.options,
        ]  # fmt: skip
        env = {"PATH": os.environ["PATH"], "GPUMARKET_JOIN_TOKEN": token}
        self.agents.append(machine.start(command, log=self.folder / f"{name}.log", env=env, cwd=ROOT))
        wait(lambda: Heartbeat.objects.filter(node=node, seq__gt=0).exists(), seconds=60, what=f"a report of {name}")
        return machine

    def close(self) -> None:
        for agent in self.agents:
            agent.kill()
            agent.wait()


def rent(scene: Scene, actor: Actor, project: Project, *, lease: str, tick: float) -> Instance:
    order = rentals.Order(
        offer=scene.offer, command=["sh", "-c", COMMAND], name=lease,
        env={"STAMPS": str(scene.folder / f"{lease}.stamps"), "TICK": str(tick)}, lease=lease, on_failure="restart",
    )  # fmt: skip
    with transaction.atomic():
        return rentals.rent(actor=actor, project=project, order=order, at=timezone.now())


def stamps_of(scene: Scene, lease: str) -> list[tuple[str, float]]:
    file = scene.folder / f"{lease}.stamps"
    lines = file.read_text().splitlines() if file.exists() else []
    return [(words[0], float(words[1])) for words in map(str.split, lines) if len(words) == 2]


def play(
    times: Times, *, folder: Path, actor: Actor, project: Project, offer: Offer, fabric: Fabric,
    say: Callable[[str], None] = lambda text: None,
) -> Figures:  # fmt: skip
    """Rent, cut, wait, heal, end; return what was seen."""
    with clocks(times), bridge() as switch, control_plane(switch.address, times) as url:
        scene = Scene(switch=switch, url=url, folder=folder, offer=offer, fabric=fabric)
        try:
            return _play(times, scene, actor, project, say)
        finally:
            scene.close()


def _play(times: Times, scene: Scene, actor: Actor, project: Project, say: Callable[[str], None]) -> Figures:
    left = scene.node("left")
    rented = {lease: rent(scene, actor, project, lease=lease, tick=times.tick) for lease in ("strict", "sticky")}
    wait(lambda: all(stamps_of(scene, lease) for lease in rented), seconds=60, what="both run")
    wait(lambda: all(phase(one) == "running" for one in rented.values()), seconds=30, what="both are known to run")
    scene.node("right")
    time.sleep(1.5)
    say("both run on the left node; cutting it off")
    cut_at, cut_on = boottime(), timezone.now()
    left.cut()
    there = Assignment.objects.filter(instance=rented["strict"])
    time.sleep(times.cut / 2)
    last_heard = Heartbeat.objects.get(node__name="left").last_seen
    say("half of the time is over")
    time.sleep(max(0, cut_at + times.cut - boottime()))
    wait(lambda: there.filter(fence=2, observed="running").exists(), seconds=times.settle, what="the replacement")
    healed = boottime() - cut_at
    left.heal()
    say("healed")
    back = Heartbeat.objects.filter(node__name="left", last_seen__gt=last_heard)
    wait(back.exists, seconds=90, what="the left node is heard again")
    # Its first report opened the meter again, or one of the next.
    spans = UsageSpan.objects.filter(resource_id=rented["sticky"].public_id)
    wait(lambda: spans.filter(ended_at=None).exists(), seconds=30, what="the sticky one is charged again")
    time.sleep(1.5)
    replaced_on = there.select_related("node").get(fence=2).node.name
    sticky_run = Instance.objects.get(pk=rented["sticky"].pk).run
    for instance in rented.values():
        rentals.terminate(actor=actor, instance=Instance.objects.get(pk=instance.pk), at=timezone.now())
    wait(lambda: all(phase(one) == "terminated" for one in rented.values()), seconds=60, what="both have ended")
    strict, sticky = stamps_of(scene, "strict"), stamps_of(scene, "sticky")
    first, second = (Assignment.objects.get(instance=rented["strict"], fence=run).public_id for run in (1, 2))
    ended = max(at for name, at in strict if name == first)
    began = min(at for name, at in strict if name == second)
    pauses = [later[1] - earlier[1] for earlier, later in pairwise(sticky)]
    charged = {lease: bill(instance, cut_on) for lease, instance in rented.items()}
    return Figures(
        times=times,
        last_heard=after(last_heard, cut_on),
        strict_stopped=round(ended - cut_at, 3),
        strict_replaced=round(began - cut_at, 3),
        sticky_pause_longest=round(max(pauses), 3),
        sticky_run=sticky_run,
        healed=round(healed, 3),
        heard_again=charged["sticky"][-1].started,
        replaced_on=replaced_on,
        strict_spans=charged["strict"],
        sticky_spans=charged["sticky"],
        stamps_by_two=sum(name == first and at >= began for name, at in strict),
    )


def phase(instance: Instance) -> str:
    return str(Instance.objects.values_list("phase", flat=True).get(pk=instance.pk))


def after(moment: datetime, cut_on: datetime) -> float:
    return round((moment - cut_on).total_seconds(), 3)


def bill(instance: Instance, cut_on: datetime) -> list[Span]:
    """Return what was measured and taken, beside what that measure costs."""
    found = []
    for span in UsageSpan.objects.filter(resource_id=instance.public_id).select_related("price_version").order_by("pk"):
        assert span.ended_at is not None
        milliseconds = (span.ended_at - span.started_at) // timedelta(milliseconds=1)
        due = rating.amount_micros(
            micros_per_unit_hour=span.price_version.micros_per_unit_hour, unit_milliseconds=milliseconds
        )
        taken = sum(Charge.objects.filter(span=span).values_list("amount_micros", flat=True))
        found.append(Span(after(span.started_at, cut_on), after(span.ended_at, cut_on), taken, due))
    return found


def poll_s() -> float:
    """Return how often a node with work is asked to call, at most."""
    return float(settings.NODE_POLL_MS["busy"]) / 1000 * 1.1
