"""Why an instance is where it is, or nowhere; and the policies that say where it may be."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from marketplace.cli import words
from marketplace.cli.instances import find_instance
from marketplace.cli.orders import project_id
from marketplace.cli.problems import usage
from marketplace.cli.session import AsJson, Explain, Project, Session, open_session
from marketplace.cli.terminal import printable

app = typer.Typer(
    help="Policies: where instances may run. They are hard: what nothing satisfies is refused, or waits.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
EXAMPLE = '{"countries": {"allow": ["NO"]}}'
WholeOrganization = Annotated[
    bool, typer.Option("--organization", help="Of the whole organization instead of a project.")
]


def why(
    name: Annotated[str, typer.Argument(metavar="NAME", help="An instance, or the id of a placement (plc_...).")],
    as_json: AsJson = False,
    explain: Explain = False,
) -> None:
    """Say why an instance was placed where it is, or why it was not."""
    with open_session(as_json=as_json, explain=explain) as session:
        if name.startswith("plc_"):
            found = [session.client.get(f"/placements/{name}")]
        else:
            instance = find_instance(session, name)
            found = list(session.client.rows(f"/instances/{instance['id']}/placements"))
        if as_json:
            session.terminal.document(found[0] if name.startswith("plc_") else {"data": found, "next_cursor": None})
        elif found:
            session.terminal.data(printable("\n".join(describe(found[0]))))
        else:
            session.terminal.say("Nothing was decided about it yet; it waits for its first look, or its record is old.")


def describe(placement: dict[str, Any]) -> list[str]:
    """Return what a decision says, a line for each thing."""
    asked = placement["request"]
    size = f"{asked['replicas']} x {words.count(asked['gpus'], 'GPU')}"
    others = ", ".join(f"{name} {value}" for name, value in asked.items() if name not in {"replicas", "gpus"})
    lines = [
        f"{placement['id']}  {placement['outcome']}"
        + (f" {placement['times']} times" if placement["times"] > 1 else ""),
        f"  asked     {size}" + (f" ({others})" if others else ""),
        f"  at        {words.local_time(placement['at'])}, run {placement['run']}",
    ]
    if placement["outcome"] == "placed":
        lines.append(f"  placed    on {words.count(placement['nodes'], 'node')}, level {placement['level']}")
    lines.append(f"  looked at {words.count(placement['candidates'], 'node')} that could take a replica")
    lines += [f"  not       {words.count(one['nodes'], 'node')}: {one['reason']}" for one in placement["rejected"]]
    if placement["most"]:
        most = ", ".join(f"{level} {count}" for level, count in placement["most"].items())
        lines.append(f"  room      replicas in one domain at most: {most}")
    if placement["advice"]:
        lines.append(f"  advice    {placement['advice']}")
    return lines


@app.command("show")
def show(
    project: Project = None,
    organization: WholeOrganization = False,
    as_json: AsJson = False,
    explain: Explain = False,
) -> None:
    """Show the policy of a project, or of the whole organization."""
    with open_session(as_json=as_json, explain=explain) as session:
        found = session.client.get(policy_path(session, project, organization=organization))
        if as_json:
            session.terminal.document(found)
            return
        session.terminal.data(printable(json.dumps(found["document"], indent=2, sort_keys=True)))
        session.terminal.say(f"Version {found['version']} of the {found['scope']}.")


@app.command("set")
def set_(
    *,
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="The whole policy as JSON; - reads it from stdin.", show_default=False),
    ],
    project: Project = None,
    organization: WholeOrganization = False,
    version: Annotated[
        int | None, typer.Option(metavar="N", help="Only if it still has this version.", show_default=False)
    ] = None,
    as_json: AsJson = False,
    explain: Explain = False,
) -> None:
    """Replace the policy of a project, or of the whole organization. What runs is not moved.

    A policy in FILE: {"countries": {"allow": ["NO"]}, "certifications": ["ISO 27001"], "no_shared_host": true}
    """
    document = read_document(file)
    with open_session(as_json=as_json, explain=explain) as session:
        path = policy_path(session, project, organization=organization)
        found = session.client.put(path, document, version=version)
        session.terminal.say(f"The policy holds for every start from now on; it is version {found['version']}.")
        if as_json:
            session.terminal.document(found)


def read_document(file: Path) -> Any:
    try:
        return json.loads(sys.stdin.read() if str(file) == "-" else file.read_text())
    except OSError as error:
        raise usage(f"{file} cannot be read.", detail=error.strerror or "") from error
    except ValueError as error:
        raise usage(f"{file} does not hold a policy.", detail=str(error), suggestion=f"Such as: {EXAMPLE}") from error


def policy_path(session: Session, project: str | None, *, organization: bool) -> str:
    if organization:
        return f"/organizations/{session.client.get('/me')['organization']['id']}/policy"
    return f"/projects/{project_id(session, project or only_project(session))}/policy"


def only_project(session: Session) -> str:
    projects = session.client.get("/me")["projects"]
    if len(projects) != 1:
        raise usage("There are several projects; say which one: --project NAME, or --organization.")
    return str(projects[0]["id"])
