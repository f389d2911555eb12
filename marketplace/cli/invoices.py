"""Invoices: what was asked for, by which tax, and its PDF."""

from pathlib import Path
from typing import Annotated, Any

import typer

from marketplace.cli import saving, words
from marketplace.cli.payments import Key
from marketplace.cli.problems import problem
from marketplace.cli.session import AsJson, Explain, Session, open_session

app = typer.Typer(help="See invoices and credit notes, and download them.", no_args_is_help=True, rich_markup_mode=None)
Number = Annotated[str, typer.Argument(metavar="INVOICE", help="Its number or id.", show_default=False)]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FILE", help="Where to write it.", show_default="its number, here"),
]


@app.command("list")
def listed(as_json: AsJson = False, explain: Explain = False) -> None:
    """List invoices and credit notes, newest first."""
    with open_session(as_json=as_json, explain=explain) as session:
        rows = list(session.client.rows("/invoices"))
        if as_json:
            session.terminal.document({"data": rows, "next_cursor": None})
        elif rows:
            session.terminal.table(
                ["NUMBER", "ISSUED", "PERIOD (UTC)", ">NET", ">TAX", ">TOTAL", ">DUE", "STATE", "ID"],
                [cells(row) for row in rows],
            )
        else:
            session.terminal.say(
                "There are no invoices yet. They come with the end of a month in which you used something."
            )


def cells(row: dict[str, Any]) -> list[str]:
    sign = "-" if row["kind"] == "credit_note" else ""
    figures = [f"{sign}{words.money(figure, row['currency'])}" for figure in (row["net"], tax(row), row["total"])]
    due = words.money(row["due"], row["currency"])
    state = "" if row["kind"] == "credit_note" else words.spoken(row["state"])
    return [row["number"], row["issued_at"][:10], period(row), *figures, due, state, row["id"]]


@app.command()
def show(invoice: Number, as_json: AsJson = False, explain: Explain = False) -> None:
    """Show an invoice with its lines: measured x price = exact, then rounded."""
    with open_session(as_json=as_json, explain=explain) as session:
        found = find_invoice(session, invoice)
        lines = list(session.client.rows(f"/invoices/{found['id']}/lines"))
        if as_json:
            session.terminal.document({**found, "lines": lines})
            return
        currency = found["currency"]
        session.terminal.say(
            f"{found['number']} of {found['issued_at'][:10]} to {found['customer']['name']}, {period(found)}"
        )
        session.terminal.table(
            ["NAME", "RESOURCE", "MARKET", ">MEASURED", ">PRICE", ">EXACT", ">AMOUNT"],
            [line_cells(line, currency) for line in lines],
        )
        for name, figure in totals(found):
            session.terminal.say(f"{name}: {words.money(figure, currency)}")
        session.terminal.say(f"PDF: gpumarket invoices download {found['number']}")


def line_cells(line: dict[str, Any], currency: str) -> list[str]:
    price = line["price_per_unit_hour"]
    unit = {"gpu": "GPU", "gib": "GiB"}.get(line["unit"], "")
    return [
        line["name"],
        line["resource"],
        f"{line['market']} (earlier period)" if line["late"] else line["market"],
        f"{line['unit_milliseconds']:,} {unit}-ms" if unit else "",
        words.money(price, currency) if price else "market price" if unit else "",
        words.money(line["exact"], currency),
        words.money(line["amount"], currency),
    ]


def totals(row: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [("Sum", row["subtotal"]), ("Promotional credit", f"-{row['promo']}"), ("Net", row["net"])]
    rows += [(f"{one['name'] or one['treatment']} {one['rate_bps'] / 100:g} %", one["tax"]) for one in row["taxes"]]
    rows.append(("Given back" if row["kind"] == "credit_note" else "Total", row["total"]))
    if row["state"] != "uncollectible":
        return [*rows, ("Still due", row["due"])]
    lost = [("Given up", row["written_off"]), ("Paid after all", row["recovered"])]
    return [*rows, *lost, ("Can still be paid", row["due"])]


@app.command()
def pay(
    invoice: Number,
    *,
    key: Key = None,
    as_json: AsJson = False,
    explain: Explain = False,
) -> None:
    """Charge the saved card for what is left of an invoice."""
    with open_session(as_json=as_json, explain=explain) as session:
        found = find_invoice(session, invoice)
        paid = session.client.post(f"/invoices/{found['id']}/pay", key=key or "")
        amount = words.money(paid["amount"], paid["currency"])
        session.terminal.say(f"{amount} for {found['number']} is being charged to {paid['card']} ({paid['state']}).")
        session.terminal.say(f"See what became of it: gpumarket invoices show {found['number']}")
        if as_json:
            session.terminal.document(paid)


@app.command()
def dispute(  # noqa: PLR0917  Typer names them
    invoice: Number,
    reason: Annotated[str, typer.Option(help="What is wrong.")],
    line: Annotated[str | None, typer.Option(help="Only this line, by its id.", show_default=False)] = None,
    amount: Annotated[str | None, typer.Option(help="Only so much, before tax.", show_default=False)] = None,
    as_json: AsJson = False,
    explain: Explain = False,
) -> None:
    """Say that an invoice, or a line of it, is wrong: nobody asks for the amount until that is decided."""
    with open_session(as_json=as_json, explain=explain) as session:
        found = find_invoice(session, invoice)
        body = {"reason": reason, "line": line, "amount": amount}
        made = session.client.post(f"/invoices/{found['id']}/disputes", body)
        amount_said = words.money(made["gross"], made["currency"])
        session.terminal.say(
            f"{amount_said} of {found['number']} is disputed ({made['id']}); nobody asks for it until that is decided."
        )
        if as_json:
            session.terminal.document(made)


@app.command()
def download(invoice: Number, output: Output = None, as_json: AsJson = False, explain: Explain = False) -> None:
    """Download an invoice as PDF; a file that is there already is not written over."""
    with open_session(as_json=as_json, explain=explain) as session:
        found = find_invoice(session, invoice)
        path = output or Path(f"{found['number']}.pdf")
        content = session.client.download(f"/invoices/{found['id']}/pdf")
        saving.save(path, content, title="The invoice could not be saved.")
        session.terminal.say(f"Saved in {path} ({len(content):,} bytes).")
        if as_json:
            session.terminal.document({"invoice": found["id"], "number": found["number"], "path": str(path)})


def find_invoice(session: Session, name: str) -> dict[str, Any]:
    """Return the invoice with this id or number."""
    if name.startswith("ivc_"):
        return session.client.get(f"/invoices/{name}")
    for row in session.client.rows("/invoices"):
        if row["number"] == name:
            return row
    raise problem(
        code="not_found", title=f"There is no invoice {name}.", suggestion="See what there is: gpumarket invoices list"
    )


def tax(row: dict[str, Any]) -> str:
    return str(row["taxes"][0]["tax"])


def period(row: dict[str, Any]) -> str:
    return f"{row['period']['start'][:10]} - {row['period']['end'][:10]}"
