"""Speaks HTTP with the marketplace: patient with a server that restarts, and never orders twice."""

import json
import shlex
import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import httpx

from marketplace.cli.connection import Connection
from marketplace.cli.problems import NoAnswer, Problem
from marketplace.cli.terminal import Terminal

TIMEOUT = httpx.Timeout(30.0, connect=5.0)
PATIENCE_S = 10.0
PATIENCE_WITH_STRANGERS_S = 3.0
FIRST_WAIT_S = 0.2
LONGEST_WAIT_S = 3.0
QUIET_S = 1.0
PAGE_LIMIT = 200
PIECE_BYTES = 1 << 20
TRIES = 10
UNSHOWN = "***"

# The answers of a server or proxy that is being restarted, and of one that asks for a pause.
COME_BACK = {429, 502, 503, 504}


class Client:
    """The API of one marketplace as one token.

    A request that gets no answer is sent again until `patience_s` is over; a POST always with the same
    Idempotency-Key, so that an answer that was lost on the way is told again and nothing is done twice.
    `may_have_arrived` is True if the latest change may have reached the server, whatever was answered.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        terminal: Terminal,
        explain: bool = False,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.connection = connection
        self.patience_s = PATIENCE_S
        self.may_have_arrived = False
        self._takes_key = False
        self._terminal = terminal
        self._explains = explain
        self._explained: set[tuple[str, str]] = set()
        self._was_reached = False
        self._http = httpx.Client(
            base_url=connection.url + "/api/v1",
            headers={
                "Authorization": f"Bearer {connection.token}",
                "Accept": "application/json",
                "User-Agent": "gpumarket-cli",
            },
            timeout=TIMEOUT,
            # A proxy of the company cannot reach this very machine.
            trust_env=not connection.is_local,
            # Reading the system's certificates takes longer than a request; without TLS they are not needed.
            verify=connection.url.startswith("https"),
            transport=transport,
        )

    def close(self) -> None:
        self._http.close()

    def get(self, path: str, **params: Any) -> dict[str, Any]:
        return self.read(self._ask("GET", path, params=params))

    def download(self, path: str, **params: Any) -> bytes:
        """Return a file of the marketplace; raise the problem that comes in its place."""
        answer = self._ask("GET", path, params=params)
        if not answer.is_success:
            self.read(answer)
        return answer.content

    def post(
        self, path: str, body: Mapping[str, Any] | None = None, *, key: str | None = None, **params: Any
    ) -> dict[str, Any]:
        """Change something once. Repeating the call with the same key returns the first answer.

        A command that has `--key` names it here, empty where none was given: only such a one is told to be repeated.
        """
        self._takes_key = key is not None
        return self.read(self._ask("POST", path, params=params, body=body or {}, key=key or str(uuid.uuid4())))

    def patch(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        return self.read(self._ask("PATCH", path, body=body))

    def put(self, path: str, body: Any, *, version: int | None = None) -> dict[str, Any]:
        """Replace something as a whole; with a version, only where it still has that."""
        headers = {} if version is None else {"If-Match": f'"{version}"'}
        return self.read(self._ask("PUT", path, body=body, headers=headers))

    def delete(self, path: str) -> dict[str, Any]:
        return self.read(self._ask("DELETE", path))

    def send(self, path: str, content: bytes, *, headers: Mapping[str, str], **params: Any) -> httpx.Response:
        """Send bytes and return the answer, good or not."""
        return self._ask("PUT", path, params=params, content=content, headers=headers)

    def offset(self, path: str, **params: Any) -> int:
        """Return how many bytes of an artifact are there already."""
        answer = self._ask("HEAD", path, params=params)
        return int(answer.headers.get("Upload-Offset", 0)) if answer.is_success else 0

    def pieces(self, path: str, *, offset: int = 0, **params: Any) -> Iterator[bytes]:
        """Yield the bytes of a file from `offset` on; where the answer breaks off, ask for the rest of it."""
        tries = TRIES
        while True:
            given = {name: value for name, value in params.items() if value is not None}
            headers = {"Range": f"bytes={offset}-"} if offset else {}
            try:
                with self._http.stream("GET", path, params=given, headers=headers) as answer:
                    if not answer.is_success:
                        answer.read()
                        self.read(answer)
                    for piece in answer.iter_bytes(PIECE_BYTES):
                        offset += len(piece)
                        tries = TRIES
                        yield piece
                return
            except httpx.TransportError as error:
                tries -= 1
                if not tries:
                    raise self._give_up(self._http.build_request("GET", path), None, str(error)) from error
                time.sleep(FIRST_WAIT_S * (TRIES - tries))

    def rows(self, path: str, **params: Any) -> Iterator[dict[str, Any]]:
        """Yield every row of a list, page by page."""
        cursor: str | None = None
        while True:
            page = self.get(path, **{"limit": PAGE_LIMIT, **params, "cursor": cursor})
            yield from page["data"]
            cursor = page.get("next_cursor")
            if not cursor:
                return

    def _ask(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        body: Mapping[str, Any] | None = None,
        content: bytes | None = None,
        key: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        """Return the answer, good or not, of a server that is there."""
        given = {name: value for name, value in (params or {}).items() if value is not None}
        headers = dict(headers or {}) | ({"Idempotency-Key": key} if key else {})
        request = self._http.build_request(method, path, params=given, json=body, content=content, headers=headers)
        self._say_as_curl(request, body)
        if method != "GET":
            self.may_have_arrived = False
        began = time.monotonic()
        wait_s = FIRST_WAIT_S
        told = False
        while True:
            answer, failure = self._try(request)
            if answer is not None and not failure:
                if told:
                    self._terminal.say("The server answers again.")
                return answer
            waited_s = time.monotonic() - began
            if waited_s + wait_s > self._patience():
                raise self._give_up(request, answer, failure)
            if waited_s > QUIET_S and not told:
                told = True
                self._terminal.say(f"No answer ({failure}); trying again for up to {self._patience():.0f} s.")
            time.sleep(max(wait_s, retry_after_s(answer)))
            wait_s = min(wait_s * 1.7, LONGEST_WAIT_S)

    def _try(self, request: httpx.Request) -> tuple[httpx.Response | None, str]:
        """Return the answer, and in words why it should be asked for again, if it should."""
        had_arrived = self.may_have_arrived
        self.may_have_arrived = had_arrived or request.method != "GET"
        try:
            answer = self._http.send(request)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            self.may_have_arrived = had_arrived
            return None, str(error) or "no connection"
        except httpx.TransportError as error:
            self._was_reached = True
            return None, str(error) or type(error).__name__
        self._was_reached = True
        if answer.status_code in COME_BACK or is_still_in_flight(answer):
            return answer, f"it says {answer.status_code}"
        return answer, ""

    def _patience(self) -> float:
        # An address where nobody has ever answered is more likely wrong than restarting.
        return self.patience_s if self._was_reached else min(self.patience_s, PATIENCE_WITH_STRANGERS_S)

    def _give_up(self, request: httpx.Request, answer: httpx.Response | None, failure: str) -> Problem:
        doubt = self.may_have_arrived and request.method != "GET"
        if answer is not None and (document := problem_document(answer)):
            return Problem(document)
        key = request.headers.get("Idempotency-Key")
        suggestion = f"Is the marketplace running, and is the address right (from {self.connection.source})?"
        if doubt:
            suggestion = "See what became of it before you ask again: it may have been done."
            if self._takes_key and key:
                suggestion = f"See what became of it: gpumarket ls. Asking again with --key {key} cannot do it twice."
        return NoAnswer(
            {
                "type": "about:blank",
                "title": f"{self.connection.url} does not answer.",
                "status": answer.status_code if answer is not None else None,
                "detail": failure,
                "code": "no_answer",
                "charged": None if doubt else False,
                "suggestion": suggestion,
                "idempotency_key": key,
            }
        )

    def read(self, answer: httpx.Response) -> dict[str, Any]:
        """Return the document of a good answer; raise the problem of any other."""
        if answer.is_success:
            try:
                return dict(answer.json()) if answer.content else {}
            except (ValueError, TypeError):
                pass
        document = problem_document(answer) or self._strange(answer)
        if answer.status_code == 401:
            # With three places for a token, the wrong one is found only if it is named.
            document["connection"] = f"{self.connection.url}, with the token from {self.connection.source}"
        raise Problem(document)

    def _strange(self, answer: httpx.Response) -> dict[str, Any]:
        location = answer.headers.get("location")
        return {
            "type": "about:blank",
            "title": f"{self.connection.url} gave an answer that is not the marketplace's.",
            "status": answer.status_code,
            "detail": f"HTTP {answer.status_code}" + (f", which leads to {location}" if location else ""),
            "code": "strange_answer",
            "charged": False if answer.request.method == "GET" else None,
            "suggestion": f"Check the address (from {self.connection.source}).",
            "request_id": answer.headers.get("x-request-id"),
        }

    def _say_as_curl(self, request: httpx.Request, body: Mapping[str, Any] | None) -> None:
        """Say the call as curl, the first time it is made: a loop that looks again is one call."""
        if not self._explains or (request.method, request.url.path) in self._explained:
            return
        self._explained.add((request.method, request.url.path))
        self._terminal.say(as_curl(request, body))


def as_curl(request: httpx.Request, body: Mapping[str, Any] | None) -> str:
    """Return the request as a curl command; neither the token nor a password nor a value of `env` is in it."""
    words = ["curl", "-H", '"Authorization: Bearer $GPUMARKET_TOKEN"']
    if request.method != "GET":
        words[1:1] = ["-X", request.method]
    if key := request.headers.get("Idempotency-Key"):
        words += ["-H", shlex.quote(f"Idempotency-Key: {key}")]
    if body is not None:
        shown = dict(body)
        if shown.get("env"):
            shown["env"] = dict.fromkeys(shown["env"], UNSHOWN)
        if "password" in shown:
            shown["password"] = UNSHOWN
        words += ["-H", "'Content-Type: application/json'", "-d", shlex.quote(json.dumps(shown, ensure_ascii=False))]
    return " ".join([*words, shlex.quote(str(request.url))])


def problem_document(answer: httpx.Response) -> dict[str, Any] | None:
    """Return the problem document that an answer carries, None if it carries none."""
    if "json" not in answer.headers.get("content-type", ""):
        return None
    try:
        document = answer.json()
    except ValueError:
        return None
    if not isinstance(document, dict) or "title" not in document:
        return None
    return {"status": answer.status_code, **document}


def is_still_in_flight(answer: httpx.Response) -> bool:
    """True if our own first try is still at work, so that the same request must be asked again."""
    document = problem_document(answer) if answer.status_code == 409 else None
    return document is not None and document.get("retry") == "same_request"


def retry_after_s(answer: httpx.Response | None) -> float:
    """Return for how long the server asks us to stay away, within reason."""
    text = answer.headers.get("retry-after", "") if answer is not None else ""
    return min(float(text), 10.0) if text.isdigit() else 0.0
