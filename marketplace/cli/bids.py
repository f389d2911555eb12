"""Bids: GPUs by auction, cheaper than on demand, taken back with notice."""

import re
from datetime import timedelta
from decimal import Decimal
from typing import Annotated, Any

import typer

from marketplace.cli import orders, standing, words
from marketplace.cli.amounts import amount
from marketplace.cli.instances import conclude, find_instance
from marketplace.cli.offers import find_offer
from marketplace.cli.problems import Problem, problem
from marketplace.cli.progress import interruptible
from marketplace.cli.session import AsJson, Explain, InstanceName, Project, Session, open_session
from marketplace.cli.terminal import printable

BARS = "▁▂▃▄▅▆▇█"
SPARKS = 60
ROWS = 12

BidName = Annotated[
    str, typer.Argument(metavar="BID", help="Its id, or the name or id of its instance.", show_default=False)
]
MaxPrice = Annotated[str, typer.Option("--max-price", metavar="AMOUNT", help="The most per GPU-hour, such as 1.25.")]
Offer = Annotated[str, typer.Argument(metavar="OFFER", help="Slug or id.", show_default=False)]

app = typer.Typer(
    help="See and change bids: list, raise and withdraw them.", invoke_without_command=True, rich_markup_mode=None
)


def bid(
    ctx: typer.Context,
    offer: Offer,
    *,
    max_price: MaxPrice,
    gpus: orders.Gpus = 1,
    replicas: orders.Replicas = 1,
    name: orders.Name = None,
    env: orders.Env = None,
    env_file: orders.EnvFile = None,
    image: orders.Image = None,
    port: orders.Port = None,
    lease: orders.Lease = None,
    restart_on_failure: orders.RestartOnFailure = False,
    project: Project = None,
    volume: orders.Volumes = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and price the bid; place nothing.")] = False,
    key: orders.Key = None,
    as_json: AsJson = False,
    explain: Explain = False,
) -> None:
    """Bid for GPUs by auction; prints the bid's id on stdout.

    The instance waits until an auction gives it its GPUs, all or none, and pays what the auction charges, never
    more than its bid. When it is outbid it gets the offer's notice, SIGTERM, and bids again by itself.
    """
    with open_session(as_json=as_json, explain=explain, at_work=True) as session:
        found = find_offer(session.client, offer)
        running = orders.Running(image=image, ports=port, lease=lease, restarts=restart_on_failure)
        body: dict[str, Any] = {
            "offer": found["slug"],
            "max_price": amount(max_price),
            "gpus": gpus,
            "replicas": replicas,
            "command": ctx.meta[orders.COMMAND],
            **running.body(),
        }
        more: dict[str, Any] = {"name": name, "env": orders.read_env(env or [], env_file)}
        more |= {"volumes": [orders.mounted(text) for text in volume or []]}
        more |= {"project": orders.project_id(session, project) if project else None}
        body |= {field: value for field, value in more.items() if value}
        if dry_run:
            rehearse(session, body)
            return
        with interruptible(session, "The bid may have been placed. Look: gpumarket bids"):
            placed = session.client.post("/bids", body, key=key or "")
        if as_json:
            session.terminal.document(placed)
            return
        session.terminal.data(placed["id"])
        say_placed(session, placed)


def rehearse(session: Session, body: dict[str, Any]) -> None:
    answer = session.client.post("/bids", body, dry_run="true")
    hold, worst = (words.money(answer[part]["amount"], answer[part]["currency"]) for part in ("hold", "worst_hour"))
    session.terminal.say(f"The bid would be taken and hold {hold}; an hour costs {worst} at most. Nothing was placed.")
    if session.terminal.as_json:
        session.terminal.document(answer)


def say_placed(session: Session, placed: dict[str, Any]) -> None:
    held = words.money(placed["held"]["amount"], placed["held"]["currency"])
    session.terminal.say(
        f"{placed['instance']['name']} bids {words.price(placed['max_price'])} "
        f"for {words.count(placed['gpus'], 'GPU')}; {held} are set aside. It starts when an auction gives it GPUs."
    )
    session.terminal.say(f"Look: gpumarket bids   Raise: gpumarket bids raise {placed['instance']['name']} AMOUNT")


