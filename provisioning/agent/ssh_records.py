"""Which SSH sessions are on record as open: an agent that is killed cannot say that they ended, so the next one does.

Every session ends with the agent that it goes through. A file holds those whose end the journal does not know yet.
"""

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from provisioning.agent.files import read_json, write_json

log = logging.getLogger("gpumarket.agent")

LEFT_OPEN = "the node's agent ended"


class SessionRecords:
    """Stands before the journal. Any thread may append."""

    def __init__(
        self,
        path: Path,
        *,
        record: Callable[[str, dict[str, Any]], object],
        writing: Callable[[Callable[[], None]], None] = lambda do: do(),
    ) -> None:
        self._path = path
        self._put_on_record = record
        self._writing = writing  # Does a write, with room of its own where the disk is full.
        self._guard = threading.Lock()
        self._open: dict[str, dict[str, Any]] = {}

    def end_left_open(self) -> None:
        """Put on record that the sessions of an agent before us are over, as of now: nobody knows it better."""
        with self._guard:
            for body in self._left_open().values():
                self._put_on_record("session", body | {"action": "closed", "message": LEFT_OPEN})
            self._keep()

    def append(self, kind: str, body: dict[str, Any]) -> None:
        """Put an event of a session on record; what is open is known to be open before anybody hears of it."""
        with self._guard:
            if body["action"] == "opened":
                self._open[body["session"]] = body
                self._keep()
            self._put_on_record(kind, body)
            if body["action"] == "closed" and self._open.pop(body["session"], None):
                self._keep()

    def _left_open(self) -> dict[str, dict[str, Any]]:
        try:
            found = read_json(self._path) or {}
        except (OSError, ValueError) as error:
            log.error("which sessions an earlier agent left open cannot be read", extra={"error": str(error)})
            return {}
        if not isinstance(found, dict) or not all(isinstance(body, dict) for body in found.values()):
            log.error("which sessions an earlier agent left open is not told by its file")
            return {}
        return found

    def _keep(self) -> None:
        try:
            if self._open or self._path.exists():
                self._writing(lambda: write_json(self._path, self._open))
        except OSError as error:
            log.error("which sessions are open cannot be written", extra={"error": str(error)})
