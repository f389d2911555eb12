"""Bad orders and bad luck: each container fails with its reason, nothing of it is left, nothing is charged."""

import io
import json
import os
import shutil
import socket
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from provisioning.agent import confinement, preparation
from provisioning.agent.podman import Podman, PodmanError
from provisioning.agent.protocol import Login
from tests.packages import needs
from tests.provisioning.agent.boxes import BoxNode, ImageStore, podman_of_its_own
from tests.provisioning.agent.cast import eventually
from tests.provisioning.agent.registry import Registry, digest

pytestmark = needs("podman")

LOGIN = ("robot", "correct-horse-battery")


@pytest.fixture
def registry(images: ImageStore, boxes: BoxNode, tmp_path: Path) -> Iterator[Registry]:
    """A registry that wants a password, known to the node's podman as one without TLS."""
    registry = Registry(images.archive, login=LOGIN)
    yield from served(registry, boxes, tmp_path)


@pytest.fixture
def slow_registry(images: ImageStore, boxes: BoxNode, tmp_path: Path) -> Iterator[Registry]:
    registry = Registry(noisy(images.archive, tmp_path))
    registry.pause_s = 0.05
    yield from served(registry, boxes, tmp_path)


def noisy(archive: Path, folder: Path) -> Path:
    """Return the archive with a file that does not compress: a layer that is new here, and takes its time."""
    copy = folder / "noisy.tar"
    shutil.copy(archive, copy)
    with tarfile.open(copy, "a") as tar:
        entry = tarfile.TarInfo("etc/noise")
        entry.size = 2 << 20
        tar.addfile(entry, io.BytesIO(os.urandom(entry.size)))
    return copy


def registries_file(registry: Registry, folder: Path) -> str:
    """Return the file by which podman knows a registry as one without TLS."""
    conf = folder / "registries.conf"
    conf.write_text(f'[[registry]]\nlocation = "{registry.host}"\ninsecure = true\n')
    return str(conf)


def served(registry: Registry, boxes: BoxNode, folder: Path) -> Iterator[Registry]:
    boxes.podman = Podman(boxes.podman.env | {"CONTAINERS_REGISTRIES_CONF": registries_file(registry, folder)})
    boxes.wake_up()
    yield registry
    registry.close()
    boxes.desired = {}
    for name in list(boxes.runtime._workloads):
        workload = boxes.runtime._workloads[name]
        eventually(lambda workload=workload: workload.end(grace_s=0, reason="over"))
        eventually(workload.remove)
    for one in boxes.podman.ask("images", "--format", "json"):
        if any(name.startswith(registry.host) for name in one.get("Names") or []):
            boxes.podman.run("image", "rm", "--force", one["Id"])


@pytest.mark.parametrize(
    ("command", "exit_code", "message"),
    [
        (["no-such-program"], 127, "cannot run 'no-such-program': it is not in the image"),
        (["/no/such/program"], 127, "cannot run '/no/such/program': it is not in the image"),
        (["/etc/unrunnable"], 126, "cannot run '/etc/unrunnable': it may not be executed"),
    ],
)
def test_a_command_that_cannot_run_fails_before_anybody_pays(boxes, command, exit_code, message):
    boxes.want("asg_a", "prepared", command=command)
    seen = boxes.until("asg_a", "failed")
    assert (seen.exit_code, seen.message) == (exit_code, message)
    assert boxes.containers() == []
    boxes.want("asg_a", "gone")
    boxes.until("asg_a", "gone")
    assert boxes.networks() == []


def test_an_image_that_does_not_exist_fails_with_its_reason(boxes, registry):
    boxes.logins["asg_a"] = Login(registry.host, *LOGIN)
    boxes.want("asg_a", "prepared", image=f"{registry.host}/team/absent:2")
    seen = boxes.until("asg_a", "failed")
    assert seen.message.startswith(f"the image {registry.host}/team/absent:2 could not be pulled: ")
    assert "manifest unknown" in seen.message


def test_a_local_image_is_never_pulled(boxes):
    boxes.want("asg_a", "prepared", image="localhost/absent:1")
    assert "never pulled" in boxes.until("asg_a", "failed").message
    assert boxes.asked_for_login == []


