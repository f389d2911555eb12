"""Receipts: signed evidence of how each claim ended and what it cost."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from marketplace.cli import words
from marketplace.cli.problems import problem
from marketplace.cli.session import AsJson, Explain, Session, open_session
from marketplace.cli.verifying import KEYS_FILE

HEAD_FILE = "head.json"
PAGE = 1000

app = typer.Typer(
    help="See receipts of what was paid by outcome, and download them.", no_args_is_help=True, rich_markup_mode=None
)
Folder = Annotated[
    Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where to put them; it is made if need be.")
]


@app.command("list")
def listed(
    claim: Annotated[str | None, typer.Option(metavar="CLAIM", help="Only those of this claim.")] = None,
    as_json: AsJson = False,
    explain: Explain = False,
) -> None:
    """List receipts, newest first."""
    with open_session(as_json=as_json, explain=explain) as session:
        rows = list(session.client.rows("/receipts", claim=claim))
        if as_json:
            session.terminal.document({"data": rows, "next_cursor": None})
        elif rows:
            session.terminal.table([">NUMBER", "ISSUED", "CLAIM", "END", ">AMOUNT", "ID"], [cells(row) for row in rows])
        else:
            session.terminal.say("There are no receipts yet. They come when a claim under a contract has ended.")


def cells(row: dict[str, Any]) -> list[str]:
    amount = words.money(row["amount"], row["currency"])
    return [f"{row['sequence']:,}", row["issued_at"][:19], row["claim"], row["event"], amount, row["id"]]


@app.command()
def download(folder: Folder = Path("receipts"), as_json: AsJson = False, explain: Explain = False) -> None:
    """Download all receipts, the head of their chain and the public keys; what is there already is renewed."""
    with open_session(as_json=as_json, explain=explain) as session:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # The head first: what comes meanwhile is beyond it, and no gap.
            _save(session, folder / HEAD_FILE, "/receipts/head")
            _save(session, folder / KEYS_FILE, "/keys")
            count = _save_all(session, folder)
        except OSError as error:
            raise problem(
                code="not_saved", title="The receipts could not be saved.", detail=f"{folder}: {error.strerror}.",
                suggestion="Name another folder: --output FOLDER",
            ) from error  # fmt: skip
        session.terminal.say(f"{count:,} receipts are in {folder}. Verify them: gpumarket verify {folder}")
        if as_json:
            session.terminal.document({"folder": str(folder), "receipts": count})


def _save(session: Session, path: Path, address: str) -> None:
    path.write_bytes(session.client.download(address))


def _save_all(session: Session, folder: Path) -> int:
    """Save each receipt by its number and id; those of a revoked key come with another signature and replace it."""
    count = after = 0
    while True:
        lines = session.client.download("/receipts/chain", after=after, limit=PAGE).splitlines()
        for line in lines:
            number, name = place_of(line)
            (folder / f"{number:06d}-{name}.json").write_bytes(line)
            after, count = max(after, number), count + 1
        session.terminal.status(f"{count:,} receipts")
        if len(lines) < PAGE:
            return count


def place_of(line: bytes) -> tuple[int, str]:
    """Return the number and id of a receipt; raises the problem that an answer of another kind is."""
    try:
        body = json.loads(line)["body"]
        number, name = int(body["sequence"]), str(body["id"])
    except (ValueError, KeyError, TypeError) as error:
        raise problem(code="failed", title="The marketplace did not answer with receipts.") from error
    if not name.replace("_", "").isalnum():
        raise problem(code="failed", title="The marketplace named a receipt in a way that is no name.")
    return number, name
