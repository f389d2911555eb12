"""Blocks of GPUs ahead: find a window, see its quote, buy it; then extend, cancel or lend it."""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer

from marketplace.cli import words
from marketplace.cli.offers import Country, GpuModel, find_offer
from marketplace.cli.orders import project_id
from marketplace.cli.problems import problem, usage
from marketplace.cli.session import AsJson, Explain, Project, Session, open_session
from marketplace.cli.terminal import printable
from marketplace.cli.times import hour, moment, sent

app = typer.Typer(
    help="Show, extend and cancel reservations; without a command, list them.",
    invoke_without_command=True,
    rich_markup_mode=None,
)

Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Gpus = Annotated[int, typer.Option(metavar="N", min=1, help="GPUs in every hour.")]
Hours = Annotated[int | None, typer.Option(metavar="H", min=1, help="For how many hours.", show_default=False)]
Start = Annotated[str | None, typer.Option(metavar="TIME", help="From this full hour, UTC.", show_default=False)]
End = Annotated[str | None, typer.Option(metavar="TIME", help="Until this full hour, UTC.", show_default=False)]
Before = Annotated[
    str | None,
    typer.Option(metavar="TIME", help="Any window that ends by then: the cheapest is taken.", show_default=False),
]
After = Annotated[str | None, typer.Option(metavar="TIME", help="It may start from then on.", show_default=False)]
ReservationId = Annotated[str, typer.Argument(metavar="RESERVATION", help="Its id.", show_default=False)]


def windows(
    *,
    gpus: Gpus,
    hours: Annotated[int, typer.Option(metavar="H", min=1, help="For how many hours.")],
    before: Annotated[str, typer.Option(metavar="TIME", help="It has to end by then.")],
    after: After = None,
    gpu_model: GpuModel = None,
    country: Country = None,
    project: Project = None,
    as_json: AsJson = False,
    explain: Explain = False,
) -> None:
    """Find when and where so many GPUs can be had for so long, the cheapest first.

    Offers that policies exclude are left out: of the project, or of all of yours.

    For example: gpumarket windows --gpus 64 --gpu-model H200 --hours 48 --before friday
    """
    with open_session(as_json=as_json, explain=explain) as session:
        asked = {"gpus": gpus, "hours": hours, "gpu_model": gpu_model, "country": country}
        asked["project"] = project_id(session, project) if project else None
        found = find_windows(session, asked, before=before, after=after)
        if as_json:
            session.terminal.document({"data": found})
            return
        if not found:
            session.terminal.say("No offer has such a window. Ask for fewer GPUs or hours, or a later end.")
            return
        session.terminal.table(
            ["OFFER", "SITE", "FROM", "UNTIL", ">TOTAL", "HOW"], [window_cells(row) for row in found]
        )
        best = found[0]
        start = sent(words.parse_time(best["starts_at"]))
        order = f"{best['offer']['slug']} --gpus {gpus} --start {start} --hours {hours}"
        session.terminal.say(f"Next: gpumarket reserve {order}")


def find_windows(session: Session, asked: dict[str, Any], *, before: str, after: str | None) -> list[dict[str, Any]]:
    """Return the windows that the marketplace has, the cheapest first."""
    now = datetime.now(UTC)
    query = {name: str(value) for name, value in asked.items() if value is not None}
    query["before"] = sent(moment(before, now=now))
    if after:
        query["after"] = sent(moment(after, now=now))
    found: list[dict[str, Any]] = session.client.get("/windows", **query)["data"]
    return found


def window_cells(row: dict[str, Any]) -> list[str]:
    how = "reserve" if row["buy_by"] == "quote" else "listings buy (partly resold)"
    return [
        row["offer"]["slug"],
        f"{row['offer']['site']['name']} ({row['offer']['site']['country']})",
        hour(row["starts_at"]),
        hour(row["ends_at"]),
        money(row["total"]),
        how,
    ]


def reserve(
    offer: Annotated[
        str | None, typer.Argument(metavar="OFFER", help="Slug or id; not with --before.", show_default=False)
    ] = None,
    *,
    gpus: Gpus,
    start: Start = None,
    end: End = None,
    hours: Hours = None,
    before: Before = None,
    gpu_model: GpuModel = None,
    country: Country = None,
    project: Project = None,
    yes: Yes = False,
    as_json: AsJson = False,
    explain: Explain = False,
) -> None:
    """Reserve GPUs ahead: shows the quote with all its terms, asks, then buys; prints the reservation's id.

    For example: gpumarket reserve h200-narvik --gpus 8 --start 2026-11-27T18:00 --hours 24,
    or the cheapest of all offers: gpumarket reserve --gpus 8 --gpu-model H200 --hours 24 --before friday
    """
    with open_session(as_json=as_json, explain=explain) as session:
        if before:
            asked = {"gpus": gpus, "hours": hours, "gpu_model": gpu_model, "country": country, "offer": offer}
            body = cheapest(session, asked, before=before, start=start)
        else:
            body = {"offer": named(session, offer), "gpus": gpus, **window(start=start, end=end, hours=hours)}
        if project:
            body["project"] = project_id(session, project)
        quote = session.client.post("/quotes", body)
        tell_quote(session, quote)
        confirm(session, f"Pay {money(quote['total'])} now?", yes=yes)
        row = session.client.post("/reservations", {"quote": quote["id"]})
        conclude(session, row, f"{row['id']} is {row['state']}; {money(row['paid'])} was paid, and no more is charged.")