@pytest.mark.parametrize(
    "image",
    [
        *("", "--privileged", "busybox", "two words/x:1", "docker.io/x:1 y", "localhost/x:1\n"),
        # To podman these are files of the node.
        *("dir:/root", "oci:/var/lib/x", "docker-archive:x.tar", "oci-archive:/x/y.tar:z", "containers-storage:x/y"),
    ],
)
def test_what_is_no_image_is_refused(boxes, image):
    boxes.want("asg_a", "prepared", image=image)
    assert "image" in boxes.until("asg_a", "failed").message
    assert boxes.containers() == []


@pytest.mark.parametrize("path", ["/a:/etc", "/a:suid", "/a b"])
def test_what_is_no_path_for_a_volume_is_refused(boxes, path):
    (boxes.volumes.root / "vol_a").mkdir()
    boxes.want("asg_a", "prepared", volumes=[{"id": "vol_a", "path": path}])
    assert "cannot be the path" in boxes.until("asg_a", "failed").message


def test_a_volume_that_is_not_there_is_refused(boxes):
    boxes.want("asg_a", "prepared", volumes=[{"id": "vol_a", "path": "/data"}])
    assert boxes.until("asg_a", "failed").message == "the volume vol_a is not on this node"


def test_the_process_runtime_refuses_an_image(node):
    node.want("asg_a", "prepared", image="localhost/any:1")
    assert "needs --runtime podman" in node.until("asg_a", "failed").message


def test_an_image_without_a_command_needs_one_in_the_order(boxes, images):
    boxes.want("asg_a", "prepared", command=[])
    assert "neither in the order nor in the image" in boxes.until("asg_a", "failed").message
    image = images.image("speaks", 'CMD ["echo", "of the image"]')
    boxes.want("asg_b", "running", command=[], image=image)
    boxes.until("asg_b", "exited")
    assert boxes.output("asg_b") == "of the image\n"


def test_a_private_image_comes_with_a_login_that_rests_nowhere(boxes, registry, caplog):
    boxes.logins["asg_a"] = Login(registry.host, *LOGIN)
    image = f"{registry.host}/team/private:1"
    boxes.want("asg_a", "running", image=image, command=["sh", "-c", "env; echo there"])
    assert boxes.until("asg_a", "exited").exit_code == 0
    assert "there" in boxes.output("asg_a")
    assert boxes.asked_for_login == [("asg_a", 1)]
    secret = LOGIN[1]
    token = registry.expected
    everything = [path.read_bytes() for path in boxes.home.path.rglob("*") if path.is_file()]
    everything += [caplog.text.encode(), repr(boxes.logins).encode(), str(boxes.inspect("asg_a")).encode()]
    assert not any(secret.encode() in data or token.encode() in data for data in everything)
    assert not [path for path in Path("/dev/shm").iterdir() if "auth" in path.name]


def test_a_private_image_is_no_free_image_for_the_next_tenant(boxes, registry):
    boxes.logins["asg_a"] = Login(registry.host, *LOGIN)
    image = f"{registry.host}/team/private:1"
    boxes.run("asg_a", "trap exit TERM; while :; do usleep 50000; done", image=image)
    boxes.want("asg_b", "prepared", image=image)  # Without a login, while the image is on the node.
    assert "could not be pulled" in boxes.until("asg_b", "failed").message
    boxes.want("asg_a", "gone")
    boxes.until("asg_a", "gone")
    with pytest.raises(PodmanError):
        boxes.podman.run("image", "exists", image)


def test_an_image_that_somebody_pulled_with_a_login_is_had_without_one_where_the_registry_says_so(boxes, registry):
    boxes.logins["asg_a"] = Login(registry.host, *LOGIN)
    image, script = f"{registry.host}/team/public:1", "trap exit TERM; while :; do usleep 50000; done"
    boxes.run("asg_a", script, image=image)
    registry.expected = None  # It is public: who has no login is given it too.
    blobs = len([path for path in registry.asked if "/blobs/" in path and registry.layer in path])
    boxes.run("asg_b", script, image=image)
    assert boxes.look("asg_b").state == "running"
    assert len([path for path in registry.asked if "/blobs/" in path and registry.layer in path]) == blobs
    registry.expected = "another"
    boxes.want("asg_c", "prepared", image=image)
    assert "could not be pulled" in boxes.until("asg_c", "failed").message


