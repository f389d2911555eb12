"""Reaching addresses that tenants name, and nothing of ours: no private network, no redirect, no second look-up.

The name is resolved once, every address it has must be a public one, and the
connection goes to that address while TLS asks for the name (so that DNS cannot
be answered anew in between).
"""

import contextlib
import socket
import threading
import time
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from urllib.parse import SplitResult, urlsplit

import certifi
from django.conf import settings
from django.utils.translation import gettext
from urllib3.connection import HTTPConnection, HTTPSConnection

from marketplace.errors import BadOrder

CONNECT_S, TOTAL_S = 3.0, 10.0
ANSWER_BYTES_MAX = 64 * 1024
PORTS = (443, 8443)
URL_LENGTH_MAX = 500
# Addresses that carry another one inside: NAT64 (RFC 6052, RFC 8215), 6to4 (RFC 3056), Teredo (RFC 4380).
CARRIERS = tuple(map(ip_network, ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32")))


class Unreachable(Exception):
    """Nobody answered, or we may not ask there; the text says why."""


@dataclass(frozen=True)
class Answer:
    """What came back: the status, the beginning of the body, and how long it took."""

    status: int
    body: str


def check(url: str) -> str:
    """Return an address that events may be sent to, as it will be used, or raise BadOrder."""
    parts = _parts(url)
    if parts is None or len(url) > URL_LENGTH_MAX:
        raise BadOrder("url", gettext("Type an address such as https://example.com/hooks."))
    if _is_let_through(parts):
        return parts.geturl()
    if parts.scheme != "https" or (parts.port or 443) not in PORTS:
        raise BadOrder("url", gettext("Use https, at port 443 or 8443."))
    if parts.username or parts.password or parts.fragment:
        raise BadOrder("url", gettext("Leave out users, passwords and fragments."))
    if _literal(parts.hostname or ""):
        raise BadOrder("url", gettext("Use a name and not an IP address."))
    return parts.geturl()


def post(url: str, *, body: bytes, headers: dict[str, str]) -> Answer:
    """Send a body once and return what was answered within ten seconds, or raise Unreachable."""
    parts = _parts(url)
    if parts is None:
        raise Unreachable("the address makes no sense")
    host = parts.hostname or ""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    address = _resolved(host, port, is_let_through=_is_let_through(parts))
    if parts.scheme == "https":
        connection: HTTPConnection = HTTPSConnection(
            address, port, timeout=CONNECT_S, server_hostname=host, assert_hostname=host, ca_certs=certifi.where(),
            cert_reqs="CERT_REQUIRED",
        )  # fmt: skip
    else:
        connection = HTTPConnection(address, port, timeout=CONNECT_S)
    end = time.monotonic() + TOTAL_S
    cut = None
    try:
        connection.connect()
        connection.sock.settimeout(TOTAL_S)
        cut = threading.Timer(TOTAL_S, _cut, [connection.sock])
        cut.start()
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("POST", path, body=body, headers={"Host": parts.netloc, **headers}, preload_content=False)
        answer = connection.getresponse()
        return Answer(answer.status, answer.read(ANSWER_BYTES_MAX).decode(errors="replace"))
    except Exception as error:  # what a stranger's server does is no fault of ours, whatever it is
        late = time.monotonic() >= end
        raise Unreachable("no answer within 10 s" if late else f"{type(error).__name__}: {error}"[:200]) from error
    finally:
        if cut is not None:
            cut.cancel()
        connection.close()


def _cut(talk: socket.socket) -> None:
    """End a talk whose time is over, whatever byte it waits for."""
    with contextlib.suppress(OSError):
        talk.shutdown(socket.SHUT_RDWR)


def _parts(url: str) -> SplitResult | None:
    try:
        parts = urlsplit(url.strip())
        port, host = parts.port, (parts.hostname or "").encode("idna").decode()
    except (ValueError, UnicodeError):
        return None
    if parts.scheme not in {"http", "https"} or not host or any(ord(sign) < 33 for sign in url.strip()):
        return None
    if parts.username:
        return parts
    name = f"[{host}]" if ":" in host else host
    return parts._replace(netloc=name + (f":{port}" if port else ""))


def _is_let_through(parts: SplitResult) -> bool:
    """Whether the operator named this host and port, e.g. a receiver within their own network."""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return f"{parts.hostname}:{port}" in settings.WEBHOOK_HOSTS


def _literal(host: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(host)
    except ValueError:
        # 0x7f.1 or 2130706433 are addresses as well to those who resolve names.
        return ip_address("0.0.0.0") if host.replace(".", "").isdigit() or host.startswith("0x") else None  # noqa: S104


def _resolved(host: str, port: int, *, is_let_through: bool) -> str:
    """Return the address to connect to; all that the name has must be public ones."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise Unreachable(f"{host} cannot be resolved") from error
    addresses = [str(one[4][0]) for one in found]
    if not is_let_through and not all(map(is_public, addresses)):
        raise Unreachable(f"{host} is not a public address")
    return addresses[0]


def is_public(address: str) -> bool:
    """Return whether an address is one of the open internet, and carries none inside that is not."""
    found = ip_address(address.partition("%")[0])
    inner = found.ipv4_mapped if isinstance(found, IPv6Address) else None
    if inner is not None or any(found in net for net in CARRIERS if net.version == found.version):
        return False
    return found.is_global and not found.is_multicast and not found.is_reserved
