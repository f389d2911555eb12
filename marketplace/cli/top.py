"""What the GPUs of an instance do now."""

import sys
import time
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer

from marketplace.cli.instances import find_instance
from marketplace.cli.session import AsJson, Explain, InstanceName, Session, open_session

EVERY_S = 5.0
# Far enough back for a node that reports every ten seconds and missed some.
SPAN = timedelta(minutes=5)
CLEAR = "\x1b[H\x1b[2J"
UNTOLD = "—"


def top(
    instance: InstanceName,
    *,
    once: Annotated[bool, typer.Option("--once", help="Print one table and end, as where nobody looks on.")] = False,
    as_json: AsJson = False,
    explain: Explain = False,
) -> None:
    """Show what an instance's GPUs do: utilization, memory, power, temperature, and energy of five minutes.

    At a terminal it goes on until Ctrl-C. A dash is what a GPU does not tell.
    """
    with open_session(as_json=as_json, explain=explain) as session:
        found = find_instance(session, instance)
        if as_json:
            session.terminal.document(look(session, found))
            return
        is_live = sys.stdout.isatty() and not once
        while True:
            told = look(session, found)
            if is_live:
                session.terminal.raw(CLEAR)
            show(session, found, told)
            if not is_live:
                return
            try:
                time.sleep(EVERY_S)
            except KeyboardInterrupt:
                return


def look(session: Session, instance: dict[str, Any]) -> dict[str, Any]:
    since = datetime.now(UTC) - SPAN
    return session.client.get(f"/instances/{instance['id']}/telemetry", since=since.isoformat(), resolution="10s")


def show(session: Session, instance: dict[str, Any], told: dict[str, Any]) -> None:
    # A run before this one may have ended on other GPUs a moment ago.
    rows = [cells(gpu) for gpu in told["gpus"] if gpu["points"] and gpu.get("current", True)]
    if not rows:
        session.terminal.say(f"Nothing was read from the GPUs of {instance['name']} in the last five minutes.")
        return
    headings = ["GPU", ">UTILIZATION", ">MEMORY", ">POWER", ">TEMPERATURE", ">ENERGY"]
    session.terminal.table(headings, rows)


def cells(gpu: dict[str, Any]) -> list[str]:
    """Return one GPU's line: its newest point, and the energy of all."""
    last = gpu["points"][-1]
    return [
        gpu["uuid"],
        measured(last["utilization_percent"], "%"),
        measured(last["memory_used_mib"], "MiB"),
        measured(last["power_watts"], "W"),
        measured(last["temperature_c"], "°C"),
        measured(gpu["energy_joules"], "J"),
    ]


def measured(value: float | None, unit: str) -> str:
    """Return a value with its unit, or a dash where nobody knows it: that is not zero."""
    return UNTOLD if value is None else f"{value:,.0f} {unit}"
