"""Registries: where a project's private images come from. A password comes from the keyboard or stdin, never argv."""

import sys
from typing import Annotated, Any

import typer

from marketplace.cli import words
from marketplace.cli.orders import project_id
from marketplace.cli.problems import problem, usage
from marketplace.cli.session import AsJson, Explain, Project, Session, open_session

app = typer.Typer(
    help="Users of private image registries, for a project's instances.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
Host = Annotated[str, typer.Argument(metavar="REGISTRY", help="Its host, as images name it.", show_default=False)]


@app.command("ls")
def ls(project: Project = None, as_json: AsJson = False, explain: Explain = False) -> None:
    """List the registries that a project pulls private images from; passwords are never shown."""
    with open_session(as_json=as_json, explain=explain) as session:
        found = rows_of(session, project)
        if as_json:
            session.terminal.document({"data": found, "next_cursor": None})
        elif found:
            session.terminal.table(["REGISTRY", "USER", "ID", "ADDED", "LAST PULL"], [cells(row) for row in found])
        else:
            session.terminal.say("There are none; public images need none.")
            session.terminal.say("Add one: gpumarket registry add registry.example.com --username USER")


def cells(row: dict[str, Any]) -> list[str]:
    last = words.local_time(row["handed_out_at"]) or "never"
    return [row["host"], row["username"], row["id"], words.local_time(row["created_at"]), last]


@app.command("add")
def add(
    host: Host,
    username: Annotated[str, typer.Option(metavar="USER", help="Who may read there.", show_default=False)],
    project: Project = None,
    as_json: AsJson = False,
    explain: Explain = False,
) -> None:
    """Let a project's instances pull private images; the password is asked for, or read from stdin."""
    with open_session(as_json=as_json, explain=explain) as session:
        body = {"host": host, "username": username, "password": read_password(session, f"{username} at {host}")}
        if project:
            body["project"] = project_id(session, project)
        added = session.client.post("/registries", body)
        session.terminal.say(f"Images from {added['host']} can be pulled as {added['username']} now.")
        if as_json:
            session.terminal.document(added)


def read_password(session: Session, whose: str) -> str:
    """Return what is typed unseen, or the first line of stdin where nobody types."""
    if session.terminal.can_ask:
        return str(typer.prompt(f"Password or token of {whose}", hide_input=True, err=True))
    password = sys.stdin.readline().rstrip("\r\n")
    if not password:
        raise usage(
            "There is no password on stdin.",
            suggestion="For example: gpumarket registry add HOST --username USER < file-with-the-password",
        )
    return password


@app.command("rm")
def rm(host: Host, project: Project = None, as_json: AsJson = False, explain: Explain = False) -> None:
    """Forget a registry (by host or id); what runs goes on."""
    with open_session(as_json=as_json, explain=explain) as session:
        row = find_registry(session, host, project)
        session.client.delete(f"/registries/{row['id']}")
        session.terminal.say(f"Private images from {row['host']} cannot be pulled any more; what runs goes on.")
        if as_json:
            session.terminal.document(row)


def find_registry(session: Session, name: str, project: str | None) -> dict[str, Any]:
    found = [row for row in rows_of(session, project) if name.lower() in {row["host"], row["id"]}]
    if found:
        return found[0]
    raise problem(
        code="not_found",
        title=f"The project has no registry {name}.",
        suggestion="See what there is: gpumarket registry ls",
    )


def rows_of(session: Session, project: str | None) -> list[dict[str, Any]]:
    wanted = project_id(session, project) if project else None
    return list(session.client.rows("/registries", project=wanted))
