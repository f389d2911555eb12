"""The private networks of containers: one for each instance, and one for all replicas of a gang.

On one host, replicas share a bridge of podman's. Between hosts, a VXLAN device joins these bridges: each frame whose
place is not known goes to every other host of the gang, as a UDP packet (port 4789) that is not encrypted. The control
plane gives the number, the subnet and the addresses, so that no host has to ask another.
"""

import ipaddress
import logging
import socket
import subprocess
from dataclasses import dataclass
from typing import Any

from provisioning.agent.environment import INTERFACE
from provisioning.agent.podman import SYSTEM_PATH, Podman, PodmanError
from provisioning.agent.protocol import Assignment

log = logging.getLogger("gpumarket.agent")

VXLAN_PORT = 4789
MTU = 1450  # What a frame may hold when VXLAN's own header must fit into 1500 bytes too.
FOUND_DONE = ("File exists", "Cannot find device", "Chain already exists", "does a matching rule exist", "Bad rule")
EVERYWHERE = "00:00:00:00:00:00"
CHAIN = "GPUMARKET-ISOLATION"
IPTABLES = ("iptables", "--wait", "30", "--table", "mangle")
IN_USE = ("being used", "in use", "has associated containers")


@dataclass(frozen=True)
class Wiring:
    """A network that is there, and the words of `podman create` that put a container into it."""

    name: str
    words: tuple[str, ...]


class Networks:
    """Makes and removes networks of podman's. Every verb may be repeated."""

    def __init__(self, podman: Podman, *, home: str) -> None:
        self._podman = podman
        self._home = home

    def make(self, wanted: Assignment) -> Wiring:
        """Return the network of an assignment. Raises PodmanError."""
        if wanted.network is None:
            name = f"gm-{self._home}-{wanted.id}"
            self._create(name, wanted, ())
            return Wiring(name, ("--network", name, "--hostname", hostname(wanted)))
        name = gang_name(wanted)
        subnet = ipaddress.ip_network(wanted.network.subnet)
        # Of its own on every host: one address at several ends of the same wire would answer for all of them.
        gateway = subnet.broadcast_address - 1 - wanted.replica
        self._create(name, wanted, ("--subnet", str(subnet), "--gateway", str(gateway), "--opt", f"mtu={MTU}"))
        words = ["--network", f"{name}:ip={wanted.network.address},interface_name={INTERFACE}"]
        return Wiring(name, (*words, "--hostname", f"replica-{wanted.replica}"))

    def _create(self, name: str, wanted: Assignment, words: tuple[str, ...]) -> None:
        labels = ("--label", f"gpumarket.instance={wanted.instance}", "--label", f"gpumarket.home={self._home}")
        try:
            self._podman.run("network", "create", "--disable-dns", *labels, *words, name)
        except PodmanError as error:
            if "already exists" not in str(error) and "already used" not in str(error):
                raise
            if not self._is_there(name):
                raise PodmanError(f"the subnet of the private network is taken on this node: {error}") from error
        isolate(self._bridge(name))

    def _bridge(self, name: str) -> str:
        return str(self._podman.ask("network", "inspect", name)[0]["network_interface"])

    def _is_there(self, name: str) -> bool:
        try:
            self._podman.run("network", "exists", name)
        except PodmanError:
            return False
        return True

    def join_hosts(self, wanted: Assignment) -> None:
        """Join this host's part of a gang's network with those of the other hosts. Raises PodmanError."""
        if wanted.network is None or len(wanted.peers) <= wanted.replica:
            return
        others = sorted(set(wanted.peers) - {wanted.peers[wanted.replica]})
        if not others:
            return
        bridge = self._bridge(gang_name(wanted))
        device = device_name(wanted.network.vni)
        tolerate(
            "ip", "link", "add", device, "type", "vxlan", "id", str(wanted.network.vni), "dstport", str(VXLAN_PORT)
        )
        call("ip", "link", "set", device, "mtu", str(MTU), "master", bridge, "up")
        for other in others:
            tolerate("bridge", "fdb", "append", EVERYWHERE, "dev", device, "dst", address_of(other))

    def remove(self, name: str) -> None:
        """Remove a network that nobody uses any more; one that is used stays. Raises PodmanError."""
        if not name:
            return
        try:
            bridge = self._bridge(name)
            self._podman.run("network", "rm", name)
            end_isolation(bridge)
        except PodmanError as error:
            said = str(error)
            if any(word in said for word in IN_USE):
                return
            if "not found" not in said and "unable to find" not in said:
                raise
        if name.startswith("gm-ins_"):
            vni = name.rpartition("-")[2]
            tolerate("ip", "link", "del", device_name(int(vni)))


