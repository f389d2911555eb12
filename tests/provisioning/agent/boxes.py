"""What the tests with real containers share: a podman for this machine, a tiny image, a node stepped by hand."""

import hashlib
import io
import json
import os
import secrets
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from provisioning.agent.cleaning import SimulatedCleaner
from provisioning.agent.containers import Containers, ContainerWorkload
from provisioning.agent.podman import Podman, PodmanError
from provisioning.agent.protocol import Login
from provisioning.agent.runtime import Runtime
from provisioning.agent.volumes import Volumes
from provisioning.agent.wiping import Wiper
from tests.provisioning.agent.cast import Node, eventually

BUSYBOX = Path("/bin/busybox")
CDI = Path("/var/run/cdi")
# crun refuses hybrid cgroups, and without CAP_SYS_RESOURCE limits cannot be raised: what a container on a build machine
# needs. A real node needs none of it.
CONF = """\
[containers]
default_ulimits = ["nofile=4096:4096","nproc=4096:4096"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
"""


def config_file(folder: Path) -> str:
    """Return the configuration that podman needs here: this machine's own where it has one."""
    own = os.environ.get("CONTAINERS_CONF")
    if own:
        return own
    path = folder / "containers.conf"
    path.write_text(CONF)
    return str(path)


def podman_of_its_own(folder: Path) -> Podman:
    """Return a podman that shares nothing with the machine's: no images, containers, networks or locks."""
    (folder / "storage.conf").write_text(
        f'[storage]\ndriver = "overlay"\nrunroot = "{folder}/run"\ngraphroot = "{folder}/graph"\n'
    )
    # Locks in files of its own: those in shared memory belong to the machine's podman.
    folders = {"tmp_dir": "tmp", "static_dir": "static", "volume_path": "volumes"}
    engine = "".join(f'{name} = "{folder}/{inner}"\n' for name, inner in folders.items())
    network = f'[network]\nnetwork_config_dir = "{folder}/networks"\n'
    (folder / "containers.conf").write_text(f'{CONF}lock_type = "file"\n{engine}{network}')
    names = {"CONTAINERS_CONF": "containers.conf", "CONTAINERS_STORAGE_CONF": "storage.conf"}
    return Podman(Podman.here().env | {name: str(folder / file) for name, file in names.items()})


