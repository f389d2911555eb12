"""Nodes that a test plays: they speak the agent protocol from memory, without processes."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from django.utils import timezone

from provisioning import artifacts, nodes, reports
from provisioning.agent.folders import matcher
from provisioning.agent.manifest import Entry, written
from provisioning.models import GpuHold, Instance, Node, WipeRecord
from provisioning.protocol import Event, GpuFact, LogPiece, Report, Said, VolumeSaid


@dataclass
class PlayedNode:
    """A node in memory. It does at once what it is told; a test may break it through its fields."""

    node: Node
    key: str
    epoch: int = 1
    seq: int = 0
    generation: int = 0
    told: int = 0
    desired: dict[str, dict[str, Any]] = field(default_factory=dict)
    states: dict[str, dict[str, Any]] = field(default_factory=dict)
    output: list[tuple[str, int, bytes]] = field(default_factory=list)
    # The command of an instance "runs" until a test gives it an exit code here.
    exit_codes: dict[str, int] = field(default_factory=dict)
    exit_messages: dict[str, str] = field(default_factory=dict)
    fails_to_prepare: str = ""
    fails_to_start: str = ""
    never_starts: bool = False
    is_silent: bool = False
    # What its disk holds: bytes by volume. A test may lose or fill one here, or refuse new ones.
    volumes: dict[str, int] = field(default_factory=dict)
    wanted_volumes: dict[str, dict[str, Any]] = field(default_factory=dict)
    volume_trouble: str = ""
    # What a command leaves in its work folder, by instance; only what its order names as outputs is sent.
    leaves: dict[str, dict[str, bytes]] = field(default_factory=dict)
    checkpoints: dict[str, str] = field(default_factory=dict)
    boot_id: str = "boot"
    # What it tells: its journal, what came of each operation so far, and how the next of a kind will end.
    journal: list[Event] = field(default_factory=list)
    done: dict[str, dict[str, str]] = field(default_factory=dict)
    operation_ends: dict[str, tuple[str, str]] = field(default_factory=dict)
    ignores_operations: bool = False
    wipe_result: str | None = "ok"  # None: it forgets to tell.

    def sync(self, at: datetime | None = None) -> dict[str, Any]:
        """Report, hear what is wanted, and do it; the next report says so."""
        return {} if self.is_silent else sync_all([self], at=at)[0]

    def report(self) -> Report:
        """Return what it says of itself now; what is printed while that is on its way goes with the next."""
        self.seq += 1
        sent, self.output = self.output, []
        return Report(
            node=self.node.public_id,
            key=self.key,
            boot_id=self.boot_id,
            agent_epoch=self.epoch,
            seq=self.seq,
            desired_seen=self.generation,
            assignments=[
                Said(
                    id=assignment_id,
                    fence=state["fence"],
                    state=state["state"],
                    exit_code=state.get("exit_code"),
                    exited_ago_ms=0 if "exit_code" in state else None,
                    message=state.get("message", ""),
                    outputs=state.get("outputs"),
                    checkpoint=self.checkpoints.get(assignment_id),
                )
                for assignment_id, state in self.states.items()
            ],
            volumes=[self._say_volume(entry) for entry in self.wanted_volumes.values()],
            logs=[LogPiece(assignment=name, offset=offset, data=data) for name, offset, data in sent],
            events=self.journal[-500:],
        )

    def hear(self, answer: dict[str, Any]) -> None:
        """Do at once what is wanted."""
        assert answer["status"] != "error"
        self.journal = [event for event in self.journal if event.n > answer.get("events_seen", 0)]
        if "desired" in answer:
            self.generation = answer["desired_generation"]
            self.desired = {entry["id"]: entry for entry in answer["desired"]["assignments"]}
            self.states = {name: state for name, state in self.states.items() if name in self.desired}
            self.wanted_volumes = {entry["id"]: entry for entry in answer["desired"]["volumes"]}
            for operation in answer["desired"]["operations"]:
                self._operate(operation)
        for assignment_id, entry in self.desired.items():
            self.states[assignment_id] = self._do(entry, self.states.get(assignment_id))

    def _say_volume(self, entry: dict[str, Any]) -> VolumeSaid:
        name = entry["id"]
        if entry["desired"] == "gone":
            self.volumes.pop(name, None)
            return VolumeSaid(id=name, state="gone")
        if self.volume_trouble or (entry["made"] and name not in self.volumes):
            return VolumeSaid(id=name, state="failed", message=self.volume_trouble or "it is not here any more")
        used = self.volumes.setdefault(name, self.volumes.get(entry["source"], 0))
        return VolumeSaid(id=name, state="present", used_bytes=used)

    def _do(self, entry: dict[str, Any], state: dict[str, Any] | None) -> dict[str, Any]:
        fence = entry["fence"]
        if entry["desired"] == "gone":
            if (state or {}).get("state") != "gone":
                self._wipe(entry["gpus"], assignment=entry["id"], fence=fence)
            return {**(state or {}), "fence": fence, "state": "gone"}
        if self.fails_to_prepare:
            return {"fence": fence, "state": "failed", "message": self.fails_to_prepare}
        if entry["desired"] == "prepared" or state is None:
            return {"fence": fence, "state": "prepared"}
        if self.fails_to_start:
            return {"fence": fence, "state": "failed", "message": self.fails_to_start}
        if self.never_starts:
            return {"fence": fence, "state": "prepared"}
        if entry["instance"] in self.exit_codes:
            left = {"outputs": self._send(entry)} if entry["work"]["outputs"] else {}
            said = {"message": self.exit_messages.get(entry["instance"], "")}
            return {"fence": fence, "state": "exited", "exit_code": self.exit_codes[entry["instance"]], **said} | left
        return {"fence": fence, "state": "running"}

    def _send(self, entry: dict[str, Any]) -> str:
        """Send the outputs of an instance that has ended; return their manifest."""
        fits = [matcher(pattern) for pattern in entry["work"]["outputs"]]
        left = self.leaves.get(entry["instance"], {})
        return keep_folder(
            Instance.objects.get(public_id=entry["instance"]).project_id,
            {path: data for path, data in left.items() if any(fit.fullmatch(path) for fit in fits)},
        )

    def tell(self, kind: str, /, *, ago_ms: int | None = 0, **body: Any) -> None:
        """Write into the journal, for the next report."""
        self.told += 1
        self.journal.append(Event(n=self.told, kind=kind, ago_ms=ago_ms, body=body))

    def breaks(self, gpu: int | None, code: str, *, ago_ms: int | None = 0, detail: str = "") -> None:
        """Tell of a health event of one GPU, by index, or of the node."""
        uuid = "" if gpu is None else f"GPU-{self.node.name}-{gpu}"
        self.tell("health", ago_ms=ago_ms, gpu=uuid, source="nvml", code=code, detail=detail)

    def _wipe(self, gpus: list[str], **why: Any) -> None:
        for gpu in gpus if self.wipe_result is not None else []:
            scrub = {"method": "simulated", "covered_bytes": 0, "duration_ms": 1, "message": ""}
            self.tell("wipe", gpu=gpu, result=self.wipe_result, **scrub, **why)

    def _operate(self, operation: dict[str, Any]) -> None:
        if self.ignores_operations:
            return
        if operation["id"] not in self.done:
            result, message = self.operation_ends.get(operation["kind"], ("succeeded", ""))
            if operation["kind"] == "wipe":
                self._wipe([operation["gpu"]], operation=operation["id"], fence=0)
            self.done[operation["id"]] = {"operation": operation["id"], "result": result, "message": message}
        self.tell("operation", **self.done[operation["id"]])

    def prints(self, text: str, *, offset: int = 0, assignment: str = "") -> None:
        """Ship output with the next report."""
        name = assignment or next(iter(self.desired))
        self.output.append((name, offset, text.encode()))


def sync_all(played: Iterable[PlayedNode], at: datetime | None = None) -> list[dict[str, Any]]:
    """Let nodes report in one batch, as a gateway takes them, and do what they hear; return their answers."""
    speaking = [node for node in played if not node.is_silent]
    answers = reports.take_all([node.report() for node in speaking], at=at or timezone.now())
    for node, answer in zip(speaking, answers, strict=True):
        node.hear(answer)
    return answers


def keep_folder(project_id: int, files: dict[str, bytes]) -> str:
    """Store a folder for a project; return its manifest's digest."""
    at = timezone.now()
    kept = {path: artifacts.keep(project_id=project_id, data=data, at=at) for path, data in files.items()}
    entries = [Entry(path, kept[path], len(data), 0o644) for path, data in files.items()]
    return artifacts.keep(project_id=project_id, data=written(entries), at=at)


