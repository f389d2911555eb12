"""How available instances were, and what was given back for that."""

from typing import Annotated, Any

import typer

from marketplace.cli import words
from marketplace.cli.instances import find_instance
from marketplace.cli.session import AsJson, Explain, open_session

MILLION = 1_000_000


def sla(
    instance: Annotated[
        str | None,
        typer.Argument(metavar="INSTANCE", help="Its name or id; else the months of all.", show_default=False),
    ] = None,
    as_json: AsJson = False,
    explain: Explain = False,
) -> None:
    """Show how available instances were by month, and the credit for it, which comes by itself."""
    with open_session(as_json=as_json, explain=explain) as session:
        if instance is None:
            found = {"data": list(session.client.rows("/service-levels")), "next_cursor": None}
        else:
            found = session.client.get(f"/instances/{find_instance(session, instance)['id']}/sla")
        if as_json:
            session.terminal.document(found)
        elif found["data"]:
            columns = ["MONTH", "INSTANCE", ">AVAILABLE", ">UP", ">DOWN", ">DEGRADED", ">PAID", ">CREDIT"]
            session.terminal.table(columns, [cells(row) for row in found["data"]])
            session.terminal.say("What this follows from: gpumarket sla INSTANCE --json")
        else:
            session.terminal.say("No month is over yet in which something ran. This one: gpumarket sla INSTANCE")


def cells(row: dict[str, Any]) -> list[str]:
    return [
        row["month"] if row["is_final"] else f"{row['month']} so far",
        row["instance"]["name"],
        percent(row["availability_ppm"]),
        *(hours(row[name]) for name in ("up_ms", "down_ms", "degraded_ms")),
        words.money(row["paid"], row["currency"]),
        words.money(row["credit"], row["currency"]),
    ]


def percent(ppm: int) -> str:
    """Return millionths as percent with four places, rounded down."""
    return f"{ppm // 10_000}.{ppm % 10_000:04} %"


def hours(milliseconds: int) -> str:
    """Return hours, minutes and seconds, rounded down."""
    minutes, seconds = divmod(milliseconds // 1000, 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
