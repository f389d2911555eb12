"""Commitments: what the organization promised to use, and how much of it is used."""

from typing import Any

from marketplace.cli import words
from marketplace.cli.session import AsJson, Explain, open_session


def commitments(*, as_json: AsJson = False, explain: Explain = False) -> None:
    """List what your organization promised to use, and how much of it is used."""
    with open_session(as_json=as_json, explain=explain) as session:
        rows = list(session.client.rows("/commitments"))
        if as_json:
            session.terminal.document({"data": rows, "next_cursor": None})
        elif rows:
            session.terminal.table(
                ["COMMITMENT", "TERM (UTC)", ">PROMISED", ">USED", ">LEFT", ">CHARGED UNUSED", "PRICES"],
                [cells(row) for row in rows],
            )
        else:
            session.terminal.say("There are no commitments: everything is charged by the list. See: gpumarket offers")


def cells(row: dict[str, Any]) -> list[str]:
    currency = row["currency"]
    figures = [words.money(row[name], currency) for name in ("committed", "drawn", "left", "left_over")]
    prices = [f"{price['name']} {words.money(price['amount'], currency)}" for price in row["prices"]]
    return [row["id"], f"{row['starts_at'][:10]} - {row['ends_at'][:10]}", *figures, "; ".join(prices)]
