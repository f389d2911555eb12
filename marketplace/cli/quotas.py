"""Quotas and budgets: what may be held and spent, and how to ask for more."""

import re
from typing import Annotated, Any

import typer

from marketplace.cli import words
from marketplace.cli.amounts import amount
from marketplace.cli.orders import project_id
from marketplace.cli.problems import usage
from marketplace.cli.session import AsJson, Explain, Project, open_session

NONE = "none"

app = typer.Typer(help="See what may be held at once, and ask for more.", rich_markup_mode=None)
budget_app = typer.Typer(help="See and set budgets: for a month and for an hour.", rich_markup_mode=None)

Market = Annotated[
    str | None,
    typer.Option(metavar="on_demand|spot|reserved", help="Of this market alone.", show_default=False),
]
GpuModel = Annotated[
    str | None, typer.Option("--gpu-model", metavar="MODEL", help="Of this GPU model alone.", show_default=False)
]


@app.callback(invoke_without_command=True)
def quota(ctx: typer.Context, as_json: AsJson = False, explain: Explain = False) -> None:
    """Show what the organization and its projects may hold, hold, use, and have free."""
    if ctx.invoked_subcommand:
        return
    with open_session(as_json=as_json, explain=explain) as session:
        rows = list(session.client.rows("/quotas"))
        if as_json:
            session.terminal.document({"data": rows, "next_cursor": None})
            return
        session.terminal.table(
            ["OF", "COUNTS", ">LIMIT", ">HELD", ">USED", ">FREE"], [cells(row) for row in reversed(rows)]
        )
        session.terminal.say("Held counts from the request until the GPUs are given back; used is what of it runs.")
        session.terminal.say("More: gpumarket quota request LIMIT --reason WHY")


def cells(row: dict[str, Any]) -> list[str]:
    owner = row["project"]["name"] if row["project"] else row["organization"]["name"]
    return [owner, counts(row), *(figure(row, name) for name in ("limit", "held", "used", "free"))]


def counts(row: dict[str, Any]) -> str:
    """Return what a quota counts, such as "H200, spot" or "all, per hour"."""
    named = [word.replace("_", " ") for word in (row["gpu_model"], row["market"]) if word]
    return ", ".join([*(named or ["all"]), *(["per hour"] if row["unit"] == "per_hour" else [])])


def figure(row: dict[str, Any], name: str) -> str:
    return words.money(row[name], row["currency"]) if row["unit"] == "per_hour" else f"{row[name]:,}"


@app.command("request")
def request(
    limit: Annotated[
        str, typer.Argument(metavar="LIMIT", help="GPUs, or money with --per-hour: what you need.", show_default=False)
    ],
    *,
    reason: Annotated[str, typer.Option(metavar="WHY", help="What it is for; a person reads it.", show_default=False)],
    gpu_model: GpuModel = None,
    market: Market = None,
    whole: Annotated[bool, typer.Option("--organization", help="Of all projects together.")] = False,
    per_hour: Annotated[bool, typer.Option("--per-hour", help="Of what all of it costs in an hour.")] = False,
    project: Project = None,
    as_json: AsJson = False,
    explain: Explain = False,
) -> None:
    """Ask for a higher limit. A rule may approve it at once; else a capacity manager decides."""
    with open_session(as_json=as_json, explain=explain) as session:
        body: dict[str, Any] = {"limit": amount(limit) if per_hour else gpus(limit), "reason": reason}
        body |= {name: value for name, value in (("gpu_model", gpu_model), ("market", market)) if value}
        body |= {"organization_wide": True} if whole else {}
        body |= {"project": project_id(session, project)} if project else {}
        row = session.client.post("/quota-requests", body)
        if as_json:
            session.terminal.document(row)
            return
        session.terminal.data(row["id"])
        what = "an hour" if per_hour else "GPUs"
        by = f" by {row['decided_by']}" if row["decided_by"] else ""
        session.terminal.say(f"The request for {figure(row, 'limit')} {what} is {row['state']}{by}.")
        if row["state"] == "pending":
            session.terminal.say("See how it stands: gpumarket quota requests")


