"""What a run printed, page by page. A cursor remembers how far each replica was read: nothing is skipped or doubled."""

import base64
import json
from dataclasses import dataclass

from provisioning.models import Assignment, Instance, LogChunk

BYTES_MAX = 256 * 1024


class BadCursor(Exception):
    """The cursor is not one of ours."""


@dataclass(frozen=True)
class Piece:
    """Text of one replica; `offset` counts bytes from the start of the run, `cursor` goes on right after it."""

    replica: int
    offset: int
    text: str
    cursor: str


@dataclass(frozen=True)
class Page:
    """Pieces in order within each replica. `complete`: the run has ended and all of its output was read."""

    pieces: list[Piece]
    cursor: str
    complete: bool


def page(instance: Instance, *, cursor: str = "", most_bytes: int = BYTES_MAX) -> Page:
    """Return what follows the cursor in the current run's output; a cursor of an earlier run starts anew.

    Costs one query, and one more for each replica that has something new.
    """
    run, offsets = _read(cursor)
    if run != instance.run:
        offsets = {}
    rows = list(Assignment.objects.filter(instance=instance, fence=instance.run).order_by("replica"))
    pieces: list[Piece] = []
    left = most_bytes
    for row in rows:
        start = offsets.get(row.replica, 0)
        if start >= row.log_bytes or left <= 0:
            continue
        for chunk in LogChunk.objects.filter(assignment=row, offset__gte=start).order_by("offset"):
            data = bytes(chunk.data)
            offsets[row.replica] = chunk.offset + len(data)
            text = data.decode(errors="replace")
            pieces.append(Piece(row.replica, chunk.offset, text, cursor=_written(instance.run, offsets)))
            left -= len(data)
            if left <= 0:
                break
        else:
            # Beyond what is kept there is nothing to read.
            offsets[row.replica] = row.log_bytes
    ended = all(row.observed == Assignment.Observed.GONE for row in rows) and not instance.is_starting
    read = all(offsets.get(row.replica, 0) >= row.log_bytes for row in rows)
    return Page(pieces=pieces, cursor=_written(instance.run, offsets), complete=ended and read)


def _written(run: int, offsets: dict[int, int]) -> str:
    text = json.dumps([run, sorted(offsets.items())], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _read(cursor: str) -> tuple[int, dict[int, int]]:
    if not cursor:
        return 0, {}
    try:
        run, pairs = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        return int(run), {int(replica): int(offset) for replica, offset in pairs}
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise BadCursor("This is not a cursor that we gave; leave it out to start at the beginning.") from error
