"""Addresses that tenants name: what we reach, and what we never do."""

import contextlib
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest

from marketplace.errors import BadOrder
from marketplace.events import reach
from tests.marketplace.events.conftest import Receiver


@pytest.mark.parametrize(
    "url",
    [
        "", "example.com", "ftp://example.com/", "http://example.com/", "https://example.com:22/",
        "https://user:pass@example.com/", "https://127.0.0.1/", "https://[::1]/", "https://2130706433/",
        "https://0x7f.1/", "https://example.com/#part", "https://exa mple.com/", "https://example.com/\r\nX: y",
        "https://" + "a" * 500 + ".com/", "https://example.com:99999/", "https:///path",
    ],
)  # fmt: skip
def test_an_address_that_makes_no_sense_is_refused_when_it_is_typed(url: str) -> None:
    with pytest.raises(BadOrder):
        reach.check(url)


def test_a_name_in_another_script_is_taken_as_dns_knows_it() -> None:
    assert reach.check("https://bücher.example/hooks") == "https://xn--bcher-kva.example/hooks"
    assert reach.check("https://example.com:8443/a?b=c") == "https://example.com:8443/a?b=c"


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0",
        "224.0.0.1", "240.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1", "::", "::1", "fe80::1", "fe80::1%eth0",
        "fc00::1", "ff02::1", "::ffff:10.0.0.1", "::ffff:8.8.8.8", "64:ff9b::a00:1", "2002:a00:1::", "2001:0:a00:1::",
        "2001:db8::1",
    ],
)  # fmt: skip
def test_what_is_not_the_open_internet_is_never_reached(address: str) -> None:
    assert not reach.is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700::1111"])
def test_the_open_internet_is_reached(address: str) -> None:
    assert reach.is_public(address)


def resolves(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> list[str]:
    asked: list[str] = []

    def answer(host: str, port: int, **more: Any) -> list[Any]:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr(reach.socket, "getaddrinfo", answer)
    return asked


def test_one_private_address_among_public_ones_refuses_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = resolves(monkeypatch, "8.8.8.8", "10.0.0.1")
    with pytest.raises(reach.Unreachable, match="not a public address"):
        reach.post("https://rebind.example/", body=b"{}", headers={})
    assert asked == ["rebind.example"]


def test_the_connection_goes_to_the_address_that_was_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = resolves(monkeypatch, "8.8.8.8")
    made: list[Any] = []

    class Connection:
        def __init__(self, host: str, port: int, **options: Any) -> None:
            made.append((host, port, options["server_hostname"], options["assert_hostname"], options["cert_reqs"]))

        def connect(self) -> None:
            raise OSError("no network here")

        def close(self) -> None:
            pass

    monkeypatch.setattr(reach, "HTTPSConnection", Connection)
    with pytest.raises(reach.Unreachable, match="no network here"):
        reach.post("https://hooks.example/", body=b"{}", headers={})
    assert made == [("8.8.8.8", 443, "hooks.example", "hooks.example", "CERT_REQUIRED")]
    assert asked == ["hooks.example"]


def test_a_private_receiver_is_reached_only_where_the_operator_named_it(receiver: Receiver, settings: Any) -> None:
    assert reach.post(receiver.url, body=b"{}", headers={}).status == 204
    settings.WEBHOOK_HOSTS = ("127.0.0.1:1",)
    with pytest.raises(reach.Unreachable):
        reach.post(receiver.url, body=b"{}", headers={})
    assert len(receiver.came) == 1


def test_no_redirect_is_followed(receiver: Receiver) -> None:
    def redirects(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(302)
        handler.send_header("Location", "http://169.254.169.254/latest/meta-data")
        handler.end_headers()

    receiver.answer = redirects
    assert reach.post(receiver.url, body=b"{}", headers={}).status == 302
    assert len(receiver.came) == 1


def test_a_receiver_that_drips_is_cut_off(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reach, "TOTAL_S", 0.5)
    is_cut_off = threading.Event()

    def drips(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        for _ in range(100):
            try:
                handler.wfile.write(b"x")
            except OSError:
                is_cut_off.set()
                return
            time.sleep(0.1)

    receiver.answer = drips
    with contextlib.suppress(reach.Unreachable):
        assert len(reach.post(receiver.url, body=b"{}", headers={}).body) < 50
    assert is_cut_off.wait(timeout=20)


def test_of_a_long_answer_only_the_beginning_is_read(receiver: Receiver) -> None:
    def floods(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        try:
            for _ in range(1000):
                handler.wfile.write(b"y" * 10_000)
        except OSError:
            return

    receiver.answer = floods
    assert len(reach.post(receiver.url, body=b"{}", headers={}).body) == reach.ANSWER_BYTES_MAX