def root_archive(folder: Path) -> Path:
    """Return an archive with the root of an image: busybox under all of its names, a user, an unrunnable file."""
    archive = folder / "root.tar"
    names = subprocess.run([BUSYBOX, "--list"], capture_output=True, text=True, check=True).stdout.split()
    with tarfile.open(archive, "w") as tar:
        for name in ("bin", "etc", "root", "tmp", "proc", "sys", "dev", "usr"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        tar.add(BUSYBOX, "bin/busybox")
        for name, target in {"lib": "usr/lib", "lib64": "usr/lib64"}.items():  # For a test that mounts the host's.
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            tar.addfile(entry)
        for name in names:
            if name != "busybox":
                entry = tarfile.TarInfo(f"bin/{name}")
                entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
                tar.addfile(entry)
        for name, content in {
            "etc/passwd": b"root:x:0:0:root:/root:/bin/sh\nguest:x:1000:1000::/tmp:/bin/sh\n",
            "etc/unrunnable": b"#!/bin/sh\n",
        }.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return archive


class ImageStore:
    """Images of this test run, removed at its end."""

    def __init__(self, folder: Path) -> None:
        self.podman = Podman.here(config=config_file(folder))
        self.archive = root_archive(folder)
        self.tag = secrets.token_hex(4)
        self.plain = self.image("plain")

    def image(self, name: str, *changes: str) -> str:
        """Return an image with busybox; `changes` are lines of a Containerfile."""
        image = f"localhost/gm-test-{self.tag}-{name}:1"
        words = [word for change in changes for word in ("--change", change)]
        self.podman.run("import", "--quiet", *words, str(self.archive), image)
        return image

    def close(self) -> None:
        eventually(self._is_empty)

    def _is_empty(self) -> bool:
        """Remove our images; return whether none was left. Podman refuses where another removes its own just then."""
        with suppress(PodmanError):
            ours = f"reference=localhost/gm-test-{self.tag}-*"
            left = self.podman.ask("images", "--filter", ours, "--format", "json")
            if not left:
                return True
            self.podman.run("image", "rm", "--force", *(one["Id"] for one in left))
        return False


class BoxNode(Node):
    """A node that runs containers, stepped by hand."""

    must_be_sealed = False

    def __init__(self, path: Path, podman: Podman, image: str) -> None:
        self.podman = podman
        self.image = image
        self.logins: dict[str, Login] = {}
        self.asked_for_login: list[tuple[str, int]] = []
        self.network_key = bytes(32)
        super().__init__(path)

    def _make_runtime(self) -> Runtime:
        self.volumes = Volumes(root=self.home.path / "volumes", document=self.home.document, changed=self.news.set)
        self.kind = Containers(
            self.podman,
            root=self.home.workloads,
            identity=self.home.seed(),
            node_gpus=lambda: len(self.gpus),
            login=self._login,
            network_key=lambda _assignment, _fence: self.network_key,
            must_be_sealed=self.must_be_sealed,
            binds=self.volumes.binds,
        )
        self.wiper = Wiper(
            home=self.home.path, journal=self.journal, cleaner=SimulatedCleaner(), excused=lambda gpu: nullcontext()
        )
        runtime = Runtime(
            home=self.home,
            lease=self.lease,
            kind=self.kind,
            inventory=self.monitor.inventory,
            changed=self.news.set,
            wiper=self.wiper,
            volumes=self.volumes,
            store=self.store,
        )
        runtime.LOG_WAIT_S = 0
        return runtime

    def _login(self, assignment: str, fence: int) -> Login | None:
        self.asked_for_login.append((assignment, fence))
        return self.logins.get(assignment)

    def wake_up(self) -> None:
        self._shims += [box._guard for box in self.runtime._workloads.values() if isinstance(box, ContainerWorkload)]
        self._stop_carriers()
        self.lease = type(self.lease)(self.home)
        self.runtime = self._make_runtime()

    def want(self, name: str, desired: str, /, **changes: Any) -> None:
        super().want(name, desired, **({"image": self.image} | changes if name not in self.desired else changes))

    def box(self, name: str) -> ContainerWorkload:
        """What the runtime holds of an assignment."""
        box = self.runtime._workloads[name]
        assert isinstance(box, ContainerWorkload)
        return box

    def run(self, name: str, script: str, /, **changes: Any) -> None:
        self.want(name, "running", command=["sh", "-c", script], **changes)
        eventually(lambda: self.look(name).state in {"running", "exited", "failed"})

    def said(self, name: str, script: str, /, **changes: Any) -> str:
        """Run a script to its end; return what it wrote."""
        self.run(name, script, **changes)
        seen = self.until(name, "exited")
        assert seen.exit_code == 0, (seen, self.output(name))
        return self.output(name)

    def inspect(self, name: str) -> Any:
        """What podman knows of an assignment's container."""
        return self.podman.find(self.box(name)._name)

    def guard_pid(self, name: str) -> int:
        pid = self.box(name)._guard_pid()
        assert pid is not None
        return pid

    def containers(self) -> list[str]:
        """The names of all containers of this home."""
        label = f"label=gpumarket.home={self.kind.home}"
        return [one["Names"][0] for one in self.podman.ask("ps", "--all", "--filter", label, "--format", "json")]

    def networks(self) -> list[str]:
        """The names of all networks of this home."""
        label = f"label=gpumarket.home={self.kind.home}"
        return self.podman.run("network", "ls", "--quiet", "--filter", label).split()

    def close(self) -> None:
        try:
            super().close()
        finally:
            remove_all_of(self.podman, home_label(self.home.seed()))


def home_label(seed: str) -> str:
    """Return the label of all that belongs to the agent with this seed."""
    return f"label=gpumarket.home={hashlib.sha256(seed.encode()).hexdigest()[:12]}"


def remove_all_of(podman: Podman, label: str) -> None:
    """Remove containers and networks by their label, and nothing else."""

    def is_empty() -> bool:
        left = podman.ask("ps", "--all", "--filter", label, "--format", "json")
        for one in left:
            with suppress(PodmanError):  # It may be ending at this very moment.
                podman.run("rm", "--force", "--volumes", "--time", "0", one["Id"])
        return not left

    eventually(is_empty)
    for name in podman.run("network", "ls", "--quiet", "--filter", label).split():
        with suppress(PodmanError):  # A gang's network may still have the container of another home.
            podman.run("network", "rm", name)


@contextmanager
def cdi_devices(
    gpus: list[str], folder: Path, *, named_by_index: bool = False, edits_for_all: dict[str, Any] | None = None
) -> Iterator[None]:
    """Have a CDI specification with a device node for each GPU, as nvidia-ctk writes it for real ones."""
    devices = []
    for index, uuid in enumerate(gpus):
        node = folder / f"nvidia{index}"
        os.mknod(node, 0o600 | 0o020000, os.makedev(1, 5))  # Reads as zeros: enough of a GPU to be told apart.
        node.chmod(0o666)
        edits = {"deviceNodes": [{"path": f"/dev/nvidia{index}", "hostPath": str(node)}]}
        devices.append({"name": str(index) if named_by_index else uuid, "containerEdits": edits})
    spec = {
        "cdiVersion": "0.5.0",
        "kind": "nvidia.com/gpu",
        "devices": devices,
        "containerEdits": edits_for_all or {"env": ["NVIDIA_VISIBLE_DEVICES=void"]},
    }
    CDI.mkdir(parents=True, exist_ok=True)
    path = CDI / f"gm-test-{secrets.token_hex(6)}.json"
    path.write_text(json.dumps(spec))
    try:
        yield
    finally:
        path.unlink()
