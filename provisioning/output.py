"""What a run printed, page by page. A cursor remembers how far each replica was read: nothing is skipped or doubled."""

import base64
import codecs
import json
from collections.abc import Iterator
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

    Costs one query, and two more for each replica that has something new.
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
        for offset, text, end in _texts(row, start, most_bytes=left):
            offsets[row.replica] = end
            if text:
                at_its_end = _written(instance.run, offsets)
                pieces.append(Piece(replica=row.replica, offset=offset, text=text, cursor=at_its_end))
        left -= offsets[row.replica] - start
    ended = all(row.observed == Assignment.Observed.GONE for row in rows) and not instance.is_starting
    read = all(offsets.get(row.replica, 0) >= row.log_bytes for row in rows)
    return Page(pieces=pieces, cursor=_written(instance.run, offsets), complete=ended and read)


def _texts(row: Assignment, start: int, *, most_bytes: int) -> Iterator[tuple[int, str, int]]:
    """Yield what a replica printed from `start` on, each text with the offsets of its begin and end.

    A character whose bytes came in two pieces of log stays whole: half of one
    at the end waits for the rest, as long as the rest may come.
    """
    until = min(row.log_bytes, start + most_bytes)
    chunks = LogChunk.objects.filter(assignment=row, offset__lt=until).order_by("offset")
    first = chunks.filter(offset__lte=start).values_list("offset", flat=True).last()
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    here = end = start
    for chunk in chunks.filter(offset__gte=first or 0):
        data = bytes(chunk.data)[max(0, start - chunk.offset) :]
        end = max(start, chunk.offset) + len(data)
        is_last = row.observed == Assignment.Observed.GONE and end >= row.log_bytes
        text = decoder.decode(data, final=is_last)
        begin, here = here, end - len(decoder.getstate()[0])
        yield begin, text, here
    if end < until:
        # What is beyond was too much to be kept.
        yield end, "", row.log_bytes


def _written(run: int, offsets: dict[int, int]) -> str:
    text = json.dumps([run, sorted(offsets.items())], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _read(cursor: str) -> tuple[int, dict[int, int]]:
    if not cursor:
        return 0, {}
    try:
        run, pairs = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        return int(run), {int(replica): max(0, int(offset)) for replica, offset in pairs}
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise BadCursor("This is not a cursor that we gave; leave it out to start at the beginning.") from error
