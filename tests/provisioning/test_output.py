"""What a run printed, page by page: nothing is skipped, doubled or torn, and `complete` is said only when it is."""

import base64
import json
from itertools import pairwise

import pytest
from django.utils import timezone
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from marketplace import rentals
from marketplace.access import Actor
from provisioning import output, reports
from provisioning.models import Assignment, Instance, LogChunk
from provisioning.output import BadCursor
from provisioning.protocol import LogPiece
from tests.conftest import Fleet, Rent, Run

pytestmark = pytest.mark.django_db


def prints(instance: Instance, data: bytes | str, *, replica: int = 0) -> None:
    """Let a replica of the current run print a piece of log."""
    row = Assignment.objects.get(instance=instance, fence=instance.run, replica=replica)
    piece = data.encode() if isinstance(data, str) else data
    reports.take_logs([row], [LogPiece(assignment=row.public_id, offset=row.log_bytes, data=piece)])


def texts(page: output.Page) -> list[tuple[int, int, str]]:
    return [(piece.replica, piece.offset, piece.text) for piece in page.pieces]


def gone(instance: Instance) -> None:
    Assignment.objects.filter(instance=instance).update(observed="gone")


def read_all(instance: Instance, *, most_bytes: int) -> dict[int, str]:
    """Read page after page, each from the cursor of the one before."""
    found: dict[int, str] = {}
    cursor = ""
    for _ in range(1000):
        page = output.page(instance, cursor=cursor, most_bytes=most_bytes)
        for piece in page.pieces:
            found[piece.replica] = found.get(piece.replica, "") + piece.text
        if page.complete:
            return found
        assert page.cursor != cursor, "a page led nowhere"
        cursor = page.cursor
    raise AssertionError("no end after 1000 pages")


def test_each_page_goes_on_where_the_last_ended(running: Instance) -> None:
    prints(running, "one\n")
    prints(running, "two\n")
    first = output.page(running)
    assert texts(first) == [(0, 0, "one\n"), (0, 4, "two\n")]
    assert texts(output.page(running, cursor=first.cursor)) == []
    prints(running, "three\n")
    assert texts(output.page(running, cursor=first.cursor)) == [(0, 8, "three\n")]
    # The same cursor gives the same page.
    assert texts(output.page(running, cursor=first.cursor)) == [(0, 8, "three\n")]


def test_every_piece_has_a_cursor_that_goes_on_right_after_it(running: Instance) -> None:
    for line in ("one\n", "two\n", "three\n"):
        prints(running, line)
    whole = output.page(running)
    for number, piece in enumerate(whole.pieces):
        assert texts(output.page(running, cursor=piece.cursor)) == texts(whole)[number + 1 :]


def test_a_page_ends_when_it_is_full(running: Instance) -> None:
    for _ in range(5):
        prints(running, "x" * 10)
    first = output.page(running, most_bytes=15)
    assert [piece.offset for piece in first.pieces] == [0, 10]
    second = output.page(running, cursor=first.cursor, most_bytes=15)
    assert [piece.offset for piece in second.pieces] == [20, 30]
    assert [piece.offset for piece in output.page(running, cursor=second.cursor, most_bytes=15).pieces] == [40]


def test_nothing_printed_is_an_empty_page_that_may_go_on(running: Instance) -> None:
    page = output.page(running)
    assert (page.pieces, page.complete) == ([], False)
    prints(running, "first")
    assert texts(output.page(running, cursor=page.cursor)) == [(0, 0, "first")]


def test_many_replicas_are_read_side_by_side(rent: Rent, run_until_idle: Run) -> None:
    gang = rent(gpus=1, replicas=6)
    run_until_idle()
    gang.refresh_from_db()
    for replica in range(6):
        for line in range(replica):
            prints(gang, f"{replica}:{line} ", replica=replica)
    gone(gang)
    wanted = {replica: "".join(f"{replica}:{line} " for line in range(replica)) for replica in range(1, 6)}
    assert read_all(gang, most_bytes=9) == wanted
    assert read_all(gang, most_bytes=10**6) == wanted


def test_a_chatty_replica_does_not_keep_the_others_from_being_read(rent: Rent, run_until_idle: Run) -> None:
    gang = rent(gpus=1, replicas=2)
    run_until_idle()
    gang.refresh_from_db()
    prints(gang, "chatter " * 10)
    prints(gang, "a word", replica=1)
    first = output.page(gang, most_bytes=20)
    assert {piece.replica for piece in first.pieces} == {0}
    assert texts(output.page(gang, cursor=first.cursor, most_bytes=20)) == [(1, 0, "a word")]


