"""gpumarket events and webhooks: what they ask for, what they print where, and how they exit."""

import json
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest
from standardwebhooks import Webhook

from marketplace.cli import forwarding
from tests.marketplace.cli.shop import Shop, make_problem

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def make_event(number):
    return {
        "id": f"evt_{number}", "type": "instance.running", "timestamp": "2026-11-26T12:00:00Z", "organization": "org_1",
        "project": "prj_1", "subject": "ins_1", "data": {"name": "trainer", "message": "It runs."},
    }  # fmt: skip


def make_webhook(**changes):
    return {
        "id": "whk_1", "url": "https://example.com/hooks", "types": [], "description": "", "enabled": True,
        "disabled_because": "", "failing_since": None, "former_secret_until": "2026-11-27T12:00:00Z",
        "created_at": "2026-11-26T12:00:00Z",
    } | changes  # fmt: skip


def make_delivery(status):
    attempt = {"at": "2026-11-26T12:00:01Z", "status": status, "error": "", "answer": "", "milliseconds": 12}
    state = "delivered" if status < 300 else "pending"
    return {
        "id": "whd_1", "event": "evt_9", "type": "webhook.test", "state": state, "tries": 1, "attempts": [attempt],
        "next_try_at": None if status < 300 else "2026-11-26T12:00:06Z",
    }  # fmt: skip


class ShopWithWebhooks(Shop):
    def __init__(self):
        super().__init__()
        self.events = [make_event(number) for number in range(3)]
        self.status = 200

    def answer(self, method, words, query, headers, body):
        match method, words:
            case "GET", ["events"]:
                after = query.get("after", "")
                known = [event["id"] for event in self.events]
                found = self.events[known.index(after) + 1 :] if after in known else self.events
                return 200, {"data": found, "last": found[-1]["id"] if found else after}
            case _, ["webhooks", *rest]:
                return self.about_webhooks(method, rest, body)
        return super().answer(method, words, query, headers, body)

    def about_webhooks(self, method, words, body):
        match method, words:
            case "GET", []:
                return 200, {"data": [make_webhook(failing_since="2026-11-26T12:00:00Z")], "next_cursor": None}
            case "POST", [] | ["whk_1", "rotate"]:
                return 201, make_webhook() | {"secret": SECRET}
            case "POST", ["whk_1", "test"]:
                return 202, make_delivery(self.status)
            case "GET", ["whk_1", "deliveries"]:
                return 200, {"data": [make_delivery(self.status)], "next_cursor": None}
            case "POST", ["whk_1", "replay"]:
                return 202, {"events": 1}
            case "PATCH", ["whk_1"]:
                return 200, make_webhook(enabled=body["enabled"])
            case "GET", ["whk_1"]:
                return 200, make_webhook()
            case "DELETE", ["whk_1"]:
                return 204, {}
        return make_problem(404, "not_found")


@pytest.fixture
def shop():
    shop = ShopWithWebhooks()
    shop.open()
    yield shop
    shop.close()


def test_events_are_printed_in_their_order(gpumarket, shop):
    said = gpumarket("events", "--type", "instance.*", "--after", "evt_0")
    assert said.code == 0
    lines = said.out.splitlines()
    assert len(lines) == 2
    assert "instance.running" in lines[0]
    assert "trainer  It runs." in lines[0]
    assert shop.requests[-1]["query"] == {"after": "evt_0", "type": "instance.*", "limit": "200"}
    rows = [json.loads(line) for line in gpumarket("events", "--json").out.splitlines()]
    assert [row["id"] for row in rows] == ["evt_0", "evt_1", "evt_2"]


def test_a_webhook_is_added_with_a_secret_on_stdout_alone(gpumarket, shop):
    said = gpumarket("webhooks", "add", "https://example.com/hooks", "--type", "instance.*")
    assert (said.code, said.out) == (0, SECRET + "\n")
    assert SECRET not in said.err
    (asked,) = shop.asked("POST", "/api/v1/webhooks")
    assert asked["body"]["types"] == ["instance.*"]
    assert gpumarket("webhooks", "rotate", "whk_1").out == SECRET + "\n"
    assert "failing" in gpumarket("webhooks").out


def test_a_test_says_what_was_answered_and_fails_where_it_was_refused(gpumarket, shop):
    said = gpumarket("webhooks", "test", "whk_1")
    assert said.code == 0
    assert "webhook.test: delivered (answered 200, 12 ms)." in said.err
    shop.status = 500
    said = gpumarket("webhooks", "test", "whk_1")
    assert said.code == 1
    assert "answered 500" in said.err
    assert "the next try is at" in said.err
    assert "answered 500" in gpumarket("webhooks", "deliveries", "whk_1").out


def test_webhooks_are_switched_replayed_and_removed(gpumarket, shop):
    assert "is disabled." in gpumarket("webhooks", "disable", "whk_1").err
    assert "is enabled." in gpumarket("webhooks", "enable", "whk_1").err
    assert "1 event on the way" in gpumarket("webhooks", "replay", "whk_1", "--since", "2026-11-26T10:00").err
    (asked,) = shop.asked("POST", "/api/v1/webhooks/whk_1/replay")
    assert asked["body"] == {"since": "2026-11-26T10:00:00Z"}
    assert "Nothing is sent to" in gpumarket("webhooks", "rm", "whk_1").err
    assert gpumarket("webhooks", "rm", "whk_2").code == 4
    assert gpumarket("webhooks", "listen", "localhost").code == 2


def test_what_listen_passes_on_is_signed_as_webhooks_are():
    came = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            came.append(Webhook(SECRET).verify(body, dict(self.headers.items())))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/"
    assert forwarding.pass_on(make_event(1), url=url, secret=SECRET) == "204"
    server.shutdown()
    server.server_close()
    assert "Error" in forwarding.pass_on(make_event(2), url=url, secret=SECRET)
    assert came == [make_event(1)]
