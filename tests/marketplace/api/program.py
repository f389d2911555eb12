"""A customer's program, as the API meets it: a token, JSON, and no patience for anything else."""

import json
from dataclasses import dataclass, field
from typing import Any

from django.test import Client

JSON = "application/json"
PROBLEM = "application/problem+json"
FIELDS = {
    "type", "title", "status", "detail", "instance", "code", "charged", "retry", "suggestion", "errors", "request_id"
}  # fmt: skip


@dataclass
class Program:
    """Asks as the owner of `secret`; without one, as nobody."""

    secret: str = ""
    client: Client = field(default_factory=lambda: Client(enforce_csrf_checks=True))

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        key: str = "",
        content: bytes | None = None,
        content_type: str = JSON,
        **headers: str,
    ) -> Any:
        """Send a request; `body` is sent as JSON, `content` as it is."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        if self.secret:
            given = {"Authorization": f"Bearer {self.secret}"} | given
        if key:
            given["Idempotency-Key"] = key
        if content is None:
            content = b"" if body is None else json.dumps(body).encode()
        url = path if path.startswith("/") else f"/api/v1/{path}"
        return self.client.generic(method.upper(), url, content, content_type, headers=given)

    def get(self, path: str, **headers: str) -> Any:
        return self.ask("get", path, **headers)

    def post(self, path: str, body: Any = None, *, key: str = "", **options: Any) -> Any:
        return self.ask("post", path, body, key=key, **options)

    def rent(self, key: str = "a key", **order: Any) -> Any:
        """Order one H200; what differs is named, and None leaves a field out."""
        body = {"offer": "h200-narvik", "command": ["sleep", "1000"]} | order
        return self.post("instances", {name: value for name, value in body.items() if value is not None}, key=key)


def problem_of(answer: Any, status: int, code: str, *, names: str | None = None) -> dict[str, Any]:
    """Return a problem document after checking that it is a whole one, and names this field if one is given."""
    assert answer.status_code == status, (answer.status_code, answer.content)
    assert answer.headers["Content-Type"] == PROBLEM
    document: dict[str, Any] = answer.json()
    assert set(document) - {"placement"} == FIELDS
    assert (document["status"], document["code"]) == (status, code), document
    assert document["type"].endswith(f"/api/problems#{code}")
    assert document["charged"] is False
    assert document["retry"] in {"none", "same_request", "new_request", "after"}
    assert document["title"]
    assert document["detail"]
    assert document["suggestion"]
    assert document["request_id"] == answer.headers["X-Request-Id"]
    if names is not None:
        assert names in [error["pointer"] for error in document["errors"]], document
    return document