def test_another_login_proves_itself_to_the_registry_too(boxes, registry):
    boxes.logins["asg_a"] = Login(registry.host, *LOGIN)
    boxes.logins["asg_b"] = Login(registry.host, "robot", "wrong")
    image = f"{registry.host}/team/private:1"
    boxes.run("asg_a", "trap exit TERM; while :; do usleep 50000; done", image=image)
    boxes.want("asg_b", "prepared", image=image)
    assert "could not be pulled" in boxes.until("asg_b", "failed").message


def test_a_private_image_that_is_in_use_keeps_its_mark(boxes, registry):
    boxes.logins["asg_a"] = Login(registry.host, *LOGIN)
    image, script = f"{registry.host}/team/private:1", "trap exit TERM; while :; do usleep 50000; done"
    boxes.run("asg_a", script, image=image)
    expected, registry.expected = registry.expected, None
    boxes.run("asg_b", script, image=image)  # Without a login and so without a mark of its own.
    registry.expected = expected
    boxes.want("asg_a", "gone")
    boxes.until("asg_a", "gone")
    boxes.podman.run("image", "exists", image)
    boxes.want("asg_c", "prepared", image=image)
    assert "could not be pulled" in boxes.until("asg_c", "failed").message
    boxes.want("asg_b", "gone")
    boxes.until("asg_b", "gone")
    with pytest.raises(PodmanError):
        boxes.podman.run("image", "exists", image)
    assert list((boxes.home.path / "private-images").iterdir()) == []


@pytest.mark.parametrize("is_older", [True, False])
def test_the_mark_of_an_earlier_agent_is_read_as_what_it_was(boxes, registry, is_older):
    boxes.logins["asg_a"] = Login(registry.host, *LOGIN)
    image = f"{registry.host}/team/private:1"
    boxes.run("asg_a", "trap exit TERM; while :; do usleep 50000; done", image=image)
    for mark in (boxes.home.path / "private-images").iterdir():
        mark.unlink()
    old = image if is_older else {"image": image, "id": ""}
    (boxes.home.workloads / "asg_a" / "private.json").write_text(json.dumps(old))
    boxes.wake_up()
    boxes.want("asg_b", "prepared", image=image)
    assert "could not be pulled" in boxes.until("asg_b", "failed").message
    boxes.want("asg_a", "gone")
    boxes.until("asg_a", "gone")
    with pytest.raises(PodmanError):
        boxes.podman.run("image", "exists", image)


def test_a_private_image_is_not_had_by_its_digest_in_another_repository(boxes, registry):
    boxes.logins["asg_a"] = Login(registry.host, *LOGIN)
    script = "trap exit TERM; while :; do usleep 50000; done"
    boxes.run("asg_a", script, image=f"{registry.host}/team/private:1")
    boxes.want("asg_b", "prepared", image=f"{registry.host}/mine/other@{digest(registry.manifest)}")
    assert "could not be pulled" in boxes.until("asg_b", "failed").message


def test_a_tag_beside_a_digest_is_left_out(boxes, registry):
    boxes.logins["asg_a"] = Login(registry.host, *LOGIN)
    boxes.want("asg_a", "prepared", image=f"{registry.host}/team/private:1@{digest(registry.manifest)}")
    boxes.until("asg_a", "prepared")


def test_the_customer_sees_how_far_the_pull_is(boxes, slow_registry):
    boxes.want("asg_a", "prepared", image=f"{slow_registry.host}/big:1", command=["true"])
    seen = []

    def is_prepared() -> bool:
        look = boxes.look("asg_a")
        if look.progress:
            seen.append(look.progress)
        return look.state == "prepared"

    eventually(is_prepared)
    assert {one.step for one in seen} == {"pull"}
    done = [one.done_bytes for one in seen]
    assert done == sorted(done)
    assert 0 < max(done) <= slow_registry.layer_bytes + 4096
    assert {one.total_bytes for one in seen} <= {None, slow_registry.layer_bytes}
    assert slow_registry.layer_bytes in {one.total_bytes for one in seen}
    assert max(one.bytes_per_s for one in seen) > 0
    assert not list(boxes.box("asg_a").folder.glob("pull-*"))


