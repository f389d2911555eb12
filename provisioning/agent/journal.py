"""What happened on this node, in order, kept until the control plane acknowledges it.

A file of JSON lines. The first holds the number of the last entry that was ever
acknowledged; each other one an entry with its number, one more than the last.
Numbers never come twice, so the control plane takes each entry once however
often it is told. Losing the file costs the entries in it and nothing else.
"""

import json
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from provisioning.agent.clock import boot_id, boottime
from provisioning.agent.files import write_whole

log = logging.getLogger("gpumarket.agent")

ENTRIES_MAX = 10_000  # Weeks of a node that is well, or an hour of one that is not.
ACKNOWLEDGED_LINES_MAX = 500  # Lines that are of no use any more are dropped now and then.


class Journal:
    """Any thread may append; the sync loop reads and forgets."""

    def __init__(
        self, path: Path, *, news: Callable[[], None], writing: Callable[[Callable[[], None]], None] = lambda do: do()
    ) -> None:
        self._path = path
        self._news = news
        self._writing = writing  # Does a write, with room of its own where the disk is full.
        self._guard = threading.Lock()
        self._entries: list[dict[str, Any]] = []
        self._last = 0
        self._acknowledged_lines = 0
        self._is_whole = True  # Whether the file holds all that is in memory.
        self._read()

    def _read(self) -> None:
        try:
            lines = self._path.read_bytes().splitlines()
        except FileNotFoundError:
            return
        for line in lines:
            try:
                entry = json.loads(line)
                self._last = max(self._last, entry["n"])
            except (ValueError, KeyError, TypeError):
                log.warning("a torn line of the journal is left out")
                self._is_whole = False  # The next entry must not continue the torn line.
                continue
            if "kind" in entry:
                self._entries.append(entry)

    def append(self, kind: str, body: dict[str, Any]) -> int:
        """Write down what happened now; it is on the disk before this returns, unless the disk is full."""
        with self._guard:
            n = self._last = self._last + 1
            entry = {"n": n, "kind": kind, "at": boottime(), "boot_id": boot_id(), "body": body}
            self._entries.append(entry)
            if len(self._entries) > ENTRIES_MAX:
                log.error("the journal is full; its oldest entry is lost", extra={"entry": self._entries.pop(0)})
            self._keep(entry)
        self._news()
        return n

    def waiting(self, most: int) -> list[dict[str, Any]]:
        """Return the oldest entries that are not acknowledged, as the protocol spells them."""
        now, here = boottime(), boot_id()
        with self._guard:
            return [
                {
                    "n": entry["n"],
                    "kind": entry["kind"],
                    # Of an earlier boot: nobody knows how long ago.
                    "ago_ms": max(0, round((now - entry["at"]) * 1000)) if entry["boot_id"] == here else None,
                    "body": entry["body"],
                }
                for entry in self._entries[:most]
            ]

    def note_seen(self, n: int) -> bool:
        """Forget what the control plane has taken; return whether something still waits.

        A number beyond our last one means that this file was lost: we go on after it, or nothing new would count.
        """
        with self._guard:
            kept = [entry for entry in self._entries if entry["n"] > n]
            self._acknowledged_lines += len(self._entries) - len(kept)
            if n > self._last:
                self._last, self._acknowledged_lines = n, ACKNOWLEDGED_LINES_MAX
            self._entries = kept
            if self._acknowledged_lines >= ACKNOWLEDGED_LINES_MAX:
                self._rewrite()
            return bool(kept)

    def _keep(self, entry: dict[str, Any]) -> None:
        if not self._is_whole:
            self._rewrite()
            return
        try:
            size = self._path.stat().st_size if self._path.exists() else 0
            self._writing(lambda: self._add(entry, at=size))
            self._path.chmod(0o600)
        except OSError as error:
            self._is_whole = False
            log.error("cannot write the journal; keeping it in memory", extra={"error": str(error)})

    def _add(self, entry: dict[str, Any], *, at: int) -> None:
        with self._path.open("ab") as file:
            file.truncate(at)  # What a full disk took of it before.
            file.write(json.dumps(entry).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def _rewrite(self) -> None:
        lines = [{"n": self._entries[0]["n"] - 1 if self._entries else self._last}, *self._entries]
        try:
            whole = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
            self._writing(lambda: write_whole(self._path, whole))
            self._is_whole, self._acknowledged_lines = True, 0
        except OSError as error:
            self._is_whole = False
            log.error("cannot write the journal; keeping it in memory", extra={"error": str(error)})
