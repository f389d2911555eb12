"""Makes a container ready: everything from its image to the moment before its first instruction.

So what is wrong with an order (no such image, no such command, no room) is known before anybody is charged for it.
"""

import contextlib
import json
import logging
import os
import re
import threading
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from provisioning.agent import confinement, volumes
from provisioning.agent.clock import boot_id
from provisioning.agent.environment import (
    HOSTFILE,
    METADATA,
    WORKSPACE,
    container_environment,
    replica_address,
    replica_names,
)
from provisioning.agent.events import pci_address
from provisioning.agent.files import write_json
from provisioning.agent.gpus import Gpu
from provisioning.agent.images import LOCAL, Aborted, Pull, for_podman
from provisioning.agent.network import Wiring, address_in, published
from provisioning.agent.podman import PodmanError, reason
from provisioning.agent.protocol import Assignment
from provisioning.agent.workloads import Progress

if TYPE_CHECKING:
    from provisioning.agent.containers import Containers, ContainerWorkload

log = logging.getLogger("gpumarket.agent")

TRIES = 3
NOT_FOUND, NOT_EXECUTABLE = 127, 126
NO_SUCH_GPU = "unresolvable CDI devices"
NO_SUCH_IMAGE = "image not known"
GPU_NODE = re.compile(r"nvidia([0-9]+)")  # In /dev; the number is the driver's own, which never moves.
DRIVER_GPUS = Path("/proc/driver/nvidia/gpus")
OTHER_GPUS = (
    "the CDI specification of this node gave other GPUs than those rented; its operator must write it anew, with GPUs "
    "by UUID: nvidia-ctk cdi generate --device-name-strategy=uuid"
)


