"""What an instance printed: page by page, and as it comes."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from threading import BoundedSemaphore
from typing import Any

import pytest
from django.utils import timezone

from marketplace.models import ApiToken, Membership, User
from provisioning.models import Instance
from tests.conftest import Fleet, Rent, Run
from tests.marketplace.api.program import Program, problem_of

STREAM = "marketplace.api.instances"


@dataclass
class Event:
    """One server-sent event."""

    kind: str
    id: str
    data: Any


def events(answer: Any) -> Iterator[Event]:
    """Read a stream as a browser does; comments keep it alive and say nothing."""
    for block in b"".join(answer.streaming_content).decode().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if fields:
            yield Event(fields["event"], fields.get("id", ""), json.loads(fields["data"]))


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that ends after a moment, and looks often."""
    monkeypatch.setattr(f"{STREAM}.STREAM_S", 0.3)
    monkeypatch.setattr(f"{STREAM}.STREAM_LOOK_S", 0.02)


@pytest.fixture
def end(fleet: Fleet, run_until_idle: Run) -> Callable[[Instance, int], None]:
    """Let an instance's command end with an exit code."""

    def ended(instance: Instance, code: int) -> None:
        for node in fleet.nodes.values():
            node.exit_codes[instance.public_id] = code
        fleet.sync()
        fleet.sync()
        run_until_idle()

    return ended


@pytest.mark.django_db
def test_output_is_read_once_page_by_page(
    program: Program, running: Instance, fleet: Fleet, end: Callable[[Instance, int], None]
) -> None:
    path, node = f"instances/{running.public_id}/logs", fleet.nodes["h200-1"]
    node.prints("one\n")
    node.sync()
    first = program.get(path).json()
    assert first["data"] == [{"replica": 0, "offset": 0, "text": "one\n"}]
    assert first["complete"] is False
    again = program.get(f"{path}?cursor={first['next_cursor']}").json()
    assert (again["data"], again["next_cursor"]) == ([], first["next_cursor"])
    node.prints("two\n", offset=4)
    node.sync()
    second = program.get(f"{path}?cursor={first['next_cursor']}").json()
    assert second["data"] == [{"replica": 0, "offset": 4, "text": "two\n"}]
    end(running, 0)
    last = program.get(f"{path}?cursor={second['next_cursor']}").json()
    assert (last["data"], last["complete"]) == ([], True)


@pytest.mark.django_db
def test_a_page_ends_after_about_as_many_bytes_as_asked_for(program: Program, running: Instance, fleet: Fleet) -> None:
    node = fleet.nodes["h200-1"]
    for number in range(3):
        node.prints("12345678\n", offset=9 * number)
    node.sync()
    path, cursor, texts = f"instances/{running.public_id}/logs", "", []
    for _ in range(3):
        page = program.get(f"{path}?limit=1&cursor={cursor}").json()
        texts.append(len(page["data"]))
        cursor = page["next_cursor"]
    assert texts == [1, 1, 1]


# The streams below run outside of a transaction: they give their connection back between looks.


@pytest.mark.django_db(transaction=True)
def test_a_stream_tells_all_output_and_how_it_ended(
    program: Program, running: Instance, fleet: Fleet, end: Callable[[Instance, int], None], impatient: None
) -> None:
    fleet.nodes["h200-1"].prints("one\ntwo\n")
    fleet.nodes["h200-1"].sync()
    end(running, 7)
    answer = program.get(f"instances/{running.public_id}/logs/stream", Accept="text/event-stream")
    assert answer.headers["Content-Type"] == "text/event-stream"
    assert answer.headers["Cache-Control"] == "no-store"
    told = list(events(answer))
    assert [event.kind for event in told] == ["log", "end"]
    assert told[0].data == {"replica": 0, "offset": 0, "text": "one\ntwo\n"}
    assert told[1].data == {"exit_code": 7, "phase": "stopped"}