def named(session: Session, offer: str | None) -> str:
    if not offer:
        raise usage("Say which OFFER, or by when it has to end (--before).", suggestion="See them: gpumarket offers")
    return str(find_offer(session.client, offer)["slug"])


def cheapest(session: Session, asked: dict[str, Any], *, before: str, start: str | None) -> dict[str, Any]:
    """Return the order for the cheapest window that can be quoted."""
    if asked["hours"] is None:
        raise usage("--before needs --hours.", suggestion="Say for how long: --hours 24")
    found = find_windows(session, asked, before=before, after=start)
    quoted = [row for row in found if row["buy_by"] == "quote"]
    if not quoted:
        raise problem(
            code="no_capacity",
            title="No offer has such a window.",
            suggestion="See what there is: gpumarket windows, or gpumarket listings asks OFFER",
        )
    best = quoted[0]
    session.terminal.say(f"The cheapest of {len(found)}: {best['offer']['slug']} from {hour(best['starts_at'])}.")
    return {
        "offer": best["offer"]["slug"],
        "gpus": asked["gpus"],
        "starts_at": sent(words.parse_time(best["starts_at"])),
        "ends_at": sent(words.parse_time(best["ends_at"])),
    }


def window(*, start: str | None, end: str | None, hours: int | None) -> dict[str, str]:
    """Return start and end of what was typed: --start, and --end or --hours."""
    if not start or bool(end) == bool(hours):
        raise usage("Say --start, and either --hours or --end.", suggestion="--start 2026-11-27T18:00 --hours 24")
    begins = moment(start, now=datetime.now(UTC))
    ends = moment(end, now=datetime.now(UTC)) if end else begins + timedelta(hours=hours or 0)
    return {"starts_at": sent(begins), "ends_at": sent(ends)}


def tell_quote(session: Session, quote: dict[str, Any]) -> None:
    """Say everything of a quote that matters before it is paid."""
    terms = quote["terms"]
    say = session.terminal.say
    say(
        f"{quote['gpus']} {quote['offer']['gpu_model']} in {quote['offer']['site']['name']} "
        f"from {hour(quote['starts_at'])} until {hour(quote['ends_at'])} ({quote['hours']} h)"
    )
    if quote["kind"] != "cancellation":
        off = quote["discount_percent"]
        less = f", {off} % less than {money(quote['list_price'])}" if off != "0.00" else ""
        say(f"  price     {money(quote['price'])} per GPU-hour{less}")
        say(f"  total     {money(quote['total'])}, paid now; what runs inside is not charged")
        told, stopped = terms["notice_minutes"], terms["drain_minutes"]
        say(f"  end       instances inside are told {told} min and stopped {stopped} min before it")
    for cost in quote["cancellation_costs"]:
        say(f"  cancel    until {hour(cost['until'])}: {money(cost['kept'])} kept, {money(cost['refund'])} back")
    holds = "" if quote["kind"] == "cancellation" else "; it holds no GPUs until it is bought"
    say(f"  good      until {words.local_time(quote['expires_at'])}{holds}")


def confirm(session: Session, question: str, *, yes: bool) -> None:
    """Ask at a terminal; elsewhere --yes has to say it, so that no program pays by accident."""
    if yes:
        return
    if not session.terminal.can_ask:
        raise usage("Nobody is there to say yes.", suggestion="Add --yes to do it without being asked.")
    typer.confirm(question, abort=True, err=True)


@app.callback()
def listed(ctx: typer.Context, *, project: Project = None, as_json: AsJson = False, explain: Explain = False) -> None:
    """List reservations: what they hold, when, and what is used."""
    if ctx.invoked_subcommand is not None:
        return
    with open_session(as_json=as_json, explain=explain) as session:
        wanted = project_id(session, project) if project else None
        rows = list(session.client.rows("/reservations", project=wanted))
        if as_json:
            session.terminal.document({"data": rows, "next_cursor": None})
            return
        if not rows:
            session.terminal.say("There are no reservations. Find a window: gpumarket windows --help")
            return
        session.terminal.table(
            ["ID", "STATE", "OFFER", ">GPUS", ">USED", "FROM", "UNTIL", ">PAID"], [cells(row) for row in rows]
        )


def cells(row: dict[str, Any]) -> list[str]:
    state = row["state"] + (" (lent)" if row["is_lent"] else "")
    return [
        row["id"], state, row["offer"]["slug"], str(row["gpus"]), str(row["used_gpus"]), hour(row["starts_at"]),
        hour(row["ends_at"]), money(row["paid"]),
    ]  # fmt: skip


