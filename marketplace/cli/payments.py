"""Pay money in by card, and see which cards there are. No card number is ever typed here."""

import time
from typing import Annotated, Any

import typer

from marketplace.cli import words
from marketplace.cli.amounts import amount as typed_amount
from marketplace.cli.problems import problem
from marketplace.cli.session import AsJson, Explain, Session, TimeoutS, Wait, open_session

LOOK_AGAIN_S = 1.0
FINAL = ("succeeded", "failed", "cancelled")

Amount = Annotated[str, typer.Argument(help="How much, in the organization's currency.", show_default=False)]
CardId = Annotated[str, typer.Option("--card", metavar="CARD", help="Which card; “new” to type one in the browser.")]
Key = Annotated[
    str | None,
    typer.Option(
        metavar="KEY", help="With the same key it is charged once only, however often it is run.", show_default=False
    ),
]
Currency = Annotated[str, typer.Option(metavar="CODE", help="Refused if it is not the organization's.")]


def topup(
    amount: Amount,
    *,
    card: CardId = "",
    currency: Currency = "",
    wait: Wait = True,
    timeout: TimeoutS = 60,
    key: Key = None,
    as_json: AsJson = False,
    explain: Explain = False,
) -> None:
    """Top up by card: the default one, or another. With the same --key it is charged once, however often it is run."""
    named = {"card": card, "currency": currency.upper()}
    order = {"amount": typed_amount(amount)} | {name: value for name, value in named.items() if value}
    with open_session(as_json=as_json, explain=explain) as session:
        payment = session.client.post("/payments", order, key=key or "")
        shown = words.money(payment["amount"], payment["currency"])
        session.terminal.say(f"Ordered {shown}, {payment['id']}.")
        if wait:
            payment = _settled(session, payment, until=time.monotonic() + timeout)
        _tell(session, payment, shown, waited=wait)
        if as_json:
            session.terminal.document(payment)


def cards(as_json: AsJson = False, explain: Explain = False) -> None:
    """List the saved cards. They are added in the portal, on the card processor's own page."""
    with open_session(as_json=as_json, explain=explain) as session:
        rows = list(session.client.rows("/cards"))
        if as_json:
            session.terminal.document({"data": rows, "next_cursor": None})
        elif rows:
            session.terminal.table(
                ["CARD", "GOOD UNTIL", "DEFAULT", "ID"],
                [
                    [
                        f"{row['brand']} {row['last4']}",
                        f"{row['exp_year']}-{row['exp_month']:02}",
                        "yes" if row["default"] else "",
                        row["id"],
                    ]
                    for row in rows
                ],
            )
        else:
            session.terminal.say("There are no cards yet. Add one in the portal: Payment methods.")


def _settled(session: Session, payment: dict[str, Any], *, until: float) -> dict[str, Any]:
    """Return the payment once it is final or needs a person, or as it is when the time is up."""
    while payment["state"] not in (*FINAL, "needs_action") and time.monotonic() < until:
        time.sleep(LOOK_AGAIN_S)
        payment = session.client.get(f"/payments/{payment['id']}")
    return payment


def _tell(session: Session, payment: dict[str, Any], shown: str, *, waited: bool) -> None:
    if payment["state"] == "succeeded":
        session.terminal.say(f"Paid. {shown} is in your balance: gpumarket balance")
    elif payment["state"] == "needs_action":
        session.terminal.say(f"Finish it in your browser: {payment['action_url']}")
    elif payment["state"] in FINAL:
        failure = payment["failure"] or {"text": "It was cancelled."}
        raise problem(
            code="payment_failed", title="The payment failed.", detail=f"{failure['text']} Nothing was charged.",
            suggestion="Try another card: gpumarket cards, then gpumarket topup AMOUNT --card CARD", payment=payment,
        )  # fmt: skip
    elif waited:
        raise problem(
            code="still_running", title="The payment is still on its way.", detail=f"{payment['id']} is not final yet.",
            suggestion="It is charged once at most. See what becomes of it: gpumarket balance", charged=None,
            payment=payment,
        )  # fmt: skip
    else:
        session.terminal.say("It is on its way; it is charged once at most. See the portal: Payment methods.")
