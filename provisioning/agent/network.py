"""The private networks of containers: one for each instance, and one for all replicas of a gang.

On one host, replicas share a bridge of podman's. Between hosts, tunnels join these bridges (`tunnel.py`). The control
plane gives the number, the subnet, the addresses and the key, so that no host has to ask another.
"""

import ipaddress
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from provisioning.agent import tunnel
from provisioning.agent.environment import INTERFACE
from provisioning.agent.podman import Podman, PodmanError
from provisioning.agent.protocol import Assignment

log = logging.getLogger("gpumarket.agent")

FOUND_DONE = ("Chain already exists", "does a matching rule exist", "Bad rule")
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

    def __init__(
        self,
        podman: Podman,
        *,
        home: str,
        key: Callable[[str, int], bytes],
        must_be_sealed: bool = False,
    ) -> None:
        self._podman = podman
        self._home = home
        self._key = key  # Of an assignment's gang; asked for just before its tunnel is made.
        self._must_be_sealed = must_be_sealed

    def make(self, wanted: Assignment) -> Wiring:
        """Return the network of an assignment. Raises PodmanError."""
        if not wanted.work.has_network:
            return Wiring("", ("--network", "none", "--hostname", hostname(wanted)))
        if wanted.network is None:
            name = f"gm-{self._home}-{wanted.id}"
            self._create(name, wanted, ())
            return Wiring(name, ("--network", name, "--hostname", hostname(wanted)))
        name = gang_name(wanted)
        subnet = ipaddress.ip_network(wanted.network.subnet)
        # Of its own on every host: one address at several ends of the same wire would answer for all of them.
        gateway = subnet.broadcast_address - 1 - wanted.replica
        mtu = tunnel.SEALED_MTU if wanted.network.encrypted else tunnel.PLAIN_MTU
        self._create(name, wanted, ("--subnet", str(subnet), "--gateway", str(gateway), "--opt", f"mtu={mtu}"))
        mac = tunnel.mac_of(wanted.network.vni, wanted.replica)
        words = ["--network", f"{name}:ip={wanted.network.address},mac={mac},interface_name={INTERFACE}"]
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
        here = wanted.peers[wanted.replica]
        elsewhere = [(replica, host) for replica, host in enumerate(wanted.peers) if host != here]
        if not elsewhere:
            return
        if self._must_be_sealed and not wanted.network.encrypted:
            raise PodmanError(
                "this node joins clusters with encryption only, and not every node of this one can encrypt"
            )
        addresses = {host: tunnel.address_of(host) for _, host in elsewhere}
        joined = tunnel.Tunnel(
            vni=wanted.network.vni,
            bridge=self._bridge(gang_name(wanted)),
            ours=tunnel.own_address(here, towards=addresses[elsewhere[0][1]]),
            neighbours=tuple(
                tunnel.Neighbour(tunnel.mac_of(wanted.network.vni, replica), addresses[host])
                for replica, host in elsewhere
            ),
        )
        tunnel.join(joined, key=self._key(wanted.id, wanted.fence) if wanted.network.encrypted else None)

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
            tunnel.leave(int(name.rpartition("-")[2]))


def isolate(bridge: str) -> None:
    """Let nothing pass between this bridge and any other of podman's. Raises PodmanError.

    Podman's own `isolate` forgets some networks when others go, so it is not relied upon. In the mangle table, because
    nothing that podman accepts elsewhere can come before it.
    """
    # A node takes such a packet for a frame of a gang's network. Before routing, so that this node gets none either.
    for port in (tunnel.PLAIN_PORT, tunnel.SEALED_PORT):
        add_rule("PREROUTING", "-i", "podman+", "-p", "udp", "--dport", str(port), "-j", "DROP")
    tunnel.run(*IPTABLES, "-N", CHAIN, tolerates=FOUND_DONE)
    add_rule("FORWARD", "-j", CHAIN)
    for rule in isolation_rules(bridge):
        add_rule(CHAIN, *rule)


def end_isolation(bridge: str) -> None:
    """Remove the rules of a bridge that is no more. Raises PodmanError."""
    for rule in isolation_rules(bridge):
        tunnel.run(*IPTABLES, "-D", CHAIN, *rule, tolerates=FOUND_DONE)


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
        tunnel.run(*IPTABLES, "-C", chain, *rule)
    except PodmanError:
        tunnel.run(*IPTABLES, "-A", chain, *rule)


def gang_name(wanted: Assignment) -> str:
    """Return the name of a gang's network, the same for all agents of a host."""
    assert wanted.network is not None
    return f"gm-{wanted.instance}-{wanted.network.vni}"


def hostname(wanted: Assignment) -> str:
    """Return what a container that stands alone calls itself: its instance's name, where that can be a host's."""
    name = wanted.name.lower()
    is_fit = 0 < len(name) < 64 and name.replace("-", "").isalnum() and name.isascii() and name.strip("-") == name
    return name if is_fit else "instance"


def published(found: Any) -> dict[int, int]:
    """Return the port of the node by port inside, of a container as podman describes it."""
    ports: dict[str, Any] = found["NetworkSettings"].get("Ports") or {}
    return {int(name.partition("/")[0]): int(ways[0]["HostPort"]) for name, ways in ports.items() if ways}


def address_in(found: Any) -> str:
    """Return the address of a container as podman describes it, or nothing."""
    networks: dict[str, Any] = found["NetworkSettings"].get("Networks") or {}
    return next((str(one["IPAddress"]) for one in networks.values() if one.get("IPAddress")), "")
