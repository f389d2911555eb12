"""SSH sessions on the server: keys reach nodes, what nodes tell is written once, and the audit log shows it."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from marketplace import tokens
from marketplace.access import Actor
from marketplace.models import AuditEntry, Organization, Project, SshKey
from marketplace.sessions import write_into_audit
from provisioning import placement, reports, sessions
from provisioning.models import Assignment, Heartbeat, Instance, Node, SshSession
from provisioning.work import Work
from tests.conftest import Fleet, Rent, Run, make_token

ED25519 = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ6SZcmxNpxsOStRdQEkPZGsxoPBZ6WIJuO+Jvs4q0eV"
NOON = datetime(2026, 11, 26, 12, tzinfo=UTC)
ACCESS = {"host": "node1.example", "ssh_port": 2222, "host_key": "ssh-ed25519 AAAA"}


@pytest.fixture
def key(actor: Actor, project: Project) -> SshKey:
    return tokens.add_ssh_key(actor=actor, project=project, name="laptop", public_key=ED25519)


@pytest.fixture
def row(running: Instance) -> Assignment:
    return Assignment.objects.select_related("node").get(instance=running)


def said(row: Assignment, action: str, /, **changes: Any) -> dict[str, Any]:
    body = {
        "session": "s1",
        "assignment": row.public_id,
        "fingerprint": "SHA256:unknown",
        "peer": "192.0.2.7",
        "action": action,
        "kind": "shell",
        "message": "",
    }
    return body | changes


def desired(fleet: Fleet, row: Assignment) -> dict[str, Any]:
    return fleet.nodes[row.node.name].desired[row.public_id]


def test_a_key_reaches_the_nodes_of_running_instances_with_their_next_report(
    running: Instance, row: Assignment, fleet: Fleet, actor: Actor, project: Project
) -> None:
    others = {node.pk: node.desired_generation for node in Node.objects.exclude(pk=row.node_id)}
    assert desired(fleet, row)["ssh_keys"] == []
    added = tokens.add_ssh_key(actor=actor, project=project, name="laptop", public_key=ED25519)
    fleet.sync()
    assert desired(fleet, row)["ssh_keys"] == [ED25519]
    assert desired(fleet, row)["name"] == running.name
    tokens.remove_ssh_key(actor=actor, key=added)
    fleet.sync()
    assert desired(fleet, row)["ssh_keys"] == []
    assert {node.pk: node.desired_generation for node in Node.objects.exclude(pk=row.node_id)} == others


def test_an_instance_has_the_keys_of_its_own_project_alone(
    key: SshKey, actor: Actor, acme: Organization, rent: Rent, run_until_idle: Run, fleet: Fleet, charlie: Any
) -> None:
    other = Project.objects.exclude(organization=acme).first()
    assert other is not None
    SshKey.objects.create(project=other, name="other", public_key="ssh-ed25519 BBBB", fingerprint="SHA256:b")
    rent()
    run_until_idle()
    row = Assignment.objects.select_related("node").get()
    assert desired(fleet, row)["ssh_keys"] == [ED25519]


def test_nobody_enters_what_is_off_limits(key: SshKey, rent: Rent, run_until_idle: Run, fleet: Fleet) -> None:
    rent(work=Work(is_off_limits=True))
    run_until_idle()
    row = Assignment.objects.select_related("node").get()
    assert desired(fleet, row)["ssh_keys"] == []


def test_a_session_is_written_once_however_often_it_is_told(row: Assignment) -> None:
    for _ in range(2):
        sessions.take(row.node, NOON, said(row, "opened"))
    for later in (3, 9):
        sessions.take(row.node, NOON + timedelta(minutes=later), said(row, "closed"))
    session = SshSession.objects.get()
    assert (session.kind, session.peer, session.is_refused) == ("shell", "192.0.2.7", False)
    assert (session.opened_at, session.closed_at) == (NOON, NOON + timedelta(minutes=3))


def test_an_end_before_its_beginning_and_an_end_alone_do_no_harm(row: Assignment) -> None:
    sessions.take(row.node, NOON, said(row, "opened"))
    sessions.take(row.node, NOON - timedelta(minutes=1), said(row, "closed"))
    sessions.take(row.node, NOON, said(row, "closed", session="s2"))
    assert [one.closed_at for one in SshSession.objects.all()] == [NOON, NOON]


@pytest.mark.parametrize("wrong", [{"assignment": "asg_unknown"}, {"action": "danced"}, {"kind": "telnet"}, {}])
def test_a_node_cannot_tell_of_what_is_not_its_own(row: Assignment, fleet: Fleet, wrong: dict[str, str]) -> None:
    node = row.node if wrong else fleet.nodes["l40s-1"].node
    sessions.take(node, NOON, said(row, "opened", **wrong) if wrong else said(row, "opened"))
    assert not SshSession.objects.exists()


def test_the_journal_of_a_node_brings_sessions(row: Assignment) -> None:
    reports.EVENT_TAKERS["session"](row.node, NOON, said(row, "refused", kind=""))
    assert SshSession.objects.get().is_refused


def test_the_audit_log_tells_each_opening_end_and_refusal_once(
    row: Assignment, running: Instance, key: SshKey, acme: Organization
) -> None:
    before = AuditEntry.objects.count()
    sessions.take(row.node, NOON, said(row, "opened", fingerprint=key.fingerprint))
    write_into_audit(limit=10)
    sessions.take(row.node, NOON + timedelta(seconds=90), said(row, "closed"))
    sessions.take(row.node, NOON, said(row, "refused", session="s2", kind="", message="and 3 more before it"))
    for _ in range(3):
        write_into_audit(limit=10)
    entries = list(AuditEntry.objects.order_by("pk")[before:])
    assert [(entry.verb, entry.actor_name) for entry in entries] == [
        ("ssh.open", "SSH key laptop"),
        ("ssh.close", "SSH key laptop"),
        ("ssh.refuse", "SSH key SHA256:unknown"),
    ]
    assert {entry.subject_id for entry in entries} == {running.public_id}
    assert {entry.organization for entry in entries} == {acme}
    assert entries[0].at == NOON
    assert entries[1].after is not None
    assert entries[1].after["seconds"] == 90
    assert entries[2].after == {
        "kind": "login", "key": "SHA256:unknown", "peer": "192.0.2.7", "node": row.node.name, "replica": 0,
        "message": "and 3 more before it",
    }  # fmt: skip


def test_what_a_killed_agent_left_open_is_closed_when_the_instance_is_gone(row: Assignment) -> None:
    sessions.take(row.node, NOON, said(row, "opened"))
    later = NOON + timedelta(hours=1)
    assert sessions.close_left_open(at=later, limit=10) == 0
    Assignment.objects.filter(pk=row.pk).update(observed=Assignment.Observed.GONE)
    assert sessions.close_left_open(at=later, limit=10) == 1
    assert SshSession.objects.get().closed_at == later


def test_a_running_replica_has_a_door_with_its_ports(running: Instance, row: Assignment) -> None:
    running = Instance.objects.get()
    (door,) = sessions.doors(running, placement.places([running]))
    assert (door.host, door.ssh_port, door.ports) == (row.node.name, None, ())
    Heartbeat.objects.filter(node=row.node).update(access=ACCESS)
    Assignment.objects.filter(pk=row.pk).update(ports={"8080": 31002, "80": 31001})
    (door,) = sessions.doors(running, placement.places([running]))
    assert (door.host, door.ssh_port, door.user) == ("node1.example", 2222, running.public_id)
    assert [(port.port, port.host_port) for port in door.ports] == [(80, 31001), (8080, 31002)]
    Assignment.objects.filter(pk=row.pk).update(observed=Assignment.Observed.EXITED)
    assert sessions.doors(running, placement.places([running])) == []


def test_the_audit_page_and_the_api_show_a_session_without_a_person(
    row: Assignment, key: SshKey, alice: Any, acme: Organization, client: Any
) -> None:
    sessions.take(row.node, NOON, said(row, "opened", fingerprint=key.fingerprint))
    write_into_audit(limit=10)
    client.force_login(alice)
    page = client.get("/audit", follow=True).content.decode()
    assert "SSH key laptop" in page
    assert "Entered an instance by SSH" in page
    secret = make_token(alice, acme)
    answer = client.get("/api/v1/audit", headers={"Authorization": f"Bearer {secret}"}).json()
    assert (answer["data"][0]["verb"], answer["data"][0]["actor"]) == ("token.create", "alice@acme.example")
    assert (answer["data"][1]["verb"], answer["data"][1]["actor"]) == ("ssh.open", "SSH key laptop")
