"""The SSH gateway: customers reach the inside of what they run here, with any image and no sshd in it.

A thread of its own with its own event loop, so that no session waits for a report and no report for a session. Who may
enter is asked of the document at every login and again every half second: a key that was removed, or a workload that
ended, ends its sessions.
"""

import asyncio
import contextlib
import logging
import socket
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncssh

from provisioning.agent.errors import GatewayError
from provisioning.agent.files import write_whole
from provisioning.agent.limits import raise_files
from provisioning.agent.ssh_connections import CHANNELS_MAX, Connection, gateway_options
from provisioning.agent.ssh_places import Places

log = logging.getLogger("gpumarket.agent")

CONNECTIONS_MAX = 256
STRANGERS_MAX = 64  # Of these, how many may not have shown a key yet.
PEER_MAX = 32
LOGIN_S = 20
KEEPALIVE_S, KEEPALIVES_MAX = 30, 4  # Who does not answer for two minutes is gone.
LOOK_S = 0.5
BACKLOG = 64
STOP_S = 0.5


@dataclass(frozen=True)
class Access:
    """Where customers dial, and the key by which they know this node."""

    host: str
    ssh_port: int
    host_key: str


class Gateway:
    """Listens from the moment it is made; serves from `start` to `stop`."""

    def __init__(
        self,
        *,
        home: Path,
        places: Places,
        record: Callable[[str, dict[str, Any]], object],
        port: int,
        listen: str,
        address: str,
    ) -> None:
        self.places = places
        self._put_on_record = record
        self._host_key = host_key(home / "ssh_host_ed25519_key")
        self._socket = listening_socket(listen, port, kept=home / "ssh-port")
        key = self._host_key.export_public_key().decode().split()
        self.access = Access(address, self._socket.getsockname()[1], f"{key[0]} {key[1]}")
        self._connections: set[Connection] = set()
        self._peers: Counter[str] = Counter()
        self._refusals = Throttle()
        # On record means on the disk: that may take a while, and no session must wait for it.
        self._clerk = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ssh-record")
        self._loop = asyncio.new_event_loop()
        self._stopping = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="ssh", daemon=True)

    def start(self) -> None:
        """Let customers in: each channel takes a handful of open files, and all together more than the usual 1024."""
        log.info("open files", extra={"at_most": raise_files()})
        self._thread.start()

    def stop(self, *, within_s: float = STOP_S) -> None:
        """End all sessions and listen no more."""
        with contextlib.suppress(RuntimeError):  # The loop has ended already.
            self._loop.call_soon_threadsafe(self._stopping.set)
        if self._thread.is_alive():
            self._thread.join(timeout=within_s)

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._serve())
        except Exception:
            log.exception("the SSH gateway has ended")
        finally:
            self._socket.close()
            self._clerk.shutdown()

    async def _serve(self) -> None:
        options = gateway_options(host_key=self._host_key, factory=lambda: Connection(self))
        acceptor = await asyncssh.listen(
            sock=self._socket,
            backlog=BACKLOG,
            login_timeout=LOGIN_S,
            keepalive_interval=KEEPALIVE_S,
            keepalive_count_max=KEEPALIVES_MAX,
            **options,
        )
        log.info("the SSH gateway listens", extra={"host": self.access.host, "port": self.access.ssh_port})
        async with acceptor:
            while not self._stopping.is_set():
                self._end_what_is_shut()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), LOOK_S)
        for connection in tuple(self._connections):
            connection.end("the node's agent is stopping; connect again in a moment")
        await asyncio.sleep(0.05)  # For the last words to leave.

    def _end_what_is_shut(self) -> None:
        for connection in tuple(self._connections):
            if connection.is_admitted and (why := self.places.shut_because(connection.place)):
                connection.end(why)

    def enter(self, connection: Connection, peer: str) -> bool:
        """Note a connection; False where there are too many, of this peer or in all."""
        strangers = sum(not one.is_admitted for one in self._connections)
        if len(self._connections) >= CONNECTIONS_MAX or strangers >= STRANGERS_MAX or self._peers[peer] >= PEER_MAX:
            return False
        self._connections.add(connection)
        self._peers[peer] += 1
        return True

    def leave(self, connection: Connection, peer: str) -> None:
        """Note that a connection is over."""
        if connection in self._connections:
            self._connections.remove(connection)
            self._peers[peer] -= 1
            self._peers += Counter()  # Drops what is zero.

    def has_room(self, assignment: str) -> bool:
        """Return whether one more channel may be opened into an assignment, over all of its connections."""
        there = [one for one in self._connections if one.is_admitted and one.place.assignment == assignment]
        return sum(one.open_channels for one in there) < CHANNELS_MAX

    def record(self, **body: str) -> None:
        """Put an event of a session into the journal, in the order of the calls."""
        with contextlib.suppress(RuntimeError):  # We are ending.
            self._clerk.submit(self._write, body)

    def record_refusal(self, peer: str, **body: str) -> None:
        """Put a refused login into the journal: a few of each peer, and then how many there were."""
        suppressed = self._refusals.take(peer)
        if suppressed is not None:
            message = f"and {suppressed} more before it" if suppressed else ""
            self.record(**body, peer=peer, action="refused", message=message)

    def _write(self, body: dict[str, str]) -> None:
        try:
            self._put_on_record("session", body)
        except OSError:
            log.exception("a session is not on record", extra=body)


