"""Sending events to a program on this machine, as the marketplace sends webhooks."""

import json
from datetime import UTC, datetime
from typing import Any

import httpx
from standardwebhooks import Webhook

TIMEOUT_S = 10.0


def pass_on(event: dict[str, Any], *, url: str, secret: str) -> str:
    """Send one event and return what was answered: a status, or why there is none."""
    body, at = json.dumps(event, separators=(",", ":"), ensure_ascii=False), datetime.now(UTC)
    headers = {
        "Content-Type": "application/json",
        "webhook-id": event["id"],
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": Webhook(secret).sign(event["id"], at, body),
    }
    try:
        return str(httpx.post(url, content=body.encode(), headers=headers, timeout=TIMEOUT_S).status_code)
    except httpx.HTTPError as error:
        return f"{type(error).__name__}: {error}"
