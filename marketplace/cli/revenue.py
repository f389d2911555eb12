"""Shares of revenue: what to report, what was reported, and what that cost."""

from pathlib import Path
from typing import Annotated, Any

import typer

from marketplace.cli import words
from marketplace.cli.problems import usage
from marketplace.cli.session import AsJson, Explain, open_session

STEPS = {
    "revenue": "revenue", "share": "share of it", "minimum": "minimum", "metered_cost": "metered cost by the list",
    "cap": "never more than", "true_up": "true-up beside the share", "total": "total",
}  # fmt: skip
STATES = {"open": "open", "estimated": "estimated", "closed": "closed"}

app = typer.Typer(help="Report revenue under contracts that share it, and see what that cost.", rich_markup_mode=None)


@app.callback(invoke_without_command=True)
def revenue(ctx: typer.Context, as_json: AsJson = False, explain: Explain = False) -> None:
    """List the periods that revenue is reported for, when that is due, and what was charged."""
    if ctx.invoked_subcommand:
        return
    with open_session(as_json=as_json, explain=explain) as session:
        found = list(session.client.rows("/revenue/periods"))
        if as_json:
            session.terminal.document({"data": found, "next_cursor": None})
        elif found:
            columns = ["PERIOD", "ID", "CONTRACT", "STATE", "DUE", ">REVENUE", ">CHARGED"]
            session.terminal.table(columns, [cells(row) for row in found])
            session.terminal.say("Report one: gpumarket revenue report CONTRACT PERIOD 1234.50")
        else:
            session.terminal.say("You share no revenue under any contract.")


@app.command()
def show(
    period: Annotated[str, typer.Argument(metavar="ID", help="Of a period: rvp_…")],
    as_json: AsJson = False,
    explain: Explain = False,
) -> None:
    """Show a period: its statements, and what it would cost if it ended now."""
    with open_session(as_json=as_json, explain=explain) as session:
        found = session.client.get(f"/revenue/periods/{period}")
        if as_json:
            session.terminal.document(found)
            return
        session.terminal.table(["PERIOD", "ID", "CONTRACT", "STATE", "DUE", ">REVENUE", ">CHARGED"], [cells(found)])
        if found["so_far"] is not None:
            session.terminal.say(f"So far: {words.money(found['so_far'], found['currency'])}")
        session.terminal.table(
            ["HOW", ">AMOUNT"],
            [[STEPS[one["name"]], words.money(one["amount"], found["currency"])] for one in found["arithmetic"]],
        )
        hours = [
            [one["resource"], str(one["gpus"]), words.local_time(one["since"]), words.local_time(one["until"]),
             words.money(one["price"], found["currency"]), words.money(one["amount"], found["currency"])]
            for one in found["metered"]
        ]  # fmt: skip
        if hours:
            session.terminal.table(["INSTANCE", ">GPUS", "FROM", "UNTIL", ">PER GPU-HOUR", ">AMOUNT"], hours)
        rows = [
            [str(row["number"]), words.local_time(row["at"]), row["source"], row["by"],
             words.money(row["revenue"], row["currency"])]
            for row in found["statements"]
        ]  # fmt: skip
        if rows:
            session.terminal.table([">NO.", "AT", "BY WAY OF", "BY", ">REVENUE"], rows)


@app.command()
def report(
    contract: Annotated[str, typer.Argument(metavar="CONTRACT", help="Of the version: ctv_…")],
    period: Annotated[str, typer.Argument(metavar="PERIOD", help="Such as 2026-11, or 2026-11-26 for a day.")],
    amount: Annotated[
        str | None, typer.Argument(metavar="AMOUNT", help="What was earned, such as 1234.50.", show_default=False)
    ] = None,
    *,
    file: Annotated[
        Path | None,
        typer.Option("--csv", metavar="FILE", help="Lines of the columns label and amount.", show_default=False),
    ] = None,
    as_json: AsJson = False,
    explain: Explain = False,
) -> None:
    """Report what was earned in a period. Reporting again corrects, until the period is closed."""
    with open_session(as_json=as_json, explain=explain) as session:
        if (amount is None) == (file is None):
            raise usage(
                "Give either an amount or --csv FILE.", suggestion="gpumarket revenue report CONTRACT PERIOD 1234.50"
            )
        order: dict[str, Any] = {"contract": contract, "period": period}
        if file is not None:
            try:
                order["csv"] = file.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise usage(f"{file} cannot be read.", detail=str(error), suggestion="Write it as UTF-8.") from error
        else:
            order["revenue"] = amount
        made = session.client.post("/revenue/statements", order)
        if as_json:
            session.terminal.document(made)
            return
        said = words.money(made["revenue"], made["currency"])
        session.terminal.say(f"Statement {made['number']} of {made['period']} says {said}.")


def cells(row: dict[str, Any]) -> list[str]:
    revenue_said = "" if row["revenue"] is None else words.money(row["revenue"], row["currency"])
    return [
        row["period"], row["id"], row["contract"]["title"], STATES[row["state"]], words.local_time(row["due_at"]),
        revenue_said, words.money(row["charged"], row["currency"]),
    ]  # fmt: skip
