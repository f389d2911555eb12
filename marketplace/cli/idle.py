"""Instances that do nothing and cost money."""

from typing import Annotated, Any

import typer

from marketplace.cli import words
from marketplace.cli.orders import project_id
from marketplace.cli.problems import usage
from marketplace.cli.session import AsJson, Explain, open_session

ACTIONS = {"show": "shows it", "warn": "writes an e-mail", "stop": "writes an e-mail, and stops it"}

app = typer.Typer(help="See what does nothing and costs money, and say what is done about it.", rich_markup_mode=None)


@app.callback(invoke_without_command=True)
def idle(ctx: typer.Context, as_json: AsJson = False, explain: Explain = False) -> None:
    """List instances whose GPUs were used less than 5 % for an hour, and what that cost."""
    if ctx.invoked_subcommand:
        return
    with open_session(as_json=as_json, explain=explain) as session:
        found = session.client.get("/idle")
        if as_json:
            session.terminal.document(found)
            return
        if not found["data"]:
            session.terminal.say("Nothing is idle: every GPU was used, or was not read, within the last hour.")
            return
        columns = ["INSTANCE", "ID", "PROJECT", "IDLE SINCE", ">PER HOUR", ">FOR NOTHING", "STOPS"]
        session.terminal.table(columns, [cells(row) for row in found["data"]])
        session.terminal.say("Stop one: gpumarket stop INSTANCE. By themselves: gpumarket idle set PROJECT --then stop")


def cells(row: dict[str, Any]) -> list[str]:
    return [
        row["instance"]["name"],
        row["instance"]["id"],
        row["project"]["name"],
        words.local_time(row["since"]),
        words.money(row["per_hour"]["amount"], row["per_hour"]["currency"]),
        words.money(row["for_nothing"]["amount"], row["for_nothing"]["currency"]),
        words.local_time(row["stops_at"]) if row["stops_at"] else "",
    ]


@app.command("set")
def set_idle(
    project: Annotated[str, typer.Argument(metavar="PROJECT", help="Its name or id.", show_default=False)],
    *,
    then: Annotated[str, typer.Option(metavar="show|warn|stop", help="What is done about it.", show_default=False)],
    after: Annotated[
        int | None,
        typer.Option(metavar="MINUTES", min=1, help="Stop this long after the warning.", show_default=False),
    ] = None,
    as_json: AsJson = False,
    explain: Explain = False,
) -> None:
    """Say what a project does about what is idle."""
    if then not in ACTIONS:
        raise usage(f"{then!r} is nothing that can be done.", suggestion="Write --then show, warn or stop.")
    with open_session(as_json=as_json, explain=explain) as session:
        body = {"action": then} | ({} if after is None else {"stop_minutes": after})
        found = session.client.put(f"/projects/{project_id(session, project)}/idle", body)
        when = f", {found['stop_minutes']} minutes after that" if found["action"] == "stop" else ""
        session.terminal.say(f"Where something is idle the project {ACTIONS[found['action']]}{when}.")
        if as_json:
            session.terminal.document(found)
