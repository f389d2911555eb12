"""Volumes: files that outlive instances. They cost while they exist, also when nothing runs."""

import re
import time
from decimal import Decimal
from typing import Annotated, Any

import typer

from marketplace.cli import words
from marketplace.cli.instances import find_instance
from marketplace.cli.orders import project_id
from marketplace.cli.problems import problem
from marketplace.cli.progress import FIRST_LOOK_S, SLOWEST_LOOK_S
from marketplace.cli.session import AsJson, Explain, Project, Session, TimeoutS, Wait, open_session
from marketplace.cli.terminal import printable

GIB = 1024**3
SETTLED = {"available", "attached", "failed"}

app = typer.Typer(
    help="Keep files that outlive instances: list, create, attach, copy, grow and delete volumes.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

VolumeName = Annotated[str, typer.Argument(metavar="VOLUME", help="Its name or id.", show_default=False)]
NewName = Annotated[str, typer.Argument(metavar="NAME", help="A name, unique in the project.", show_default=False)]


def find_volume(session: Session, name: str) -> dict[str, Any]:
    """Return the volume with this id or name."""
    if re.fullmatch("vol_[a-z0-9_]+", name):
        return session.client.get(f"/volumes/{name}")
    found = list(session.client.rows("/volumes", name=name))
    if len(found) == 1:
        return found[0]
    if found:
        raise problem(
            code="ambiguous_name",
            title=f"{len(found)} volumes have the name {name}.",
            detail=", ".join(f"{row['id']} ({row['project']['name']})" for row in found[:10]),
            suggestion="Give the id instead of the name.",
        )
    raise problem(
        code="not_found",
        title=f"There is no volume with the name {name}.",
        suggestion="See what there is: gpumarket volume ls",
    )


@app.command()
def ls(project: Project = None, as_json: AsJson = False, explain: Explain = False) -> None:
    """List volumes: state, size, what is used, and what they cost."""
    with open_session(as_json=as_json, explain=explain) as session:
        wanted = project_id(session, project) if project else None
        rows = list(session.client.rows("/volumes", project=wanted))
        if as_json:
            session.terminal.document({"data": rows, "next_cursor": None})
            return
        if not rows:
            session.terminal.say("There are no volumes. Make one: gpumarket volume create data --size 100 --site SITE")
            return
        session.terminal.table(
            ["NAME", "ID", "STATE", "SITE", ">SIZE", ">USED", "USED BY", ">PER HOUR"], [list_cells(row) for row in rows]
        )
        session.terminal.say(sum_up(rows))


def list_cells(row: dict[str, Any]) -> list[str]:
    use = row["attachment"]
    return [
        row["name"],
        row["id"],
        f"{state(row)} (snapshot)" if row["is_snapshot"] else state(row),
        row["site"]["name"],
        f"{row['size_gib']} GiB",
        used(row),
        f"{use['instance']['name']}:{use['path']}" if use else "",
        words.money(row["cost"]["per_hour"], row["cost"]["currency"]),
    ]


def sum_up(rows: list[dict[str, Any]]) -> str:
    costs = [row["cost"] for row in rows if row["cost"]["billing"] == "running"]
    if not costs:
        return "None of them is charged now."
    together = words.money(sum(Decimal(cost["per_month"]) for cost in costs), costs[0]["currency"])  # type: ignore[arg-type]
    return f"They cost {together} per month together, also when nothing runs."


def state(row: dict[str, Any]) -> str:
    """Return the state with what matters most about it."""
    if row["health"] != "ok" and row["state"] in {"available", "attached"}:
        return f"{row['state']} ({row['health']})"
    if row["state"] == "deleting" and row["actions"]["restore"]["available"]:
        return f"deleting (restore until {words.local_time(row['delete_after'])})"
    return str(row["state"])


def used(row: dict[str, Any]) -> str:
    return "" if row["used_bytes"] is None else f"{row['used_bytes'] / GIB:.1f} GiB ({row['used_percent']} %)"


@app.command()
def show(volume: VolumeName, as_json: AsJson = False, explain: Explain = False) -> None:
    """Show one volume: size, use, cost, and what can be done now."""
    with open_session(as_json=as_json, explain=explain) as session:
        found = find_volume(session, volume)
        if as_json:
            session.terminal.document(found)
        else:
            session.terminal.data(printable("\n".join(describe(found))))


def describe(row: dict[str, Any]) -> list[str]:
    cost, use = row["cost"], row["attachment"]
    place = f"node {row['node']} (offer {row['offer']})" if row["kind"] == "local" else "a path that all nodes share"
    lines = [
        f"{row['name']}  {state(row)}{' (snapshot)' if row['is_snapshot'] else ''}",
        f"  id        {row['id']}",
        f"  project   {row['project']['name']}",
        f"  site      {row['site']['name']} ({row['site']['country']}), on {place}",
        f"  size      {row['size_gib']} GiB, used {used(row) or 'not measured yet'}",
        f"  used by   {use['instance']['name']} at {use['path']}" if use else "  used by   no instance",
        f"  cost      {words.money(cost['per_hour'], cost['currency'])} per hour, "
        f"{words.money(cost['per_month'], cost['currency'])} per month; billing: {cost['billing'].replace('_', ' ')}",
    ]
    if row["source"]:
        lines.append(f"  from      {row['source']['name']}")
    if row["message"]:
        lines.append(f"  because   {row['message']}")
    if row["deleted_when_unpaid"]:
        lines.append(f"  unpaid    deleted from {words.local_time(row['deleted_when_unpaid'])} unless credit is added")
    for verb, action in row["actions"].items():
        lines.append(f"  {verb:<9} {'possible' if action['available'] else 'not now: ' + action['reason']}")
    return lines


@app.command()
def create(
    name: NewName,
    *,
    size: Annotated[int, typer.Option("--size", metavar="GIB", min=1, help="Size in GiB.")],
    site: Annotated[str, typer.Option(metavar="SITE", help="Its name, as gpumarket offers shows it; or slug, or id.")],
    offer: Annotated[
        str | None,
        typer.Option(metavar="OFFER", help="Lie on a node of this offer, where volumes are local.", show_default=False),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option("--from", metavar="VOLUME", help="Begin as a copy of this volume.", show_default=False),
    ] = None,
    project: Project = None,
    wait: Wait = True,
    timeout_s: TimeoutS = 600,
    as_json: AsJson = False,
    explain: Explain = False,
) -> None:
    """Make a volume; prints its id on stdout. It is charged while it exists, also when nothing runs."""
    with open_session(as_json=as_json, explain=explain) as session:
        body: dict[str, Any] = {"name": name, "size_gib": size, "site": find_site(session, site)["slug"]}
        body |= {"offer": offer} if offer else {}
        body |= {"source": source} if source else {}
        body |= {"project": project_id(session, project)} if project else {}
        settle(session, session.client.post("/volumes", body), wait=wait, timeout_s=timeout_s)


def find_site(session: Session, name: str) -> dict[str, Any]:
    """Return a site by its slug, id or name (any case). One that is not there is told with those that are."""
    sites = list(session.client.rows("/sites"))
    wanted = name.casefold()
    for by in ("slug", "id", "name"):
        found = [site for site in sites if site[by].casefold() == wanted]
        if len(found) == 1:
            return found[0]
    known = ", ".join(f"{site['slug']} ({site['name']})" for site in sites)
    raise problem(
        code="not_found",
        title=f"No single site is named {name}.",
        detail=f"There are: {known}." if known else "There is none at all.",
        suggestion="Give one of them by what stands before its name.",
    )


@app.command()
def snapshot(
    volume: VolumeName,
    name: NewName,
    *,
    wait: Wait = True,
    timeout_s: TimeoutS = 3600,
    as_json: AsJson = False,
    explain: Explain = False,
) -> None:
    """Copy a volume as it is now into one that stays as it is; prints the copy's id."""
    with open_session(as_json=as_json, explain=explain) as session:
        found = find_volume(session, volume)
        made = session.client.post(f"/volumes/{found['id']}/snapshot", {"name": name})
        settle(session, made, wait=wait, timeout_s=timeout_s)


def settle(session: Session, row: dict[str, Any], *, wait: bool, timeout_s: float) -> None:
    """Wait until a new volume is there, and say what it costs; raise the problem of one that could not be made."""
    if not session.terminal.as_json:
        session.terminal.data(row["id"])
    if wait:
        row = wait_until_made(session, row, timeout_s=timeout_s)
    if row["state"] == "failed":
        raise problem(
            code="volume_failed",
            title=f"{row['name']} could not be made.",
            detail=row["message"],
            suggestion=f"Clear it away: gpumarket volume rm {row['id']}",
        )
    per_month = words.money(row["cost"]["per_month"], row["cost"]["currency"])
    named = f"The snapshot {row['name']}" if row["is_snapshot"] else row["name"]
    conclude(session, row, f"{named} is {state(row)}; it costs {per_month} per month while it exists.")


def wait_until_made(session: Session, row: dict[str, Any], *, timeout_s: float) -> dict[str, Any]:
    """Look at a volume again and again until it was made or could not be."""
    deadline = time.monotonic() + timeout_s
    pause_s = FIRST_LOOK_S
    while row["state"] not in SETTLED:
        session.terminal.status(f"{row['name']} is {row['state']}; billing has not started")
        if time.monotonic() + pause_s > deadline:
            raise problem(
                code="still_running",
                title=f"{row['name']} is still {row['state']} after {timeout_s:g} s of waiting.",
                charged=False,
                suggestion=f"Nothing was changed by the time-out. Look: gpumarket volume show {row['id']}",
            )
        time.sleep(pause_s)
        pause_s = min(pause_s * 1.2, SLOWEST_LOOK_S)
        row = session.client.get(f"/volumes/{row['id']}")
    session.terminal.clear()
    return row


@app.command()
def rm(
    volume: VolumeName,
    *,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
    explain: Explain = False,
) -> None:
    """Delete a volume: charges end now, and it can be restored for a while. Asks first at a terminal."""
    with open_session(as_json=as_json, explain=explain) as session:
        found = find_volume(session, volume)
        if session.terminal.can_ask and not yes:
            typer.confirm(f"Delete {found['name']} ({used(found) or 'not measured'})?", abort=True, err=True)
        row = session.client.delete(f"/volumes/{found['id']}")
        until = words.local_time(row["delete_after"])
        undo = f" Until {until}: gpumarket volume restore {row['id']}" if row["actions"]["restore"]["available"] else ""
        conclude(session, row, f"{row['name']} is deleted and costs nothing any more.{undo}")


@app.command()
def restore(volume: VolumeName, as_json: AsJson = False, explain: Explain = False) -> None:
    """Take a deletion back; the time in between is charged as if there had been none."""
    act(volume, "restore", {}, "{name} is back with everything in it.", as_json=as_json, explain=explain)


@app.command()
def detach(volume: VolumeName, as_json: AsJson = False, explain: Explain = False) -> None:
    """Take a volume from its stopped instance; it still exists and is charged."""
    act(volume, "detach", {}, "{name} is detached; it still exists and is charged.", as_json=as_json, explain=explain)


@app.command()
def attach(
    volume: VolumeName,
    instance: Annotated[str, typer.Argument(metavar="INSTANCE", help="A stopped one's name or id.")],
    path: Annotated[str, typer.Argument(metavar="PATH", help="Where it finds the volume, such as /data.")],
    *,
    read_only: Annotated[bool, typer.Option("--read-only", help="Let a container write nothing to it.")] = False,
    as_json: AsJson = False,
    explain: Explain = False,
) -> None:
    """Attach a volume to a stopped instance; its next start finds it there."""
    with open_session(as_json=as_json, explain=explain) as session:
        found, used_by = find_volume(session, volume), find_instance(session, instance)
        row = session.client.post(
            f"/volumes/{found['id']}/attach",
            {"instance": used_by["id"], "path": path} | ({"read_only": True} if read_only else {}),
        )
        conclude(session, row, f"{row['name']} is attached to {used_by['name']} at {path}.")


@app.command()
def resize(
    volume: VolumeName,
    size: Annotated[int, typer.Argument(metavar="GIB", min=1, help="The new size in GiB; only ever more.")],
    as_json: AsJson = False,
    explain: Explain = False,
) -> None:
    """Make a volume bigger, at today's price."""
    with open_session(as_json=as_json, explain=explain) as session:
        row = session.client.patch(f"/volumes/{find_volume(session, volume)['id']}", {"size_gib": size})
        per_month = words.money(row["cost"]["per_month"], row["cost"]["currency"])
        conclude(session, row, f"{row['name']} has {row['size_gib']} GiB now and costs {per_month} per month.")


@app.command()
def rename(volume: VolumeName, name: str, as_json: AsJson = False, explain: Explain = False) -> None:
    """Give a volume another name."""
    with open_session(as_json=as_json, explain=explain) as session:
        found = find_volume(session, volume)
        row = session.client.patch(f"/volumes/{found['id']}", {"name": name})
        conclude(session, row, f"{found['name']} is now {row['name']}.")


def act(volume: str, verb: str, body: dict[str, Any], text: str, *, as_json: bool, explain: bool) -> None:
    with open_session(as_json=as_json, explain=explain) as session:
        row = session.client.post(f"/volumes/{find_volume(session, volume)['id']}/{verb}", body)
        conclude(session, row, text.format(name=row["name"]))


def conclude(session: Session, row: dict[str, Any], text: str) -> None:
    session.terminal.say(text)
    if session.terminal.as_json:
        session.terminal.document(row)