def announce(offer: Any, fabric: Any, *, name: str, gpus: int = 8, rack: str = "r1") -> Node:
    return Node.objects.create(
        name=name, fabric=fabric, offer=offer, rack=rack, gpu_model=offer.gpu_model, gpu_count=gpus, gpu_memory_mib=1000
    )


def join(node: Node, *, at: datetime | None = None) -> PlayedNode:
    """Announce nothing new: let this node in with its GPUs, and return it as one that a test plays."""
    at = at or timezone.now()
    key = f"key of {node.name}"
    secret = nodes.issue_join_token(node=node, at=at)
    nodes.join(
        secret=secret,
        key_hash=nodes.digest(key),
        boot_id="boot",
        facts={"hostname": node.name, "agent_version": "1", "runtime": "process", "gpu_source": "simulated"},
        gpus=facts(node),
        at=at,
    )
    node.refresh_from_db()
    return PlayedNode(node=node, key=key)


def wiped(instance: Instance) -> None:
    """Record that the nodes have wiped what an instance holds, as they do before they say that it is gone."""
    for held in GpuHold.objects.filter(assignment__instance=instance, released_at=None):
        WipeRecord.objects.create(
            gpu=held.gpu, assignment=held.assignment, at=timezone.now(), method="simulated", result="ok"
        )


def facts(node: Node, *, healthy: bool = True) -> list[GpuFact]:
    return [
        GpuFact(uuid=f"GPU-{node.name}-{index}", index=index, model=node.gpu_model, memory_mib=1000, healthy=healthy)
        for index in range(node.gpu_count)
    ]