class Throttle:
    """Lets a few refusals of each peer onto the record, then one a minute, so that a scanner cannot fill it."""

    BURST, EVERY_S, PEERS_MAX, ALL_EVERY_S = 5, 60.0, 1000, 1.0

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._peers: OrderedDict[str, list[float]] = OrderedDict()  # tokens, as of when, suppressed since
        self._all_again_at = 0.0

    def take(self, peer: str) -> int | None:
        """Return how many were kept off the record since the last one, or None to keep this one off too."""
        now = self._now()
        tokens, at, suppressed = self._peers.pop(peer, [self.BURST, now, 0])
        tokens = min(self.BURST, tokens + (now - at) / self.EVERY_S)
        may = tokens >= 1 and now >= self._all_again_at - self.BURST * self.ALL_EVERY_S
        self._peers[peer] = [tokens - 1, now, 0] if may else [tokens, now, suppressed + 1]
        while len(self._peers) > self.PEERS_MAX:
            self._peers.popitem(last=False)
        if not may:
            return None
        self._all_again_at = max(now, self._all_again_at) + self.ALL_EVERY_S
        return int(suppressed)


def host_key(path: Path) -> asyncssh.SSHKey:
    """Return the key by which clients know this node: made once, kept where its owner alone can read it."""
    if not path.exists():
        write_whole(path, asyncssh.generate_private_key("ssh-ed25519").export_private_key("openssh"))
    try:
        return asyncssh.import_private_key(path.read_bytes())
    except (OSError, asyncssh.KeyImportError) as error:
        raise GatewayError(
            f"{path} is not a private key ({error}); restore it, or remove it to make a new one"
        ) from error


def listening_socket(listen: str, port: int, *, kept: Path) -> socket.socket:
    """Return a socket that listens. Port 0 is any free one: the same as last time, if that is still free."""
    wanted = [port] if port else [*last_port(kept), 0]
    failure: OSError | None = None
    for number in wanted:
        try:
            made = open_socket(listen, number)
        except OSError as error:
            failure = error
        else:
            if not port:
                write_whole(kept, str(made.getsockname()[1]).encode())
            return made
    assert failure is not None
    where = f"{listen or '*'}:{port}"
    raise GatewayError(f"the SSH gateway cannot listen at {where}: {failure.strerror}; choose another --ssh-port")


def last_port(kept: Path) -> list[int]:
    """Return the free port that was taken last time, if there was one."""
    try:
        return [int(kept.read_text())]
    except (FileNotFoundError, ValueError):
        return []


def open_socket(listen: str, port: int) -> socket.socket:
    """Listen at an address, or at all of this machine's where none is given."""
    if listen:
        family = socket.AF_INET6 if ":" in listen else socket.AF_INET
        return socket.create_server((listen, port), family=family, backlog=BACKLOG)
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=BACKLOG)
    return socket.create_server(("", port), backlog=BACKLOG)
