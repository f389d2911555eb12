"""Reports of one node at the same moment; each guard has a twin test that shows the race without it."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
from django.utils import timezone
from msgspec import structs

from provisioning import reports
from provisioning.models import Assignment, Heartbeat, Instance, LogChunk
from provisioning.protocol import LogPiece, Report, Said
from tests.billing.makers import at_the_same_moment
from tests.conftest import Fleet
from tests.nodes import PlayedNode

pytestmark = pytest.mark.django_db(transaction=True)


def report_of(played: PlayedNode, running: Instance, *, seq: int, state: str = "running") -> Report:
    assignment = Assignment.objects.get(instance=running)
    said = Said(id=assignment.public_id, fence=1, state=state, exit_code=None, exited_ago_ms=None, message="")
    return Report(
        node=played.node.public_id, key=played.key, boot_id="boot", agent_epoch=1, seq=seq, desired_seen=0,
        assignments=[said], logs=[LogPiece(assignment=assignment.public_id, offset=0, data=b"hello")],
    )  # fmt: skip


def statuses_of(*said: Report) -> list[str]:
    found: list[str] = []
    takes = [lambda report=report: found.append(reports.take(report, at=timezone.now())["status"]) for report in said]
    assert at_the_same_moment(*takes) == ["done"] * len(said)
    return sorted(found)


def test_a_report_that_arrives_twice_counts_once(running: Instance, fleet: Fleet) -> None:
    report = report_of(fleet.nodes["h200-1"], running, seq=1000)
    assert statuses_of(report, report) == ["ok", "stale"]
    assert LogChunk.objects.count() == 1


def test_a_piece_of_log_in_two_reports_at_the_same_moment_is_kept_once(running: Instance, fleet: Fleet) -> None:
    played = fleet.nodes["h200-1"]
    statuses_of(*(report_of(played, running, seq=1000 + number) for number in range(4)))
    assert LogChunk.objects.count() == 1
    assert Assignment.objects.get().log_bytes == 5


def test_without_the_cursor_only_a_constraint_keeps_a_piece_of_log_from_being_kept_twice(
    monkeypatch: pytest.MonkeyPatch, running: Instance, fleet: Fleet
) -> None:
    def append_blindly(live: Any, logs: Any) -> None:
        for row in live:
            LogChunk.objects.create(assignment=row, offset=logs[0].offset, data=logs[0].data)

    monkeypatch.setattr(reports, "take_logs", append_blindly)
    said = [report_of(fleet.nodes["h200-1"], running, seq=seq) for seq in (1000, 1001)]
    outcomes = [at_the_same_moment(lambda report=report: reports.take(report, at=timezone.now())) for report in said]
    assert outcomes == [["done"], ["IntegrityError"]]


def overtake(
    take: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, running: Instance, fleet: Fleet, *, patience_s: float
) -> str:
    """Let a newer report come while an older one is being written down, which waits for it as long as that.

    Return what is known in the end.
    """
    older, newer = (
        report_of(fleet.nodes["h200-1"], running, seq=seq, state=state)
        for seq, state in ((1000, "prepared"), (1001, "exited"))
    )
    is_slow, is_over = threading.Event(), threading.Event()
    real = reports._take_states

    def slow(live: Any, said: Any, at: Any) -> None:
        if said[0].state == "prepared":
            is_slow.set()
            is_over.wait(timeout=patience_s)
        real(live, said, at)

    def come_later() -> None:
        assert is_slow.wait(timeout=10)
        take(newer, at=timezone.now())
        is_over.set()

    monkeypatch.setattr(reports, "_take_states", slow)
    assert at_the_same_moment(lambda: take(older, at=timezone.now()), come_later) == ["done", "done"]
    return Assignment.objects.get().observed


def test_a_report_waits_for_the_one_before_it(monkeypatch: pytest.MonkeyPatch, running: Instance, fleet: Fleet) -> None:
    assert overtake(reports.take, monkeypatch, running, fleet, patience_s=0.7) == "exited"


def test_without_one_transaction_for_a_report_an_older_one_has_the_last_word(
    monkeypatch: pytest.MonkeyPatch, running: Instance, fleet: Fleet
) -> None:
    assert overtake(reports.take.__wrapped__, monkeypatch, running, fleet, patience_s=20) == "prepared"


def test_a_report_that_was_overtaken_changes_nothing(running: Instance, fleet: Fleet) -> None:
    played = fleet.nodes["h200-1"]
    late = report_of(played, running, seq=999, state="prepared")
    assert reports.take(report_of(played, running, seq=1000), at=timezone.now())["status"] == "ok"
    assert reports.take(late, at=timezone.now())["status"] == "stale"
    assert Assignment.objects.get().observed == "running"


def test_without_the_order_of_reports_a_late_one_turns_time_back(running: Instance, fleet: Fleet) -> None:
    played = fleet.nodes["h200-1"]
    late = report_of(played, running, seq=999, state="prepared")
    assert reports.take(report_of(played, running, seq=1000), at=timezone.now())["status"] == "ok"
    Heartbeat.objects.update(seq=0)
    assert reports.take(structs.replace(late, logs=[]), at=timezone.now())["status"] == "ok"
    assert Assignment.objects.get().observed == "prepared"


def test_news_of_a_report_that_was_heard_have_not_the_last_word_after_a_newer_one(
    monkeypatch: pytest.MonkeyPatch, running: Instance, fleet: Fleet
) -> None:
    assert heard_then_overtaken(monkeypatch, running, fleet) == (["ok", "stale"], "exited")


def test_without_a_second_look_at_the_heartbeat_news_that_were_heard_turn_time_back(
    monkeypatch: pytest.MonkeyPatch, running: Instance, fleet: Fleet
) -> None:
    monkeypatch.setattr(
        reports, "take_news", lambda node, report, *, at: reports._take_news(node, report, events_seen=0, at=at)
    )
    assert heard_then_overtaken(monkeypatch, running, fleet) == (["ok", "ok"], "prepared")


def heard_then_overtaken(monkeypatch: pytest.MonkeyPatch, running: Instance, fleet: Fleet) -> tuple[list[str], str]:
    """Let a newer report come and be taken whole between the hearing of an older one and its news."""
    older, newer = (
        report_of(fleet.nodes["h200-1"], running, seq=seq, state=state)
        for seq, state in ((1000, "prepared"), (1001, "exited"))
    )
    statuses: list[str] = []
    real = reports._take_news_of_many
    turns = iter([lambda: statuses.append(reports.take_all([newer], at=timezone.now())[0]["status"])])

    def after_the_newer(*given: Any, **more: Any) -> Any:
        next(turns, lambda: None)()
        return real(*given, **more)

    monkeypatch.setattr(reports, "_take_news_of_many", after_the_newer)
    statuses.append(reports.take_all([older], at=timezone.now())[0]["status"])
    return statuses, Assignment.objects.get().observed
