"""Two hosts on a wire, and what is on it: a program of its own, so that it also runs under another kernel.

`python -m tests.provisioning.agent.wire sealed|plain` prints what happened as JSON.
"""

import ctypes
import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from provisioning.agent import tunnel
from provisioning.agent.podman import PodmanError

CLONE_NEWNET = 0x40000000
ETH_P_ALL, ESP, UDP = 3, 50, 17
VNI = 70_123
HOSTS = ("172.30.251.1", "172.30.251.2")
INSIDE = ("10.131.7.10", "10.131.7.11")
WORD = b"the weights of the model"
PORT = 5000


def run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (words, done.stderr)


@contextmanager
def entered(name: str) -> Iterator[None]:
    """Be in a namespace, with every process that is started meanwhile."""
    libc = ctypes.CDLL(None, use_errno=True)
    here = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    there = os.open(f"/run/netns/{name}", os.O_RDONLY)
    try:
        assert libc.setns(there, CLONE_NEWNET) == 0
        yield
    finally:
        assert libc.setns(here, CLONE_NEWNET) == 0
        os.close(here)
        os.close(there)


def lay_out(hosts: list[str], boxes: list[str]) -> None:
    """Connect two hosts by a wire, and a box to a bridge on each: as much of a container as its network is."""
    for name in (*hosts, *boxes):
        run("ip", "netns", "add", name)
        run("ip", "-n", name, "link", "set", "lo", "up")
    run("ip", "link", "add", "wire", "netns", hosts[0], "type", "veth", "peer", "name", "wire", "netns", hosts[1])
    for number, (host, box) in enumerate(zip(hosts, boxes, strict=True)):
        run("ip", "-n", host, "address", "add", f"{HOSTS[number]}/24", "dev", "wire")
        run("ip", "-n", host, "link", "set", "wire", "up")
        run("ip", "-n", host, "link", "add", "bridge", "type", "bridge")
        run("ip", "-n", host, "link", "set", "bridge", "up")
        run("ip", "link", "add", "port", "netns", host, "type", "veth", "peer", "name", "eth0", "netns", box)
        run("ip", "-n", host, "link", "set", "port", "master", "bridge", "up")
        run("ip", "-n", box, "link", "set", "eth0", "address", tunnel.mac_of(VNI, number), "mtu", "1400", "up")
        run("ip", "-n", box, "address", "add", f"{INSIDE[number]}/24", "dev", "eth0")


def ends() -> list[tunnel.Tunnel]:
    return [
        tunnel.Tunnel(
            vni=VNI, bridge="bridge", ours=HOSTS[number],
            neighbours=(tunnel.Neighbour(tunnel.mac_of(VNI, 1 - number), HOSTS[1 - number]),),
        )
        for number in (0, 1)
    ]  # fmt: skip


def open_socket(name: str, family: int, kind: int, protocol: int = 0) -> socket.socket:
    with entered(name):
        return socket.socket(family, kind, protocol)


def talk(boxes: list[str]) -> list[bool]:
    """Say the word from each box to the other; return what arrived."""
    mouths = [open_socket(box, socket.AF_INET, socket.SOCK_DGRAM) for box in boxes]
    for number, mouth in enumerate(mouths):
        mouth.bind((INSIDE[number], PORT))
        mouth.settimeout(2)
    heard = []
    for number, mouth in enumerate(mouths):
        mouth.sendto(WORD, (INSIDE[1 - number], PORT))
        try:
            heard.append(mouths[1 - number].recv(2000) == WORD)
        except TimeoutError:
            heard.append(False)
    for mouth in mouths:
        mouth.close()
    return heard


