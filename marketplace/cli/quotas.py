"""Quotas: what may be held, and how to ask for more."""

import re
from typing import Annotated, Any

import typer

from marketplace.cli import words
from marketplace.cli.amounts import amount
from marketplace.cli.orders import project_id
from marketplace.cli.problems import usage
from marketplace.cli.session import AsJson, Explain, Project, open_session

app = typer.Typer(help="See what may be held at once, and ask for more.", rich_markup_mode=None)

Market = Annotated[
    str | None,
    typer.Option(metavar="on_demand|spot|reserved", help="Of this market alone.", show_default=False),
]
GpuModel = Annotated[
    str | None, typer.Option("--gpu-model", metavar="MODEL", help="Of this GPU model alone.", show_default=False)
]


@app.callback(invoke_without_command=True)
def quota(ctx: typer.Context, as_json: AsJson = False, explain: Explain = False) -> None:
    """Show what the organization and its projects may hold, hold, use, have reserved, and have free."""
    if ctx.invoked_subcommand:
        return
    with open_session(as_json=as_json, explain=explain) as session:
        rows = list(session.client.rows("/quotas"))
        if as_json:
            session.terminal.document({"data": rows, "next_cursor": None})
            return
        session.terminal.table(
            ["OF", "COUNTS", ">LIMIT", ">HELD", ">USED", ">RESERVED", ">FREE"], [cells(row) for row in reversed(rows)]
        )
        session.terminal.say("Held counts from the request until the GPUs are given back; used is what of it runs.")
        session.terminal.say(
            "Reserved is what blocks have in the fullest hour to come; what runs inside holds nothing."
        )
        session.terminal.say("More: gpumarket quota request LIMIT --reason WHY")


def cells(row: dict[str, Any]) -> list[str]:
    owner = row["project"]["name"] if row["project"] else row["organization"]["name"]
    return [owner, counts(row), *(figure(row, name) for name in ("limit", "held", "used", "reserved", "free"))]


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
