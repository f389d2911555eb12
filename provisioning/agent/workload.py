"""The process runtime: an assignment is a folder, and what its shim runs there.

The process runtime is for development: a command runs as the agent's own user and sees the machine. Nothing here
isolates tenants from each other. The folder is the truth; this object may be forgotten and made again at any time.
"""

import contextlib
import fcntl
import json
import logging
import os
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from provisioning.agent.clock import boot_id, boottime
from provisioning.agent.environment import command_environment
from provisioning.agent.files import read_json, remove_tree, sync_folder, write_json, write_json_in_room
from provisioning.agent.folders import room_of
from provisioning.agent.gpus import Gpu
from provisioning.agent.lease import MACHINE_RESTARTED, SUPERVISOR_KILLED
from provisioning.agent.limits import BEFORE
from provisioning.agent.loneliness import why_not_alone
from provisioning.agent.protocol import ID, Assignment
from provisioning.agent.volumes import link_into, variables
from provisioning.agent.workloads import KILLED, OUTPUT_LIMIT_BYTES, Binds, Entry, Files, Look, Origin, Workload

log = logging.getLogger("gpumarket.agent")

PACKAGE_ROOT = Path(__file__).parents[2]
SHIM_TRIES = 3
SHELLS = ("/bin/bash", "/bin/sh")
HUNG_SHIM_S = 5.0  # After the grace: how long a shim may take to kill what is left before we do it ourselves.


class Processes:
    """The process runtime of one node: folders below `root`."""

    name = "process"

    def __init__(self, root: Path, *, binds: Binds = lambda _: ()) -> None:
        self._root = root
        self._binds = binds

    def find(self) -> dict[str, Workload]:
        return find_workloads(self._root, binds=self._binds)

    def make(self, wanted: Assignment) -> Workload:
        return make_workload(self._root, Origin.of(wanted), binds=self._binds)

    def refusal(self, wanted: Assignment) -> str:
        if wanted.image:
            return "this node runs processes, not images; it needs --runtime podman"
        if not wanted.command:
            return "there is no command to run"
        return "" if wanted.work.has_network else why_not_alone()