def find_bid(session: Session, name: str) -> dict[str, Any]:
    """Return the bid with this id, or that of the instance with this name or id."""
    if re.fullmatch("bid_[a-z0-9]+", name):
        return session.client.get(f"/bids/{name}")
    found = find_instance(session, name)
    bids = list(session.client.rows("/bids", instance=found["id"]))
    if not bids:
        raise problem(
            code="not_found",
            title=f"{found['name']} does not bid.",
            detail="It was rented on demand.",
            suggestion="See all bids: gpumarket bids",
        )
    return bids[0]


@app.callback()
def bids(
    ctx: typer.Context,
    *,
    all_of_them: Annotated[bool, typer.Option("--all", help="Also those whose instance has ended.")] = False,
    project: Project = None,
    as_json: AsJson = False,
    explain: Explain = False,
) -> None:
    """List bids: where each stands, what it pays at most, and what is set aside for it."""
    if ctx.invoked_subcommand is not None:
        return
    with open_session(as_json=as_json, explain=explain) as session:
        wanted = orders.project_id(session, project) if project else None
        rows = list(session.client.rows("/bids", project=wanted, alive=None if all_of_them else "true"))
        if as_json:
            session.terminal.document({"data": rows, "next_cursor": None})
        elif rows:
            session.terminal.table(
                ["INSTANCE", "BID", "OFFER", ">GPUS", ">MAX PRICE", "STATE", ">SET ASIDE"],
                [list_cells(row) for row in rows],
            )
            for row in rows:
                if row["reason"]:
                    session.terminal.say(f"{row['instance']['name']}: {row['reason']}")
        else:
            session.terminal.say("There are no bids. Bid: gpumarket bid OFFER --gpus 1 --max-price 1.25 -- COMMAND")


def list_cells(row: dict[str, Any]) -> list[str]:
    return [
        row["instance"]["name"],
        row["id"],
        row["offer"]["slug"],
        str(row["gpus"]),
        words.money(row["max_price"]["amount"], row["max_price"]["currency"]),
        standing.state(row),
        words.money(row["held"]["amount"], row["held"]["currency"]),
    ]


@app.command("raise")
def raise_bid(
    bid: BidName,
    max_price: Annotated[str, typer.Argument(metavar="AMOUNT", help="The most per GPU-hour from now on.")],
    *,
    as_json: AsJson = False,
    explain: Explain = False,
) -> None:
    """Set the most that a bid pays; within a notice, enough of a raise calls the interruption off."""
    with open_session(as_json=as_json, explain=explain) as session:
        found = find_bid(session, bid)
        body = {"max_price": amount(max_price), "expected_price": found["max_price"]["amount"]}
        row = session.client.post(f"/bids/{found['id']}/price", body)
        told = found["interruption"]
        saved = " Its interruption is called off." if told and not row["interruption"] else ""
        text = f"{row['instance']['name']} bids {words.price(row['max_price'])} now.{saved}"
        if told and row["interruption"]:
            text += " That is not enough to call off its interruption; it counts in the next auction."
        conclude(session, row, text)


@app.command()
def withdraw(bid: BidName, *, as_json: AsJson = False, explain: Explain = False) -> None:
    """Take a bid back that has no GPUs; its instance ends, and what was set aside is free again."""
    with open_session(as_json=as_json, explain=explain) as session:
        row = session.client.post(f"/bids/{find_bid(session, bid)['id']}/withdraw", {})
        conclude(session, row, f"The bid of {row['instance']['name']} is withdrawn; nothing is set aside for it.")


def simulate_interruption(instance: InstanceName, *, as_json: AsJson = False, explain: Explain = False) -> None:
    """Interrupt an instance as an auction would, to try its checkpoints: the notice, SIGTERM, and it bids again."""
    with open_session(as_json=as_json, explain=explain) as session:
        found = find_instance(session, instance)
        row = session.client.post(f"/instances/{found['id']}/simulate-interruption", {})
        ends = words.local_time(row["deadline_at"], seconds=True)
        text = f"{found['name']} has {row['min_notice_s']} s of notice, until {ends}; then it bids again by itself."
        conclude(session, row, text)


