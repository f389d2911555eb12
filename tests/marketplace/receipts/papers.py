"""A platform and a node that sign, without a database: whole chains of receipts for the verifier to look at."""

import json
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from marketplace.cli.proofs import HEAD, RECEIPT
from provisioning.agent.signing import STATEMENT, canonical, digest, key_id, moment, new_private, public_of, signed

NOON = datetime(2026, 11, 26, 12, tzinfo=UTC)
GPUS = ["GPU-a", "GPU-b"]
TERMS = {
    "counts": "a frame, finished ✓",
    "verifier": {"kind": "outputs"},
    "unit": {"name": "frame", "per": 1000, "price_micros": 2_500_000, "most": 10**6},
}
PRICE = {
    "currency": "USD", "unit": "frame", "units": 1234, "per": 1000, "unit_price_micros": "2500000", "late_bps": 9000,
    "due_bps": 10_000, "bps": 9000, "asked_micros": "2776500", "paid_micros": "2776500", "reversed_micros": "0",
    "amount_micros": "2776500",
}  # fmt: skip


class Platform:
    """Its active key, a node's key, and the chain of one organization so far."""

    def __init__(self) -> None:
        self.private, self.node_private = new_private(), new_private()
        self.rows = [self.row(self.private)]
        self.revoked_nodes: list[dict[str, Any]] = []
        self.documents: list[dict[str, Any]] = []

    def row(self, private: str, **changes: Any) -> dict[str, Any]:
        """A key as `GET /keys` tells of it."""
        public = public_of(private)
        known = {
            "id": key_id(public), "algorithm": "Ed25519", "public_key": public, "state": "active",
            "since": moment(NOON - timedelta(days=1)), "until": None, "revoked_at": None, "revoked_because": None,
        }  # fmt: skip
        return known | changes

    @property
    def keys(self) -> bytes:
        return json.dumps({"keys": self.rows, "revoked_node_keys": self.revoked_nodes}, indent=1).encode()

    def rotate(self, *, at: datetime) -> None:
        """Sign with another key from now on."""
        self.rows[-1] |= {"state": "retired", "until": moment(at)}
        self.private = new_private()
        self.rows.append(self.row(self.private, since=moment(at)))

    def statement(self, **changes: Any) -> dict[str, Any]:
        """What the node signs of its one assignment."""
        body = {
            "kind": STATEMENT, "node": "nod_a", "assignment": "asg_a", "fence": 1, "instance": "ins_a", "replica": 0,
            "gpus": GPUS, "image": "", "image_digest": None, "command_sha256": digest(["true"]), "inputs": None,
            "outputs": "a" * 64, "state": "exited", "exit_code": 0, "message": "", "running_at": moment(NOON),
            "ended_at": moment(NOON),
        }  # fmt: skip
        return signed(body | changes, private=self.node_private, at=NOON)

    def content(self) -> dict[str, Any]:
        """What a receipt says beside its place in the chain; a test may change it before it is signed."""
        public = public_of(self.node_private)
        replica = {
            "assignment": "asg_a", "fence": 1, "replica": 0, "node": "nod_a", "gpus": GPUS, "exit_code": 0,
            "key": {"id": key_id(public), "public_key": public}, "statement": self.statement(), "why_not": None,
        }  # fmt: skip
        noon = moment(NOON)
        attempt = {
            "number": 1, "state": "succeeded", "exit_code": 0, "began_at": noon, "ended_at": noon, "instance": "ins_a",
            "image": "", "inputs": None, "outputs": "a" * 64, "replicas": [replica],
        }  # fmt: skip
        claim = {
            "id": "clm_a", "run": 1, "evidence_sha256": "e" * 64, "claimed_at": noon, "closed_at": noon,
            "history": [{"at": noon, "to": "settled"}],
        }  # fmt: skip
        verdict = {"verifier": "outputs", "version": "", "run": 1, "result": "pass", "signature": None, "at": noon}
        whole = {
            "contract": {"version": "ctv_a", "number": 1, "terms": TERMS, "sha256": digest(TERMS)}, "claim": claim,
            "job": None, "attempts": [attempt], "verdicts": [verdict], "checks": [], "disputes": [], "price": PRICE,
            "energy": None,
        }  # fmt: skip
        return deepcopy(whole)

    def add(self, content: dict[str, Any] | None = None, *, at: datetime = NOON, **changes: Any) -> dict[str, Any]:
        """Sign the next receipt of the chain."""
        last = self.documents[-1]["body"] if self.documents else None
        number = len(self.documents) + 1
        body = {
            **(content or self.content()), "kind": RECEIPT, "id": f"rcp_{number}", "issuer": "http://here",
            "organization": "org_a", "project": None, "sequence": number, "previous": digest(last) if last else None,
            "issued_at": moment(at), "event": "settled", **changes,
        }  # fmt: skip
        self.documents.append(signed(body, private=self.private, at=at))
        return self.documents[-1]

    def head(self) -> dict[str, Any]:
        """Sign how long the chain is."""
        last = self.documents[-1]["body"]
        body = {
            "kind": HEAD, "issuer": "http://here", "organization": "org_a", "sequence": last["sequence"],
            "digest": digest(last), "as_of": moment(NOON),
        }  # fmt: skip
        return signed(body, private=self.private, at=NOON)

    def save(self, folder: Path, *, head: bool = True) -> Path:
        """Write the keys, each receipt, and the head."""
        folder.mkdir(exist_ok=True)
        (folder / "keys.json").write_bytes(self.keys)
        for document in self.documents:
            (folder / f"{document['body']['sequence']}.json").write_bytes(canonical(document))
        if head:
            (folder / "head.json").write_bytes(canonical(self.head()))
        return folder
