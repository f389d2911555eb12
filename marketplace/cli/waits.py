"""Orders that wait for GPUs, and start by themselves."""

import time
from typing import Annotated, Any

import typer

from marketplace.cli import orders, words
from marketplace.cli.problems import Problem, problem
from marketplace.cli.progress import FIRST_LOOK_S, SLOWEST_LOOK_S
from marketplace.cli.session import AsJson, Explain, Project, Session, open_session
from marketplace.cli.times import away

UNTIL_DEFAULT = "1d"

app = typer.Typer(help="See orders that wait for GPUs, and cancel them.", rich_markup_mode=None)

MaxPrice = Annotated[
    str | None,
    typer.Option(
        "--max-price", metavar="P", help="The most that a GPU-hour may cost; default: today's.", show_default=False
    ),
]
Until = Annotated[str, typer.Option(metavar="T", help="How long it waits: 30m, 8h, 2d, or a moment.")]
EntryId = Annotated[str, typer.Argument(metavar="WAIT", help="Its id.", show_default=False)]


def wait(
    ctx: typer.Context,
    *,
    offer: Annotated[str, typer.Argument(metavar="OFFER", help="Slug or id of an offer.", show_default=False)],
    gpus: orders.Gpus = 1,
    replicas: orders.Replicas = 1,
    max_price: MaxPrice = None,
    until: Until = UNTIL_DEFAULT,
    name: orders.Name = None,
    env: orders.Env = None,
    env_file: orders.EnvFile = None,
    image: orders.Image = None,
    port: orders.Port = None,
    lease: orders.Lease = None,
    restart_on_failure: orders.RestartOnFailure = False,
    contract: orders.ContractName = None,
    project: Project = None,
    volume: orders.Volumes = None,
    key: orders.Key = None,
    as_json: AsJson = False,
    explain: Explain = False,
) -> None:
    """Let an order start by itself once its GPUs are free; prints its id. Nothing is charged while it waits."""
    with open_session(as_json=as_json, explain=explain, at_work=True) as session:
        order = orders.make_order(
            session,
            offer=offer,
            gpu_model=None,
            country=None,
            gpus=gpus,
            replicas=replicas,
            name=name,
            env=orders.read_env(env or [], env_file),
            project=project,
            key=key,
            command=ctx.meta[orders.COMMAND],
            running=orders.Running(
                image=image, ports=port, lease=lease, restarts=restart_on_failure, contract=contract
            ),
            volumes=volume or [],
        )
        row = order.wait(max_price=max_price, until=moment(until))
        if as_json:
            session.terminal.document(row)
            return
        session.terminal.data(row["id"])
        session.terminal.say(place_of(row))
        session.terminal.say(f"Look: gpumarket waits    Cancel: gpumarket waits cancel {row['id']}")


@app.callback(invoke_without_command=True)
def waits(
    ctx: typer.Context,
    every: Annotated[bool, typer.Option("--all", help="Also those that are over.")] = False,
    as_json: AsJson = False,
    explain: Explain = False,
) -> None:
    """List orders that wait: their places in the queue, and why they still wait."""
    if ctx.invoked_subcommand:
        return
    with open_session(as_json=as_json, explain=explain) as session:
        rows = list(session.client.rows("/waits", state=None if every else "waiting"))
        if as_json:
            session.terminal.document({"data": rows, "next_cursor": None})
        elif rows:
            columns = ["ID", "OFFER", ">SIZE", ">PLACE", "STATE", "MAX PRICE", "UNTIL", "ESTIMATE", "WHY"]
            session.terminal.table(columns, [cells(row) for row in rows])
        else:
            session.terminal.say("Nothing waits. Let an order wait: gpumarket wait OFFER --gpus 8 -- COMMAND")


def cells(row: dict[str, Any]) -> list[str]:
    price = row["max_price"]
    return [
        row["id"],
        row["offer"],
        f"{row['replicas']} x {row['gpus']}",
        str(row["position"] or ""),
        row["state"] + (f" as {row['instance']}" if row["instance"] else ""),
        words.money(price["amount"], price["currency"]),
        words.local_time(row["until"]),
        words.local_time(row["estimate"]) or "",
        row["message"],
    ]


@app.command("cancel")
def cancel(entry: EntryId, as_json: AsJson = False, explain: Explain = False) -> None:
    """Take an order out of the queue; nothing was charged for it."""
    with open_session(as_json=as_json, explain=explain) as session:
        row = session.client.post(f"/waits/{entry}/cancel")
        session.terminal.say(f"{row['id']} is {row['state']}; nothing was charged for it.")
        if as_json:
            session.terminal.document(row)


def place_or_wait(session: Session, order: orders.Order, *, max_price: str | None, until: str) -> dict[str, Any]:
    """Launch, or wait until the order has started by itself; return the instance either way."""
    try:
        return order.place()
    except Problem as refusal:
        if refusal.code != "no_capacity":
            raise
        session.terminal.say(" ".join(refusal.reasons()))
    row = order.wait(max_price=max_price, until=moment(until))
    session.terminal.say(place_of(row))
    try:
        row = until_it_is_over(session, row)
    except KeyboardInterrupt:
        take_back(session, row)
        raise typer.Abort from None
    if row["instance"] is None:
        raise problem(
            code="no_capacity",
            title=f"{row['id']} is {row['state']}: its GPUs did not come free in time.",
            suggestion="Wait longer (--until), pay more (--max-price), or ask for less.",
        )
    return session.client.get(f"/instances/{row['instance']}")


def take_back(session: Session, row: dict[str, Any]) -> None:
    """Cancel an order that waits; end what it became if that was faster."""
    try:
        session.client.post(f"/waits/{row['id']}/cancel")
    except Problem as refusal:
        row = session.client.get(f"/waits/{row['id']}")
        if row["instance"] is None:
            raise
        session.client.post(f"/instances/{row['instance']}/terminate")
        session.terminal.say(f"It had started just now ({refusal.code}); it is ended.")
        return
    session.terminal.say("It waits no more; nothing was charged for it.")


def until_it_is_over(session: Session, row: dict[str, Any]) -> dict[str, Any]:
    """Look again and again until an order waits no more."""
    pause_s = FIRST_LOOK_S
    while row["state"] == "waiting":
        session.terminal.status(place_of(row))
        time.sleep(pause_s)
        pause_s = min(pause_s * 1.2, SLOWEST_LOOK_S)
        row = session.client.get(f"/waits/{row['id']}")
    session.terminal.clear()
    return row


def place_of(row: dict[str, Any]) -> str:
    """Return in a line where an order stands and why."""
    estimate = f", perhaps from {words.local_time(row['estimate'])}" if row["estimate"] else ""
    until = words.local_time(row["until"])
    return f"Place {row['position']} in the queue of {row['offer']}, until {until}{estimate}. {row['message']}"


def moment(text: str) -> str:
    """Return the RFC 3339 moment that "8h" from now or "2026-12-01" means."""
    return away(text, ahead=True, suggestion="Write 30m, 8h, 2d or 2026-12-01.")