def test_a_pull_that_nobody_wants_any_more_is_broken_off(boxes, slow_registry):
    slow_registry.pause_s = 30
    boxes.want("asg_a", "prepared", image=f"{slow_registry.host}/big:1")
    eventually(lambda: boxes.look("asg_a").progress)
    boxes.want("asg_a", "gone")
    boxes.until("asg_a", "gone")


def test_a_host_port_that_is_taken_meanwhile_is_chosen_anew(boxes, monkeypatch):
    boxes.want("asg_a", "prepared", ports=[8080])
    taken = []
    create = preparation.Preparation._create

    def create_and_lose_the_port(self, *args):
        create(self, *args)
        if not taken:
            port = preparation.published(self._podman.find(self._name))[8080]
            taken.append(socket.create_server(("0.0.0.0", port)))

    monkeypatch.setattr(preparation.Preparation, "_create", create_and_lose_the_port)
    seen = boxes.until("asg_a", "prepared")
    (lost,) = taken
    assert seen.ports[8080] != lost.getsockname()[1]
    lost.close()


@pytest.mark.parametrize("is_there", [True, False])
def test_an_image_that_podman_lost_sight_of_is_looked_for_again(boxes, monkeypatch, is_there):
    create, said = preparation.Preparation._create, "reading image: locating image with ID 3b17: image not known"
    tries = []

    def create_or_lose_sight(self, *args):
        tries.append(1)
        if len(tries) == 1 or not is_there:
            raise PodmanError(said)
        create(self, *args)

    monkeypatch.setattr(preparation.Preparation, "_create", create_or_lose_sight)
    if not is_there:
        monkeypatch.setattr(preparation.Preparation, "_image_id", lambda self: "" if tries else "3b17")
    boxes.want("asg_a", "prepared")
    seen = boxes.until("asg_a", "prepared" if is_there else "failed")
    assert len(tries) == (2 if is_there else 1)
    assert is_there or said in seen.message


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder for podman whose images lie on a disk of three megabytes."""
    folder = tmp_path / "podman"
    (folder / "graph").mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", folder / "graph"], check=True)
    yield folder
    subprocess.run(["umount", "-R", folder / "graph"], check=True)


def test_an_image_that_the_disk_has_no_room_for_fails_with_that_reason(images, small_disk, tmp_path):
    registry = Registry(noisy(images.archive, tmp_path))
    conf = registries_file(registry, tmp_path)
    podman = Podman(podman_of_its_own(small_disk).env | {"CONTAINERS_REGISTRIES_CONF": conf})
    node = BoxNode(tmp_path / "home", podman, f"{registry.host}/big:1")
    try:
        node.want("asg_a", "prepared")
        assert "no space left on device" in node.until("asg_a", "failed").message
        node.want("asg_a", "gone")
        node.until("asg_a", "gone")
    finally:
        node.close()
        registry.close()


def test_a_full_disk_fails_the_container_and_not_the_agent(boxes, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as while_full:
        while_full.setattr(preparation.Preparation, "_mounts", full)
        boxes.want("asg_a", "prepared")
        assert "No space left on device" in boxes.until("asg_a", "failed").message
    boxes.want("asg_b", "prepared")
    boxes.until("asg_b", "prepared")


def test_more_memory_than_the_limit_is_said_to_be_the_reason(boxes, monkeypatch):
    monkeypatch.setattr(confinement, "share_of_node", lambda **_: confinement.Share(cpus=1, memory_mib=16, pids=64))
    boxes.run("asg_a", "tail -c 100m /dev/zero; exit $?")
    seen = boxes.until("asg_a", "exited")
    assert seen.exit_code == 137
    assert seen.message == "killed: it needed more memory than its limit of 16777216 bytes"


def test_a_podman_that_is_not_there_keeps_the_agent_from_starting(plane, start_agent):
    agent = start_agent("--runtime", "podman", env={"PATH": "/nowhere"})
    assert agent.exit_code() == 2
    assert "cannot run podman" in agent.log
