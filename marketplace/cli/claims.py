"""Results that are paid by their outcome, and what is contested of them."""

from typing import Annotated, Any

import typer

from marketplace.cli import words
from marketplace.cli.session import AsJson, Explain, Session, open_session

app = typer.Typer(
    help="See results that are paid by their outcome; accept, reject or dispute them.", no_args_is_help=True,
    rich_markup_mode=None,
)  # fmt: skip
disputes = typer.Typer(
    help="See disputes about results, answer them, take them back.", no_args_is_help=True, rich_markup_mode=None
)
ClaimId = Annotated[str, typer.Argument(metavar="CLAIM", help="Its id, such as clm_...", show_default=False)]
DisputeId = Annotated[str, typer.Argument(metavar="DISPUTE", help="Its id, such as cdp_...", show_default=False)]
Why = Annotated[str, typer.Option("--reason", metavar="WHY", help="Both sides read it.", show_default=False)]
REASONS = "wrong_result|incomplete|late|verifier|duplicate|other"


@app.command("list")
def listed(
    *,
    selling: Annotated[bool, typer.Option("--selling", help="Of what you sell, not of what you buy.")] = False,
    state: Annotated[str | None, typer.Option(metavar="STATE", help="Only in this state.", show_default=False)] = None,
    job: Annotated[str | None, typer.Option(metavar="JOB", help="Only of this job.", show_default=False)] = None,
    as_json: AsJson = False,
    explain: Explain = False,
) -> None:
    """List claims, newest first."""
    with open_session(as_json=as_json, explain=explain) as session:
        asked = {"side": "seller" if selling else "buyer", "state": state, "job": job}
        rows = list(session.client.rows("/claims", **{name: value for name, value in asked.items() if value}))
        if as_json:
            session.terminal.document({"data": rows, "next_cursor": None})
        elif rows:
            session.terminal.table(["CLAIM", "OF", "RESULT", "STATE", ">PRICE", ">PAID"], [cells(row) for row in rows])
        else:
            session.terminal.say("Nothing was claimed yet. A job with a contract claims its results as they succeed.")


def cells(row: dict[str, Any]) -> list[str]:
    return [
        row["id"],
        row["title"],
        row["subject"],
        words.spoken(row["state"]),
        money(row["amount"]),
        money(row["paid"]),
    ]


def money(amount: dict[str, str]) -> str:
    return words.money(amount["amount"], amount["currency"])


@app.command()
def show(claim: ClaimId, as_json: AsJson = False, explain: Explain = False) -> None:
    """Show a claim: its price, its evidence, every verdict, and what happens next."""
    with open_session(as_json=as_json, explain=explain) as session:
        row = session.client.get(f"/claims/{claim}")
        events = list(session.client.rows(f"/claims/{claim}/events"))
        if as_json:
            session.terminal.document({**row, "events": events})
            return
        session.terminal.say(f"{row['title']}: {row['subject']} is {words.spoken(row['state'])}.")
        session.terminal.say(
            f"{row['units']:,} units, {money(row['amount'])} by the terms (at most {money(row['most'])}); "
            f"paid {money(row['paid'])}, given back {money(row['given_back'])}."
        )
        if row["due_at"]:
            session.terminal.say(f"The terms act next at {row['due_at']}.")
        session.terminal.table(
            ["VERIFIER", "RUN", "RESULT", "SAID", "AT"],
            [[one["verifier"], str(one["run"]), one["result"], one["detail"], one["at"]] for one in row["verdicts"]],
        )
        session.terminal.table(
            ["AT", "STATE", "WHAT", "BY"],
            [[one["at"], words.spoken(one["new_state"]), one["message"], one["by"]] for one in reversed(events)],
        )
        session.terminal.say(f"Evidence SHA-256: {row['evidence_sha256']}")


@app.command()
def accept(claim: ClaimId, as_json: AsJson = False, explain: Explain = False) -> None:
    """Accept a result; it is paid at once, out of what was set aside."""
    _act(claim, "accept", None, as_json=as_json, explain=explain)


@app.command()
def reject(claim: ClaimId, reason: Why, as_json: AsJson = False, explain: Explain = False) -> None:
    """Refuse a result; it is not paid, unless its seller contests that in time."""
    _act(claim, "reject", {"reason": reason}, as_json=as_json, explain=explain)


