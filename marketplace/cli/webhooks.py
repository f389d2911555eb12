"""Events and webhooks: what happened, followed as it happens, and programs that are told of it."""

import base64
import json
import secrets
from collections.abc import Iterator
from datetime import UTC, datetime
from time import sleep
from typing import Annotated, Any

import typer

from marketplace.cli import words
from marketplace.cli.problems import usage
from marketplace.cli.progress import interruptible
from marketplace.cli.session import AsJson, Explain, Session, open_session
from marketplace.cli.times import moment, sent

PAUSE_S = 1.0
PAGE = 200

app = typer.Typer(
    help="Webhooks: addresses that events are sent to; without a command, list them.",
    invoke_without_command=True,
    rich_markup_mode=None,
)
WebhookId = Annotated[str, typer.Argument(metavar="WEBHOOK", help="Its id.", show_default=False)]
Types = Annotated[
    list[str] | None,
    typer.Option("--type", metavar="TYPE", help="instance.failed, or instance.*; may be repeated. Default: all."),
]


def events(
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on and print events as they happen.")] = False,
    types: Types = None,
    after: Annotated[
        str | None, typer.Option(metavar="ID", help="What follows this event, or first.", show_default=False)
    ] = None,
    as_json: AsJson = False,
    explain: Explain = False,
) -> None:
    """Print what happened, the oldest first; with --json one line for each event."""
    text = "Nothing is lost: go on with gpumarket events --after ID."
    with open_session(as_json=as_json, explain=explain, at_work=follow) as session, interruptible(session, text):
        for event in followed(session, after=after, types=types, forever=follow):
            session.terminal.data(json.dumps(event) if as_json else "  ".join(line_of(event)))


def followed(
    session: Session, *, after: str | None, types: list[str] | None, forever: bool
) -> Iterator[dict[str, Any]]:
    """Yield events in their order; with `forever` those that are still to come."""
    kinds = ",".join(types) if types else None
    while True:
        page = session.client.get("/events", after=after, type=kinds, limit=PAGE)
        yield from page["data"]
        had, after = after, page["last"]
        # Without a place to go on from the newest were given, and those are all.
        if len(page["data"]) == PAGE and had is not None:
            continue
        if not forever:
            return
        after = after or "first"
        sleep(PAUSE_S)


def line_of(event: dict[str, Any]) -> list[str]:
    told = event["data"]
    name = told.get("name") or told.get("offer") or told.get("number") or ""
    return [
        words.local_time(event["timestamp"], seconds=True), f"{event['type']:<24}", f"{event['subject']:<24}", name,
        told.get("message") or "",
    ]  # fmt: skip


@app.callback()
def listed(ctx: typer.Context, *, as_json: AsJson = False, explain: Explain = False) -> None:
    """List webhooks, where they go and whether what is sent arrives."""
    if ctx.invoked_subcommand is not None:
        return
    with open_session(as_json=as_json, explain=explain) as session:
        rows = list(session.client.rows("/webhooks"))
        if as_json:
            session.terminal.document({"data": rows, "next_cursor": None})
        elif rows:
            session.terminal.table(["ID", "STATE", "TYPES", "ADDRESS"], [cells(row) for row in rows])
        else:
            session.terminal.say("There are none. Add one: gpumarket webhooks add https://example.com/hooks")


def cells(row: dict[str, Any]) -> list[str]:
    state = "disabled" if not row["enabled"] else "failing" if row["failing_since"] else "enabled"
    return [row["id"], state, ", ".join(row["types"]) or "all", row["url"]]


@app.command()
def add(
    url: Annotated[str, typer.Argument(metavar="URL", help="https, on the open internet.", show_default=False)],
    *,
    types: Types = None,
    description: Annotated[str, typer.Option(metavar="TEXT", help="A note.")] = "",
    as_json: AsJson = False,
    explain: Explain = False,
) -> None:
    """Send events to an address from now on; prints its secret, which is not shown again."""
    with open_session(as_json=as_json, explain=explain) as session:
        row = session.client.post("/webhooks", {"url": url, "types": types or [], "description": description})
        give(session, row, f"{row['id']} is added. Keep its secret; try it: gpumarket webhooks test {row['id']}")


@app.command()
def rotate(webhook: WebhookId, as_json: AsJson = False, explain: Explain = False) -> None:
    """Make a new secret and print it; the former one signs beside it for 24 hours."""
    with open_session(as_json=as_json, explain=explain) as session:
        row = session.client.post(f"/webhooks/{webhook}/rotate")
        until = words.local_time(row["former_secret_until"])
        give(session, row, f"The former secret is good until {until}.")


def give(session: Session, row: dict[str, Any], text: str) -> None:
    if session.terminal.as_json:
        session.terminal.document(row)
    else:
        session.terminal.data(row["secret"])
    session.terminal.say(text)


