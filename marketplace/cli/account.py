"""Who we are, what was used and what money is left."""

import sys
from typing import Annotated, Any

import typer

from marketplace.cli import words
from marketplace.cli.connection import Connection, clean_token, clean_url, login_path, save_login
from marketplace.cli.instances import find_instance
from marketplace.cli.problems import problem
from marketplace.cli.problems import usage as wrong_usage
from marketplace.cli.session import AsJson, Explain, open_session
from marketplace.cli.terminal import Terminal
from marketplace.cli.times import away

BALANCE = {"available": "to spend", "cash": "paid in", "promo": "promotional", "held": "held back", "owed": "owed"}
Since = Annotated[str, typer.Option(metavar="WHEN", help="From when: 24h, 7d, 4w, or a date such as 2026-11-01.")]
Until = Annotated[str | None, typer.Option(metavar="WHEN", help="Until when, in the same way.", show_default=False)]


def login(
    url: Annotated[str | None, typer.Argument(help="Address of the marketplace.", show_default=False)] = None,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="GPUMARKET_TOKEN",
            help="API token; without it, asked for or read from stdin, where nobody sees it.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
    explain: Explain = False,
) -> None:
    """Save an address and a token for later calls, once the marketplace has confirmed them."""
    asks = sys.stdin.isatty()
    if not url and not asks:
        raise wrong_usage("login needs an address.", suggestion="For example: gpumarket login https://gpu.example.com")
    address = clean_url(url or typer.prompt("Address of the marketplace", err=True))
    if not token:
        token = typer.prompt("API token", hide_input=True, err=True) if asks else sys.stdin.readline()
    connection = Connection(url=address, token=clean_token(token), source="the login you just gave")
    with open_session(as_json=as_json, explain=explain, connection=connection) as session:
        if not connection.is_private:
            session.terminal.say("Beware: this address is not https, so others on the way can read your token.")
        me = session.client.get("/me")
        path = login_path()
        try:
            save_login(connection, path=path)
        except OSError as error:
            raise problem(
                code="not_saved", title="The login could not be saved.", detail=f"{path}: {error.strerror}."
            ) from error
        session.terminal.say(f"Signed in to {address} as {me['user']['email']} of {me['organization']['name']}.")
        session.terminal.say(f"Saved in {path}. Next: gpumarket offers")
        if as_json:
            session.terminal.document(me)


def usage(
    since: Since = "30d",
    until: Until = None,
    instance: Annotated[
        str | None, typer.Option(metavar="INSTANCE", help="Only of this instance.", show_default=False)
    ] = None,
    as_json: AsJson = False,
    explain: Explain = False,
) -> None:
    """List what was used, line by line: GPU-milliseconds (of volumes: GiB-milliseconds) x price = amount."""
    begin, end = moment(since), moment(until) if until else None
    with open_session(as_json=as_json, explain=explain) as session:
        instance_id = find_instance(session, instance)["id"] if instance else None
        rows = list(session.client.rows("/usage", since=begin, until=end, instance=instance_id))
        if as_json:
            session.terminal.document({"data": rows, "next_cursor": None})
            return
        if not rows:
            session.terminal.say(f"Nothing was used since {words.local_time(begin)}, so nothing was charged.")
            return
        session.terminal.table(
            ["STARTED", "NAME", "RESOURCE", ">SIZE", ">LASTED", ">MEASURED", ">PRICE", ">AMOUNT"],
            [usage_cells(row) for row in rows],
        )
        sums = ", ".join(words.money(amount, currency) for currency, amount in words.total(rows).items())
        session.terminal.say(f"Together {sums} since {words.local_time(begin)}.")


def usage_cells(row: dict[str, Any]) -> list[str]:
    lasted = words.duration(words.ms_between(row["started_at"], row["ended_at"]))
    return [
        words.local_time(row["started_at"]),
        row["name"],
        row["resource"],
        f"{row['quantity']} GiB" if row.get("meter") == "volume" else words.count(row["gpus"], "GPU"),
        lasted if row["ended_at"] else f"{lasted} so far",
        f"{words.measured(row)}-ms",
        words.price(row["price"]),
        words.money(row["amount"]["amount"], row["amount"]["currency"]),
    ]


def balance(as_json: AsJson = False, explain: Explain = False) -> None:
    """Show what money is left, and how long it lasts at the present rate."""
    with open_session(as_json=as_json, explain=explain) as session:
        found = session.client.get("/balance")
        if as_json:
            session.terminal.document(found)
            return
        session.terminal.table(
            ["", ">AMOUNT"], [[said, words.money(found[name], found["currency"])] for name, said in BALANCE.items()]
        )
        if found["credit_limit"].strip("0."):
            session.terminal.say(f"You may owe up to {words.money(found['credit_limit'], found['currency'])}.")
        for one in found["credits"]:
            until = f"expires {words.local_time(one['expires_at'])}" if one["expires_at"] else "does not expire"
            session.terminal.say(f"{words.money(one['left'], found['currency'])} of “{one['reason']}” {until}.")
        session.terminal.say(words.runway(found))
        if found["past_due"].strip("0."):
            session.terminal.say(f"{words.money(found['past_due'], found['currency'])} is past due.")
        if found["taken_back"].strip("0."):
            amount = words.money(found["taken_back"], found["currency"])
            session.terminal.say(f"{amount} that your bank took back is on no invoice; add credit to pay it.")
        if found["written_off"].strip("0."):
            amount = words.money(found["written_off"], found["currency"])
            session.terminal.say(f"{amount} of your invoices was given up; nothing new starts until it is paid.")
        for one in found["coming"]:
            session.terminal.say(f"{words.local_time(one['at'])}: {one['text']}")


def version(as_json: AsJson = False) -> None:
    """Print the version."""
    from importlib.metadata import version as installed  # noqa: PLC0415 - nothing else needs it

    terminal = Terminal(as_json=as_json)
    if as_json:
        terminal.document({"name": "gpumarket", "version": installed("gpumarket")})
    else:
        terminal.data(f"gpumarket {installed('gpumarket')}")


def moment(text: str) -> str:
    """Return the RFC 3339 moment that "7d" or "2026-11-01" means; a date begins in the zone of this machine."""
    return away(text, ahead=False, suggestion="Write 24h, 7d, 4w or 2026-11-01.")
