"""Budgets: what is meant to be used, how far that is, whom it is told, and what follows."""

from decimal import Decimal
from typing import Annotated, Any

import typer

from marketplace.cli import words
from marketplace.cli.amounts import amount
from marketplace.cli.problems import usage
from marketplace.cli.session import AsJson, Explain, open_session

NONE = "none"
COLUMNS = [
    "OF", "ID", ">MONTH", ">USED", ">SHARE", ">FORECAST", ">SET ASIDE", ">REVENUE SHARES", ">HOUR", ">COMMITTED",
    "THEN",
]  # fmt: skip
ACTIONS = {"alert": "tells", "block": "starts nothing new", "stop": "stops what runs"}

app = typer.Typer(help="See and set budgets: for a month and for an hour.", rich_markup_mode=None)


@app.callback(invoke_without_command=True)
def budget(ctx: typer.Context, as_json: AsJson = False, explain: Explain = False) -> None:
    """Show budgets, what is used, the forecast for the month's end, and what follows once one is used up."""
    if ctx.invoked_subcommand:
        return
    with open_session(as_json=as_json, explain=explain) as session:
        found = session.client.get("/budgets")
        if as_json:
            session.terminal.document(found)
            return
        session.terminal.table(COLUMNS, [budget_cells(row) for row in found["data"]])
        for row in found["data"]:
            for alert in row["alerts"]:
                session.terminal.say(alert_line(row, alert))
            if row["stops_at"]:
                session.terminal.say(
                    f"The budget of {row['kind']} {row['name']} is used up: what runs on it is stopped at "
                    f"{words.local_time(row['stops_at'])}."
                )
        session.terminal.say("A month is one of the calendar, in UTC. Set one: gpumarket budget set ID --month 1000")


def budget_cells(row: dict[str, Any]) -> list[str]:
    said = {name: counted(row, row[name]) for name in ("monthly", "used", "forecast")}
    said |= {name: in_money(row, row[name]) for name in ("set_aside", "shares_due", "hourly", "per_hour")}
    share = (
        f"{Decimal(row['used']) * 100 // Decimal(row['monthly'])} %"
        if row["monthly"] and Decimal(row["monthly"])
        else ""
    )
    return [
        f"{row['kind']} {row['name']}", row["id"], said["monthly"], said["used"], share, said["forecast"],
        said["set_aside"], said["shares_due"], said["hourly"], said["per_hour"],
        ACTIONS[row["action"]] if row["monthly"] else "",
    ]  # fmt: skip


def counted(row: dict[str, Any], amount: str | None) -> str:
    """Return an amount of what a budget counts as people read it."""
    if amount is None or row["counts"] == "money":
        return in_money(row, amount)
    return words.count(int(amount), "outcome")


def in_money(row: dict[str, Any], amount: str | None) -> str:
    """Return money of a budget as people read it."""
    return NONE if amount is None else words.money(amount, row["currency"])


def alert_line(row: dict[str, Any], alert: dict[str, Any]) -> str:
    what = "used" if alert["kind"] == "used" else "forecast"
    reached, whole = (counted(row, alert[name]) for name in ("reached", "amount"))
    return (
        f"{words.local_time(alert['at'])}  {alert['share']} % of the budget of {row['kind']} {row['name']} {what}: "
        f"{reached} of {whole}."
    )


@app.command("set")
def set_budget(
    owner: Annotated[str, typer.Argument(metavar="ID", help="Of an organization, project or token.")],
    *,
    month: Annotated[
        str | None, typer.Option(metavar="AMOUNT", help="For a month, or none.", show_default=False)
    ] = None,
    outcomes: Annotated[
        str | None,
        typer.Option(metavar="NUMBER", help="Outcomes paid for in a month, or none.", show_default=False),
    ] = None,
    hour: Annotated[
        str | None, typer.Option(metavar="AMOUNT", help="For an hour, or none.", show_default=False)
    ] = None,
    then: Annotated[
        str | None,
        typer.Option(metavar="alert|block|stop", help="What follows once it is used up.", show_default=False),
    ] = None,
    grace: Annotated[
        int | None,
        typer.Option(metavar="MINUTES", min=0, help="How long what runs goes on then.", show_default=False),
    ] = None,
    at: Annotated[
        str | None,
        typer.Option("--alert", metavar="50,80,100", help="Tell at these percentages used.", show_default=False),
    ] = None,
    forecast: Annotated[
        str | None,
        typer.Option("--forecast-alert", metavar="100", help="Tell at these of the forecast.", show_default=False),
    ] = None,
    as_json: AsJson = False,
    explain: Explain = False,
) -> None:
    """Set a budget; what is not named stays. What would pass it is refused, unless it only tells.

    With --outcomes it counts outcomes instead of money, beside the budget of money, and has the other settings for
    itself.
    """
    changes = settings_of(then, grace, at, forecast)
    if month is None and hour is None and outcomes is None and not changes:
        raise usage("There is nothing to set.", suggestion="Name --month or --hour, such as --month 1000.")
    if month is not None and outcomes is not None:
        raise usage("A budget counts money or outcomes.", suggestion="Set one with --month, then one with --outcomes.")
    counts = {} if outcomes is None else {"counts": "outcomes"}
    with open_session(as_json=as_json, explain=explain) as session:
        now = session.client.get(f"/budgets/{owner}", **counts)
        monthly = now["monthly"] if month is None else limit_of(month)
        body = changes | counts | {
            "monthly": monthly if outcomes is None else number_of(outcomes),
            "hourly": now["hourly"] if hour is None else limit_of(hour),
        }  # fmt: skip
        row = session.client.put(f"/budgets/{owner}", body)
        month_said, hour_said = counted(row, row["monthly"]), in_money(row, row["hourly"])
        session.terminal.say(f"Budget of {row['kind']} {row['name']}: {month_said} a month, {hour_said} an hour.")
        if row["monthly"] is not None:
            session.terminal.say(f"Once the month's is used up it {ACTIONS[row['action']]}.")
        if as_json:
            session.terminal.document(row)


def settings_of(then: str | None, grace: int | None, at: str | None, forecast: str | None) -> dict[str, Any]:
    """Return what of the settings was named, as the API reads it."""
    if then is not None and then not in ACTIONS:
        raise usage(f"{then!r} is nothing that can follow.", suggestion="Write --then alert, block or stop.")
    given: dict[str, Any] = {"action": then, "grace_minutes": grace}
    given |= {"used_shares": shares_of(at), "forecast_shares": shares_of(forecast)}
    return {name: value for name, value in given.items() if value is not None}


def shares_of(text: str | None) -> list[int] | None:
    """Return percentages that were typed with commas; "none" is none of them."""
    if text is None:
        return None
    parts = [] if text == NONE else [part.strip().removesuffix("%").strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise usage(f"{text!r} are no percentages.", suggestion="Write them as 50,80,100.")
    return [int(part) for part in parts]


def number_of(text: str) -> str | None:
    """Return a number of outcomes that was typed as the API reads it; None for "none"."""
    if text != NONE and not (text.isascii() and text.isdecimal()):
        raise usage(f"{text!r} is no whole number.", suggestion="Write --outcomes 1000, or --outcomes none.")
    return None if text == NONE else text


def limit_of(text: str) -> str | None:
    """Return a budget that was typed as the API reads it; None for "none"."""
    return None if text == NONE else amount(text)
