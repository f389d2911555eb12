"""Speaks HTTP with the control plane. The node calls, never the other way round."""

import email.utils
import random
import time
from collections.abc import Callable
from typing import Any, TypeVar

import httpx

from provisioning.agent.protocol import (
    VERSION,
    Joined,
    Login,
    ProtocolError,
    Result,
    parse_joined,
    parse_login,
    parse_network_key,
    parse_result,
)

Answer = TypeVar("Answer")

TIMEOUT = httpx.Timeout(10.0, connect=5.0)
ANSWER_BYTES_MAX = 16 << 20
ANSWER_S_MAX = 30.0
RETRY_AFTER_S_MAX = 300.0


class Trouble(Exception):
    """No usable answer this time; asking again may help, after `retry_after_s` at the earliest."""

    def __init__(self, message: str, *, retry_after_s: float = 0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Refused(Exception):
    """The control plane understood and said no; a person must act. `status` is HTTP's."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class ControlPlane:
    """The calls of the protocol."""

    def __init__(self, url: str, *, agent_version: str) -> None:
        self._client = httpx.Client(
            base_url=url.rstrip("/"),
            headers={"User-Agent": f"gpumarket-agent/{agent_version}"},
            timeout=TIMEOUT,
            # Reading the system's certificates takes longer than a request; without TLS they are not needed.
            verify=url.startswith("https"),
        )

    def join(self, *, token: str, facts: dict[str, Any]) -> Joined:
        """Become a node. Repeating it with the same token and key gives the same answer. Raises Trouble, Refused."""
        return parsed(
            parse_joined,
            self._post("/agent/v1/join", {"protocol": VERSION} | facts, headers={"Authorization": f"Bearer {token}"}),
        )

    def sync(self, report: dict[str, Any]) -> Result:
        """Say what is and hear what should be. Raises Trouble, Refused."""
        return parsed(parse_result, self._post("/agent/v1/sync", {"protocol": VERSION, "reports": [report]}))

    def secrets(self, *, node: str, key: str, assignment: str, fence: int) -> Login | None:
        """Return the login for the registry of an assignment's image, if it needs one. Raises Trouble, Refused."""
        asked = {"node": node, "key": key, "assignment": assignment, "fence": fence}
        return parsed(parse_login, self._post("/agent/v1/secrets", asked))

    def network_key(self, *, node: str, key: str, assignment: str, fence: int) -> bytes:
        """Return the key of the network of an assignment's gang. Raises Trouble, Refused."""
        asked = {"node": node, "key": key, "assignment": assignment, "fence": fence, "of": "network"}
        return parsed(parse_network_key, self._post("/agent/v1/secrets", asked))

    def _post(self, path: str, body: dict[str, Any], *, headers: dict[str, str] | None = None) -> Any:
        began = time.monotonic()
        try:
            with self._client.stream("POST", path, json=body, headers=headers) as answer:
                content = b""
                for part in answer.iter_bytes():
                    content += part
                    if len(content) > ANSWER_BYTES_MAX or time.monotonic() - began > ANSWER_S_MAX:
                        raise Trouble("the answer is too long or too slow")
        except (httpx.HTTPError, httpx.StreamError) as error:
            raise Trouble(f"no answer ({type(error).__name__}: {error})") from error
        if answer.status_code in {400, 401, 403, 409, 422}:
            raise Refused(answer.status_code, reason(answer, content))
        if not answer.is_success:
            raise Trouble(reason(answer, content), retry_after_s=retry_after_s(answer.headers.get("Retry-After")))
        try:
            return httpx.Response(200, content=content).json()
        except ValueError as error:
            raise Trouble("the answer is not JSON; is --url the control plane's?") from error


def parsed(parse: Callable[[Any], Answer], body: Any) -> Answer:
    """Return `parse(body)`; what the protocol does not know is Trouble."""
    try:
        return parse(body)
    except ProtocolError as error:
        raise Trouble(f"the answer is not of the protocol: {error}") from error


def reason(answer: httpx.Response, content: bytes) -> str:
    """Return what a refusal says, in one short line."""
    try:
        said = httpx.Response(200, content=content).json()["detail"]
    except (ValueError, TypeError, KeyError):
        said = ""
    return f"HTTP {answer.status_code} {str(said)[:300] or answer.reason_phrase}"


def retry_after_s(value: str | None) -> float:
    """Return the seconds that a Retry-After header asks for, as a number or a date; 0 where it does not say."""
    if not value:
        return 0
    if value.isdigit():
        return min(float(value), RETRY_AFTER_S_MAX)
    try:
        seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
    except ValueError:
        return 0
    return min(max(seconds, 0.0), RETRY_AFTER_S_MAX)


class Backoff:
    """Growing pauses with jitter: 0.25 to 0.5 s at first, 15 to 30 s in the end."""

    FIRST_S = 0.5
    LAST_S = 30.0

    def __init__(self) -> None:
        self._failures = 0

    def reset(self) -> None:
        """It worked."""
        self._failures = 0

    def next_s(self) -> float:
        """Return how long to wait after one more failure."""
        longest = min(self.LAST_S, self.FIRST_S * 2.0 ** min(self._failures, 16))
        self._failures += 1
        return longest * random.uniform(0.5, 1)  # noqa: S311  spreads load, guards nothing