class NotStartable(Exception):
    """What was ordered cannot run here; the message is for the customer."""

    def __init__(self, message: str, *, exit_code: int | None = None) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Preparation:
    """Makes a container ready, from its image to everything but the first instruction, in a thread of its own."""

    def __init__(
        self, kind: "Containers", workload: "ContainerWorkload", wanted: Assignment, gpus: Sequence[Gpu]
    ) -> None:
        self._kind = kind
        self._podman = kind.podman
        self._workload = workload
        self._folder = workload.folder
        self._wanted = wanted
        self._image = for_podman(wanted.image)
        self._gpus = gpus
        self._name = kind.container_name(workload.origin)
        self._pull: Pull | None = None
        self._is_aborted = False
        self._thread = threading.Thread(target=self._run, name=f"prepare-{wanted.id}", daemon=True)
        self._thread.start()

    @property
    def is_under_way(self) -> bool:
        """Return whether the thread works."""
        return self._thread.is_alive()

    @property
    def progress(self) -> Progress | None:
        """How far the pull is, if there is one."""
        return self._pull.progress if self._pull else None

    def abort(self) -> None:
        """Stop pulling; nobody wants it any more."""
        self._is_aborted = True
        if self._pull is not None:
            self._pull.abort()

    def _run(self) -> None:
        try:
            with self._kind.private.wanted(self._image):
                self._bring_image()
                if not self._is_aborted:
                    self._make_ready()
        except Aborted:
            return
        except NotStartable as error:
            self._workload.give_up(str(error), exit_code=error.exit_code)
        except (PodmanError, OSError) as error:
            self._workload.give_up(f"the container could not be made ready: {error}")
        except Exception:
            log.exception("preparing failed", extra={"assignment": self._wanted.id})
            self._workload.give_up("the container could not be made ready; the agent's log says why")

    def _bring_image(self) -> None:
        image = self._image
        found = self._image_id()
        if image.startswith(LOCAL):
            if not found:
                raise NotStartable(f"the image {image} is not on this node, and {LOCAL} images are never pulled")
            return
        # Podman finds a digest in any repository: only the registry can say whether it is in the one that is named.
        # Whom it gives a private image, it alone can say too; what is here already is not sent again.
        if found and "@" not in image and not self._kind.private.covers(image, found):
            return
        login = self._kind.login(self._wanted.id, self._wanted.fence)
        if login is not None:
            self._kind.private.mark(image, "")
        # Set before the look at `_is_aborted`: an abort sees the pull, or the pull sees the abort.
        self._pull = Pull(self._podman, image, login=login, folder=self._folder)
        if self._is_aborted:
            return
        try:
            self._pull.run()
        except PodmanError as error:
            raise NotStartable(f"the image {image} could not be pulled: {error}") from error
        finally:
            self._pull = None
        if login is not None:
            self._kind.private.mark(image, self._image_id())

    def _image_id(self) -> str:
        """Return the ID of the image that podman would take, or nothing."""
        try:
            return self._podman.run("image", "inspect", "--format", "{{.Id}}", self._image).strip()
        except PodmanError:
            return ""

    def _make_ready(self) -> None:
        image = self._podman.ask("image", "inspect", self._image)[0]
        if not self._wanted.command and not any(map((image.get("Config") or {}).get, ("Cmd", "Entrypoint"))):
            raise NotStartable("there is no command to run, neither in the order nor in the image")
        wiring = self._kind.networks.make(self._wanted)
        write_json(self._folder / "network.json", wiring.name)
        found = self._initialize(image, wiring)
        self._check_gpus(found)
        self._kind.networks.join_hosts(self._wanted)
        where = {"ports": published(found), "address": address_in(found)}
        ready = {"boot_id": boot_id(), **where, "image_digest": image.get("Digest") or None}
        write_json(self._folder / "prepared.json", ready)

    def _check_gpus(self, found: Any) -> None:
        """Refuse a container with other GPUs than the rented ones, before anything of the customer's runs in it.

        A specification that names GPUs by index may be older than the driver's present count.
        """
        devices = Path("/proc", str(found["State"]["Pid"]), "root", "dev")
        there = {int(match[1]) for device in devices.iterdir() if (match := GPU_NODE.fullmatch(device.name))}
        if are_others(there, self._gpus):
            self._podman.run("rm", "--force", "--volumes", "--time", "0", self._name)
            raise NotStartable(OTHER_GPUS)

    def _initialize(self, image: Mapping[str, Any], wiring: Wiring) -> Any:
        """Return the container, ready to start. A host port that was taken meanwhile is chosen anew."""
        names = [gpu.uuid for gpu in self._gpus]
        tries = TRIES
        while True:
            found = self._podman.find(self._name)
            try:
                if found is None:
                    self._create(image, wiring, names)
                    found = self._podman.find(self._name)
                if found["State"]["Status"] not in {"initialized", "running"}:
                    self._init()
                return self._podman.find(self._name)
            except PodmanError as error:
                said, tries = str(error), tries - 1
                if tries and self._is_passing(said):
                    continue
                self._podman.run("rm", "--force", "--volumes", "--time", "0", self._name)
                if NO_SUCH_GPU in said and names != [str(gpu.index) for gpu in self._gpus]:
                    names = [str(gpu.index) for gpu in self._gpus]  # Specifications may name GPUs by number alone.
                elif "address already in use" not in said or not tries:
                    raise explained(error, self._wanted) from error

    def _is_passing(self, said: str) -> bool:
        """Return whether the next try finds it otherwise; nothing was made by this one."""
        if "is already in use" in said and self._name in said:
            return True  # An agent that was killed had asked for it: the next look finds and adopts it.
        # Podman loses sight of an image while another podman of this node pulls or removes one.
        return NO_SUCH_IMAGE in said and bool(self._image_id())

    def _create(self, image: Mapping[str, Any], wiring: Wiring, gpus: Sequence[str]) -> None:
        variables = container_environment(self._wanted) | volumes.variables(self._kind.binds(self._wanted))
        handle, environment = confinement.environment_file(variables)
        share = confinement.share_of_node(gpus=len(gpus), node_gpus=self._kind.node_gpus())
        try:
            self._podman.run(
                *("create", "--name", self._name, "--pull", "never", "--log-driver", "passthrough"),
                *self._labels(),
                *wiring.words,
                *confinement.isolation(self._wanted, image),
                *confinement.limits(share),
                *environment,
                *("--workdir", confinement.workdir(image)),
                *self._mounts(),
                *(word for gpu in gpus for word in ("--device", f"nvidia.com/gpu={gpu}")),
                *(word for port in dict.fromkeys(self._wanted.ports) for word in ("--publish", str(port))),
                *self._neighbours(),
                self._image,
                *self._wanted.command,
                pass_fds=(handle,),
            )
        finally:
            os.close(handle)

    def _labels(self) -> list[str]:
        origin = self._workload.origin
        labels = {
            "home": self._kind.home,
            "assignment": origin.id,
            "fence": str(origin.fence),
            "instance": origin.instance,
            "origin": json.dumps(origin.as_json()),
        }
        return [word for name, value in labels.items() for word in ("--label", f"gpumarket.{name}={value}")]

    def _mounts(self) -> list[str]:
        words = ["--volume", f"{self._folder / 'work'}:{WORKSPACE}:rw,nosuid,nodev"]
        self._workload.metadata.mkdir(mode=0o755, exist_ok=True)
        words += ["--volume", f"{self._workload.metadata}:{METADATA}:ro,nosuid,nodev,noexec"]
        for bind in self._kind.binds(self._wanted):
            access = "ro" if bind.read_only else "rw"
            words += ["--volume", f"{bind.source}:{bind.target}:{access},nosuid,nodev"]
        if names := replica_names(self._wanted):
            slots = max(1, len(self._wanted.gpus))
            (self._folder / "hostfile").write_text("".join(f"{name} slots={slots}\n" for name in names))
            (self._folder / "hostfile").chmod(0o644)
            words += ["--volume", f"{self._folder / 'hostfile'}:{HOSTFILE}:ro"]
        return words

    def _neighbours(self) -> list[str]:
        names = enumerate(replica_names(self._wanted))
        others = [(name, replica_address(self._wanted, number)) for number, name in names]
        return [word for name, address in others for word in ("--add-host", f"{name}:{address}")]

    def _init(self) -> None:
        """Have everything set up but the first instruction.

        Podman's own two streams become the container's, and its folder that of the monitor, which notes there that
        the memory ran out.
        """
        theirs = os.open(self._folder / "pipe", os.O_RDWR)
        ours = os.open(self._folder / "pipe", os.O_RDONLY | os.O_NONBLOCK)
        try:
            self._podman.run("init", self._name, stdout=theirs, stderr=theirs, cwd=self._folder)
        except PodmanError as error:
            raise PodmanError(reason(read_all(ours)) or str(error)) from error
        else:
            read_all(ours)  # Podman's words about it. Nothing in the container has begun.
        finally:
            os.close(theirs)
            os.close(ours)