def test_a_new_run_starts_anew(running: Instance, run_until_idle: Run, actor: Actor, fleet: Fleet) -> None:
    prints(running, "a long first run")
    old = output.page(running)
    rentals.stop(actor=actor, instance=running, at=timezone.now())
    run_until_idle()
    running.refresh_from_db()
    # While it is stopped, the last run can be read.
    assert texts(output.page(running)) == [(0, 0, "a long first run")]
    rentals.start(actor=actor, instance=running, at=timezone.now())
    running.refresh_from_db()
    waiting = output.page(running, cursor=old.cursor)
    assert (waiting.pieces, waiting.complete) == ([], False)
    run_until_idle()
    running.refresh_from_db()
    prints(running, "second")
    assert texts(output.page(running, cursor=old.cursor)) == [(0, 0, "second")]
    assert texts(output.page(running, cursor=waiting.cursor)) == [(0, 0, "second")]


def test_output_is_complete_only_after_the_end_and_when_all_was_read(rent: Rent, run_until_idle: Run) -> None:
    gang = rent(gpus=1, replicas=2)
    run_until_idle()
    gang.refresh_from_db()
    for replica in range(2):
        prints(gang, "0123456789", replica=replica)
    assert not output.page(gang).complete
    Assignment.objects.filter(instance=gang, replica=0).update(observed="gone")
    assert not output.page(gang).complete
    gone(gang)
    assert output.page(gang).complete
    half = output.page(gang, most_bytes=10)
    assert not half.complete
    rest = output.page(gang, cursor=half.cursor, most_bytes=10)
    assert rest.complete
    assert output.page(gang, cursor=rest.cursor).complete


def test_what_was_not_kept_does_not_keep_readers_waiting(running: Instance, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "LOG_BYTES_MAX", 8)
    prints(running, "kept")
    prints(running, "too much to keep")
    gone(running)
    assert read_all(running, most_bytes=4) == {0: "kept"}
    assert output.page(running).complete


def test_a_piece_that_came_between_two_looks_is_not_read_twice(running: Instance) -> None:
    prints(running, "one")
    row = Assignment.objects.get()
    # The row was read before this piece was there, the pieces after.
    LogChunk.objects.create(assignment=row, offset=3, data=b"two")
    first = output.page(running)
    Assignment.objects.update(log_bytes=6)
    second = output.page(running, cursor=first.cursor)
    assert "".join(piece.text for piece in [*first.pieces, *second.pieces]) == "onetwo"


def test_a_character_whose_bytes_came_apart_stays_whole(running: Instance) -> None:
    data = "naïve 🌍 日本".encode()
    for number in range(len(data)):
        prints(running, data[number : number + 1])
    gone(running)
    assert read_all(running, most_bytes=10**6) == {0: "naïve 🌍 日本"}


def test_half_a_character_waits_for_its_rest_and_no_longer_than_to_the_end(running: Instance) -> None:
    prints(running, b"caf\xc3")
    first = output.page(running)
    assert texts(first) == [(0, 0, "caf")]
    prints(running, b"\xa9!\xff \xf0\x9f")
    second = output.page(running, cursor=first.cursor)
    assert texts(second) == [(0, 3, "é!\ufffd ")]
    gone(running)
    end = output.page(running, cursor=second.cursor)
    assert (texts(end), end.complete) == ([(0, 8, "\ufffd")], True)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_output_in_any_pieces_and_pages_is_read_as_it_was_printed(running: Instance, data: st.DataObject) -> None:
    LogChunk.objects.all().delete()
    Assignment.objects.update(log_bytes=0, observed="running")
    text = data.draw(st.text(st.sampled_from("aé日🌍\n"), max_size=30))
    raw = text.encode()
    cuts = sorted(data.draw(st.sets(st.integers(0, len(raw)), max_size=8)) | {0, len(raw)})
    for begin, end in pairwise(cuts):
        prints(running, raw[begin:end])
    gone(running)
    # A page of three bytes might hold no whole character.
    assert read_all(running, most_bytes=data.draw(st.integers(4, 60))).get(0, "") == text


def forged(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


@pytest.mark.parametrize(
    "cursor",
    [
        "x",
        "not base64 !",
        "é",
        "\x00",
        "AAAA",
        forged({}),
        forged([]),
        forged([1]),
        forged([1, 2]),
        forged([1, [2]]),
        forged(["a", []]),
        forged([1, [["a", 0]]]),
        forged([1, [[0, 1, 2]]]),
        forged([float("inf"), []]),
        forged([float("nan"), []]),
        forged(None),
        base64.urlsafe_b64encode(b"[" * 50_000).decode(),
    ],
    ids=lambda cursor: cursor[:20],
)
def test_a_cursor_that_is_not_ours_is_told(running: Instance, cursor: str) -> None:
    with pytest.raises(BadCursor):
        output.page(running, cursor=cursor)


@pytest.mark.parametrize("offset", [-1, -(10**30), 10**30, 2, 3])
@pytest.mark.parametrize("replica", [0, 7, -1])
def test_a_forged_cursor_reaches_nothing_but_this_output(running: Instance, replica: int, offset: int) -> None:
    prints(running, "0123")
    page = output.page(running, cursor=forged([running.run, [[replica, offset]]]))
    assert "".join(piece.text for piece in page.pieces) in {"0123", "23", "3", ""}
