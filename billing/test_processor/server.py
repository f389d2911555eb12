"""The bundled processor over HTTP on this machine alone: its API, its pages, and webhooks that it signs and repeats.

    python -m billing.test_processor.server --port 20001 --home DIR --webhook-url http://127.0.0.1:8000/webhooks/stripe

The API key and the secret of its signatures come from STRIPE_API_KEY and STRIPE_WEBHOOK_SECRET.
"""

import argparse
import json
import os
import tempfile
import threading
import urllib.request
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import stripe

from billing.test_processor import connect, forms, hosted, pages
from billing.test_processor.client import new_world
from billing.test_processor.world import NoAnswer, Refused, Thing, World

DELIVER_EVERY_S = 1
TRIES_MAX = 60
BODY_MAX = 1024 * 1024
POLICY = "default-src 'none'; style-src 'self'; frame-ancestors 'none'; base-uri 'none'"


class Keeper:
    """A world with its file, and the webhooks that were not heard yet."""

    def __init__(self, world: World, *, file: Path, webhook_url: str, secret: str) -> None:
        self.world, self.file, self.webhook_url, self.secret = world, file, webhook_url, secret
        self.tries: dict[str, int] = {}
        if file.exists():
            world.restore(file.read_text())

    def keep(self) -> None:
        """Write the world down, in one step."""
        with self.world.lock:
            text = self.world.kept()
            with tempfile.NamedTemporaryFile("w", dir=self.file.parent, prefix=".world", delete=False) as written:
                written.write(text)
            Path(written.name).replace(self.file)

    def deliver_for_ever(self) -> None:
        """Tell what happened until somebody heard it: a loop for a thread of its own."""
        pause = threading.Event()
        while not pause.wait(DELIVER_EVERY_S):
            self.deliver()

    def deliver(self) -> None:
        """Send each event that was not heard yet, oldest first."""
        with self.world.lock:
            waiting = [event for event in self.world.events if event["pending_webhooks"]]
        for event in waiting:
            tried = self.tries[event["id"]] = self.tries.get(event["id"], 0) + 1
            if self._is_heard(event) or tried >= TRIES_MAX:
                event["pending_webhooks"] = 0
        if waiting:
            self.keep()

    def _is_heard(self, event: Thing) -> bool:
        body = json.dumps(event)
        signature = stripe.WebhookSignature.generate_signature_header(body, self.secret)
        request = urllib.request.Request(  # noqa: S310 - an address that we were started with
            self.webhook_url,
            data=body.encode(),
            headers={"Content-Type": "application/json", "Stripe-Signature": signature},
        )
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:  # noqa: S310
                return bool(answer.status == 200)
        except OSError:
            return False


class Handler(BaseHTTPRequestHandler):
    """One request of the SDK or of a browser."""

    keeper: Keeper
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_DELETE(self) -> None:
        self._answer("DELETE")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing: what counts is in the world."""

    @property
    def language(self) -> str:
        return "ja" if self.headers.get("Accept-Language", "").startswith("ja") else "en"

    def _answer(self, method: str) -> None:
        parts = urlsplit(self.path)
        body = self.rfile.read(min(int(self.headers.get("Content-Length") or 0), BODY_MAX)).decode()
        if parts.path.startswith("/v1/"):
            self._answer_program(method, parts.path, body if method == "POST" else parts.query)
        else:
            self._answer_person(method, parts.path, dict(parse_qsl(body)))
        if method == "POST":
            self.keeper.keep()

    def _answer_program(self, method: str, path: str, sent: str) -> None:
        try:
            status, answer = self.keeper.world.request(
                method,
                path,
                forms.read(sent),
                key=self.headers.get("Idempotency-Key", ""),
                secret=self.headers.get("Authorization", "").removeprefix("Bearer "),
            )
        except NoAnswer:
            self.close_connection = True
            return
        self._send(status, json.dumps(answer), "application/json")

    def _answer_person(self, method: str, path: str, typed: dict[str, str]) -> None:
        kind, _, thing = path.strip("/").partition("/")
        if kind == "style.css":
            self._send(200, pages.STYLE, "text/css")
            return
        door: Callable[[str, str, dict[str, str]], None] | None = {
            "pay": self._pay, "prove": self._prove, "papers": self._papers, "": self._home,
        }.get(kind)  # fmt: skip
        try:
            if door is None:
                raise Refused(404, "invalid_request_error", "There is nothing here.")
            door(method, thing, typed)
        except Refused as refusal:
            self._send(refusal.status, pages.page(self.language, str(refusal), ""), "text/html")

    def _home(self, _method: str, _thing: str, _typed: dict[str, str]) -> None:
        self._send(200, pages.home(language=self.language), "text/html")

    def _pay(self, method: str, thing: str, typed: dict[str, str]) -> None:
        world = self.keeper.world
        session = hosted.get_session(world, {}, thing=thing)
        if session["status"] != "open":
            self._go_on(str(session["success_url"]))
        elif method != "POST":
            self._send(200, pages.payment(session, language=self.language), "text/html")
        else:
            number = typed.get("number", "").replace(" ", "")
            try:
                onward = hosted.type_card(
                    world, thing, number=number, exp_month=typed.get("month", ""), exp_year=typed.get("year", "")
                )
            except (Refused, ValueError) as refusal:
                shown = pages.payment(session, language=self.language, error=str(refusal), number=number)
                self._send(402, shown, "text/html")
                return
            self._go_on(onward)

    def _prove(self, method: str, thing: str, typed: dict[str, str]) -> None:
        if method == "POST":
            self._go_on(hosted.prove(self.keeper.world, thing, is_them=typed.get("answer") == "yes"))
        else:
            self._send(200, pages.proof(language=self.language), "text/html")

    def _papers(self, method: str, thing: str, _typed: dict[str, str]) -> None:
        if method == "POST":
            self._go_on(connect.give_papers(self.keeper.world, thing))
        else:
            connect.get_account(self.keeper.world, {}, thing=thing)
            self._send(200, pages.papers(language=self.language), "text/html")

    def _go_on(self, url: str) -> None:
        self.send_response(303)
        self.send_header("Location", url)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, status: int, text: str, kind: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", POLICY)
        self.end_headers()
        self.wfile.write(body)


def serve(keeper: Keeper, *, port: int) -> ThreadingHTTPServer:
    """Return a server on 127.0.0.1 that answers for this world; the caller runs it."""
    return ThreadingHTTPServer(("127.0.0.1", port), type("Here", (Handler,), {"keeper": keeper}))


def main() -> None:
    """Serve until somebody ends this process."""
    parser = argparse.ArgumentParser(description="Play a card processor on this machine.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--webhook-url", required=True)
    given = parser.parse_args()
    world = new_world(base_url=f"http://127.0.0.1:{given.port}", api_key=os.environ["STRIPE_API_KEY"])
    secret = os.environ["STRIPE_WEBHOOK_SECRET"]
    keeper = Keeper(world, file=given.home.joinpath("world.json"), webhook_url=given.webhook_url, secret=secret)
    server = serve(keeper, port=given.port)
    threading.Thread(target=keeper.deliver_for_ever, daemon=True).start()
    server.serve_forever()


if __name__ == "__main__":
    main()