def are_others(there: Collection[int], gpus: Sequence[Gpu], *, folder: Path = DRIVER_GPUS) -> bool:
    """Say whether these minor numbers are those of other GPUs, or of more or fewer.

    Where neither NVML nor the driver's own files tell the number of a GPU, it may be any of them.
    """
    known = {minor for gpu in gpus if (minor := minor_of(gpu, folder=folder)) is not None}
    return len(there) != len(gpus) or not known <= set(there)


def minor_of(gpu: Gpu, *, folder: Path = DRIVER_GPUS) -> int | None:
    """Return the number of a GPU's device node: as NVML tells it, or else as the driver's own file does."""
    minor = gpu.facts.get("minor_number")
    if isinstance(minor, int):
        return minor
    bus_id = gpu.facts.get("pci_bus_id")
    for file in folder.glob("*/information"):
        with contextlib.suppress(OSError, ValueError):
            facts = dict(re.findall(r"(?m)^([^:\n]+):[ \t]*(.*?)[ \t]*$", file.read_text()))
            is_it = facts.get("GPU UUID") == gpu.uuid
            if isinstance(bus_id, str) and "Bus Location" in facts:
                is_it |= pci_address(facts["Bus Location"]) == pci_address(bus_id)
            if is_it and facts.get("Device Minor", "").isdigit():
                return int(facts["Device Minor"])
    return None


def read_all(pipe: int) -> bytes:
    """Return what waits in a pipe."""
    said = b""
    with contextlib.suppress(BlockingIOError):
        while piece := os.read(pipe, 1 << 16):
            said += piece
    return said


def explained(error: PodmanError, wanted: Assignment) -> Exception:
    """Return the error in the customer's words where it is about the order, and as it is otherwise."""
    said = str(error)
    program = wanted.command[0] if wanted.command else "its command"
    if "executable file not found" in said or ("no such file or directory" in said.lower() and "exec" in said):
        return NotStartable(f"cannot run {program!r}: it is not in the image", exit_code=NOT_FOUND)
    if "permission denied" in said.lower() and "exec" in said:
        return NotStartable(f"cannot run {program!r}: it may not be executed", exit_code=NOT_EXECUTABLE)
    if NO_SUCH_GPU in said:
        return NotStartable(f"the node's CDI specification does not know the rented GPUs: {said}")
    return error
