"""What suppliers earn: monthly statements with their lines, their PDF, and payouts."""

from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

import typer

from marketplace.cli import saving, words
from marketplace.cli.problems import problem
from marketplace.cli.session import AsJson, Explain, Session, open_session

app = typer.Typer(
    help="See what your organization earned by selling capacity.", no_args_is_help=True, rich_markup_mode=None
)
Number = Annotated[str, typer.Argument(metavar="STATEMENT", help="Its number or id.", show_default=False)]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FILE", help="Where to write it.", show_default="its number, here"),
]
SUMS = (
    ("Opening", "opening"), ("Payout", "payout"), ("Held back", "held_back"), ("Adjustments", "adjustments"),
    ("Paid out", "paid_out"), ("Closing", "closing"),
)  # fmt: skip


@app.command("list")
def listed(as_json: AsJson = False, explain: Explain = False) -> None:
    """List statements, newest first."""
    with open_session(as_json=as_json, explain=explain) as session:
        rows = list(session.client.rows("/statements"))
        if as_json:
            session.terminal.document({"data": rows, "next_cursor": None})
        elif rows:
            session.terminal.table(
                ["NUMBER", "PERIOD (UTC)", ">CUSTOMERS PAID", ">YOURS", ">FEE", ">BALANCE", "ID"],
                [cells(row) for row in rows],
            )
        else:
            session.terminal.say("There are no statements yet. They come with the end of a month in which GPUs ran.")


def cells(row: dict[str, Any]) -> list[str]:
    currency = row["currency"]
    yours = Decimal(row["payout"]) + Decimal(row["held_back"])
    figures = [words.money(figure, currency) for figure in (row["charged"], yours, row["fee"], row["closing"])]
    return [row["number"], period(row), *figures, row["id"]]


def period(row: dict[str, Any]) -> str:
    return f"{row['period']['start'][:10]} - {row['period']['end'][:10]}"


@app.command()
def show(statement: Number, as_json: AsJson = False, explain: Explain = False) -> None:
    """Show a statement: what each node earned of each offer, what was adjusted, and what is left."""
    with open_session(as_json=as_json, explain=explain) as session:
        found = find_statement(session, statement)
        lines = list(session.client.rows(f"/statements/{found['id']}/lines"))
        if as_json:
            session.terminal.document({**found, "lines": lines})
            return
        currency = found["currency"]
        session.terminal.say(f"{found['number']} of {found['issued_at'][:10]} for {found['supplier']['name']}")
        session.terminal.table(
            ["OFFER", "NODE", "MONTH", ">GPU-MS", ">CUSTOMERS PAID", ">NOW", ">HELD BACK", ">ADJUSTED"],
            [line_cells(line, currency) for line in lines],
        )
        for name, field in SUMS:
            session.terminal.say(f"{name}: {words.money(found[field], currency)}")
        session.terminal.say(f"PDF: gpumarket statements download {found['number']}")


def line_cells(line: dict[str, Any], currency: str) -> list[str]:
    figures = [words.money(line[name], currency) for name in ("charged", "payout", "held_back", "adjustment")]
    return [line["offer"] or line["text"], line["node"], line["month"], f"{line['gpu_milliseconds']:,}", *figures]


@app.command()
def download(statement: Number, output: Output = None, as_json: AsJson = False, explain: Explain = False) -> None:
    """Download a statement as PDF; a file that is there already is not written over."""
    with open_session(as_json=as_json, explain=explain) as session:
        found = find_statement(session, statement)
        path = output or Path(f"{found['number']}.pdf")
        content = session.client.download(f"/statements/{found['id']}/pdf")
        saving.save(path, content, title="The statement could not be saved.")
        session.terminal.say(f"Saved in {path} ({len(content):,} bytes).")
        if as_json:
            session.terminal.document({"statement": found["id"], "number": found["number"], "path": str(path)})


@app.command()
def payouts(as_json: AsJson = False, explain: Explain = False) -> None:
    """List what was paid out, newest first."""
    with open_session(as_json=as_json, explain=explain) as session:
        rows = list(session.client.rows("/payouts"))
        if as_json:
            session.terminal.document({"data": rows, "next_cursor": None})
        elif rows:
            session.terminal.table(
                ["DAY", "STATEMENT", ">AMOUNT", "STATE", "WHY NOT", "ID"],
                [
                    [row["day"], row["statement"], words.money(row["amount"], row["currency"]), row["state"],
                     row["failure"], row["id"]]
                    for row in rows
                ],
            )  # fmt: skip
        else:
            session.terminal.say("Nothing was paid out yet. Payouts follow the statements, by the calendar.")


def find_statement(session: Session, given: str) -> dict[str, Any]:
    """Return a statement by its number or id, or say that there is none."""
    if given.startswith("sts_"):
        return dict(session.client.get(f"/statements/{given}"))
    for row in session.client.rows("/statements"):
        if row["number"] == given.upper():
            return dict(row)
    raise problem(
        code="not_found",
        title=f"There is no statement {given}.",
        suggestion="See what there is: gpumarket statements list",
    )
