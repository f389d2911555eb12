"""One customer's SSH connection: lets a key in or not, opens sessions and ports inside the one place it is for."""

import logging
import secrets
import weakref
from collections.abc import Callable
from typing import Any, Protocol

import asyncssh

from provisioning.agent.ssh_places import Place, Places
from provisioning.agent.ssh_ports import Forward, forward
from provisioning.agent.ssh_sessions import Session

log = logging.getLogger("gpumarket.agent")

KEY_TRIES_MAX = 6  # As OpenSSH's MaxAuthTries.
SESSIONS_MAX = 10  # As OpenSSH's MaxSessions: open at once in one connection.
FORWARDS_MAX = 64
CHANNELS_MAX = 256  # Sessions and forwarded ports of one assignment, over all of its connections.
FULL = f"{CHANNELS_MAX} sessions and ports of this instance are open, and no more can be: close one first"
PORT_MAX = 65535


class Gate(Protocol):
    """What a connection needs to know of the gateway."""

    places: Places

    def enter(self, connection: "Connection", peer: str) -> bool:
        """Note a connection; False where there are too many."""

    def leave(self, connection: "Connection", peer: str) -> None:
        """Note that a connection is over."""

    def has_room(self, assignment: str) -> bool:
        """Return whether one more channel may be opened into an assignment, over all of its connections."""

    def record(self, **body: str) -> None:
        """Put an event of a session on record."""

    def record_refusal(self, peer: str, **body: str) -> None:
        """Put a refused login on record, unless its peer fills the record."""


class Connection(asyncssh.SSHServer):
    """Knows one user name and one key. What it does not override, asyncssh refuses: see `gateway_options`."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._peer = ""
        self._user = ""
        self._tries = 0
        self._refused_key = ""
        self._candidate: tuple[Place, str] | None = None
        self._is_admitted = False
        self._channels: set[Session] = set()  # Counted from when they are asked for: many may be asked for at once.
        self._sessions: dict[Session, str] = {}
        self._forwards: weakref.WeakSet[Forward] = weakref.WeakSet()
        self._connecting = 0
        self._ports: dict[int, str] = {}  # Forwarded ports that are on record, with the session's id.

    @property
    def is_admitted(self) -> bool:
        """Return whether a key has opened it."""
        return self._is_admitted

    @property
    def place(self) -> Place:
        """The place that the key opened."""
        assert self._candidate is not None
        return self._candidate[0]

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        """Count it; too many are hung up on before a word is said."""
        self._conn = conn
        self._peer = str((conn.get_extra_info("peername") or ("",))[0])
        if not self._gate.enter(self, self._peer):
            conn.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Put on record what is over."""
        self._gate.leave(self, self._peer)
        if not self._is_admitted and self._refused_key:
            assignment = self._gate.places.meant(self._user)
            self._gate.record_refusal(
                self._peer, session=secrets.token_hex(8), assignment=assignment, fingerprint=self._refused_key, kind=""
            )
        for port, name in self._ports.items():
            self._record(name, "closed", "forward", f"port {port}")
        self._ports.clear()

    def begin_auth(self, username: str) -> bool:
        """Ask everybody for a key."""
        self._user = username
        return True

    def public_key_auth_supported(self) -> bool:
        """Say that keys are the way in."""
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        """Return whether this key opens what this user name means; asyncssh then checks that the client holds it."""
        place = self._gate.places.admit(username, key.public_data)
        if place is not None:
            self._candidate = (place, key.get_fingerprint())
            return True
        self._refused_key = key.get_fingerprint()
        self._tries += 1
        if self._tries >= KEY_TRIES_MAX:
            self._conn.disconnect(asyncssh.DISC_NO_MORE_AUTH_METHODS_AVAILABLE, "Too many keys were tried")
        return False

    def auth_completed(self) -> None:
        """Note that the key was proven."""
        self._is_admitted = True

    @property
    def open_channels(self) -> int:
        """How many sessions and forwarded ports it has open, or is about to."""
        return len(self._channels) + self._connecting + sum(not one.is_over for one in self._forwards)

    def session_requested(self) -> Session | bool:
        """Open a channel for a shell, a command or files."""
        if len(self._channels) >= SESSIONS_MAX:
            return False
        self._refuse_where_full()
        session = Session(self)
        self._channels.add(session)
        return session

    def connection_requested(self, dest_host: str, dest_port: int, orig_host: str, orig_port: int) -> Any:
        """Forward a port of the place itself, and of nothing else."""
        if not self.place.answers_to(dest_host) or not 0 < dest_port <= PORT_MAX:
            raise asyncssh.ChannelOpenError(
                asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED, "only ports of the instance itself are forwarded"
            )
        self._refuse_where_full()
        forwards = sum(not one.is_over for one in self._forwards)
        if forwards + self._connecting >= FORWARDS_MAX or not self._gate.places.is_open(self.place):
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_RESOURCE_SHORTAGE, "no more ports can be forwarded now")
        if dest_port not in self._ports and len(self._ports) < FORWARDS_MAX:
            # Once for each port: a browser opens a hundred channels to one page.
            self._ports[dest_port] = secrets.token_hex(8)
            self._record(self._ports[dest_port], "opened", "forward", f"port {dest_port}")
        self._connecting += 1
        return self._forward(dest_port)

    def _refuse_where_full(self) -> None:
        if not self._gate.has_room(self.place.assignment):
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_RESOURCE_SHORTAGE, FULL)

    async def _forward(self, port: int) -> Forward:
        try:
            session = await forward(self.place.workload.address(), port)
            self._forwards.add(session)
        finally:
            self._connecting -= 1
        return session

    def shut_because(self) -> str:
        """Return why the place is closed by now, or nothing."""
        return self._gate.places.shut_because(self.place)

    def opened(self, session: Session, kind: str) -> bool:
        """Put a session on record; False if its place has closed meanwhile."""
        if not self._gate.places.is_open(self.place):
            return False
        session.id = secrets.token_hex(8)
        self._sessions[session] = kind
        self._record(session.id, "opened", kind, "")
        return True

    def closed(self, session: Session) -> None:
        """Put the end of a session on record."""
        self._channels.discard(session)
        kind = self._sessions.pop(session, None)
        if kind is not None:
            self._record(session.id, "closed", kind, "")

    def end(self, why: str) -> None:
        """End all of it, with a line that says why."""
        for session in tuple(self._sessions):
            session.end(why)
        self._conn.disconnect(asyncssh.DISC_BY_APPLICATION, f"gpumarket: {why}")

    def _record(self, name: str, action: str, kind: str, message: str) -> None:
        assert self._candidate is not None
        place, fingerprint = self._candidate
        self._gate.record(
            session=name,
            assignment=place.assignment,
            fingerprint=fingerprint,
            peer=self._peer,
            action=action,
            kind=kind,
            message=message,
        )


