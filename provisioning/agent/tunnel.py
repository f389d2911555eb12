"""What joins the parts of a gang's network on several hosts: a VXLAN device that learns nothing, sealed by IPsec.

Who is behind which host is written down, so that no frame can claim to come from elsewhere. Sealed means ESP in
transport mode (RFC 4303, AES-256-GCM as in RFC 4106) between the addresses of two hosts. The keys of each direction
are made from the one that the control plane gives to the members for this run; they are in the kernel alone. Sealed
frames have a port of their own, over which the kernel lets nothing in or out that is not sealed, whatever else fails.
"""

import hashlib
import hmac
import os
import re
import socket
import subprocess
from dataclasses import dataclass

from provisioning.agent.podman import SYSTEM_PATH, PodmanError

PLAIN_PORT, SEALED_PORT = 4789, 4788
PLAIN_MTU = 1450  # What a frame may hold when VXLAN's own header must fit into 1500 bytes too.
SEALED_MTU = 1400  # ESP takes up to 40 bytes more.
EVERYWHERE = "00:00:00:00:00:00"
CIPHER, KEY_BYTES, ICV_BITS = "rfc4106(gcm(aes))", 36, 128
REPLAY_WINDOW = 1024  # Packets; several queues of a card put them out of order.
PAIR_PRIORITY, BLOCK_PRIORITY = 1000, 2000  # The lower number is asked first.
# Each gang has one source port, by which the kernel tells the gangs of two hosts apart.
SOURCE_PORT_FIRST, SOURCE_PORTS = 1024, 64_000
PROBE = ("192.0.2.1", "192.0.2.2")  # Addresses of documentation (RFC 5737), which nobody has.
FOUND_DONE = ("File exists", "Cannot find device", "No such process", "No such file or directory")
SECRET = re.compile(r"0x[0-9a-fA-F]{9,}")
POLICY = re.compile(
    r"(\S+) dst (\S+) proto udp sport (\d+) dport 4788 .*?dir (in|out) .*?proto esp .*?reqid (\d+)", re.DOTALL
)


@dataclass(frozen=True)
class Neighbour:
    """A replica on another host: the address of its interface, and that of its host."""

    mac: str
    host: str


@dataclass(frozen=True)
class Tunnel:
    """This host's end: the number of the network, its bridge here, our own address, and who is elsewhere."""

    vni: int
    bridge: str
    ours: str
    neighbours: tuple[Neighbour, ...]

    @property
    def hosts(self) -> list[str]:
        """The other hosts' addresses."""
        return sorted({one.host for one in self.neighbours})


def join(tunnel: Tunnel, *, key: bytes | None) -> None:
    """Join a bridge with its other parts, sealed where a key is given; repeating it is harmless. Raises PodmanError."""
    if key is not None:
        _seal(tunnel, key)
    connect(tunnel, is_sealed=key is not None)


def connect(tunnel: Tunnel, *, is_sealed: bool) -> None:
    """Make the device, and write down who is behind which host. Raises PodmanError."""
    device, source = device_name(tunnel.vni), source_port(tunnel.vni)
    # Of a range of ports the last is never taken.
    ports = f"dstport {SEALED_PORT} srcport {source} {source + 1}" if is_sealed else f"dstport {PLAIN_PORT}"
    mtu = SEALED_MTU if is_sealed else PLAIN_MTU
    batch("ip", [f"link add {device} type vxlan id {tunnel.vni} local {tunnel.ours} nolearning {ports}"])
    batch("ip", [f"link set {device} mtu {mtu} master {tunnel.bridge} up"])
    lines = [f"link set dev {device} learning off"]
    # To all: what is said to everybody, such as the question who has an address.
    lines += [f"fdb append {EVERYWHERE} dev {device} dst {host} self permanent" for host in tunnel.hosts]
    for one in tunnel.neighbours:
        lines.append(f"fdb replace {one.mac} dev {device} dst {one.host} self permanent")
        lines.append(f"fdb replace {one.mac} dev {device} master static")
    batch("bridge", lines)


def leave(vni: int) -> None:
    """Remove this host's end of a tunnel, and forget its keys. Raises PodmanError."""
    batch("ip", [f"link del {device_name(vni)}"])
    lines = [
        f"xfrm policy delete src {src} dst {dst} proto udp sport {port} dport {SEALED_PORT} dir {way}"
        for (src, dst, way, port), owner in sorted(_policies().items())
        if owner == vni
    ]
    if lines:
        batch("ip", [*lines, f"xfrm state deleteall reqid {vni}"])


def why_not_sealed() -> str:
    """Return what this machine lacks to seal what goes between hosts, or nothing: by doing it once."""
    spi = f"0x{int.from_bytes(os.urandom(3)) + 256:x}"
    try:
        batch("ip", [_state(*PROBE, spi=spi, reqid=0, key=os.urandom(KEY_BYTES))])
        batch("ip", [f"xfrm state delete src {PROBE[0]} dst {PROBE[1]} proto esp spi {spi}"])
    except PodmanError as error:
        return str(error)
    return ""


