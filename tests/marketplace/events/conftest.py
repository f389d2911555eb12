"""A receiver of webhooks that answers as a test wants, and an endpoint that sends there."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from django.utils import timezone

from marketplace.access import Actor
from marketplace.events import endpoints, feed
from marketplace.models import Event, Organization, WebhookEndpoint
from tests.conftest import Fleet


@dataclass
class Receiver:
    """A server on this machine that keeps what came, and answers with `answer`: status, headers, body."""

    came: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    answer: Callable[[BaseHTTPRequestHandler], None] | None = None
    status: int = 204

    def open(self) -> None:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.came.append(({name.lower(): value for name, value in self.headers.items()}, body))
                if receiver.answer is not None:
                    receiver.answer(self)
                    return
                self.send_response(receiver.status)
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.host = f"127.0.0.1:{self.server.server_port}"
        self.url = f"http://{self.host}/hooks?from=test"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def receiver(settings: Any) -> Iterator[Receiver]:
    made = Receiver()
    made.open()
    settings.WEBHOOK_HOSTS = (made.host,)
    yield made
    made.close()


@dataclass
class Listening:
    """An endpoint that sends to the receiver, and the secret that its owner was shown."""

    endpoint: WebhookEndpoint
    secret: str


@pytest.fixture
def listening(actor: Actor, acme: Organization, receiver: Receiver) -> Listening:
    return Listening(*endpoints.add(actor=actor, organization=acme, url=receiver.url, types=[]))


def published() -> list[Event]:
    """Publish all that was noted; return every event, the oldest first."""
    while feed.publish(at=timezone.now(), limit=1000):
        pass
    return list(Event.objects.order_by("pk"))


@pytest.fixture
def nothing_noted(fleet: Fleet) -> None:
    published()