@pytest.mark.django_db(transaction=True)
def test_a_stream_is_resumed_after_the_last_event_that_arrived(
    program: Program, running: Instance, fleet: Fleet, end: Callable[[Instance, int], None], impatient: None
) -> None:
    path, node = f"instances/{running.public_id}/logs/stream", fleet.nodes["h200-1"]
    node.prints("one\n")
    node.sync()
    (first,) = events(program.get(path))
    node.prints("two\n", offset=4)
    node.sync()
    (second,) = events(program.get(path, Last_Event_ID=first.id))
    assert (first.data["text"], second.data["text"]) == ("one\n", "two\n")
    end(running, 0)
    assert [event.kind for event in events(program.get(f"{path}?cursor={second.id}"))] == ["end"]
    problem_of(program.get(path, Last_Event_ID="garbage"), 422, "invalid_request", names="/cursor")


@pytest.mark.django_db(transaction=True)
def test_every_event_can_be_resumed_from_without_losing_what_follows(
    program: Program, running: Instance, fleet: Fleet, end: Callable[[Instance, int], None], impatient: None
) -> None:
    """The connection may break between two pieces of one look."""
    path, node = f"instances/{running.public_id}/logs/stream", fleet.nodes["h200-1"]
    for number, text in enumerate(("one\n", "two\n", "six\n")):
        node.prints(text, offset=4 * number)
    node.sync()
    end(running, 0)
    told = list(events(program.get(path)))
    assert [event.data.get("text") for event in told] == ["one\n", "two\n", "six\n", None]
    rest = list(events(program.get(path, Last_Event_ID=told[0].id)))
    assert [event.data.get("text") for event in rest] == ["two\n", "six\n", None]


def revoke(alice: User) -> None:
    ApiToken.objects.update(revoked_at=timezone.now())


def expire(alice: User) -> None:
    ApiToken.objects.update(expires_at=timezone.now())


def deactivate(alice: User) -> None:
    User.objects.filter(pk=alice.pk).update(is_active=False)


def leave(alice: User) -> None:
    Membership.objects.filter(user=alice).delete()


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("taken_away", [revoke, expire, deactivate, leave])
def test_a_right_that_is_taken_away_ends_the_stream(
    program: Program, running: Instance, alice: User, monkeypatch: pytest.MonkeyPatch,
    taken_away: Callable[[User], None],
) -> None:  # fmt: skip
    monkeypatch.setattr(f"{STREAM}.STREAM_S", 30)
    monkeypatch.setattr(f"{STREAM}.STREAM_LOOK_S", 0.01)
    stream = iter(program.get(f"instances/{running.public_id}/logs/stream").streaming_content)
    assert next(stream) == b": waiting\n\n"
    taken_away(alice)
    assert list(stream) == []


@pytest.mark.django_db(transaction=True)
def test_a_stream_of_something_quiet_is_kept_alive_and_then_closed(
    program: Program, running: Instance, impatient: None
) -> None:
    told = list(program.get(f"instances/{running.public_id}/logs/stream").streaming_content)
    assert len(told) > 2
    assert set(told) == {b": waiting\n\n"}


@pytest.mark.django_db
def test_before_a_stream_begins_a_refusal_is_a_problem(program: Program, nobody: Program, rent: Rent) -> None:
    path = f"instances/{rent().public_id}/logs/stream"
    problem_of(nobody.get(path, Accept="text/event-stream"), 401, "not_authenticated")
    unknown = "instances/ins_aaaaaaaaaaaaaaaaaaaa/logs/stream"
    problem_of(program.get(unknown, Accept="text/event-stream"), 404, "not_found")


@pytest.mark.django_db(transaction=True)
def test_a_reader_too_many_is_told_to_come_again_and_keeps_nobody_waiting(
    program: Program, running: Instance, monkeypatch: pytest.MonkeyPatch, impatient: None
) -> None:
    places = BoundedSemaphore(1)
    monkeypatch.setattr(f"{STREAM}.STREAMS", places)
    stream = f"instances/{running.public_id}/logs/stream"
    with places:
        assert b"".join(program.get(stream).streaming_content).startswith(b"retry: 5000")
    for _ in range(2):  # whoever leaves gives the place back
        assert b": waiting" in b"".join(program.get(stream).streaming_content)