def gpus(text: str) -> int:
    """Return a number of GPUs that was typed."""
    if not re.fullmatch("[1-9][0-9]{0,8}", text):
        raise usage(f"{text!r} is no number of GPUs.", suggestion="A whole number such as 64, or money with --per-hour")
    return int(text)


@app.command("requests")
def requests(as_json: AsJson = False, explain: Explain = False) -> None:
    """List requests for quota, how they were decided, and the notes."""
    with open_session(as_json=as_json, explain=explain) as session:
        rows = list(session.client.rows("/quota-requests"))
        if as_json:
            session.terminal.document({"data": rows, "next_cursor": None})
        elif rows:
            session.terminal.table(["ID", "FOR", "COUNTS", ">LIMIT", "STATE", "NOTE"], [asked(row) for row in rows])
        else:
            session.terminal.say("Nobody asked for more quota. Ask: gpumarket quota request LIMIT --reason WHY")


def asked(row: dict[str, Any]) -> list[str]:
    owner = row["project"]["name"] if row["project"] else row["organization"]["name"]
    return [row["id"], owner, counts(row), figure(row, "limit"), row["state"], row["note"]]


@app.command("withdraw")
def withdraw(
    request_id: Annotated[str, typer.Argument(metavar="REQUEST", help="Its id.", show_default=False)],
    as_json: AsJson = False,
    explain: Explain = False,
) -> None:
    """Take a request back; what is decided stays decided."""
    with open_session(as_json=as_json, explain=explain) as session:
        row = session.client.post(f"/quota-requests/{request_id}/withdraw")
        session.terminal.say(f"The request is {row['state']}.")
        if as_json:
            session.terminal.document(row)


@budget_app.callback(invoke_without_command=True)
def budget(ctx: typer.Context, as_json: AsJson = False, explain: Explain = False) -> None:
    """Show budgets and what they are held against: used, set aside, and what all that is held costs for an hour."""
    if ctx.invoked_subcommand:
        return
    with open_session(as_json=as_json, explain=explain) as session:
        found = session.client.get("/budgets")
        if as_json:
            session.terminal.document(found)
            return
        columns = ["OF", "ID", ">MONTH", ">USED", ">SET ASIDE", ">HOUR", ">COMMITTED"]
        session.terminal.table(columns, [budget_cells(row) for row in found["data"]])
        session.terminal.say("A month is one of the calendar, in UTC. Set one: gpumarket budget set ID --month 1000")


def budget_cells(row: dict[str, Any]) -> list[str]:
    said = {
        name: words.money(row[name], row["currency"]) if row[name] is not None else NONE
        for name in ("monthly", "spent", "set_aside", "hourly", "per_hour")
    }
    return [f"{row['kind']} {row['name']}", row["id"], *said.values()]


@budget_app.command("set")
def set_budget(
    owner: Annotated[str, typer.Argument(metavar="ID", help="Of an organization, project or token.")],
    *,
    month: Annotated[
        str | None, typer.Option(metavar="AMOUNT", help="For a month, or none.", show_default=False)
    ] = None,
    hour: Annotated[
        str | None, typer.Option(metavar="AMOUNT", help="For an hour, or none.", show_default=False)
    ] = None,
    as_json: AsJson = False,
    explain: Explain = False,
) -> None:
    """Set a budget; what is not named stays. It refuses what would pass it, and stops nothing that runs."""
    if month is None and hour is None:
        raise usage("There is nothing to set.", suggestion="Name --month or --hour, such as --month 1000.")
    with open_session(as_json=as_json, explain=explain) as session:
        now = session.client.get(f"/budgets/{owner}")
        body = {
            "monthly": now["monthly"] if month is None else limit_of(month),
            "hourly": now["hourly"] if hour is None else limit_of(hour),
        }
        row = session.client.put(f"/budgets/{owner}", body)
        _, _, month_said, _, _, hour_said, _ = budget_cells(row)
        session.terminal.say(f"Budget of {row['kind']} {row['name']}: {month_said} a month, {hour_said} an hour.")
        if as_json:
            session.terminal.document(row)


def limit_of(text: str) -> str | None:
    """Return a budget that was typed as the API reads it; None for "none"."""
    return None if text == NONE else amount(text)
