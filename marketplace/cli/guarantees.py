"""Guaranteed performance: under which contract an instance is, and how each hour compared with the floor."""

from typing import Annotated, Any

import typer

from marketplace.cli import words
from marketplace.cli.instances import find_instance
from marketplace.cli.problems import usage
from marketplace.cli.session import AsJson, Explain, open_session

HOURS_MAX = 24
UNITS = {"throughput": "per second", "availability": "%", "gpu_health": "%"}


def guarantee(
    instance: Annotated[str, typer.Argument(metavar="INSTANCE", help="Its name or id.")],
    *,
    contract: Annotated[
        str | None,
        typer.Option("--contract", metavar="ID", help="Put it under this contract: ctv_…", show_default=False),
    ] = None,
    end: Annotated[bool, typer.Option("--end", help="End its guarantee with the hour that runs.")] = False,
    as_json: AsJson = False,
    explain: Explain = False,
) -> None:
    """Show how the last hours of an instance compared with its guaranteed floor, and what was credited."""
    with open_session(as_json=as_json, explain=explain) as session:
        if contract and end:
            raise usage("Give either --contract or --end.", suggestion="gpumarket guarantee INSTANCE")
        path = f"/instances/{find_instance(session, instance)['id']}/guarantee"
        if contract:
            session.client.post(path, {"contract": contract})
        elif end:
            session.client.delete(path)
        found = session.client.get(path)
        hours = session.client.get(f"{path}/hours", limit=HOURS_MAX)["data"]
        if as_json:
            session.terminal.document({**found, "hours": hours})
            return
        say(session, found, hours)


def say(session: Any, found: dict[str, Any], hours: list[dict[str, Any]]) -> None:
    holds = found["guarantee"]
    if holds is not None:
        terms = holds["terms"]
        floor = f"{terms['floor_milli'] / 1000:g} {UNITS[terms['metric']]}"
        session.terminal.say(f"{holds['contract']['title']}: {terms['metric']} of at least {floor}.")
    else:
        session.terminal.say("It is under no guarantee.")
        for one in found["offered"]:
            session.terminal.say(f"Possible: gpumarket guarantee INSTANCE --contract {one['id']}  ({one['title']})")
    if hours:
        session.terminal.table(["HOUR (UTC)", ">MEASURED", ">OF THE FLOOR", ">PAID", ">CREDIT"], map(cells, hours))


def cells(row: dict[str, Any]) -> list[str]:
    judged = row["achieved_bps"] is not None
    return [
        row["hour"][:16].replace("T", " "),
        thousandths(row["measured_milli"]) if judged else "–",
        f"{row['achieved_bps'] // 100}.{row['achieved_bps'] % 100:02} %" if judged else "not judged",
        words.money(row["paid"], row["currency"]),
        words.money(row["credited"], row["currency"]),
    ]


def thousandths(milli: int) -> str:
    """Return thousandths with their three places."""
    return f"{milli // 1000:,}.{milli % 1000:03}"
