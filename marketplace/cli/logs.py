"""The output of an instance, passed on as it comes.

Asks with a cursor again and again instead of holding a stream open: a server with few threads then serves any
number of watchers, a restart of the server or a lost connection costs nothing but the next question, and the
cursor says exactly what was passed on already.
"""

import time
from collections.abc import Callable
from typing import Annotated, Any

import typer

from marketplace.cli.instances import find_instance
from marketplace.cli.session import AsJson, Explain, InstanceName, Session, open_session

SOONEST_LOOK_S = 0.2
SLOWEST_LOOK_S = 1.0
LONGEST_LINE = 65_536

Writer = Callable[[dict[str, Any]], None]


class LogReader:
    """Passes on the output that an address has, each piece once. `complete` is True when no more will come."""

    def __init__(self, session: Session, path: str, *, write: Writer, **params: Any) -> None:
        self.complete = False
        self._client = session.client
        self._path, self._params = path, params
        self._write = write
        self._cursor: str | None = None

    def read(self) -> bool:
        """Pass on what is new now, and return whether there was anything."""
        page = self._client.get(self._path, **self._params, cursor=self._cursor)
        for piece in page["data"]:
            self._write(piece)
        self._cursor = page["next_cursor"]
        self.complete = page["complete"]
        return bool(page["data"])

    def read_all(self) -> None:
        """Pass on everything that there is now."""
        while self.read():
            pass


class Pause:
    """Waits between two looks: short while there is something to see, longer when it is quiet."""

    def __init__(self) -> None:
        self._seconds = SOONEST_LOOK_S

    def take(self, *, was_quiet: bool) -> None:
        self._seconds = min(self._seconds * 1.3, SLOWEST_LOOK_S) if was_quiet else SOONEST_LOOK_S
        time.sleep(self._seconds)


class ByRank:
    """Writes whole lines with the rank of their replica in front, so that replicas do not tear each other's lines."""

    def __init__(self, session: Session) -> None:
        self._terminal = session.terminal
        self._begun: dict[int, str] = {}

    def __call__(self, piece: dict[str, Any]) -> None:
        rank = piece["replica"]
        *lines, rest = (self._begun.pop(rank, "") + piece["text"]).split("\n")
        if len(rest) > LONGEST_LINE:
            lines, rest = [*lines, rest], ""
        if rest:
            self._begun[rank] = rest
        self._terminal.raw("".join(f"[{rank}] {line}\n" for line in lines))

    def finish(self) -> None:
        """Write the last lines that nobody ended."""
        for rank in sorted(self._begun):
            self._terminal.raw(f"[{rank}] {self._begun[rank]}\n")
        self._begun.clear()


def make_writer(session: Session, *, ranks: bool) -> tuple[Writer, Callable[[], None]]:
    """Return what writes pieces of output, and what to call at the end."""
    if session.terminal.as_json:
        return lambda piece: session.terminal.event("log", **piece), lambda: None
    if ranks:
        by_rank = ByRank(session)
        return by_rank, by_rank.finish
    return lambda piece: session.terminal.raw(piece["text"]), lambda: None


def logs(
    instance: InstanceName,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the command has ended.")] = False,
    replica: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="Only this replica.", show_default=False)
    ] = None,
    as_json: AsJson = False,
    explain: Explain = False,
) -> None:
    """Print the output of an instance; with --json one line of JSON for each event."""
    with open_session(as_json=as_json, explain=explain, at_work=follow) as session:
        found = find_instance(session, instance)
        write, finish = make_writer(session, ranks=found["replicas"] > 1 and replica is None)

        def write_wanted(piece: dict[str, Any]) -> None:
            if replica is None or piece["replica"] == replica:
                write(piece)

        reader = LogReader(session, f"/instances/{found['id']}/logs", write=write_wanted)
        try:
            reader.read_all()
            pause = Pause()
            while follow and not reader.complete:
                pause.take(was_quiet=not reader.read())
        finally:
            finish()
