"""The SDK's transport to a processor in the same process."""

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import stripe

from billing.test_processor import connect, disputes, forms, hosted, paying
from billing.test_processor.world import NoAnswer, World

ROUTES = [*paying.ROUTES, *hosted.ROUTES, *connect.ROUTES, *disputes.ROUTES]


def new_world(**facts: Any) -> World:
    """Return an empty world that answers to everything."""
    return World(routes=ROUTES, **facts)


class InProcess(stripe.HTTPClient):
    """Carries the SDK's calls to a world, and its silences back."""

    name = "in process"

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world

    def request(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None,
        post_data: Any = None,
        *,
        _usage: list[str] | None = None,
    ) -> tuple[str, int, Mapping[str, str]]:
        """Answer as the processor would; a silence is what the SDK calls a broken connection."""
        parts, sent = urlsplit(url), headers or {}
        try:
            status, body = self.world.request(
                method.upper(),
                parts.path,
                forms.read(post_data if post_data is not None else parts.query),
                key=sent.get("Idempotency-Key", ""),
                secret=sent.get("Authorization", "").removeprefix("Bearer "),
            )
        except NoAnswer as error:
            raise stripe.APIConnectionError("no answer", should_retry=True) from error  # type: ignore[no-untyped-call]
        return json.dumps(body), status, {"Request-Id": "req_test"}

    def close(self) -> None:
        """There is nothing to close."""