class ProcessWorkload:
    """Keeps the promise of `Workload` for a command that runs as the agent's own user."""

    def __init__(self, folder: Path, origin: Origin, *, binds: Binds = lambda _: ()) -> None:
        self.folder = folder
        self.origin = origin
        self._binds = binds
        self._shim: subprocess.Popen[bytes] | None = None
        self._tries = 0
        self._killing_from: float | None = None
        self._stop: tuple[float, str] | None = None
        self._last_look: Look | None = None  # Once the folder goes, there is nothing to look at.
        self._removal: threading.Thread | None = None
        self._is_removed = False

    @property
    def output(self) -> Path:
        """The file with all that the command wrote."""
        return self.folder / "output"

    @property
    def metadata(self) -> Path:
        """The folder in which the command finds what it is told."""
        return self.folder / "metadata"

    def prepare(self, wanted: Assignment, gpus: Sequence[Gpu]) -> None:
        """Do nothing: the folder is all that a process needs."""

    def start(self, wanted: Assignment, gpus: Sequence[Gpu]) -> None:
        """See to it that the command is started, once and never again. Until it is, `look` says prepared."""
        if self._shim is not None and self._shim.poll() is None:
            return
        ordered = read_json(self.folder / "order.json")
        if ordered is not None and ordered["boot_id"] != boot_id():
            self.cancel("the machine restarted while it was being started")  # A power cut may have lost the claim.
            return
        if self._tries == SHIM_TRIES:
            log.error("no supervisor starts; shim.log may say why", extra={"folder": str(self.folder)})
            self.cancel("its supervisor could not be started; see the agent's log")
            return
        self._tries += 1
        workdir, binds = self.folder / "work", self._binds(wanted)
        indices = sorted(gpu.index for gpu in gpus)
        env = command_environment(wanted, gpu_indices=indices, workdir=workdir, mark=self.origin.mark)
        env |= variables(binds, work=workdir) | {"GPUMARKET_METADATA": str(self.metadata)}
        try:
            link_into(workdir, binds)
            self._launch(
                command=wanted.command,
                env=env,
                volumes=[str(bind.source) for bind in binds],
                has_network=wanted.work.has_network,
            )
        except OSError as error:
            log.warning("cannot start a supervisor", extra={"assignment": self.origin.id, "error": str(error)})

    def _launch(
        self, *, command: Sequence[str], env: dict[str, str], volumes: Sequence[str], has_network: bool = True
    ) -> None:
        order = {
            "command": list(command),
            "env": env,
            "volumes": list(volumes),
            "has_network": has_network,
            "output_limit_bytes": OUTPUT_LIMIT_BYTES,
            "files": BEFORE,
            "boot_id": boot_id(),
        }
        write_json(self.folder / "order.json", order)
        with (self.folder / "shim.log").open("ab") as complaints:
            self._shim = subprocess.Popen(  # noqa: S603  our own program
                [sys.executable, "-P", "-S", "-m", "provisioning.agent.shim", str(self.folder)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=complaints,  # Not ours: who reads the agent's standard error must see its end.
                cwd="/",
                env={"PYTHONPATH": str(PACKAGE_ROOT)},
                start_new_session=True,
            )

    def cancel(self, reason: str) -> bool:
        """Make sure that the command never starts; False if it is too late for that."""
        own = self.folder / f".claim-{secrets.token_hex(4)}"
        own.write_text("0")
        try:
            os.link(own, self.folder / "claim")
        except FileExistsError:
            return False
        finally:
            own.unlink()
        self._write_end("failed", f"never started: {reason}")
        return True

    def look(self) -> Look:
        """Return what is true now. The end of a workload whose shim was killed is written down here."""
        if self._last_look is not None:
            return self._last_look
        if self._shim is not None:
            self._shim.poll()  # Reaps it, if it has ended.
        end = self._end()
        if end is None:
            if not (self.folder / "claim").exists():
                return Look("prepared")
            if self._shim_pid() is not None:
                return Look("running", message=self._stop[1] if self._stop else "")
            end = self._end() or self._write_lost_end()
        is_this_boot = end["boot_id"] == boot_id()
        why = [end["message"], self._stop[1] if self._stop else (read_json(self._stop_file) or {}).get("reason", "")]
        return Look(
            state=end["state"],
            exit_code=end["exit_code"],
            exited_at=end["at"] if is_this_boot and end["state"] == "exited" else None,
            message="; ".join(filter(None, why)),
        )

    def end(self, *, grace_s: float, reason: str) -> bool:
        """Take a step towards nothing of it running; return whether that is so.

        All of its processes get SIGTERM and, `grace_s` later, SIGKILL. A later call may shorten the grace.
        """
        look = self.look()
        if look.has_ended or (look.state == "prepared" and self.cancel(reason)):
            return True
        now = boottime()
        if self._stop is None or self._stop[0] > grace_s:
            self._stop = (grace_s, reason)
            write_json(self._stop_file, {"grace_s": grace_s, "reason": reason})
            self._killing_from = min(self._killing_from or now + grace_s, now + grace_s)
            self._signal_shim(signal.SIGTERM)
        if self._killing_from is not None and now > self._killing_from + HUNG_SHIM_S:
            self._kill_all()
        return False

    def remove(self) -> bool:
        """Take a step towards nothing being left of an ended workload; return whether that is so."""
        if self._is_removed:
            return True
        self._last_look = self.look()
        assert self._last_look.has_ended
        if self._removal is None or not self._removal.is_alive():
            # In a thread: a big folder takes long, and others must not wait.
            self._removal = threading.Thread(target=self._remove, name=f"remove-{self.origin.id}", daemon=True)
            self._removal.start()
        self._removal.join(timeout=0.02)
        return self._is_removed

    def _remove(self) -> None:
        if self._shim is not None:
            self._shim.wait()  # It has written the end and is leaving; let no zombie stay.
        kill_marked(self.origin.mark)
        doomed = self.folder.with_name(f".old-{self.folder.name}")
        try:
            if self.folder.exists():
                self.folder.rename(doomed)
            if doomed.exists():
                remove_tree(doomed)
            self._is_removed = True
        except OSError as error:
            log.warning("cannot remove a folder yet", extra={"assignment": self.origin.id, "error": str(error)})
            threading.Event().wait(1.0)

    def entry(self, command: str | None, *, tty: bool, env: Mapping[str, str]) -> Entry:
        """Return a shell in the working folder, with the command's own environment."""
        order = read_json(self.folder / "order.json") or {"env": {}}
        return Entry(
            # Not as a login shell: /etc/profile would take the command's own PATH away.
            argv=(next(filter(os.path.exists, SHELLS)),) if command is None else ("/bin/sh", "-c", command),
            env=order["env"] | dict(env),
            cwd=str(self.folder / "work"),
        )

    def files(self) -> Files:
        """Return the working folder and the volumes that it leads to. It confines nobody: see above."""
        order = read_json(self.folder / "order.json") or {}
        return Files(self.folder / "work", volumes=tuple(map(Path, order.get("volumes", []))))

    def kept_bytes(self) -> int:
        """Return what its working folder takes. What it writes elsewhere is not its own: it confines nobody."""
        return room_of(self.folder / "work")

    def address(self) -> str:
        """Return the node's own address, which the command shares."""
        return "127.0.0.1"

    def image_digest(self) -> None:
        """Return None: a process comes from no image."""

    @property
    def _stop_file(self) -> Path:
        return self.folder / "stop.json"

    def _end(self) -> Any:
        return read_json(self.folder / "end.json")

    def _write_end(self, state: str, message: str, *, exit_code: int | None = None) -> dict[str, Any]:
        end = {"state": state, "exit_code": exit_code, "message": message, "at": boottime(), "boot_id": boot_id()}
        write_json(self.folder / "end.json", end)
        return end

    def _write_lost_end(self) -> dict[str, Any]:
        kill_marked(self.origin.mark)
        if not (self.folder / "started").exists():
            return self._write_end("failed", "never started: its supervisor was killed")
        end = {
            "state": "exited",
            "exit_code": KILLED,
            "message": SUPERVISOR_KILLED if self._is_of_this_boot() else MACHINE_RESTARTED,
            "at": boottime(),
            "boot_id": "",  # Nobody saw when: the time compares with no clock.
        }
        write_json_in_room(self.folder / "end.json", end)
        return end

    def _is_of_this_boot(self) -> bool:
        return bool((read_json(self.folder / "order.json") or {}).get("boot_id") == boot_id())

    def _shim_pid(self) -> int | None:
        """Return the pid of the shim if it lives: it does as long as it locks its claim."""
        try:
            claim = os.open(self.folder / "claim", os.O_RDWR)
        except FileNotFoundError:
            return None
        try:
            # Shared: two who ask at once must not take each other for the shim.
            fcntl.flock(claim, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = int(os.read(claim, 32))
            assert pid > 1  # What means "everybody" to kill(2) is no shim.
            return pid
        else:
            return None
        finally:
            os.close(claim)

    def _signal_shim(self, number: int) -> None:
        pid = self._shim_pid()
        if pid is not None:
            os.kill(pid, number)

    def _kill_all(self) -> None:
        """Kill without the shim's help, for a shim that was stopped or hangs."""
        pid = self._shim_pid()
        if pid is None:
            return
        log.warning("a supervisor hangs; killing it", extra={"assignment": self.origin.id, "pid": pid})
        try:
            shim = psutil.Process(pid)
            for process in [*shim.children(recursive=True), shim]:
                kill(process)
        except psutil.NoSuchProcess:
            pass


def make_workload(root: Path, origin: Origin, *, binds: Binds = lambda _: ()) -> ProcessWorkload:
    """Make the folder of a workload, whole or not at all."""
    building = root / f".new-{origin.id}"
    if building.exists():
        remove_tree(building)
    (building / "work").mkdir(parents=True, mode=0o700)
    (building / "metadata").mkdir()
    write_json(building / "assignment.json", origin.as_json())
    folder = root / origin.id
    building.rename(folder)
    sync_folder(root)
    return ProcessWorkload(folder, origin, binds=binds)


def find_workloads(root: Path, *, binds: Binds = lambda _: ()) -> dict[str, Workload]:
    """Return what earlier agents left here, by assignment; finish the removals that they began."""
    found: dict[str, Workload] = {}
    for folder in sorted(root.iterdir()):
        if ID.fullmatch(folder.name):
            found[folder.name] = ProcessWorkload(folder, read_origin(folder), binds=binds)
        elif folder.name.startswith((".new-", ".old-")):
            try:
                remove_tree(folder)
            except OSError as error:
                log.warning("cannot remove a folder; the next start tries again", extra={"error": str(error)})
    return found


def read_origin(folder: Path) -> Origin:
    """Return what a folder was made for. One that does not say is nobody's, and will be removed as an orphan."""
    try:
        return Origin.from_json(json.loads((folder / "assignment.json").read_bytes()))
    except (OSError, ValueError, TypeError, KeyError):
        return Origin(id=folder.name, fence=-1, instance="", gpus=(), stop_grace_s=0)


def kill_marked(mark: str) -> None:
    """Kill what carries a workload's mark in its environment: what a killed shim left, or what it cannot hold."""
    for process in psutil.process_iter():
        try:
            if process.environ().get("GPUMARKET_MARK") == mark:
                kill(process)
        except psutil.Error:
            continue  # It ended, or is not ours to look at.


def kill(process: psutil.Process) -> None:
    """Send SIGKILL to exactly this process, which may have ended meanwhile."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process.kill()
