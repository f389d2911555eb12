"""What can go wrong, said the same way everywhere: what happened, why, is it charged, what to do, reference."""

from collections.abc import Mapping
from typing import Any

DONE = 0
FAILED = 1
USAGE = 2
AUTHENTICATION = 3
NOT_FOUND = 4
CONFLICT = 5
NO_CAPACITY = 6
PAYMENT = 7
STILL_RUNNING = 8
INTERRUPTED = 130

EXIT_CODES = {
    DONE: "done",
    FAILED: "failed",
    USAGE: "wrong usage or input",
    AUTHENTICATION: "not signed in, or not allowed",
    NOT_FOUND: "not found",
    CONFLICT: "conflict: not possible in this state",
    NO_CAPACITY: "no capacity",
    PAYMENT: "payment: not enough credit",
    STILL_RUNNING: "time-out while it still runs",
    INTERRUPTED: "interrupted",
}

EXIT_BY_CODE = {
    "no_capacity": NO_CAPACITY,
    "never_fits": NO_CAPACITY,
    "insufficient_funds": PAYMENT,
    "payment_failed": PAYMENT,
    "no_card": PAYMENT,
    "no_card_processor": PAYMENT,
    "idempotency_key_reused": CONFLICT,
    "still_running": STILL_RUNNING,
    "usage": USAGE,
    "not_connected": AUTHENTICATION,
    "ambiguous_name": CONFLICT,
    "not_found": NOT_FOUND,
    "interrupted": INTERRUPTED,
}

EXIT_BY_STATUS = {
    400: USAGE,
    401: AUTHENTICATION,
    402: PAYMENT,
    403: AUTHENTICATION,
    404: NOT_FOUND,
    405: USAGE,
    409: CONFLICT,
    422: USAGE,
}


class Problem(Exception):
    """A refusal or a failure, with the problem document (RFC 9457) that describes it."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        super().__init__(document.get("title", "failed"))
        self.document = dict(document)

    @property
    def code(self) -> str:
        return str(self.document.get("code", ""))

    @property
    def exit_code(self) -> int:
        if self.code in EXIT_BY_CODE:
            return EXIT_BY_CODE[self.code]
        return EXIT_BY_STATUS.get(self.document.get("status") or 0, FAILED)

    def reasons(self) -> list[str]:
        """Return why: each faulty option, and the detail where it says more than those and the title."""
        faults = self.document.get("errors") or []
        detail = str(self.document.get("detail") or "")
        says_more = detail != self.document.get("title") and not any(fault["detail"] in detail for fault in faults)
        named = [
            fault["detail"] if self.code == "invalid_job" else f"{option_for(fault)}: {fault['detail']}"
            for fault in faults
        ]
        return ([detail] if detail and says_more else []) + named

    def suggestion(self) -> str:
        """Return what to do. The server's own hint is for programs that speak HTTP; here it is in our options."""
        said = str(self.document.get("suggestion") or "")
        return SUGGESTIONS.get(self.code, said) if self.document.get("status") else said

    def lines(self) -> list[str]:
        """Return the five parts, one a line; parts that nobody knows are left out."""
        document = self.document
        lines = [str(document.get("title") or "It failed.")]
        lines += [f"  Why: {reason}" for reason in self.reasons()]
        lines.append(f"  Charged: {CHARGED[document.get('charged')]}")
        if suggestion := self.suggestion():
            lines.append(f"  What to do: {suggestion}")
        if document.get("placement"):
            lines.append(f"  Looked at: gpumarket why {document['placement']}")
        if document.get("connection"):
            lines.append(f"  Connection: {document['connection']}")
        reference = [str(document[part]) for part in ("code", "request_id", "instance_id") if document.get(part)]
        if reference:
            lines.append(f"  Reference: {', '.join(reference)}")
        return lines


CHARGED = {
    True: "yes; see gpumarket usage.",
    False: "nothing was charged.",
    None: "not known from here; see gpumarket ls and gpumarket usage.",
}


SUGGESTIONS = {
    "not_authenticated": "Make a new token on the portal's Tokens page, then: gpumarket login",
    "token_expired": "Make a new token on the portal's Tokens page, then: gpumarket login",
    "not_found": "Check the name or id (gpumarket ls --all, gpumarket volume ls), and that it is in your organization.",
    "invalid_request": "Correct what is named above; --help lists the options of a command.",
    "invalid_job": "Correct the lines that are named above. What may be said: gpumarket job schema",
    "idempotency_key_reused": "Leave out --key for a new order; with it, repeat the first try exactly.",
    "no_capacity": "Ask for fewer GPUs (--gpus, --replicas), or choose another offer: gpumarket offers --available",
    "never_fits": "Ask for fewer GPUs (--gpus, --replicas), a wider level, or another offer: gpumarket offers",
    "budget_exceeded": "Order less, wait for the next month, or have the budget raised: gpumarket budget",
    "quote_expired": "Ask for a new quote: repeat the command.",
    "quote_used": "See what it bought: gpumarket reservations",
    "limit_too_low": "Raise --limit, or see what is for sale: gpumarket listings asks OFFER",
    "stale_version": "See what it is now, then repeat your change: gpumarket policy show",
    "conflict": "Change what is named above; the ls command of its kind shows what is there already.",
    "no_room": "Try again later, or make the volume in another --site.",
    "quota_exceeded": "End what you do not need (gpumarket terminate INSTANCE), or: gpumarket quota request",
    "insufficient_funds": "Add credit in the portal, or ask for fewer GPUs (--gpus, --replicas).",
    "policy_excludes": "Choose another offer, or have the policy changed: gpumarket policy show",
    "wrong_state": "See what can be done now: gpumarket show INSTANCE, or gpumarket volume show VOLUME",
    "internal_error": "Try again; if it fails again, tell the operator the reference below.",
    "unavailable": "Try again in a few seconds.",
}


class NoAnswer(Problem):
    """The server could not be reached for as long as we were willing to try."""


OPTIONS = {
    "ports": "--port",
    "on_failure": "--restart-on-failure",
    "volumes": "--volume",
    "source": "--from",
    "public_key": "PATH",
    "starts_at": "--start",
    "ends_at": "--end",
    "min_gpus": "--min-gpus",
    "min_hours": "--min-hours",
}


def option_for(error: Mapping[str, Any]) -> str:
    """Return the option that a JSON pointer of the API means: "/gpus" is --gpus."""
    name = str(error.get("pointer", "")).strip("/").split("/")[0]
    if name in OPTIONS:
        return OPTIONS[name]
    if name in {
        "gpus", "replicas", "name", "env", "project", "image", "lease", "username", "site", "phase", "ask", "limit",
        "card",
    }:  # fmt: skip
        return f"--{name}"
    is_argument = name in {"offer", "command", "instance", "path", "size_gib", "amount"}
    return name.upper() if is_argument else str(error.get("pointer", ""))


def problem(
    *,
    code: str,
    title: str,
    detail: str = "",
    suggestion: str = "",
    charged: bool | None = False,
    **more: Any,
) -> Problem:
    """Return a problem that was found here and not by the server."""
    document = {"type": "about:blank", "title": title, "status": None, "detail": detail, "code": code}
    return Problem({**document, "charged": charged, "suggestion": suggestion, **more})


def usage(title: str, *, detail: str = "", suggestion: str = "") -> Problem:
    """Return the refusal of a command line that cannot mean anything."""
    return problem(code="usage", title=title, detail=detail, suggestion=suggestion)
