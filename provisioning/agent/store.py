"""Speaks with the control plane's store: fetches and sends artifacts, and goes on where the line was cut."""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import httpx

from provisioning.agent.control import Refused, Trouble, reason, retry_after_s
from provisioning.agent.manifest import MANIFEST_BYTES_MAX, BadManifest, Entry, digest, read

TIMEOUT = httpx.Timeout(60.0, connect=5.0)
PIECE_BYTES = 8 << 20
READ_BYTES = 1 << 20
# How often an upload is begun anew of which the store threw away what it had.
ANEW_MAX = 3
# What is refused for good; everything else may go well the next time.
FINAL = {400, 401, 403, 404, 413, 422, 507}

Tell = Callable[[int], None]  # How many bytes of this artifact are over.


@dataclass(frozen=True)
class Holding:
    """For which assignment files are fetched and sent."""

    assignment: str
    fence: int


class Store:
    """The artifacts of assignments. Every call may be repeated; it raises Trouble, Refused."""

    def __init__(self, url: str, *, agent_version: str, who: Callable[[], Mapping[str, str]]) -> None:
        self._who = who  # The node's id and key; known once it has joined.
        self._client = httpx.Client(
            base_url=url.rstrip("/"),
            headers={"User-Agent": f"gpumarket-agent/{agent_version}"},
            timeout=TIMEOUT,
            # Reading the system's certificates takes longer than a request; without TLS they are not needed.
            verify=url.startswith("https"),
        )

    def folder(self, holding: Holding, sha256: str) -> tuple[Entry, ...]:
        """Return the files of the folder that a manifest names."""
        found = b""
        try:
            with self._client.stream("GET", _path(sha256), headers=self._headers(holding)) as answer:
                _check(answer)
                for piece in answer.iter_bytes(READ_BYTES):
                    found += piece
                    if len(found) > MANIFEST_BYTES_MAX:
                        raise Refused(413, f"the manifest {sha256} is too long")
        except (httpx.HTTPError, httpx.StreamError) as error:
            raise _no_answer(error) from error
        if digest(found) != sha256:
            raise Trouble(f"the manifest {sha256} arrived damaged")
        try:
            return read(found)
        except BadManifest as error:
            raise Refused(422, f"{sha256} is no manifest: {error}") from error

    def fetch(self, holding: Holding, entry: Entry, target: Path, *, tell: Tell) -> None:
        """Bring an artifact to `target`, whole or not at all. What arrived of it before is not fetched again."""
        beside = target.with_name(f".{entry.sha256[:16]}.part")
        with beside.open("a+b") as file:
            self._fetch_rest(holding, entry, file, tell)
            file.flush()
            file.seek(0)
            found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != entry.sha256:
                file.truncate(0)
                raise Trouble(f"{entry.path} arrived damaged")
            os.fchmod(file.fileno(), entry.mode)
        os.replace(beside, target)

    def _fetch_rest(self, holding: Holding, entry: Entry, file: IO[bytes], tell: Tell) -> None:
        have = file.seek(0, os.SEEK_END)
        if have >= entry.size:
            tell(entry.size)
            return
        headers = self._headers(holding) | ({"Range": f"bytes={have}-"} if have else {})
        try:
            with self._client.stream("GET", _path(entry.sha256), headers=headers) as answer:
                _check(answer)
                for piece in answer.iter_bytes(READ_BYTES):
                    have += file.write(piece)
                    if have > entry.size:
                        raise Trouble(f"{entry.path} is longer than it should be")
                    tell(have)
        except (httpx.HTTPError, httpx.StreamError) as error:
            raise _no_answer(error) from error

    def missing(self, holding: Holding, sha256s: Sequence[str]) -> list[str]:
        """Return which of these must still be sent."""
        asked = {**self._who(), "assignment": holding.assignment, "fence": holding.fence, "sha256s": list(sha256s)}
        try:
            answer = self._client.post("/agent/v1/artifacts/missing", json=asked)
        except httpx.HTTPError as error:
            raise _no_answer(error) from error
        _check(answer)
        try:
            return [sha256 for sha256 in answer.json()["missing"] if isinstance(sha256, str)]
        except (ValueError, TypeError, KeyError) as error:
            raise Trouble("the answer is not of the protocol") from error

    def send(self, holding: Holding, sha256: str, size: int, file: IO[bytes], *, tell: Tell) -> None:
        """Send an artifact. What arrived of it before is not sent again.

        It is stored once a piece was taken, be it an empty one at the end; that
        all of it is there is not enough: it may not have been looked at yet.
        """
        offset = self._offset(holding, sha256) if size > PIECE_BYTES else 0
        anew = 0
        while True:
            file.seek(offset)
            sent, is_taken = self._send_piece(holding, sha256, file.read(PIECE_BYTES), offset=offset, size=size)
            if is_taken and sent >= size:
                tell(size)
                return
            if sent == offset or sent > size:
                raise Trouble("the store takes nothing more of it now")
            anew += sent < offset
            if anew > ANEW_MAX:
                raise Refused(422, f"the store threw away what it had of {sha256}, {anew} times")
            offset = sent
            tell(offset)

    def _offset(self, holding: Holding, sha256: str) -> int:
        try:
            answer = self._client.head(_path(sha256), headers=self._headers(holding))
        except httpx.HTTPError as error:
            raise _no_answer(error) from error
        if answer.status_code == 404:
            return 0
        _check(answer)
        return _upload_offset(answer)

    def _send_piece(self, holding: Holding, sha256: str, piece: bytes, *, offset: int, size: int) -> tuple[int, bool]:
        """Send what begins at `offset`; return how much is there afterwards, and whether it was taken."""
        headers = {"Upload-Offset": str(offset), "Upload-Length": str(size)} | self._headers(holding)
        try:
            answer = self._client.put(_path(sha256), content=piece, headers=headers)
        except httpx.HTTPError as error:
            raise _no_answer(error) from error
        if not (answer.status_code == 409 and "Upload-Offset" in answer.headers):
            _check(answer)
        return _upload_offset(answer), answer.is_success

    def _headers(self, holding: Holding) -> dict[str, str]:
        who = self._who()
        return {
            "Authorization": f"Bearer {who['key']}",
            "Gpumarket-Node": who["node"],
            "Gpumarket-Assignment": holding.assignment,
            "Gpumarket-Fence": str(holding.fence),
        }


def _path(sha256: str) -> str:
    return f"/agent/v1/artifacts/{sha256}"


def _check(answer: httpx.Response) -> None:
    """Raise what an answer that is not good means."""
    if answer.is_success:
        return
    said = reason(answer, answer.read())
    if answer.status_code in FINAL:
        raise Refused(answer.status_code, said)
    raise Trouble(said, retry_after_s=retry_after_s(answer.headers.get("Retry-After")))


def _upload_offset(answer: httpx.Response) -> int:
    given: Any = answer.headers.get("Upload-Offset", "")
    if not (given.isascii() and given.isdigit()):
        raise Trouble("the answer does not say how much is there")
    return int(given)


def _no_answer(error: Exception) -> Trouble:
    return Trouble(f"no answer ({type(error).__name__}: {error})")