def gateway_options(*, host_key: asyncssh.SSHKey, factory: Callable[[], Connection]) -> dict[str, Any]:
    """Return all that asyncssh is told; each default that lets more in than a key to a session is named and shut."""
    return {
        "server_factory": factory,
        "server_host_keys": [host_key],
        "server_version": "gpumarket",
        "config": [],  # Not what /etc/ssh of this machine says.
        "gss_host": None,
        "known_client_hosts": None,
        "x509_trusted_certs": None,
        "host_based_auth": False,
        "kbdint_auth": False,
        "password_auth": False,
        "public_key_auth": True,
        "agent_forwarding": False,
        "x11_forwarding": False,
        "allow_scp": False,
        "line_editor": False,
        "encoding": None,
        "rdns_lookup": False,
        "compression_algs": None,
        "kex_algs": (
            "mlkem768x25519-sha256",
            "curve25519-sha256",
            "curve25519-sha256@libssh.org",
            "ecdh-sha2-nistp256",
        ),
        "encryption_algs": (
            "aes128-gcm@openssh.com",
            "aes256-gcm@openssh.com",
            "chacha20-poly1305@openssh.com",
            "aes256-ctr",
        ),
        "mac_algs": ("hmac-sha2-256-etm@openssh.com", "hmac-sha2-512-etm@openssh.com"),
        "signature_algs": (
            "ssh-ed25519",
            "sk-ssh-ed25519@openssh.com",
            "ecdsa-sha2-nistp256",
            "ecdsa-sha2-nistp384",
            "ecdsa-sha2-nistp521",
            "sk-ecdsa-sha2-nistp256@openssh.com",
            "rsa-sha2-512",
            "rsa-sha2-256",
        ),
    }
