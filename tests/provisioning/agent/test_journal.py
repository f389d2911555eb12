"""The journal: numbers never come twice, and a full disk or a torn line loses little."""

import json
from pathlib import Path
from typing import Any

import pytest

from provisioning.agent import journal
from provisioning.agent.journal import Journal
from tests.provisioning.agent.cast import AgentRun, eventually
from tests.provisioning.agent.control_plane import ControlPlane


def open_journal(path: Path) -> Journal:
    return Journal(path, news=lambda: None)


def numbers(kept: Journal) -> list[int]:
    return [entry["n"] for entry in kept.waiting(1000)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal"


def test_entries_are_told_in_order_until_they_are_acknowledged(path: Path) -> None:
    kept = open_journal(path)
    for number in range(3):
        kept.append("health", {"number": number})
    assert [entry["body"] for entry in kept.waiting(2)] == [{"number": 0}, {"number": 1}]
    assert kept.note_seen(2)
    assert numbers(kept) == [3]
    assert not kept.note_seen(3)
    assert kept.append("health", {}) == 4


def test_a_new_start_finds_what_was_not_acknowledged_and_goes_on_counting(path: Path) -> None:
    kept = open_journal(path)
    for _ in range(journal.ACKNOWLEDGED_LINES_MAX + 2):
        kept.append("health", {})
    kept.note_seen(journal.ACKNOWLEDGED_LINES_MAX + 1)
    again = open_journal(path)
    assert numbers(again) == [journal.ACKNOWLEDGED_LINES_MAX + 2]
    again.note_seen(journal.ACKNOWLEDGED_LINES_MAX + 2)
    assert open_journal(path).append("health", {}) == journal.ACKNOWLEDGED_LINES_MAX + 3


def test_a_torn_line_costs_its_entry_and_nothing_else(path: Path) -> None:
    kept = open_journal(path)
    kept.append("health", {"is": "whole"})
    with path.open("ab") as file:
        file.write(b'{"n": 2, "kind": "hea')
    again = open_journal(path)
    again.append("health", {"is": "next"})
    assert [entry["body"]["is"] for entry in open_journal(path).waiting(10)] == ["whole", "next"]


def test_a_disk_that_is_full_for_a_while_loses_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = open_journal(path)

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(journal.os, "fsync", refuse)
        full.setattr(journal, "write_whole", refuse)
        kept.append("health", {})
        kept.append("health", {})
    kept.append("health", {})
    assert numbers(kept) == numbers(open_journal(path)) == [1, 2, 3]


def test_a_server_that_knows_more_than_we_do_is_not_told_old_numbers(path: Path) -> None:
    kept = open_journal(path)
    kept.note_seen(40)
    assert kept.append("health", {}) == 41
    assert open_journal(path).append("health", {}) == 42


def test_when_it_overflows_the_oldest_are_lost(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "ENTRIES_MAX", 3)
    kept = open_journal(path)
    for _ in range(5):
        kept.append("health", {})
    assert numbers(kept) == [3, 4, 5]


def test_an_entry_of_an_earlier_boot_does_not_say_how_long_ago_it_was(path: Path) -> None:
    kept = open_journal(path)
    kept.append("health", {})
    path.write_text(json.dumps({"n": 7, "kind": "wipe", "at": 3.0, "boot_id": "earlier", "body": {}}) + "\n")
    assert kept.waiting(1)[0]["ago_ms"] < 60_000
    assert open_journal(path).waiting(1)[0]["ago_ms"] is None


def test_an_agent_tells_what_an_earlier_start_could_not(start_agent: Any, home: Path, plane: ControlPlane) -> None:
    agent: AgentRun = start_agent()
    eventually(lambda: plane.reports)
    agent.kill()
    open_journal(home / "journal").append("health", {"code": "xid:79"})
    start_agent()
    eventually(lambda: plane.events)
    assert [event["body"] for event in plane.events] == [{"code": "xid:79"}]
    eventually(lambda: plane.last["events"] == [])
