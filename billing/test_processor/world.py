"""The processor's world: its objects, its clock, what it remembers of requests, and what goes wrong on purpose."""

import json
import re
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

Thing = dict[str, Any]
Handler = Callable[..., Thing]
Route = tuple[str, str, Handler]

API_VERSION = "2026-10-28.endive"
KEY_LIFE_S = 24 * 3600
ALPHABET = "ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz0123456789"
KINDS = (
    "customer", "payment_method", "setup_intent", "payment_intent", "charge", "refund", "checkout.session",
    "dispute", "account", "transfer", "transfer_reversal", "payout", "balance_transaction", "event",
)  # fmt: skip


class Refused(Exception):
    """A request that is answered with an error, as the processor would."""

    def __init__(self, status: int, kind: str, message: str, **facts: Any) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": {"type": kind, "message": message, **facts}}


class NoAnswer(Exception):
    """The connection breaks before an answer. What was done stays done."""


def seconds() -> int:
    """Return the time in whole seconds since 1970."""
    return time.time_ns() // 1_000_000_000


@dataclass
class Fault:
    """What goes wrong with the next request whose path begins so: once.

    `kind`: `silent_before` and `silent_after` (the work), `rate_limit`, `stored_500`.
    """

    kind: str
    path: str = "/v1/"


@dataclass
class World:
    """Everything that the processor knows. One request at a time."""

    base_url: str = "http://processor.invalid"
    clock: Callable[[], int] = seconds
    api_key: str = ""
    routes: Sequence[Route] = ()
    things: dict[str, dict[str, Thing]] = field(default_factory=lambda: {kind: {} for kind in KINDS})
    answers: dict[str, Thing] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    calls: list[tuple[str, str]] = field(default_factory=list)
    lock: threading.RLock = field(default_factory=threading.RLock)
    numbers: int = 0

    def request(self, method: str, path: str, params: Thing, *, key: str = "", secret: str = "") -> tuple[int, Thing]:
        """Answer a request with a status and a body. Raises NoAnswer where a fault says so."""
        with self.lock:
            self.calls.append((method, path))
            if self.api_key and secret != self.api_key:
                return 401, Refused(401, "invalid_request_error", "Invalid API Key provided").body
            fault = self._fault(path)
            if fault == "silent_before":
                raise NoAnswer
            if fault == "rate_limit":
                return 429, Refused(429, "invalid_request_error", "Too many requests", code="rate_limit").body
            answer = self._once(method, path, params, key=key if method == "POST" else "", fault=fault)
            if fault == "silent_after":
                raise NoAnswer
            return deepcopy(answer)

    def _once(self, method: str, path: str, params: Thing, *, key: str, fault: str) -> tuple[int, Thing]:
        """Do the work, or repeat the answer that was given for this key within a day."""
        asked = json.dumps([path, params], sort_keys=True)
        first = self.answers.get(key) if key else None
        if first is not None and self.clock() - first["at"] < KEY_LIFE_S:
            if first["asked"] != asked:
                text = (
                    "Keys for idempotent requests can only be used with the same parameters they were first used with."
                )
                return 400, Refused(400, "idempotency_error", text).body
            return first["status"], first["body"]
        if fault == "stored_500":
            status, body = 500, Refused(500, "api_error", "An unknown error occurred").body
        else:
            status, body = self._done(method, path, params)
        if key and status in {200, 402, 500}:
            self.answers[key] = {"asked": asked, "status": status, "body": deepcopy(body), "at": self.clock()}
        return status, body

    def _done(self, method: str, path: str, params: Thing) -> tuple[int, Thing]:
        expand = params.pop("expand", [])
        for verb, pattern, handler in self.routes:
            match = re.fullmatch(pattern, path)
            if verb == method and match:
                try:
                    return 200, self._expanded(handler(self, params, **match.groupdict()), expand)
                except Refused as refusal:
                    return refusal.status, refusal.body
        return 404, Refused(404, "invalid_request_error", f"Unrecognized request URL ({method}: {path})").body

    def _expanded(self, answer: Thing, expand: Sequence[str]) -> Thing:
        if "data.source" not in expand:
            return answer
        copied = deepcopy(answer)
        for line in copied["data"]:
            line["source"] = self.find(line["source"]) or line["source"]
        return copied

    def _fault(self, path: str) -> str:
        for fault in self.faults:
            if path.startswith(fault.path):
                self.faults.remove(fault)
                return fault.kind
        return ""

    @property
    def now(self) -> int:
        return self.clock()

    def make(self, kind: str, prefix: str, **facts: Any) -> Thing:
        """Keep a new object and return it."""
        self.numbers += 1
        made_id = f"{prefix}_{self.numbers:06}" + "".join(secrets.choice(ALPHABET) for _ in range(14))
        thing = {"id": made_id, "object": kind, "created": self.now, "livemode": False, **facts}
        self.things[kind][made_id] = thing
        return thing

    def get(self, kind: str, thing_id: str) -> Thing:
        """Return an object, or refuse as for one that does not exist."""
        found = self.things[kind].get(thing_id)
        if found is None:
            raise Refused(404, "invalid_request_error", f"No such {kind}: '{thing_id}'", code="resource_missing")
        return found

    def find(self, thing_id: Any) -> Thing | None:
        """Return an object of any kind by its id."""
        return next((things[thing_id] for things in self.things.values() if thing_id in things), None)

    def listed(self, kind: str, params: Thing, **wanted: Any) -> Thing:
        """Return a page of objects, newest first, as `limit`, `starting_after` and `created` ask for it."""
        since = params.get("created") or {}
        least = int(since.get("gte", 0)) if isinstance(since, dict) else int(since)
        rows = [
            thing
            for thing in reversed(self.things[kind].values())
            if thing["created"] >= least and all(thing.get(name) == value for name, value in wanted.items())
        ]
        after = params.get("starting_after")
        if after:
            ids = [row["id"] for row in rows]
            rows = rows[ids.index(after) + 1 :] if after in ids else []
        limit = int(params.get("limit", 10))
        return {"object": "list", "url": f"/v1/{kind}s", "data": rows[:limit], "has_more": len(rows) > limit}

    def happened(self, kind: str, about: Thing) -> Thing:
        """Write down an event with the object as it is now."""
        return self.make(
            "event", "evt", type=kind, api_version=API_VERSION, data={"object": deepcopy(about)}, pending_webhooks=1
        )

    def booked(self, kind: str, source: Thing, amount: int, *, fee: int = 0) -> Thing:
        """Write a line of the platform's balance."""
        return self.make(
            "balance_transaction",
            "txn",
            type=kind,
            source=source["id"],
            amount=amount,
            fee=fee,
            net=amount - fee,
            currency=source["currency"],
            status="available",
        )

    @property
    def events(self) -> list[Thing]:
        """All events, oldest first."""
        return list(self.things["event"].values())

    def kept(self) -> str:
        """Return the whole world as JSON."""
        with self.lock:
            return json.dumps({"things": self.things, "answers": self.answers, "numbers": self.numbers})

    def restore(self, text: str) -> None:
        """Take up a world that was kept."""
        written = json.loads(text)
        self.things = {kind: written["things"].get(kind, {}) for kind in KINDS}
        self.answers, self.numbers = written["answers"], written["numbers"]