@app.command()
def dispute(
    claim: ClaimId,
    text: Annotated[str, typer.Option(metavar="TEXT", help="What is wrong; both sides read it.", show_default=False)],
    reason: Annotated[str, typer.Option(metavar=REASONS, help="Which kind of fault.")] = "wrong_result",
    as_json: AsJson = False,
    explain: Explain = False,
) -> None:
    """Contest how a claim stands, as its customer or its seller; its money stays set aside."""
    _act(claim, "disputes", {"reason": reason, "text": text}, as_json=as_json, explain=explain)


@app.command("give-back")
def give_back(claim: ClaimId, reason: Why, as_json: AsJson = False, explain: Explain = False) -> None:
    """Give back what was paid for a claim that you sold."""
    _act(claim, "reverse", {"reason": reason}, as_json=as_json, explain=explain)


@app.command()
def void(claim: ClaimId, reason: Why, as_json: AsJson = False, explain: Explain = False) -> None:
    """Withdraw a claim that you made, before it is paid."""
    _act(claim, "void", {"reason": reason}, as_json=as_json, explain=explain)


def _act(claim: str, verb: str, body: dict[str, Any] | None, *, as_json: bool, explain: bool) -> None:
    with open_session(as_json=as_json, explain=explain) as session:
        row = session.client.post(f"/claims/{claim}/{verb}", body)
        if as_json:
            session.terminal.document(row)
            return
        for one in row["disputes"]:
            if one["state"] == "open":
                session.terminal.data(one["id"])
                session.terminal.say(f"Disputed; it is decided by {one['decide_by']} at the latest.")
        session.terminal.say(f"{row['subject']} is {words.spoken(row['state'])}; paid {money(row['paid'])}.")


@disputes.command("list")
def disputes_listed(as_json: AsJson = False, explain: Explain = False) -> None:
    """List disputes about results on both sides, newest first."""
    with open_session(as_json=as_json, explain=explain) as session:
        rows = list(session.client.rows("/claim-disputes"))
        if as_json:
            session.terminal.document({"data": rows, "next_cursor": None})
        elif rows:
            session.terminal.table(
                ["DISPUTE", "CLAIM", "BY", "REASON", "STATE", "DECIDED UNTIL"], [disputed(one) for one in rows]
            )
        else:
            session.terminal.say("Nothing is disputed.")


def disputed(row: dict[str, Any]) -> list[str]:
    return [row["id"], row["claim"], row["opened_by"], words.spoken(row["reason"]), row["state"], row["decide_by"]]


@disputes.command("show")
def dispute_shown(dispute_id: DisputeId, as_json: AsJson = False, explain: Explain = False) -> None:
    """Show a dispute with what both sides said."""
    with open_session(as_json=as_json, explain=explain) as session:
        _tell(session, session.client.get(f"/claim-disputes/{dispute_id}"), as_json=as_json)


@disputes.command("answer")
def dispute_answered(
    dispute_id: DisputeId,
    text: Annotated[str, typer.Option(metavar="TEXT", help="Both sides read it.", show_default=False)],
    as_json: AsJson = False,
    explain: Explain = False,
) -> None:
    """Say something in an open dispute."""
    with open_session(as_json=as_json, explain=explain) as session:
        row = session.client.post(f"/claim-disputes/{dispute_id}/answers", {"text": text})
        _tell(session, row, as_json=as_json)


@disputes.command("withdraw")
def dispute_withdrawn(dispute_id: DisputeId, as_json: AsJson = False, explain: Explain = False) -> None:
    """Contest no more, which gives the other side its way."""
    with open_session(as_json=as_json, explain=explain) as session:
        _tell(session, session.client.post(f"/claim-disputes/{dispute_id}/withdraw"), as_json=as_json)


def _tell(session: Session, row: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        session.terminal.document(row)
        return
    session.terminal.say(
        f"{row['claim']} is disputed by the {row['opened_by']} ({words.spoken(row['reason'])}): {row['text']}"
    )
    for note in row["notes"]:
        session.terminal.say(f"{note['at']} {note['side']}, {note['by']}: {note['text']}")
    if row["decided_at"]:
        session.terminal.say(
            f"{row['state']} by {row['decided_by']}: {row['due_bps'] / 100:g} % is paid. {row['note']}"
        )
    else:
        session.terminal.say(f"It is decided by {row['decide_by']} at the latest.")
