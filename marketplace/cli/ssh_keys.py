"""SSH keys: the public halves that may enter a project's instances. A private half never leaves this machine."""

from pathlib import Path
from typing import Annotated, Any

import typer

from marketplace.cli import words
from marketplace.cli.orders import project_id
from marketplace.cli.problems import problem, usage
from marketplace.cli.session import AsJson, Explain, Project, Session, open_session

FILE_BYTES_MAX = 64 << 10
# What the one line of an OpenSSH public key begins with; whether it is a sound one is for the server to say.
KINDS = ("ssh-", "ecdsa-sha2-", "sk-ssh-", "sk-ecdsa-")

app = typer.Typer(
    help="SSH keys that open a project's instances: list, add and remove them.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command("ls")
def ls(project: Project = None, as_json: AsJson = False, explain: Explain = False) -> None:
    """List the keys that open a project's instances."""
    with open_session(as_json=as_json, explain=explain) as session:
        found = rows_of(session, project)
        if as_json:
            session.terminal.document({"data": found, "next_cursor": None})
        elif found:
            session.terminal.table(["NAME", "FINGERPRINT", "ID", "ADDED"], [cells(row) for row in found])
        else:
            session.terminal.say("The project has no SSH key, so nobody can enter its instances.")
            session.terminal.say("Add yours: gpumarket ssh-key add ~/.ssh/id_ed25519.pub")


def cells(row: dict[str, Any]) -> list[str]:
    return [row["name"], row["fingerprint"], row["id"], words.local_time(row["created_at"])]


@app.command("add")
def add(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="File of the public half, such as ~/.ssh/id_ed25519.pub.")
    ],
    *,
    name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="A name for it; without one, the comment in the file.", show_default=False),
    ] = None,
    project: Project = None,
    as_json: AsJson = False,
    explain: Explain = False,
) -> None:
    """Let a public key into a project's instances, those that run too; prints its id on stdout."""
    public_key = read_key(path)
    with open_session(as_json=as_json, explain=explain) as session:
        body = {"name": name or name_of(public_key, path), "public_key": public_key}
        if project:
            body["project"] = project_id(session, project)
        added = session.client.post("/ssh-keys", body)
        session.terminal.say(f"{added['name']} ({added['fingerprint']}) opens the project's instances within seconds.")
        if as_json:
            session.terminal.document(added)
        else:
            session.terminal.data(added["id"])


def read_key(path: Path) -> str:
    """Return the public key in a file. A private one, and whatever else is none, is refused before anything is sent."""
    try:
        with path.expanduser().open("rb") as file:
            text = file.read(FILE_BYTES_MAX).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise usage(f"The key {path} cannot be read.", detail=str(error)) from error
    if "PRIVATE KEY" in text:
        raise usage(f"{path} is a private key; it was not sent.", suggestion=f"Give the public half: {path}.pub")
    text = text.strip()
    if not text.startswith(KINDS) or len(text.splitlines()) != 1:
        raise usage(
            f"{path} does not hold one OpenSSH public key; it was not sent.",
            suggestion="Give the file with the public half, such as ~/.ssh/id_ed25519.pub.",
        )
    return text


def name_of(public_key: str, path: Path) -> str:
    """Return the comment of a key, or else the name of its file."""
    parts = public_key.split(None, 2)
    return parts[2] if len(parts) > 2 else path.stem


@app.command("rm")
def rm(
    key: Annotated[str, typer.Argument(metavar="KEY", help="Its name, id or fingerprint.", show_default=False)],
    project: Project = None,
    as_json: AsJson = False,
    explain: Explain = False,
) -> None:
    """Shut a key out; what it has open is closed within seconds."""
    with open_session(as_json=as_json, explain=explain) as session:
        row = find_key(session, key, project)
        session.client.delete(f"/ssh-keys/{row['id']}")
        session.terminal.say(f"{row['name']} opens nothing any more; what it has open is closed within seconds.")
        if as_json:
            session.terminal.document(row)


def find_key(session: Session, name: str, project: str | None) -> dict[str, Any]:
    found = [row for row in rows_of(session, project) if name in {row["name"], row["id"], row["fingerprint"]}]
    if len(found) == 1:
        return found[0]
    if found:
        raise problem(
            code="ambiguous_name",
            title=f"{len(found)} keys have the name {name}.",
            detail=", ".join(f"{row['id']} ({row['fingerprint']})" for row in found),
            suggestion="Give the id or the fingerprint instead of the name.",
        )
    raise problem(
        code="not_found",
        title=f"The project has no SSH key {name}.",
        suggestion="See what there is: gpumarket ssh-key ls",
    )


def rows_of(session: Session, project: str | None) -> list[dict[str, Any]]:
    wanted = project_id(session, project) if project else None
    return list(session.client.rows("/ssh-keys", project=wanted))
