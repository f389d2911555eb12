"""Every SSH session that is on record as open gets its end on record, also when the agent cannot say it."""

import contextlib
import subprocess
from pathlib import Path
from typing import Any

from provisioning.agent.ssh_records import LEFT_OPEN, SessionRecords
from tests.packages import needs
from tests.provisioning.agent.cast import AgentRun, eventually
from tests.provisioning.agent.ssh_clients import GATEWAY, Door


def body(session: str, action: str) -> dict[str, Any]:
    return {"session": session, "assignment": "asg_a", "action": action, "kind": "shell", "message": ""}


class Journal:
    """Remembers what it was told; dies at one entry."""

    def __init__(self, *, dies_at: int = 0) -> None:
        self.told: list[tuple[str, str]] = []
        self.dies_at = dies_at

    def append(self, kind: str, body: dict[str, Any]) -> None:
        assert kind == "session"
        self.told.append((body["session"], body["action"]))
        if len(self.told) == self.dies_at:
            raise KeyboardInterrupt


def test_what_is_open_when_the_agent_dies_is_ended_by_the_next_and_what_was_ended_is_not(tmp_path: Path) -> None:
    first = SessionRecords(tmp_path / "open", record=Journal().append)
    first.end_left_open()
    for session, action in (("a", "opened"), ("b", "opened"), ("a", "closed"), ("c", "refused"), ("d", "opened")):
        first.append("session", body(session, action))
    for expected in ([("b", "closed"), ("d", "closed")], []):
        journal = Journal()
        SessionRecords(tmp_path / "open", record=journal.append).end_left_open()
        assert journal.told == expected


def test_a_session_that_the_journal_heard_of_is_known_to_be_open(tmp_path: Path) -> None:
    """Killed between the two writes, the agent leaves an end too many and never one too few."""
    dying = SessionRecords(tmp_path / "open", record=Journal(dies_at=1).append)
    with contextlib.suppress(KeyboardInterrupt):
        dying.append("session", body("a", "opened"))
    journal = Journal()
    SessionRecords(tmp_path / "open", record=journal.append).end_left_open()
    assert journal.told == [("a", "closed")]


def test_a_damaged_file_ends_nothing_and_holds_nothing_up(tmp_path: Path) -> None:
    for damage in (b"{", b"[1]", b'{"a": 1}', b"\xff"):
        (tmp_path / "open").write_bytes(damage)
        journal = Journal()
        records = SessionRecords(tmp_path / "open", record=journal.append)
        records.end_left_open()
        records.append("session", body("b", "opened"))
        assert journal.told == [("b", "opened")]


@needs("ssh")
def test_a_session_left_open_by_a_killed_agent_is_told_as_ended_by_the_next_while_its_instance_runs_on(
    own_door: Door,
) -> None:
    client = subprocess.Popen(own_door.command("echo here; sleep 600"), stdout=subprocess.PIPE)
    try:
        assert client.stdout is not None
        assert client.stdout.readline() == b"here\n"
        (opened,) = eventually(lambda: own_door.sessions("opened"))
        own_door.agent.kill()
        assert own_door.sessions("closed") == []
        own_door.agent = AgentRun(own_door.home, own_door.plane.url, *GATEWAY)
        (closed,) = eventually(lambda: own_door.sessions("closed"))
        assert closed == opened | {"action": "closed", "message": LEFT_OPEN}
        assert own_door.plane.view("asg_a")["state"] == "running"
        assert own_door.ssh("echo again").stdout == b"again\n"
        eventually(lambda: len(own_door.sessions("closed")) == 2)
    finally:
        client.kill()
        client.communicate()