def isolate(bridge: str) -> None:
    """Let nothing pass between this bridge and any other of podman's. Raises PodmanError.

    Podman's own `isolate` forgets some networks when others go, so it is not relied upon. In the mangle table, because
    nothing that podman accepts elsewhere can come before it.
    """
    # A node takes such a packet for a frame of a gang's network. Before routing, so that this node gets none either.
    add_rule("PREROUTING", "-i", "podman+", "-p", "udp", "--dport", str(VXLAN_PORT), "-j", "DROP")
    tolerate(*IPTABLES, "-N", CHAIN)
    add_rule("FORWARD", "-j", CHAIN)
    for rule in isolation_rules(bridge):
        add_rule(CHAIN, *rule)


def end_isolation(bridge: str) -> None:
    """Remove the rules of a bridge that is no more. Raises PodmanError."""
    for rule in isolation_rules(bridge):
        tolerate(*IPTABLES, "-D", CHAIN, *rule)


def isolation_rules(bridge: str) -> list[tuple[str, ...]]:
    """Return the rules of one bridge, in their order: what stays in it goes on to the next bridge's rules, freely."""
    return [
        ("-i", bridge, "-o", bridge, "-j", "RETURN"),
        ("-i", bridge, "-o", "podman+", "-j", "DROP"),
        ("-i", "podman+", "-o", bridge, "-j", "DROP"),
    ]


def add_rule(chain: str, *rule: str) -> None:
    """Append a rule that is not there yet."""
    try:
        call(*IPTABLES, "-C", chain, *rule)
    except PodmanError:
        call(*IPTABLES, "-A", chain, *rule)


def gang_name(wanted: Assignment) -> str:
    """Return the name of a gang's network, the same for all agents of a host."""
    assert wanted.network is not None
    return f"gm-{wanted.instance}-{wanted.network.vni}"


def hostname(wanted: Assignment) -> str:
    """Return what a container that stands alone calls itself: its instance's name, where that can be a host's."""
    name = wanted.name.lower()
    is_fit = 0 < len(name) < 64 and name.replace("-", "").isalnum() and name.isascii() and name.strip("-") == name
    return name if is_fit else "instance"


def device_name(vni: int) -> str:
    """Return the VXLAN device of a network."""
    return f"gmvx{vni}"


def address_of(host: str) -> str:
    """Return the IPv4 address of another node. Raises PodmanError."""
    try:
        return socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_DGRAM)[0][4][0]  # type: ignore[return-value]
    except OSError as error:
        raise PodmanError(f"the address of {host} cannot be found ({error}); the replicas cannot meet") from error


def call(*words: str) -> str:
    """Run a command of iproute2. Raises PodmanError."""
    try:
        done = subprocess.run(  # noqa: S603
            words, env={"PATH": SYSTEM_PATH}, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PodmanError(f"cannot run {words[0]}: {error}") from error
    if done.returncode:
        raise PodmanError(f"{' '.join(words[:8])}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout.decode(errors="replace")


def tolerate(*words: str) -> None:
    """Run a command that may find its work done."""
    try:
        call(*words)
    except PodmanError as error:
        if not any(word in str(error) for word in FOUND_DONE):
            raise


def published(found: Any) -> dict[int, int]:
    """Return the port of the node by port inside, of a container as podman describes it."""
    ports: dict[str, Any] = found["NetworkSettings"].get("Ports") or {}
    return {int(name.partition("/")[0]): int(ways[0]["HostPort"]) for name, ways in ports.items() if ways}


def address_in(found: Any) -> str:
    """Return the address of a container as podman describes it, or nothing."""
    networks: dict[str, Any] = found["NetworkSettings"].get("Networks") or {}
    return next((str(one["IPAddress"]) for one in networks.values() if one.get("IPAddress")), "")