@app.command()
def show(reservation: ReservationId, as_json: AsJson = False, explain: Explain = False) -> None:
    """Show one reservation: its hours, its money, and what can be done now."""
    with open_session(as_json=as_json, explain=explain) as session:
        row = session.client.get(f"/reservations/{reservation}")
        if as_json:
            session.terminal.document(row)
            return
        listings = [one for one in session.client.rows("/listings") if one["reservation"] == row["id"]]
        session.terminal.data(printable("\n".join([*describe(row), *for_sale(listings)])))


def describe(row: dict[str, Any]) -> list[str]:
    lines = [
        f"{row['id']}  {row['state']}",
        f"  offer     {row['offer']['name']}",
        f"  project   {row['project']['name']}",
        *(f"  holds     {words.count(step['gpus'], 'GPU')} from {hour(step['starts_at'])} until {hour(step['ends_at'])}"
          for step in row["steps"]),
        f"  used      {words.count(row['used_gpus'], 'GPU')} by instances in it",
        f"  paid      {money(row['paid'])}",
    ]  # fmt: skip
    if row["message"]:
        lines.append(f"  because   {row['message']}")
    if row["is_lent"] or row["lent"]["amount"] != "0.000000":
        lines.append(f"  lending   {'on' if row['is_lent'] else 'off'}; it earned {money(row['lent'])} so far")
    lines += [f"  given back {money(one['refund'])}: {one['message']}" for one in row["shortfalls"]]
    lines += [
        f"  cancel    until {hour(cost['until'])}: {money(cost['kept'])} kept, {money(cost['refund'])} back"
        for cost in row["cancellation_costs"]
    ]
    for verb, action in row["actions"].items():
        lines.append(f"  {verb:<9} {'possible' if action['available'] else 'not now: ' + action['reason']}")
    return lines


def for_sale(listings: list[dict[str, Any]]) -> list[str]:
    """Return a line for each listing of its hours that is or was for sale."""
    return [
        f"  {'for sale' if one['state'] == 'open' else one['state']:<9} {words.count(one['gpus'], 'GPU')} "
        f"from {hour(one['starts_at'])} until {hour(one['ends_at'])} at {money(one['ask'])} per GPU-hour; "
        f"{one['sold_gpu_hours']} GPU-h sold ({one['id']})"
        for one in listings
    ]


@app.command()
def extend(
    reservation: ReservationId,
    *,
    hours: Annotated[int, typer.Option(metavar="H", min=1, help="How many hours more.")],
    yes: Yes = False,
    as_json: AsJson = False,
    explain: Explain = False,
) -> None:
    """Add hours to the end of a reservation: shows the quote, asks, then buys."""
    with open_session(as_json=as_json, explain=explain) as session:
        row = session.client.get(f"/reservations/{reservation}")
        ends_at = sent(words.parse_time(row["ends_at"]) + timedelta(hours=hours))
        quote = session.client.post("/quotes", {"kind": "extension", "reservation": row["id"], "ends_at": ends_at})
        tell_quote(session, quote)
        confirm(session, f"Pay {money(quote['total'])} now?", yes=yes)
        row = session.client.post(f"/reservations/{row['id']}/extend", {"quote": quote["id"]})
        conclude(session, row, f"{row['id']} lasts until {hour(row['ends_at'])}.")


@app.command()
def cancel(reservation: ReservationId, yes: Yes = False, as_json: AsJson = False, explain: Explain = False) -> None:
    """Cancel a reservation: shows what is kept and what comes back, asks, then cancels."""
    with open_session(as_json=as_json, explain=explain) as session:
        quote = session.client.post("/quotes", {"kind": "cancellation", "reservation": reservation})
        tell_quote(session, quote)
        confirm(session, f"Cancel it for {money(quote['total'])}, with {money(quote['refund'])} back?", yes=yes)
        row = session.client.post(f"/reservations/{reservation}/cancel", {"quote": quote["id"]})
        conclude(session, row, f"{row['id']} is {row['state']}; {money(quote['refund'])} came back.")


def lend(
    reservation: ReservationId,
    *,
    stop: Annotated[bool, typer.Option("--stop", help="Lend nothing of it any more.")] = False,
    as_json: AsJson = False,
    explain: Explain = False,
) -> None:
    """Lend what stands idle in a reservation to spot, for a share of what it earns. Your own use comes first."""
    with open_session(as_json=as_json, explain=explain) as session:
        row = session.client.patch(f"/reservations/{reservation}", {"is_lent": not stop})
        share = f"you get {row['terms']['lend_share_percent']} % of what spot pays for them"
        conclude(session, row, f"Nothing of {row['id']} is lent any more." if stop else f"Idle GPUs are lent; {share}.")


def money(value: dict[str, str]) -> str:
    """Return an amount of the API as people read it."""
    return words.money(value["amount"], value["currency"])


def conclude(session: Session, row: dict[str, Any], text: str) -> None:
    if session.terminal.as_json:
        session.terminal.document(row)
    else:
        session.terminal.data(row["id"])
    session.terminal.say(text)