def spot_price(
    offer: Offer,
    *,
    hours: Annotated[int, typer.Option(metavar="N", min=1, max=24 * 31, help="How far to look back.")] = 24,
    as_json: AsJson = False,
    explain: Explain = False,
) -> None:
    """Show what an offer costs by auction: now, before, and how many GPUs are asked for at which price."""
    with open_session(as_json=as_json, explain=explain) as session:
        slug = find_offer(session.client, offer)["slug"]
        now = terms_of(session, slug)
        until = words.parse_time(now["as_of"])
        since = (until - timedelta(hours=hours)).isoformat()
        history = session.client.get(
            f"/offers/{slug}/spot/history", since=since, until=until.isoformat(), points=str(SPARKS)
        )
        if as_json:
            session.terminal.document(now | {"history": history["data"]})
            return
        session.terminal.data(printable("\n".join(describe(now, history["data"]))))
        if history["data"]:
            session.terminal.table(
                ["SINCE", ">LEAST", ">MOST", ">LAST", ">RESERVE", ">GPUS"],
                [history_cells(row, history["currency"]) for row in history["data"][-ROWS:]],
            )


def terms_of(session: Session, slug: str) -> dict[str, Any]:
    """Return how an offer that exists is sold by auction now, or say that it is not."""
    try:
        found: dict[str, Any] = session.client.get(f"/offers/{slug}/spot")
    except Problem as refusal:
        if refusal.code != "not_found":
            raise
        raise problem(
            code="not_found",
            title=f"{slug} is not sold by auction.",
            suggestion=f"Rent it on demand: gpumarket launch {slug} -- COMMAND; or see other offers: gpumarket offers",
        ) from refusal
    return found


def describe(now: dict[str, Any], history: list[dict[str, Any]]) -> list[str]:
    currency = now["price"]["currency"]
    most = now["highest_bid_allowed"]
    upcoming = words.local_time(now["next_auction_at"]) if now["next_auction_at"] else "none"
    lines = [
        f"{now['offer']['slug']}  {words.price(now['price'])}",
        f"  reserve   {words.money(now['reserve']['amount'], currency)}, bids in steps of "
        f"{words.money(now['step']['amount'], currency)}"
        + (f" up to {words.money(most['amount'], currency)}" if most else ""),
        f"  auctions  every {now['interval_s']} s, the next at {upcoming}; notice of {now['min_notice_s']} s",
        f"  GPUs      {now['allocated_gpus']} given of {now['capacity_gpus']}, {now['demanded_gpus']} asked for",
    ]
    if now["cap_gpus"] is not None:
        lines.append(f"  share     one organization wins {words.count(now['cap_gpus'], 'GPU')} of them at most")
    if likely := now["interruption_risk"]:
        lines.append(
            f"  risk      {likely['level']}: {likely['percent_per_hour']} % an hour, that is "
            f"{words.count(likely['interruptions'], 'interruption')} in {likely['instance_hours']} hours of instances, "
            "in 7 days"
        )
    if history:
        lines.append(f"  history   {sparkline([Decimal(row['last']) for row in history])}")
    lines += [
        f"  depth     {words.count(step['gpus'], 'GPU')} at {words.money(step['price'], currency)}"
        for step in now["depth"][:5]
    ]
    if not now["enabled"]:
        lines.append("  No new bids are taken.")
    return lines


def sparkline(values: list[Decimal]) -> str:
    """Return one bar for each value, from the least to the most of them."""
    least, most = min(values), max(values)
    if least == most:
        return BARS[0] * len(values)
    return "".join(BARS[int((value - least) / (most - least) * (len(BARS) - 1))] for value in values)


def history_cells(row: dict[str, Any], currency: str) -> list[str]:
    prices = [words.money(row[name], currency) for name in ("min", "max", "last", "reserve")]
    return [words.local_time(row["at"]), *prices, str(row["capacity_gpus"])]
