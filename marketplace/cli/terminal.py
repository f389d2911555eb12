"""Data goes to stdout, talk goes to stderr; what is not a terminal gets no colour and nothing that moves."""

import json
import os
import sys
from collections.abc import Iterable
from typing import Any

from marketplace.cli.problems import Problem

ERASE_LINE = "\r\x1b[2K"
UNLIMITED = 100_000
PHASE = "PHASE"
STYLES = {
    "running": "green",
    "stopped": "dim",
    "terminated": "dim",
    "failed": "red",
    "interrupted": "red",
}


class Terminal:
    """Both outputs of one command. With `as_json`, stdout carries JSON and nothing else."""

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json
        self.moves = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._status = ""

    @property
    def can_ask(self) -> bool:
        """True if there is a person to answer a question."""
        return not self.as_json and sys.stdin.isatty() and sys.stderr.isatty()

    def say(self, text: str = "") -> None:
        self.clear()
        print(printable(text), file=sys.stderr, flush=True)  # noqa: T201 - talk is what this is for

    def status(self, text: str) -> None:
        """Show what is going on now, on a line that the next output replaces; only where lines can be replaced."""
        if not self.moves:
            return
        width = os.get_terminal_size(sys.stderr.fileno()).columns or 80
        self._status = printable(text)[: width - 1]
        sys.stderr.write(ERASE_LINE + self._status)
        sys.stderr.flush()

    def clear(self) -> None:
        if self._status:
            sys.stderr.write(ERASE_LINE)
            sys.stderr.flush()
            self._status = ""

    def complain(self, problem: Problem) -> None:
        """Say a problem in five parts; with JSON, also print its document as data."""
        for line in problem.lines():
            self.say(line)
        if self.as_json:
            self.event("problem", **problem.document)

    def document(self, value: Any) -> None:
        """Print one JSON document."""
        self.data(json.dumps(value, indent=2, ensure_ascii=False))

    def event(self, name: str, **more: Any) -> None:
        """Print one line of JSON, of many."""
        self.data(json.dumps({"event": name, **more}, ensure_ascii=False))

    def data(self, text: str) -> None:
        self.raw(text + "\n")

    def raw(self, text: str) -> None:
        """Write to stdout exactly this, now."""
        self.clear()
        sys.stdout.flush()
        sys.stdout.buffer.write(text.encode("utf-8", "replace"))
        sys.stdout.buffer.flush()

    def table(self, columns: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
        """Print rows under their headings; a heading that begins with ">" stands to the right, as money does."""
        from rich.console import Console  # noqa: PLC0415 - --help and --json do not wait for it
        from rich.table import Table  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415

        self.clear()
        # Where nobody reads, a line is never broken to fit a width.
        console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else UNLIMITED)
        table = Table(box=None, pad_edge=False, header_style="bold")
        headings = list(columns)
        for heading in headings:
            is_number = heading.startswith(">")
            table.add_column(heading.lstrip(">"), justify="right" if is_number else "left", no_wrap=is_number)
        for row in rows:
            cells = zip(headings, row, strict=True)
            table.add_row(
                *(
                    Text(printable(cell), style=STYLES.get(cell.split(" ")[0], "") if heading == PHASE else "")
                    for heading, cell in cells
                )
            )
        console.print(table)


def printable(text: str) -> str:
    """Return the text without the characters that would steer a terminal: names come from other people."""
    return "".join(char if char.isprintable() or char == "\n" else "\N{REPLACEMENT CHARACTER}" for char in text)
