"""Resale: list hours of a reservation, see what others sell, and buy it at no more than a limit."""

from typing import Annotated, Any

import typer

from marketplace.cli import words
from marketplace.cli.amounts import amount
from marketplace.cli.payments import Key
from marketplace.cli.reservations import (
    End,
    Gpus,
    Hours,
    ReservationId,
    Start,
    Yes,
    conclude,
    confirm,
    money,
    window,
)
from marketplace.cli.session import AsJson, Explain, open_session
from marketplace.cli.times import hour

app = typer.Typer(
    help="See and withdraw your listings, see what others sell, and buy it; without a command, list your own.",
    invoke_without_command=True,
    rich_markup_mode=None,
)

OfferName = Annotated[str, typer.Argument(metavar="OFFER", help="Slug or id.", show_default=False)]


def resell(
    reservation: ReservationId,
    *,
    gpus: Gpus,
    ask: Annotated[str, typer.Option(metavar="AMOUNT", help="For a GPU-hour, such as 1.50.")],
    start: Start = None,
    end: End = None,
    hours: Hours = None,
    min_gpus: Annotated[int, typer.Option(metavar="N", min=1, help="The smallest order that it serves.")] = 1,
    min_hours: Annotated[int, typer.Option(metavar="H", min=1, help="The shortest order that it serves.")] = 1,
    as_json: AsJson = False,
    explain: Explain = False,
) -> None:
    """Put hours of a reservation up for sale, all that is left of it or a window; prints the listing's id."""
    with open_session(as_json=as_json, explain=explain) as session:
        kept = session.client.get(f"/reservations/{reservation}")
        chosen = {"starts_at": kept["starts_at"], "ends_at": kept["ends_at"]}
        if start or end or hours:
            chosen = window(start=start, end=end, hours=hours)
        order = {"reservation": reservation, "gpus": gpus, "ask": amount(ask)}
        order |= {"min_gpus": min_gpus, "min_hours": min_hours}
        row = session.client.post("/listings", order | chosen)
        fee = kept["terms"]["resale_fee_percent"]
        say = f"{row['id']} is for sale at {money(row['ask'])} per GPU-hour; {fee} % of what it sells is kept."
        conclude(session, row, say)


@app.callback()
def listed(ctx: typer.Context, *, as_json: AsJson = False, explain: Explain = False) -> None:
    """List your own listings: what is left, what was sold, what it paid."""
    if ctx.invoked_subcommand is not None:
        return
    with open_session(as_json=as_json, explain=explain) as session:
        rows = list(session.client.rows("/listings"))
        if as_json:
            session.terminal.document({"data": rows, "next_cursor": None})
        elif rows:
            session.terminal.table(
                ["ID", "STATE", "OFFER", ">GPUS", "FROM", "UNTIL", ">ASK", ">SOLD", ">PROCEEDS"],
                [cells(row) for row in rows],
            )
        else:
            session.terminal.say("You sell nothing. List hours: gpumarket resell RESERVATION --gpus N --ask AMOUNT")


def cells(row: dict[str, Any]) -> list[str]:
    return [
        row["id"], row["state"], row["offer"]["slug"], str(row["gpus"]), hour(row["starts_at"]), hour(row["ends_at"]),
        money(row["ask"]), f"{row['sold_gpu_hours']} GPU-h", money(row["proceeds"]),
    ]  # fmt: skip


@app.command()
def withdraw(
    listing: Annotated[str, typer.Argument(metavar="LISTING", help="Its id.", show_default=False)],
    as_json: AsJson = False,
    explain: Explain = False,
) -> None:
    """Take what was not sold of a listing off the market; its hours stay yours."""
    with open_session(as_json=as_json, explain=explain) as session:
        row = session.client.delete(f"/listings/{listing}")
        conclude(session, row, f"{row['id']} is {row['state']}; what was not sold stays yours.")


@app.command()
def asks(offer: OfferName, as_json: AsJson = False, explain: Explain = False) -> None:
    """List what holders of reservations of an offer sell, the cheapest first."""
    with open_session(as_json=as_json, explain=explain) as session:
        found = session.client.get(f"/offers/{offer}/asks")
        if as_json:
            session.terminal.document(found)
            return
        rows = [
            [money(ask["ask"]), str(step["gpus"]), hour(step["starts_at"]), hour(step["ends_at"]),
             f"{words.count(ask['min_gpus'], 'GPU')}, {ask['min_hours']} h", "you" if ask["is_mine"] else "a holder"]
            for ask in found["data"]
            for step in ask["steps"]
        ]  # fmt: skip
        if rows:
            session.terminal.table([">ASK", ">GPUS", "FROM", "UNTIL", "SMALLEST ORDER", "WHOSE"], rows)
        else:
            session.terminal.say(f"Nobody sells hours of {offer} now.")


@app.command()
def buy(
    offer: OfferName,
    *,
    gpus: Gpus,
    limit: Annotated[str, typer.Option(metavar="AMOUNT", help="The most that a GPU-hour may cost.")],
    start: Start = None,
    end: End = None,
    hours: Hours = None,
    yes: Yes = False,
    key: Key = None,
    as_json: AsJson = False,
    explain: Explain = False,
) -> None:
    """Buy hours, each from the cheapest ask or the offer itself: shows what it costs, asks, then buys all at once."""
    with open_session(as_json=as_json, explain=explain) as session:
        order = {"offer": offer, "gpus": gpus, "limit": amount(limit), **window(start=start, end=end, hours=hours)}
        fill = session.client.post("/trades", order, dry_run="true")
        for leg in fill["legs"]:
            source = "a holder" if leg["source"] == "listing" else "the offer"
            session.terminal.say(
                f"{words.count(leg['gpus'], 'GPU')} from {hour(leg['starts_at'])} until {hour(leg['ends_at'])} "
                f"at {money(leg['price'])} per GPU-hour, from {source}"
            )
        confirm(session, f"Pay {money(fill['total'])} now?", yes=yes)
        row = session.client.post("/trades", order, key=key or "")
        if session.terminal.as_json:
            session.terminal.document(row)
        else:
            session.terminal.data(row["reservation"])
        session.terminal.say(f"Bought for {money(row['total'])}: {row['reservation']}")
