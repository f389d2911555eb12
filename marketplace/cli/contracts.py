"""Paying by outcome: what is sold by its result, and agreeing to its terms."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from marketplace.cli import words
from marketplace.cli.problems import usage
from marketplace.cli.session import AsJson, Explain, open_session

SUBMITTED = "It waits for a capacity manager, who approves it before anybody can agree to it."

app = typer.Typer(
    help="Pay by outcome: see what is sold by its result, and agree to it.", no_args_is_help=True, rich_markup_mode=None
)
VersionId = Annotated[str, typer.Argument(metavar="VERSION", help="Its id, such as ctv_...", show_default=False)]
TermsFile = Annotated[
    Path, typer.Argument(metavar="TERMS", help="A JSON file of whole terms; see docs/outcomes.md.", show_default=False)
]

SILENCE = {"accept": "accepts it", "reject": "rejects it"}
VERIFIERS = {
    "outputs": "exit code and declared outputs",
    "command": "your own command on another host",
    "rerun": "a second run on another host",
    "customer": "you",
    "third_party": "a third party",
}


@app.command("list")
def listed(
    scope: Annotated[
        str | None,
        typer.Option(metavar="catalogue|accepted|sold", help="Only these.", show_default="all you may read"),
    ] = None,
    as_json: AsJson = False,
    explain: Explain = False,
) -> None:
    """List versions of contracts: the catalogue, what you agreed to, what you sell."""
    with open_session(as_json=as_json, explain=explain) as session:
        rows = list(session.client.rows("/contracts", **({"scope": scope} if scope else {})))
        if as_json:
            session.terminal.document({"data": rows, "next_cursor": None})
        elif rows:
            session.terminal.table(
                ["VERSION", "TITLE", "SELLER", ">PRICE", "VERIFIED BY", "STATE", "AGREED"], [cells(row) for row in rows]
            )
        else:
            session.terminal.say("Nothing is sold by its outcome here yet.")


def cells(row: dict[str, Any]) -> list[str]:
    agreed = row["accepted"]["at"][:10] if row["accepted"] and not row["accepted"].get("ended_at") else ""
    return [
        row["id"], f"{row['title']} v{row['number']}", row["seller"]["name"], price(row),
        VERIFIERS[row["terms"]["verifier"]["kind"]], row["state"], agreed,
    ]  # fmt: skip


def price(row: dict[str, Any]) -> str:
    """Return what a unit costs, such as "$0.50 per task"."""
    unit = row["terms"]["unit"]
    amount = words.of_micros(unit["price_micros"], row["terms"]["currency"])
    return f"{amount} per {unit['name']}" if unit["per"] == 1 else f"{amount} per {unit['per']:,} {unit['name']}"


@app.command()
def show(version: VersionId, as_json: AsJson = False, explain: Explain = False) -> None:
    """Show a version: what counts, who verifies, every window, and the SHA-256 that both sides agree to."""
    with open_session(as_json=as_json, explain=explain) as session:
        row = session.client.get(f"/contracts/{version}")
        if as_json:
            session.terminal.document(row)
            return
        session.terminal.say(f"{row['title']} v{row['number']}, sold by {row['seller']['name']} ({row['state']})")
        session.terminal.say(f"What counts: {row['terms']['counts']}")
        session.terminal.table(["TERM", "SAYS"], said(row))
        session.terminal.say(f"SHA-256 of the terms: {row['sha256']}")
        if row["accepted"] and row["accepted"].get("ended_at"):
            session.terminal.say(f"You ended this agreement on {row['accepted']['ended_at'][:10]}.")
        elif row["accepted"]:
            session.terminal.say(f"You agreed on {row['accepted']['at'][:10]}: put “contract: {row['id']}” into a job.")
        elif row["state"] == "offered":
            session.terminal.say(f"Agree to it: gpumarket contracts accept {row['id']}")


def said(row: dict[str, Any]) -> list[list[str]]:
    """Return the terms as people read them."""
    terms = row["terms"]
    disputes, acceptance = terms["disputes"], terms["acceptance"]
    found = [
        ["price", price(row)],
        ["at most", f"{words.money(row['most_per_subject']['amount'], terms['currency'])} for each result"],
        ["verified by", VERIFIERS[terms["verifier"]["kind"]]],
        ["accept within", f"{span(acceptance['window_s'])}; silence {SILENCE[acceptance['on_silence']]}"],
        ["dispute within", f"{span(disputes['window_s'])}; decided by the {words.spoken(disputes['decided_by'])}"],
        ["decided within", f"{span(disputes['decide_within_s'])}; else: {disputes['if_undecided']}"],
        ["retries", str(terms["retries"])],
        *worked(terms),
        ["taken back within", span(terms["clawback_s"])],
        ["shares", ", ".join(f"{one['to']} {one['bps'] / 100:g} %" for one in terms["shares"])],
    ]
    if terms["deadline"]:
        steps = ", ".join(
            f"{one['price_bps'] / 100:g} % after {span(one['after_s'])}" for one in terms["deadline"]["late"]
        )
        found.append(["deadline", f"{span(terms['deadline']['within_s'])}; later: {steps}"])
    for name in ("cap", "floor"):
        if terms[name]:
            amount = words.of_micros(terms[name]["micros"], terms["currency"])
            found.append([name, f"{amount} a {terms[name]['period']}"])
    return found


def worked(terms: dict[str, Any]) -> list[list[str]]:
    """Return where work under these terms may run and how much of it, where they say that."""
    work = terms.get("work")
    if work is None:
        return []
    each, unpaid = (words.of_micros(work[name], terms["currency"]) for name in ("attempt_micros", "unpaid_micros"))
    return [
        ["runs on", ", ".join(work["offers"]) if work["offers"] else "any offer"],
        ["each task", f"at most {work['gpus']} GPUs, {span(work['seconds'])} an attempt, {work['attempts']} attempts"],
        ["its hours", f"at most {each} an attempt by the list, {unpaid} together that is not paid for"],
    ]


def span(seconds: int) -> str:
    """Return a length of time, such as "2 h"."""
    for size, name in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds and seconds % size == 0:
            return f"{seconds // size} {name}"
    return f"{seconds} s"


@app.command()
def accept(
    version: VersionId,
    *,
    sha256: Annotated[
        str | None,
        typer.Option(metavar="HEX", help="Of the text as you read it.", show_default="as it is shown now"),
    ] = None,
    check: Annotated[
        str | None,
        typer.Option(metavar="COMMAND", help="Judges each result, where the terms ask: 0 passes, 1 does not.",
                     show_default=False),
    ] = None,
    check_image: Annotated[
        str | None, typer.Option(metavar="IMAGE", help="Of that command.", show_default=False)
    ] = None,
    third_party: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY", help="Public key of who verifies or decides by the terms, as you know it.",
                     show_default=False),
    ] = None,
    as_json: AsJson = False,
    explain: Explain = False,
) -> None:  # fmt: skip
    """Agree to a version. Nothing is charged by that; jobs may name it from then on."""
    with open_session(as_json=as_json, explain=explain) as session:
        body: dict[str, Any] = {"sha256": sha256 or session.client.get(f"/contracts/{version}")["sha256"]}
        if check:
            body["check_command"] = ["/bin/sh", "-c", check]
        if check_image:
            body["check_image"] = check_image
        if third_party:
            body["third_parties"] = third_party
        row = session.client.post(f"/contracts/{version}/accept", body)
        if as_json:
            session.terminal.document(row)
            return
        session.terminal.say(f"Agreed to {row['title']} v{row['number']} (SHA-256 {row['sha256'][:16]}…).")
        session.terminal.say(f"Put “contract: {row['id']}” into a job file; then gpumarket job submit.")


@app.command()
def leave(version: VersionId, as_json: AsJson = False, explain: Explain = False) -> None:
    """End what you agreed to, for good. What was begun goes on by its terms; nothing new is ordered under it."""
    _moved(version, "leave", "Ended: nothing new is ordered under it.", as_json=as_json, explain=explain)


@app.command()
def draft(
    terms: TermsFile,
    *,
    title: Annotated[str, typer.Option(metavar="TITLE", help="What it is called.", show_default=False)],
    buyer: Annotated[
        str | None, typer.Option(metavar="ORG", help="For this one customer alone.", show_default="the catalogue")
    ] = None,
    as_json: AsJson = False,
    explain: Explain = False,
) -> None:
    """Draft a contract that you sell. Nobody can agree to it before you offer it."""
    with open_session(as_json=as_json, explain=explain) as session:
        body = {"title": title, "terms": read(terms)} | ({"buyer": buyer} if buyer else {})
        row = session.client.post("/contracts", body)
        if as_json:
            session.terminal.document(row)
            return
        session.terminal.data(row["id"])
        session.terminal.say(
            f"Drafted {row['title']} v{row['number']}. Offer it: gpumarket contracts offer {row['id']}"
        )


@app.command()
def amend(
    contract: Annotated[str, typer.Argument(metavar="CONTRACT", help="Its id, such as ctr_...", show_default=False)],
    terms: TermsFile,
    as_json: AsJson = False,
    explain: Explain = False,
) -> None:
    """Write the next version of a contract; earlier ones stay as they are."""
    with open_session(as_json=as_json, explain=explain) as session:
        row = session.client.post(f"/contracts/{contract}/versions", {"terms": read(terms)})
        if as_json:
            session.terminal.document(row)
            return
        session.terminal.data(row["id"])
        session.terminal.say(f"Drafted {row['title']} v{row['number']}.")


@app.command()
def offer(version: VersionId, as_json: AsJson = False, explain: Explain = False) -> None:
    """Offer a draft that you sell; its terms stay as they are for ever. What everybody may buy is approved first."""
    _moved(version, "offer", "It is offered.", as_json=as_json, explain=explain)


@app.command()
def withdraw(version: VersionId, as_json: AsJson = False, explain: Explain = False) -> None:
    """Sell no more under a version. What was begun under it goes on by its terms."""
    _moved(version, "withdraw", "It is withdrawn.", as_json=as_json, explain=explain)


def _moved(version: str, verb: str, done: str, *, as_json: bool, explain: bool) -> None:
    with open_session(as_json=as_json, explain=explain) as session:
        row = session.client.post(f"/contracts/{version}/{verb}")
        if as_json:
            session.terminal.document(row)
        else:
            session.terminal.say(SUBMITTED if row["state"] == "submitted" else done)


def read(path: Path) -> Any:
    """Return the terms of a file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise usage(f"{path} cannot be read: {error.strerror}.", suggestion="Give a JSON file of terms.") from error
    except ValueError as error:
        raise usage(f"{path} is no JSON: {error}.", suggestion="See docs/outcomes.md for whole terms.") from error
