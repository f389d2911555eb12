"""The replicas of a gang reach each other by name on a network of their own: on one host, and over two."""

import ctypes
import os
import secrets
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.packages import needs
from tests.provisioning.agent.boxes import BoxNode, ImageStore, podman_of_its_own
from tests.provisioning.agent.cast import eventually

pytestmark = [needs("podman"), needs("ip")]

CLONE_NEWNET = 0x40000000
SERVE = "echo hello from $RANK > index.html; trap exit TERM; httpd -p 8080; while :; do usleep 50000; done"
ASK = """
until timeout 2 wget -q -O - http://replica-0:8080/ 2> /dev/null; do usleep 200000; done
cat $GPUMARKET_HOSTFILE
echo $RANK/$WORLD_SIZE $GPUMARKET_PEERS $MASTER_ADDR $NCCL_SOCKET_IFNAME
ip -4 -o address show $NCCL_SOCKET_IFNAME | grep -o 'inet [0-9.]*'
"""


def gang_of_two(replica: int, *, number: int, peers: list[str]) -> dict[str, Any]:
    prefix = f"10.{129 + number // 256 % 64}.{number % 256}"
    return {
        "instance": f"ins_t{number}",
        "replica": replica,
        "replicas": 2,
        "peers": peers,
        "network": {"vni": 70_000 + number, "subnet": f"{prefix}.0/24", "address": f"{prefix}.{10 + replica}"},
    }


def check_that_they_meet(first: BoxNode, second: BoxNode, gang: Callable[[int], dict[str, Any]]) -> None:
    first.want("asg_a", "running", command=["sh", "-c", SERVE], **gang(0))
    second.want("asg_b", "running", command=["sh", "-c", ASK], **gang(1))

    def is_over() -> bool:
        first.look("asg_a")
        return second.look("asg_b").state in {"exited", "failed"}

    eventually(is_over)
    assert second.look("asg_b").exit_code == 0, (second.look("asg_b"), second.output("asg_b"))
    addresses = [gang(replica)["network"]["address"] for replica in (0, 1)]
    assert second.output("asg_b").splitlines() == [
        "hello from 0",
        "replica-0 slots=1",
        "replica-1 slots=1",
        f"1/2 replica-0,replica-1 {addresses[0]} eth0",
        f"inet {addresses[1]}",
    ]


def check_that_nothing_is_left(*nodes: BoxNode) -> None:
    for node, name in zip(nodes, ("asg_a", "asg_b"), strict=True):
        node.want(name, "gone")
        node.until(name, "gone")
    assert all(node.networks() == [] and node.containers() == [] for node in nodes)


def test_two_agents_on_one_host_share_the_gangs_network(images: ImageStore, tmp_path: Path):
    number = secrets.randbelow(1 << 14)
    nodes = [BoxNode(tmp_path / name, images.podman, images.plain) for name in ("one", "two")]
    try:
        check_that_they_meet(*nodes, lambda replica: gang_of_two(replica, number=number, peers=["host", "host"]))
        check_that_nothing_is_left(*nodes)
    finally:
        for node in nodes:
            node.close()


def test_a_subnet_that_another_network_holds_is_a_failure_with_its_reason(boxes, images):
    number = secrets.randbelow(1 << 14)
    gang = gang_of_two(0, number=number, peers=["host", "host"])
    name = f"gm-test-{images.tag}-net"
    images.podman.run("network", "create", "--subnet", gang["network"]["subnet"], name)
    try:
        boxes.want("asg_a", "prepared", **gang)
        assert "subnet" in boxes.until("asg_a", "failed").message
    finally:
        images.podman.run("network", "rm", name)


class Host:
    """A network namespace with a podman of its own: as much of a second machine as there can be on one."""

    def __init__(self, name: str, folder: Path, archive: Path) -> None:
        self.name = name
        self.folder = folder
        folder.mkdir()
        self.podman = podman_of_its_own(folder)
        with self.entered():
            self.podman.run("import", "--quiet", str(archive), "localhost/gm-test:1")
            self.node = BoxNode(folder / "home", self.podman, "localhost/gm-test:1")

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Be in this host's network, with every thread and process that is started meanwhile."""
        libc = ctypes.CDLL(None, use_errno=True)
        here = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        there = os.open(f"/run/netns/{self.name}", os.O_RDONLY)
        try:
            assert libc.setns(there, CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
            yield
        finally:
            assert libc.setns(here, CLONE_NEWNET) == 0
            os.close(here)
            os.close(there)

    def close(self) -> None:
        with self.entered():
            self.node.close()
            self.podman.run("image", "rm", "--force", "--all")


class Elsewhere:
    """A node that is stepped on its own host."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._host.node, name)
        if not callable(found):
            return found

        def call(*args: Any, **more: Any) -> Any:
            with self._host.entered():
                return found(*args, **more)

        return call


def ip(*words: str) -> None:
    subprocess.run(["/sbin/ip" if Path("/sbin/ip").exists() else "ip", *words], check=True, capture_output=True)


@pytest.fixture
def hosts(tmp_path: Path, images: ImageStore) -> Iterator[list[Host]]:
    """Two hosts with a wire between them."""
    tag = secrets.token_hex(2)
    names = [f"gm{tag}a", f"gm{tag}b"]
    made = []
    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", names[0], "netns", names[0], "type", "veth", "peer", "name", names[1], "netns", names[1])
        for number, name in enumerate(names, start=1):
            ip("-n", name, "address", "add", f"172.30.250.{number}/24", "dev", name)
            ip("-n", name, "link", "set", name, "up")
            ip("-n", name, "link", "set", "lo", "up")
            made.append(Host(name, tmp_path / name, images.archive))
        yield made
    finally:
        for host in made:
            host.close()
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False)


def test_two_hosts_join_their_parts_of_the_gangs_network(hosts: list[Host]):
    number = secrets.randbelow(1 << 14)
    peers = ["172.30.250.1", "172.30.250.2"]
    nodes: list[Any] = [Elsewhere(host) for host in hosts]
    check_that_they_meet(*nodes, lambda replica: gang_of_two(replica, number=number, peers=peers))
    check_that_nothing_is_left(*nodes)
    for host in hosts:
        found = subprocess.run(["ip", "-n", host.name, "link"], check=True, capture_output=True, text=True).stdout
        assert "gmvx" not in found
