"""What every command begins with: its outputs, its connection, and the options that all share."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from marketplace.cli.connection import Connection, find_connection
from marketplace.cli.terminal import Terminal

if TYPE_CHECKING:
    from marketplace.cli.client import Client

PATIENCE_WITH_WORK_S = 60.0

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout; talk stays on stderr.")]
Explain = Annotated[bool, typer.Option("--explain", help="Print the HTTP calls as curl on stderr, without the token.")]
InstanceName = Annotated[str, typer.Argument(metavar="INSTANCE", help="Its name or id.", show_default=False)]
Project = Annotated[str | None, typer.Option(metavar="PROJECT", help="Name or id of the project.", show_default=False)]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it is so.")]
TimeoutS = Annotated[float, typer.Option("--timeout", metavar="SECONDS", min=0, help="Wait no longer than this.")]


@dataclass(frozen=True)
class Session:
    """Both outputs and the connection of one command; leaving it hangs up."""

    terminal: Terminal
    client: "Client"

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()


def open_session(
    *, as_json: bool, explain: bool, at_work: bool = False, connection: Connection | None = None
) -> Session:
    """Connect to the marketplace; `at_work` waits longer for a server that restarts: an instance depends on it."""
    from marketplace.cli.client import Client  # noqa: PLC0415 - httpx takes longer to load than all of --help

    terminal = Terminal(as_json=as_json)
    client = Client(connection or find_connection(), terminal=terminal, explain=explain)
    if at_work:
        client.patience_s = PATIENCE_WITH_WORK_S
    return Session(terminal=terminal, client=client)