@app.command("test")
def send_test(webhook: WebhookId, as_json: AsJson = False, explain: Explain = False) -> None:
    """Send a test event, wait for what is answered, and say it."""
    with open_session(as_json=as_json, explain=explain) as session:
        wanted = session.client.post(f"/webhooks/{webhook}/test")["id"]
        row = None
        for _ in range(15):
            found = session.client.get(f"/webhooks/{webhook}/deliveries", limit=50)["data"]
            row = next((one for one in found if one["id"] == wanted), None)
            if row and row["attempts"]:
                break
            sleep(PAUSE_S)
        if as_json:
            session.terminal.document(row)
        session.terminal.say(outcome(row))
        if not row or row["state"] != "delivered":
            raise typer.Exit(1)


def outcome(row: dict[str, Any] | None) -> str:
    """Say what became of a delivery."""
    if not row or not row["attempts"]:
        return "It was not sent yet. Look later: gpumarket webhooks deliveries WEBHOOK"
    last = row["attempts"][-1]
    said = f"answered {last['status']}" if last["status"] else last["error"]
    again = f"; the next try is at {words.local_time(row['next_try_at'], seconds=True)}" if row["next_try_at"] else ""
    return f"{row['type']}: {row['state']} ({said}, {last['milliseconds']} ms){again}."


@app.command()
def deliveries(
    webhook: WebhookId,
    state: Annotated[
        str | None, typer.Option(metavar="pending|delivered|failed", help="Only these.", show_default=False)
    ] = None,
    as_json: AsJson = False,
    explain: Explain = False,
) -> None:
    """List what was sent to a webhook, the newest first, and what was answered."""
    with open_session(as_json=as_json, explain=explain) as session:
        page = session.client.get(f"/webhooks/{webhook}/deliveries", state=state, limit=PAGE)
        if as_json:
            session.terminal.document(page)
            return
        for row in page["data"]:
            session.terminal.data(f"{row['event']}  {outcome(row)}")
        if not page["data"]:
            session.terminal.say("Nothing was sent there yet.")


@app.command()
def replay(
    webhook: WebhookId,
    *,
    since: Annotated[str, typer.Option(metavar="TIME", help="From then on, UTC.")],
    as_json: AsJson = False,
    explain: Explain = False,
) -> None:
    """Send again what happened since a moment and did not arrive."""
    with open_session(as_json=as_json, explain=explain) as session:
        asked = {"since": sent(moment(since, now=datetime.now(UTC)))}
        found = session.client.post(f"/webhooks/{webhook}/replay", asked)
        if as_json:
            session.terminal.document(found)
        session.terminal.say(f"{words.count(found['events'], 'event')} on the way again.")


@app.command()
def enable(webhook: WebhookId, as_json: AsJson = False, explain: Explain = False) -> None:
    """Send events there again; what waited is sent now."""
    switch(webhook, is_enabled=True, as_json=as_json, explain=explain)


@app.command()
def disable(webhook: WebhookId, as_json: AsJson = False, explain: Explain = False) -> None:
    """Send nothing there until it is enabled again."""
    switch(webhook, is_enabled=False, as_json=as_json, explain=explain)


def switch(webhook: str, *, is_enabled: bool, as_json: bool, explain: bool) -> None:
    with open_session(as_json=as_json, explain=explain) as session:
        row = session.client.patch(f"/webhooks/{webhook}", {"enabled": is_enabled})
        if as_json:
            session.terminal.document(row)
        session.terminal.say(f"{row['id']} is {'enabled' if row['enabled'] else 'disabled'}.")


@app.command("rm")
def rm(webhook: WebhookId, as_json: AsJson = False, explain: Explain = False) -> None:
    """Remove a webhook; the events stay in the feed."""
    with open_session(as_json=as_json, explain=explain) as session:
        row = session.client.get(f"/webhooks/{webhook}")
        session.client.delete(f"/webhooks/{webhook}")
        if as_json:
            session.terminal.document(row)
        session.terminal.say(f"Nothing is sent to {row['url']} any more.")


@app.command()
def listen(
    forward: Annotated[str, typer.Argument(metavar="URL", help="Of a program on this machine.", show_default=False)],
    *,
    types: Types = None,
    as_json: AsJson = False,
    explain: Explain = False,
) -> None:
    """Send events to a program on this machine, signed as webhooks are, to try it before it is deployed."""
    if not forward.startswith(("http://", "https://")):
        raise usage(
            f"{forward!r} is no address.", suggestion="Such as: gpumarket webhooks listen http://localhost:9000"
        )
    secret = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
    from marketplace.cli.forwarding import pass_on  # noqa: PLC0415 - httpx takes longer to load than all of --help

    with open_session(as_json=as_json, explain=explain, at_work=True) as session:
        session.terminal.say(f"Signed with {secret}; Ctrl-C ends it.")
        newest = session.client.get("/events", limit=1)["last"] or "first"
        with interruptible(session, "What happens now is sent nowhere from here."):
            for event in followed(session, after=newest, types=types, forever=True):
                said = pass_on(event, url=forward, secret=secret)
                if as_json:
                    session.terminal.data(json.dumps({"event": event["id"], "type": event["type"], "outcome": said}))
                else:
                    session.terminal.data(f"{event['type']:<24}  {event['id']}  {said}")