def ip_packet(src: str, dst: str, udp: bytes) -> bytes:
    """Return a datagram in its IPv4 packet."""
    head = bytes([0x45, 0]) + (20 + len(udp)).to_bytes(2) + bytes([0, 0, 0, 0, 64, UDP])
    ends_of = socket.inet_aton(src) + socket.inet_aton(dst)
    total = sum(int.from_bytes((head + b"\0\0" + ends_of)[at : at + 2]) for at in range(0, 20, 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return head + (0xFFFF - total).to_bytes(2) + ends_of + udp


def forged() -> bytes:
    """Return a frame of the gang as somebody would send it who has no key."""
    udp = PORT.to_bytes(2) * 2 + (8 + len(WORD)).to_bytes(2) + b"\0\0" + WORD
    macs = [bytes.fromhex(tunnel.mac_of(VNI, replica).replace(":", "")) for replica in (0, 1)]
    head = bytes([8, 0, 0, 0]) + VNI.to_bytes(3) + b"\0"
    return head + macs[0] + macs[1] + b"\x08\x00" + ip_packet(INSIDE[1], INSIDE[0], udp)


def is_forged_frame_taken(hosts: list[str], boxes: list[str], *, port: int) -> bool:
    """Send a frame from the other host past its tunnel; return whether the box takes it."""
    ear = open_socket(boxes[0], socket.AF_INET, socket.SOCK_DGRAM)
    ear.bind((INSIDE[0], PORT))
    ear.settimeout(0.7)
    # As raw packets of Ethernet: whatever the sender's kernel would do to them, a stranger's does not.
    wire = open_socket(hosts[1], socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x800))
    frame = forged()
    udp = tunnel.source_port(VNI).to_bytes(2) + port.to_bytes(2) + (8 + len(frame)).to_bytes(2) + b"\0\0" + frame
    packet = ip_packet(HOSTS[1], HOSTS[0], udp)
    mac = subprocess.run(
        ["ip", "-n", hosts[0], "-o", "link", "show", "wire"], capture_output=True, text=True, check=True
    ).stdout.partition("link/ether ")[2][:17]
    wire.sendto(packet, ("wire", 0x800, 0, 0, bytes.fromhex(mac.replace(":", ""))))
    try:
        return ear.recv(2000) == WORD
    except TimeoutError:
        return False
    finally:
        ear.close()
        wire.close()


def drain(wire: socket.socket) -> list[bytes]:
    wire.setblocking(False)
    frames = []
    with suppress(BlockingIOError):
        while True:
            frames.append(wire.recv(4000))
    return frames


def left(host: str) -> dict[str, int]:
    """Count what a host still has of the tunnel."""
    with entered(host):
        states = tunnel.run("ip", "xfrm", "state", "list", "nokeys").count(f"reqid {VNI}")
        policies = tunnel.run("ip", "xfrm", "policy", "list").count(f"reqid {VNI}")
        links = tunnel.run("ip", "link").count("gmvx")
    return {"states": states, "policies": policies, "links": links}


def play(*, sealed: bool) -> dict[str, object]:
    """Join the hosts, talk, listen on the wire, forge, and leave."""
    mark = secrets.token_hex(2)
    hosts, boxes = [f"gw{mark}{one}" for one in "ab"], [f"gw{mark}{one}" for one in "cd"]
    told: dict[str, object] = {}
    try:
        lay_out(hosts, boxes)
        wire = open_socket(hosts[0], socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        wire.bind(("wire", 0))
        key = os.urandom(32) if sealed else None
        with entered(hosts[0]):
            told["lacking"] = tunnel.why_not_sealed()
        told["refused"] = []
        for host, end in zip(hosts, ends(), strict=True):
            with entered(host):
                try:
                    tunnel.join(end, key=key)
                    tunnel.join(end, key=key)  # Repeating it is harmless.
                except PodmanError as error:
                    told["refused"] = [*told["refused"], str(error)]  # type: ignore[misc]
                    # The worst that could be: a device without keys. Even then nothing may leave unsealed.
                    tunnel.connect(end, is_sealed=True)
        told["before"] = left(hosts[0])
        told["heard"] = talk(boxes)
        time.sleep(0.2)
        frames = drain(wire)
        told["frames"] = len(frames)
        told["esp_frames"] = sum(frame[12:14] == b"\x08\x00" and frame[23] == ESP for frame in frames)
        told["frames_with_the_word"] = sum(WORD in frame for frame in frames)
        told["arp_in_the_clear"] = sum(bytes.fromhex(tunnel.mac_of(VNI, 0).replace(":", "")) in one for one in frames)
        port = tunnel.SEALED_PORT if sealed else tunnel.PLAIN_PORT
        told["forged_is_taken"] = is_forged_frame_taken(hosts, boxes, port=port)
        for host in hosts:
            with entered(host):
                tunnel.leave(VNI)
                tunnel.leave(VNI)
        told["after"] = left(hosts[0])
        wire.close()
    finally:
        for name in (*hosts, *boxes):
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
    return told


if __name__ == "__main__":
    print(json.dumps(play(sealed=sys.argv[1] == "sealed")))
