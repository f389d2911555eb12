"""SSH sessions in the audit log: what the nodes told becomes entries, each opening and each end once."""

from typing import Any

from django.db import transaction

from marketplace.models import AuditEntry, SshKey
from provisioning import sessions
from provisioning.models import SshSession


@transaction.atomic
def write_into_audit(*, limit: int) -> int:
    """Write entries for sessions that began, ended or were refused; return for how many."""
    unnoted = sessions.unnoted().select_related("assignment__node", "assignment__instance__project__organization")
    rows = list(unnoted.select_for_update(of=("self",), skip_locked=True)[:limit])
    names = _key_names(rows)
    AuditEntry.objects.bulk_create(entry for row in rows for entry in _entries(row, names))
    sessions.note(rows)
    return len(rows)


def _key_names(rows: list[SshSession]) -> dict[tuple[int, str], str]:
    """Return what the keys are called in their projects; one that was never added or is removed has no name."""
    keys = SshKey.objects.filter(
        project__in={row.assignment.instance.project_id for row in rows},
        fingerprint__in={row.fingerprint for row in rows},
    )
    return {(key.project_id, key.fingerprint): key.name for key in keys}


def _entries(row: SshSession, names: dict[tuple[int, str], str]) -> list[AuditEntry]:
    facts = {
        "kind": row.kind,
        "key": row.fingerprint,
        "peer": row.peer,
        "node": row.assignment.node.name,
        "replica": row.assignment.replica,
        **({"message": row.message} if row.message else {}),
    }
    made = []
    if not row.open_noted:
        made.append(_entry(row, names, "ssh.refuse" if row.is_refused else "ssh.open", row.opened_at, facts))
    if row.closed_at is not None and not row.close_noted:
        seconds = round((row.closed_at - row.opened_at).total_seconds())
        made.append(_entry(row, names, "ssh.close", row.closed_at, {**facts, "seconds": seconds}))
    return made


def _entry(row: SshSession, names: dict[tuple[int, str], str], verb: str, at: Any, facts: dict[str, Any]) -> AuditEntry:
    instance = row.assignment.instance
    name = names.get((instance.project_id, row.fingerprint), row.fingerprint)
    return AuditEntry(
        organization=instance.project.organization,
        actor=None,  # A key is what we saw; who held it, nobody here knows.
        actor_name=f"SSH key {name}",
        verb=verb,
        subject_id=instance.public_id,
        after=facts,
        at=at,
    )