def _seal(tunnel: Tunnel, key: bytes) -> None:
    """Have the kernel seal what goes to each other host, and open what comes from there."""
    # First of all, and for good: what is not sealed has no way over this port.
    block = f"proto udp dport {SEALED_PORT} action block priority {BLOCK_PRIORITY}"
    batch("ip", [f"xfrm policy update dir {way} {block}" for way in ("out", "in")])
    ways = [way for host in tunnel.hosts for way in ((tunnel.ours, host, "out"), (host, tunnel.ours, "in"))]
    port, known = source_port(tunnel.vni), _policies()
    if any(known.get((*way, port), tunnel.vni) != tunnel.vni for way in ways):
        raise PodmanError(f"another cluster of the same nodes has number {port} too; this one cannot run beside it")
    for src, dst, _ in ways:
        made = derived(key, f"key {src} {dst}", KEY_BYTES)
        # The lowest 256 numbers are reserved (RFC 4303, 2.1); another run has another number.
        spi = f"0x{int.from_bytes(derived(key, f'spi {src} {dst}', 4)) | 0x100:x}"
        batch("ip", [_state(src, dst, spi=spi, reqid=tunnel.vni, key=made)])
    lines = [
        f"xfrm policy update src {src} dst {dst} proto udp sport {port} dport {SEALED_PORT} dir {way} "
        f"priority {PAIR_PRIORITY} tmpl src {src} dst {dst} proto esp reqid {tunnel.vni} mode transport"
        for src, dst, way in ways
    ]
    batch("ip", lines)


def _state(src: str, dst: str, *, spi: str, reqid: int, key: bytes) -> str:
    """Return how the kernel is told of one direction: with numbers of 64 bits, which do not run out in a run."""
    return (
        f"xfrm state add src {src} dst {dst} proto esp spi {spi} reqid {reqid} mode transport "
        f"replay-window {REPLAY_WINDOW} flag esn aead {CIPHER} 0x{key.hex()} {ICV_BITS}"
    )


def _policies() -> dict[tuple[str, str, str, int], int]:
    """Return which gang's packets the kernel seals or opens, by from, to, way and source port."""
    entries = run("ip", "xfrm", "policy", "list").removeprefix("src ").split("\nsrc ")
    found = [one.groups() for entry in entries if (one := POLICY.match(entry))]
    return {
        (src.partition("/")[0], dst.partition("/")[0], way, int(port)): int(reqid)
        for src, dst, port, way, reqid in found
    }


def derived(key: bytes, purpose: str, length: int) -> bytes:
    """Return up to 64 bytes for one purpose, made from another secret (the second step of HKDF, RFC 5869)."""
    return hmac.digest(key, f"gpumarket tunnel 1 {purpose}".encode() + b"\x01", hashlib.sha512)[:length]


def source_port(vni: int) -> int:
    """Return from where all sealed frames of a gang come."""
    return SOURCE_PORT_FIRST + vni % SOURCE_PORTS


def device_name(vni: int) -> str:
    """Return the VXLAN device of a network."""
    return f"gmvx{vni}"


def mac_of(vni: int, replica: int) -> str:
    """Return the address of a replica's interface, which all hosts know without asking."""
    return ":".join(f"{byte:02x}" for byte in (2, *vni.to_bytes(3), *replica.to_bytes(2)))


def address_of(host: str) -> str:
    """Return the IPv4 address of another node. Raises PodmanError."""
    try:
        return socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_DGRAM)[0][4][0]  # type: ignore[return-value]
    except OSError as error:
        raise PodmanError(f"the address of {host} cannot be found ({error}); the replicas cannot meet") from error


def own_address(name: str, *, towards: str) -> str:
    """Return by which address other hosts know this one: what its name means, or the one that leads to them."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            ours = address_of(name)
            probe.bind((ours, 0))
            if not ours.startswith("127."):
                return ours
        except (OSError, PodmanError):
            pass
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((towards, SEALED_PORT))
        except OSError as error:
            raise PodmanError(f"no way leads to {towards} ({error}); the replicas cannot meet") from error
        return str(probe.getsockname()[0])


def batch(program: str, lines: list[str]) -> None:
    """Run commands of iproute2 that may find their work done. Not as arguments: those can be read by everybody.

    Its part for IPsec ends at the first complaint, so what of that may be done already comes alone.
    """
    run(program, "-force", "-batch", "-", said="".join(f"{line}\n" for line in lines), tolerates=FOUND_DONE)


def run(program: str, *words: str, said: str = "", tolerates: tuple[str, ...] = ()) -> str:
    """Run one program of iproute2, or iptables; return what it says.

    Raises PodmanError, without any key, unless all that it complains of is tolerated. One that fails without a word (it
    was killed, say) has not done its work.
    """
    try:
        done = subprocess.run(  # noqa: S603
            (program, *words), env={"PATH": SYSTEM_PATH}, input=said.encode(), capture_output=True, check=False,
            timeout=60,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PodmanError(f"cannot run {program}: {error}") from error
    complaints = [
        line
        for line in done.stderr.decode(errors="replace").splitlines()
        if line.strip() and not line.startswith("Command failed") and not any(word in line for word in tolerates)
    ]
    if done.returncode and (complaints or not done.stderr.strip()):
        why = "; ".join(complaints[:3]) or f"it ended with {done.returncode}"
        raise PodmanError(f"{program}: {SECRET.sub('(a key)', why)}")
    return done.stdout.decode(errors="replace")
