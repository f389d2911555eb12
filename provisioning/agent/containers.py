"""The podman runtime: an assignment is a container of podman's, a folder, and the guard that stays with the container.

The container's name holds assignment and fence, so the second `create` finds the first; its labels hold all that the
agent must know of it, so a home that lost a folder makes it anew. Podman's commands are slow and may hang: they run in
threads of their own and in the guard, and what the runtime asks is answered from files.

In the folder, beside what `guard` describes: assignment.json (the labels again), prepared.json (what the container got
when it was made ready), work/ (seen inside as /workspace) and hostfile (of a gang).
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import re
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from provisioning.agent.clock import boot_id, boottime
from provisioning.agent.environment import WORKSPACE
from provisioning.agent.files import read_json, remove_tree, sync_folder, write_json
from provisioning.agent.folders import room_of
from provisioning.agent.gpus import Gpu
from provisioning.agent.guard import take_claim
from provisioning.agent.images import NAME
from provisioning.agent.lease import MACHINE_RESTARTED
from provisioning.agent.network import Networks
from provisioning.agent.podman import Podman, PodmanError
from provisioning.agent.preparation import Preparation
from provisioning.agent.private_images import PrivateImages
from provisioning.agent.protocol import ID, Assignment, Login
from provisioning.agent.workloads import KILLED, OUTPUT_LIMIT_BYTES, Binds, Entry, Files, Look, Origin, Workload

log = logging.getLogger("gpumarket.agent")

PACKAGE_ROOT = Path(__file__).parents[2]
PATH = re.compile(r"(/[\w.-]+)+", re.ASCII)
GUARD_TRIES = 3
GUARD_PAUSE_S = 1.0  # Between two guards of one container.
HUNG_GUARD_S = 8.0  # After the grace: how long a guard may take before the next one gets its turn.
SHELL = 'shell=$(command -v bash || echo /bin/sh); exec "$shell" -l'


class Containers:
    """The podman runtime of one agent's home; other agents may have containers in the same podman."""

    name = "podman"

    def __init__(
        self,
        podman: Podman,
        *,
        root: Path,
        identity: str,
        node_gpus: Callable[[], int],
        login: Callable[[str, int], Login | None] = lambda _assignment, _fence: None,
        network_key: Callable[[str, int], bytes],
        must_be_sealed: bool = False,
        binds: Binds = lambda _: (),
    ) -> None:
        self.podman = podman
        self.root = root
        self.home = hashlib.sha256(identity.encode()).hexdigest()[:12]
        self.networks = Networks(podman, home=self.home, key=network_key, must_be_sealed=must_be_sealed)
        self.node_gpus = node_gpus
        self.login = login  # Asked just before a pull.
        self.binds = binds
        self.podman.run("version")  # Raises now what every assignment would meet later.
        self.private = PrivateImages(podman, folder=root.parent / "private-images", workloads=root)

    def find(self) -> dict[str, Workload]:
        containers = self._containers()
        found: dict[str, Workload] = {}
        for folder in sorted(self.root.iterdir()):
            if ID.fullmatch(folder.name):
                found[folder.name] = ContainerWorkload(self, folder, read_origin(folder))
            elif folder.name.startswith((".new-", ".old-")):
                remove_tree(folder)
        for name, origin in containers.items():
            kept = found.get(origin.id)
            if kept is None:
                log.warning("a container lost its folder; making it anew", extra={"container": name})
                found[origin.id] = self._make(origin)
            elif self.container_name(kept.origin) != name:
                self.podman.run("rm", "--force", "--volumes", "--time", "0", name)
        return found

    def _containers(self) -> dict[str, Origin]:
        """Return all containers of this home, with what their labels say."""
        listed = self.podman.ask("ps", "--all", "--filter", f"label=gpumarket.home={self.home}", "--format", "json")
        found = {}
        for one in listed:
            try:
                found[one["Names"][0]] = Origin.from_json(json.loads(one["Labels"]["gpumarket.origin"]))
            except (ValueError, TypeError, KeyError):
                log.error("a container of ours does not say what it is; removing it", extra={"container": one["Id"]})
                self.podman.run("rm", "--force", "--volumes", "--time", "0", one["Id"])
        return found

    def make(self, wanted: Assignment) -> Workload:
        return self._make(Origin.of(wanted))

    def _make(self, origin: Origin) -> "ContainerWorkload":
        building = self.root / f".new-{origin.id}"
        if building.exists():
            remove_tree(building)
        (building / "work").mkdir(parents=True, mode=0o700)
        (building / "metadata").mkdir(mode=0o755)
        os.mkfifo(building / "pipe", 0o600)
        write_json(building / "assignment.json", origin.as_json())
        folder = self.root / origin.id
        building.rename(folder)
        sync_folder(self.root)
        return ContainerWorkload(self, folder, origin)

    def refusal(self, wanted: Assignment) -> str:
        if not wanted.image:
            return "this node runs images; there is none in the order (a bare command needs --runtime process)"
        if not NAME.fullmatch(wanted.image):
            return f"{wanted.image!r} is not the full name of an image, such as registry.example.com/team/app:1.0"
        for mount in wanted.volumes:
            if not PATH.fullmatch(mount.path) or ".." in mount.path.split("/"):
                return f"{mount.path!r} cannot be the path of a volume"
        return ""

    def container_name(self, origin: Origin) -> str:
        """Return the name of a container: one for each home, assignment and fence."""
        return f"gm-{self.home}-{origin.id}-f{origin.fence}"


