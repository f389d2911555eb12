"""What use cost, by day, project, GPU model or market."""

import re
from typing import Annotated, Any

import typer

from marketplace.cli import words
from marketplace.cli.problems import usage
from marketplace.cli.session import AsJson, Explain, open_session

DIMENSIONS = ("day", "project", "model", "market")
MONTH = re.compile(r"20[0-9]{2}-(0[1-9]|1[0-2])")


def cost(
    by: Annotated[
        str, typer.Option(metavar="day|project|model|market", help="What tells costs apart; several with commas.")
    ] = "day",
    month: Annotated[
        str | None, typer.Option(metavar="YYYY-MM", help="Of this month, in UTC.", show_default="this month")
    ] = None,
    as_json: AsJson = False,
    explain: Explain = False,
) -> None:
    """Show what was used cost, exactly and before tax; reserved hours stand on the day when they were paid."""
    asked = [name.strip() for name in by.split(",")]
    if set(asked).difference(DIMENSIONS):
        raise usage(
            f"{by!r} is nothing that tells costs apart.", suggestion=f"Write --by {', --by '.join(DIMENSIONS)}."
        )
    if month is not None and not MONTH.fullmatch(month):
        raise usage(f"{month!r} is no month.", suggestion="Write it as 2026-11.")
    with open_session(as_json=as_json, explain=explain) as session:
        found = session.client.get("/costs", by=",".join(asked), month=month)
        if as_json:
            session.terminal.document(found)
            return
        if not found["data"]:
            session.terminal.say("Nothing was used in this month, so it cost nothing.")
            return
        columns = [*(name.upper() for name in found["by"]), ">AMOUNT"]
        session.terminal.table(columns, [cells(row, found) for row in found["data"]])
        session.terminal.say(f"Together {words.money(found['total'], found['currency'])}.")


def cells(row: dict[str, Any], found: dict[str, Any]) -> list[str]:
    told = [row[name]["name"] or row[name]["id"] if name == "project" else str(row[name]) for name in found["by"]]
    return [*told, words.money(row["amount"], found["currency"])]