class ContainerWorkload:
    """Keeps the promise of `Workload` for a container."""

    def __init__(self, kind: Containers, folder: Path, origin: Origin) -> None:
        self.folder = folder
        self.origin = origin
        self._kind = kind
        self._name = kind.container_name(origin)
        self._preparation: Preparation | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._guarded_at = -GUARD_PAUSE_S
        self._tries = 0
        self._stop: tuple[float, str] | None = None
        self._killing_from: float | None = None
        self._last_look: Look | None = None
        self._removal: threading.Thread | None = None
        self._is_removed = False
        # Held besides the guard: what is in a pipe that nobody has open any more is lost.
        self._pipe = os.open(folder / "pipe", os.O_RDWR | os.O_NONBLOCK) if (folder / "pipe").exists() else None

    @property
    def output(self) -> Path:
        return self.folder / "output"

    @property
    def metadata(self) -> Path:
        return self.folder / "metadata"

    def prepare(self, wanted: Assignment, gpus: Sequence[Gpu]) -> None:
        if self._preparation is None or not self._preparation.is_under_way:
            self._preparation = Preparation(self._kind, self, wanted, gpus)

    def start(self, wanted: Assignment, gpus: Sequence[Gpu]) -> None:
        if self._guard is not None and self._guard.poll() is None:
            return
        if self._tries == GUARD_TRIES:
            self.cancel("its guard could not be started; guard.log may say why")
            return
        self._tries += 1
        order = {
            "container": self._name,
            "podman_env": self._kind.podman.env,
            "output_limit_bytes": OUTPUT_LIMIT_BYTES,
            "boot_id": boot_id(),
        }
        write_json(self.folder / "order.json", order)
        self._launch()

    def _launch(self) -> None:
        self._guarded_at = time.monotonic()
        try:
            with (self.folder / "guard.log").open("ab") as complaints:
                self._guard = subprocess.Popen(  # noqa: S603  our own program
                    [sys.executable, "-P", "-S", "-m", "provisioning.agent.guard", str(self.folder)],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=complaints,
                    cwd="/",
                    env={"PYTHONPATH": str(PACKAGE_ROOT)},
                    start_new_session=True,
                )
        except OSError as error:
            log.warning("cannot start a guard", extra={"assignment": self.origin.id, "error": str(error)})

    def cancel(self, reason: str) -> bool:
        return self.give_up("; ".join(filter(None, ["never started", reason])))

    def give_up(self, message: str, *, exit_code: int | None = None) -> bool:
        """Write down that the command never starts; False if it is too late for that."""
        claim = take_claim(self.folder)
        if claim is None:
            return False
        try:
            if (self.folder / "started").exists():
                return False
            if not (self.folder / "end.json").exists():
                self._write_end("failed", message, exit_code=exit_code, boot=boot_id())
            return True
        finally:
            os.close(claim)

    def _write_end(self, state: str, message: str, *, exit_code: int | None, boot: str) -> None:
        end = {"state": state, "exit_code": exit_code, "message": message, "at": boottime(), "boot_id": boot}
        write_json(self.folder / "end.json", end)

    def look(self) -> Look:
        if self._last_look is not None:
            return self._last_look
        if self._guard is not None:
            self._guard.poll()  # Reaps it, if it has ended.
        end = read_json(self.folder / "end.json")
        if end is not None:
            return self._look_at_end(end)
        ready = read_json(self.folder / "prepared.json") or {}
        ports = {int(inside): outside for inside, outside in ready.get("ports", {}).items()}
        if (self.folder / "started").exists():
            self._see_to_guard()
            # Between the mark and podman's answer nobody can get inside yet.
            state = "running" if (self.folder / "running").exists() else "prepared"
            return Look(state, message=self._stop[1] if self._stop else "", ports=ports)
        if ready.get("boot_id") == boot_id():
            return Look("prepared", ports=ports)
        return Look("preparing", progress=self._preparation.progress if self._preparation else None)

    def _look_at_end(self, end: Mapping[str, Any]) -> Look:
        is_this_boot = end["boot_id"] == boot_id()
        why = [end["message"], self._stop[1] if self._stop else (read_json(self._stop_file) or {}).get("reason", "")]
        return Look(
            state=end["state"],
            exit_code=end["exit_code"],
            exited_at=end["at"] if is_this_boot and end["state"] == "exited" else None,
            message="; ".join(filter(None, dict.fromkeys(why))),
        )

    def _see_to_guard(self) -> None:
        """Put a guard to a container that lost its own, or write down the end that a restart of the machine was."""
        if self._guard_pid() is not None or time.monotonic() < self._guarded_at + GUARD_PAUSE_S:
            return
        if (read_json(self.folder / "end.json")) is not None:
            return
        order = read_json(self.folder / "order.json") or {}
        if order.get("boot_id") != boot_id():
            message = f"{MACHINE_RESTARTED}; the exit code is assumed"
            self._write_end("exited", message, exit_code=KILLED, boot="")
            return
        self._launch()

    def end(self, *, grace_s: float, reason: str) -> bool:
        look = self.look()
        if look.has_ended:
            return True
        if look.state in {"preparing", "prepared"}:
            if self._preparation is not None and self._preparation.is_under_way:
                self._preparation.abort()
                return False
            if self.cancel(reason):
                return True
        now = boottime()
        if self._stop is None or self._stop[0] > grace_s:
            self._stop = (grace_s, reason)
            write_json(self._stop_file, {"grace_s": grace_s, "reason": reason})
            self._killing_from = min(self._killing_from or now + grace_s, now + grace_s)
            self._signal_guard(signal.SIGTERM)
        if self._killing_from is not None and now > self._killing_from + HUNG_GUARD_S:
            log.warning("a guard hangs; another one takes its place", extra={"assignment": self.origin.id})
            self._killing_from = now
            self._signal_guard(signal.SIGKILL)
        return False

    def remove(self) -> bool:
        if self._is_removed:
            return True
        self._last_look = self.look()
        assert self._last_look.has_ended
        if self._preparation is not None and self._preparation.is_under_way:
            self._preparation.abort()  # What it makes now must not be there after the removal.
            return False
        if self._removal is None or not self._removal.is_alive():
            self._removal = threading.Thread(target=self._remove, name=f"remove-{self.origin.id}", daemon=True)
            self._removal.start()
        self._removal.join(timeout=0.02)
        return self._is_removed

    def _remove(self) -> None:
        podman = self._kind.podman
        if self._guard is not None:
            self._guard.wait()
        doomed = self.folder.with_name(f".old-{self.folder.name}")
        try:
            if podman.find(self._name) is not None:
                podman.run("rm", "--force", "--volumes", "--time", "0", self._name)
            self._kind.networks.remove(read_json(self.folder / "network.json") or "")
            self._kind.private.tidy()
            if self.folder.exists():
                self.folder.rename(doomed)
            if doomed.exists():
                remove_tree(doomed)
            if self._pipe is not None:
                os.close(self._pipe)
                self._pipe = None
            self._is_removed = True
        except (OSError, PodmanError) as error:
            log.warning("cannot remove a container yet", extra={"assignment": self.origin.id, "error": str(error)})
            threading.Event().wait(1.0)

    def entry(self, command: str | None, *, tty: bool, env: Mapping[str, str]) -> Entry:
        """Return `podman exec` of a shell. The variables' values are in the environment, not among the arguments."""
        words = ["podman", "exec", "--interactive", *(["--tty"] if tty else [])]
        safe = {name: value for name, value in env.items() if name not in self._kind.podman.env}
        for name in safe:
            words += ["--env", name]
        return Entry(
            argv=(*words, self._name, "/bin/sh", "-c", SHELL if command is None else command),
            env=safe | self._kind.podman.env,
            cwd="/",
        )

    def files(self) -> Files:
        """Return the work folder as the container sees it. Raises PodmanError where it has ended."""
        found = self._kind.podman.find(self._name)
        pid = 0 if found is None else int(found["State"]["Pid"])
        if not pid:
            raise PodmanError("the container has ended")
        return Files(Path(WORKSPACE), pid=pid)

    def kept_bytes(self) -> int:
        """Return what its work folder takes, and what it wrote over its image."""
        (found,) = self._kind.podman.ask("container", "inspect", "--size", self._name)
        return room_of(self.folder / "work") + int(found.get("SizeRw") or 0)

    def address(self) -> str:
        ready = read_json(self.folder / "prepared.json") or {}
        return str(ready.get("address", ""))

    def image_digest(self) -> str | None:
        return (read_json(self.folder / "prepared.json") or {}).get("image_digest")

    @property
    def _stop_file(self) -> Path:
        return self.folder / "stop.json"

    def _guard_pid(self) -> int | None:
        """Return the pid of the guard if it lives: it does as long as it locks its claim."""
        claim = take_claim_to_look(self.folder)
        if claim is None:
            try:
                return int((self.folder / "claim").read_text() or 0) or None
            except (OSError, ValueError):
                return None
        os.close(claim)
        return None

    def _signal_guard(self, number: int) -> None:
        pid = self._guard_pid()
        if pid is not None and pid not in {0, 1, os.getpid()}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


def take_claim_to_look(folder: Path) -> int | None:
    """Return the claim, locked for a look, or None while a guard holds it."""

    claim = os.open(folder / "claim", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        # Shared: two who look at once must not take each other for a guard.
        fcntl.flock(claim, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(claim)
        return None
    return claim


def read_origin(folder: Path) -> Origin:
    """Return what a folder was made for. One that does not say is nobody's, and will be removed as an orphan."""
    try:
        return Origin.from_json(json.loads((folder / "assignment.json").read_bytes()))
    except (OSError, ValueError, TypeError, KeyError):
        return Origin(id=folder.name, fence=-1, instance="", gpus=(), stop_grace_s=0, mark=secrets.token_hex(8))
