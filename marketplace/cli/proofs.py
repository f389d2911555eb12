"""Verifies receipts with nothing but public keys: no server, no database, no code of who signed them.

docs/receipts.md has the form. What is checked, in this order: that the bytes are the one form of their content (RFC
8785); that a good key signed them (Ed25519); that each of a chain follows the one before; that what nodes signed agrees
with the receipt around it; that the arithmetic of the price comes out; that what was paid has passed.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

RECEIPT, HEAD, STATEMENT = "gpumarket.receipt.1", "gpumarket.chain-head.1", "gpumarket.node-statement.1"
GOOD, REFUSED, NOT_CHECKED = "good", "refused", "not checked"
THIRD_PARTY = "third_party"
WHOLE_BPS, MICROS = 10_000, 1_000_000
HEX = frozenset("0123456789abcdef")
# Members of a body that have to be texts, by its kind.
TEXTS = {RECEIPT: ("organization", "issuer", "id", "issued_at", "event"), HEAD: ("organization", "issuer", "as_of")}


class NotVerifiable(Exception):
    """There is nothing to verify by: the keys are not what they should be."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at, what came of it, and that in words."""

    name: str
    result: str
    says: str


@dataclass
class Verified:
    """A document and what was found of it. `body` is empty where it could not be read."""

    source: str
    body: dict[str, Any] = field(default_factory=dict)
    digest: str = ""
    checks: list[Check] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        return all(check.result != REFUSED for check in self.checks)

    @property
    def is_whole(self) -> bool:
        """Whether its bytes and its signature are good, so that what it says of the chain counts."""
        return {check.name: check.result for check in self.checks}.get("signature") == GOOD

    def note(self, name: str, result: str, says: str) -> None:
        self.checks.append(Check(name, result, says))


@dataclass(frozen=True)
class Key:
    """A key of the platform. Times are texts that sort as they follow each other."""

    id: str
    public_key: str
    since: str
    until: str | None
    revoked_at: str | None
    revoked_because: str | None


@dataclass(frozen=True)
class Keys:
    """The platform's keys, and those of nodes that count no more."""

    platform: Mapping[str, Key]
    revoked_nodes: Mapping[str, str]  # When, by the key's id.


def read_keys(data: bytes, *, trusted: Sequence[str] = ()) -> Keys:
    """Return the keys of a document of `GET /keys`, of these ids alone if any are named. Raises NotVerifiable."""
    try:
        said = json.loads(data)
        rows = {row["id"]: _key(row) for row in said["keys"]}
        revoked = {str(row["id"]): str(row["revoked_at"]) for row in said["revoked_node_keys"]}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise NotVerifiable("This is not a document of public keys; get it from /api/v1/keys.") from error
    for name, row in rows.items():
        if name != key_id(row.public_key):
            raise NotVerifiable(f"The id {name} does not follow from its public key: somebody has put another key in.")
    if unknown := [name for name in trusted if name not in rows]:
        raise NotVerifiable(f"{', '.join(unknown)} is not among these keys.")
    return Keys({name: row for name, row in rows.items() if not trusted or name in trusted}, revoked)


def _key(row: Mapping[str, Any]) -> Key:
    if row["algorithm"] != "Ed25519" or not is_hex(row["public_key"], 32):
        raise ValueError
    texts = (str(row["since"]), row["until"], row["revoked_at"], row["revoked_because"])
    return Key(str(row["id"]), row["public_key"], *texts)


def key_id(public_key: str) -> str:
    """Return the id that follows from a public key in hexadecimal."""
    return f"key_{hashlib.sha256(bytes.fromhex(public_key)).hexdigest()[:32]}"


def is_hex(value: Any, size: int) -> bool:
    """Return whether this is so many bytes in hexadecimal, in lower case: a second spelling would be a second text."""
    return isinstance(value, str) and len(value) == 2 * size and HEX.issuperset(value)


def canonical(value: Any) -> bytes:
    """Return the one form of a JSON value (RFC 8785). Raises ValueError."""
    import rfc8785  # noqa: PLC0415 - --help does not wait for it

    return rfc8785.dumps(value)


def digest_of(value: Any) -> str:
    return hashlib.sha256(canonical(value)).hexdigest()


def lines(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the documents of a file, each with its number: one, or one on each line."""
    parts = data.split(b"\n")
    if parts[-1] == b"":
        parts.pop()  # The last line ends as the others do.
    yield from enumerate(parts or [b""], start=1)


def verify(source: str, data: bytes, keys: Keys) -> Verified:
    """Return what one document is worth by itself; what follows what is `chains`' question."""
    found = Verified(source)
    document = _read(found, data)
    if document is None:
        return found
    found.body = document["body"]
    _check_signatures(found, document["signatures"], keys)
    if found.is_whole and found.body["kind"] == RECEIPT:
        try:
            _check_statements(found, keys)
            _check_price(found)
            _check_verdicts(found)
        except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError):
            found.note("content", REFUSED, "Its content is not of the form of a receipt.")
    return found


def _read(found: Verified, data: bytes) -> dict[str, Any] | None:
    """Return the document if its bytes are the one form of a receipt or a chain's head."""
    try:
        document = json.loads(data)
        is_canonical = canonical(document) == data
    except (ValueError, RecursionError):
        found.note("bytes", REFUSED, "This is not JSON of the form that is signed; bytes were changed or are missing.")
        return None
    if not is_canonical:
        says = (
            "The bytes are not in canonical form (RFC 8785): somebody changed or reformatted them. Download it again."
        )
        found.note("bytes", REFUSED, says)
        return None
    if not _is_document(document):
        found.note("bytes", REFUSED, "This is neither a receipt nor the head of a chain.")
        return None
    found.digest = digest_of(document["body"])
    found.note("bytes", GOOD, f"The bytes are canonical JSON (RFC 8785); the SHA-256 of the body is {found.digest}.")
    return dict(document)


def _is_document(document: Any) -> bool:
    if not isinstance(document, dict) or set(document) != {"body", "signatures"}:
        return False
    body, entries = document["body"], document["signatures"]
    if not isinstance(body, dict) or not isinstance(entries, list):
        return False
    sequence = body.get("sequence")
    if not isinstance(body.get("kind"), str) or body["kind"] not in TEXTS or type(sequence) is not int:
        return False
    return all(isinstance(body.get(name), str) for name in TEXTS[body["kind"]])


def _check_signatures(found: Verified, entries: Sequence[Any], keys: Keys) -> None:
    """Each signature must be right, and one at least of a key that counts."""
    good: list[tuple[Key, str]] = []
    revoked: list[tuple[Key, str]] = []
    for entry in entries:
        key, why = _judge(found, entry, keys)
        if why:
            found.note("signature", REFUSED, why)
            return
        assert key is not None
        (revoked if key.revoked_at else good).append((key, entry["at"]))
    if good:
        signers = ", ".join(f"{key.id} at {at}" for key, at in good)
        found.note("signature", GOOD, f"Signed by the platform (Ed25519): {signers}.")
    elif revoked:
        key = revoked[0][0]
        says = f"Only {key.id} signed it, revoked at {key.revoked_at} ({key.revoked_because}). Download it again:"
        found.note("signature", REFUSED, f"{says} the platform signs anew what it stands by.")
    else:
        found.note("signature", REFUSED, "Nobody signed it.")


def _judge(found: Verified, entry: Any, keys: Keys) -> tuple[Key | None, str]:
    """Return whose signature this is, and why it is wrong, if it is."""
    names = {"at", "key", "signature"}
    if not isinstance(entry, dict) or set(entry) != names or not all(isinstance(entry[name], str) for name in names):
        return None, "A signature is not of the form at, key, signature."
    key = keys.platform.get(entry["key"])
    if key is None:
        return None, f"It is signed with {entry['key'][:40]}, which is not among the keys that you trust."
    if not is_signed(found.digest, found.body["kind"], entry, key.public_key):
        return None, f"The signature of {key.id} is wrong: what it signed was something else."
    if entry["at"] < key.since or (key.until is not None and entry["at"] > key.until):
        return None, f"{key.id} signed from {key.since} to {key.until or 'now'}; this signature is of {entry['at']}."
    return key, ""


def is_signed(digest: str, kind: str, entry: Mapping[str, Any], public_key: str) -> bool:
    """Return whether this key made this signature of a body of this kind, by its digest."""
    over = {"at": entry["at"], "digest": digest, "key": entry["key"], "kind": kind}
    return entry["key"] == key_id(public_key) and _has_signed(public_key, entry["signature"], over)


def _has_signed(public_key: str, signature: Any, said: Mapping[str, Any]) -> bool:
    from cryptography.exceptions import InvalidSignature  # noqa: PLC0415 - --help does not wait for it
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey  # noqa: PLC0415

    if not is_hex(signature, 64):
        return False
    try:
        public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_key))
        public.verify(bytes.fromhex(signature), canonical(said))
    except (InvalidSignature, ValueError):
        return False
    return True


def _check_statements(found: Verified, keys: Keys) -> None:
    """What nodes signed: by the key that the receipt names, of this very assignment, in agreement with the receipt."""
    stated = silent = 0
    for run in [*found.body["attempts"], *found.body["checks"]]:
        for replica in run["replicas"]:
            if replica["statement"] is None:
                silent += 1
                continue
            if why := _faults(run, replica, found.body, keys):
                found.note("node statements", REFUSED, why)
                return
            stated += 1
    if stated:
        also = f" {silent} have none, as the receipt says itself." if silent else ""
        nodes = "1 node signed what it saw" if stated == 1 else f"{stated} nodes signed what they saw"
        found.note("node statements", GOOD, f"{nodes}, and it agrees with the receipt.{also}")
    else:
        found.note("node statements", NOT_CHECKED, "No node signed anything in it; the platform alone vouches for it.")


def _faults(run: Mapping[str, Any], replica: Mapping[str, Any], body: Mapping[str, Any], keys: Keys) -> str:
    """Return why a node's statement does not fit its receipt, or nothing."""
    document, key = replica["statement"], replica.get("key") or {}
    if not is_hex(key.get("public_key"), 32) or key.get("id") != key_id(key["public_key"]):
        return f"The receipt names no key of {replica.get('node')}, which it says to have signed."
    try:
        said, (entry,) = document["body"], document["signatures"]
        is_good = said["kind"] == STATEMENT and is_signed(digest_of(said), STATEMENT, entry, key["public_key"])
    except (KeyError, TypeError, ValueError):
        is_good = False
    if not is_good:
        return f"The statement of {replica.get('node')} is not signed by its key {key['id']}."
    revoked_at = keys.revoked_nodes.get(key["id"])
    if revoked_at is not None and body["issued_at"] >= revoked_at:
        return f"{key['id']} of {replica.get('node')} was revoked at {revoked_at}, before this receipt."
    expected = {name: replica.get(name) for name in ("node", "assignment", "fence", "gpus", "exit_code")}
    different = [name for name, value in expected.items() if said.get(name) != value]
    different += [name for name in ("instance", "image", "inputs") if said.get(name) != run.get(name)]
    if replica.get("replica") == 0 and said.get("outputs") not in {None, run.get("outputs")}:
        different.append("outputs")
    return f"{replica.get('node')} signed other facts: {', '.join(different)}." if different else ""


def _check_price(found: Verified) -> None:
    """The terms are those that were accepted, and what was charged follows from them."""
    contract, price = found.body["contract"], found.body["price"]
    if digest_of(contract["terms"]) != contract["sha256"]:
        found.note("terms", REFUSED, f"The terms of {contract['version']} do not have the digest that was accepted.")
        return
    found.note("terms", GOOD, f"The terms in it are those of {contract['version']}, by their SHA-256.")
    terms, claim = contract["terms"], found.body["claim"]
    unit = terms["unit"]
    wrong = _wrong_evidence(claim, price, unit) or _wrong_late(claim, price, terms)
    if why := wrong or _wrong_price(price, unit, found.body["event"]):
        found.note("price", REFUSED, why)
        return
    amount, asked = _money(price["amount_micros"], price), _money(price["asked_micros"], price)
    says = (
        f"{price['units']:,} {price['unit']} at {_money(price['unit_price_micros'], price)} for {price['per']:,}, "
        f"of which {price['bps'] / 100:g} % are due: {asked}."
    )
    if price["paid_micros"] != price["asked_micros"]:
        says += f" Charged: {_money(price['paid_micros'], price)}."
    if price["reversed_micros"] != "0":
        says += f" Given back: {_money(price['reversed_micros'], price)}."
    found.note("price", GOOD, f"{says} In the end {amount}.")


def _wrong_evidence(claim: Mapping[str, Any], price: Mapping[str, Any], unit: Mapping[str, Any]) -> str:
    """Return what is wrong with the evidence in a receipt, or nothing; of results outside of jobs it has the digest."""
    evidence = claim.get("evidence")
    if evidence is None:
        return ""
    if digest_of(evidence) != claim["evidence_sha256"]:
        return "The evidence in it does not have the digest that was claimed and judged."
    if "units" in evidence and (
        not isinstance(evidence["units"], int) or price["units"] != min(evidence["units"], unit["most"])
    ):
        return "The units of the price are not those that were counted."
    return ""


def _wrong_late(claim: Mapping[str, Any], price: Mapping[str, Any], terms: Mapping[str, Any]) -> str:
    """Return what is wrong with what being late leaves, or nothing: also where the evidence has not both times."""
    evidence, deadline = claim.get("evidence") or {}, terms.get("deadline")
    if not deadline or not evidence.get("since") or not evidence.get("ended_at"):
        return ""
    took = datetime.fromisoformat(evidence["ended_at"]) - datetime.fromisoformat(evidence["since"])
    late_s, left = int(took.total_seconds()) - deadline["within_s"], WHOLE_BPS
    for step in deadline["late"]:
        left = step["price_bps"] if late_s > step["after_s"] else left
    return (
        "" if price["late_bps"] == left else "What being late leaves does not follow from its deadline and its times."
    )


def _wrong_price(price: Mapping[str, Any], unit: Mapping[str, Any], event: str) -> str:
    """Return what does not come out, or nothing. One rounding, half up to a millionth, as docs/receipts.md says."""
    asked, paid, back, amount, each = (
        int(price[name])
        for name in ("asked_micros", "paid_micros", "reversed_micros", "amount_micros", "unit_price_micros")
    )
    if (each, price["per"], price["unit"]) != (unit["price_micros"], unit["per"], unit["name"]):
        return "The price of a unit is not that of the terms."
    if price["bps"] != price["late_bps"] * price["due_bps"] // WHOLE_BPS:
        return "What is due is not what being late and the decision leave."
    whole = price["per"] * WHOLE_BPS
    if asked != (min(price["units"], unit["most"]) * each * price["bps"] + whole // 2) // whole:
        return "The price does not follow from units, unit price and what is due."
    if not 0 <= paid <= asked or not 0 <= back <= paid or amount != paid - back:
        return "More was charged than is due, or the sums do not come out."
    return (
        "" if paid == 0 or event in {"settled", "reversed"} else f"Something was charged for a claim that was {event}."
    )


def _check_verdicts(found: Verified) -> None:
    """What was paid has passed by whom the terms name, and what a third party says bears its signature."""
    contract, claim = found.body["contract"], found.body["claim"]
    given = [one for one in found.body["verdicts"] if one["run"] == claim["run"]]
    if any(one["verifier"] == THIRD_PARTY and not _is_third_partys(one, claim, contract) for one in given):
        found.note("verdicts", REFUSED, "The third party that the terms name did not sign its verdict.")
        return
    if int(found.body["price"]["paid_micros"]) == 0:
        found.note("verdicts", GOOD, "Nothing was charged, so nothing had to pass.")
        return
    count = _that_count(contract["terms"])
    passed = [one["verifier"] for one in given if one["result"] == "pass" and one["verifier"] in count]
    decided = [one["state"] for one in found.body["disputes"] if one["state"] in {"upheld", "partial"}]
    if passed or decided:
        says = f"It passed by: {', '.join(passed)}." if passed else f"A dispute was decided: {', '.join(decided)}."
        found.note("verdicts", GOOD, says)
    else:
        says = f"Something was charged, but no verifier of the terms passed run {claim['run']},"
        found.note("verdicts", REFUSED, f"{says} and no dispute was decided so.")


def _that_count(terms: Mapping[str, Any]) -> set[str]:
    """Return whose passing makes a claim payable by its terms."""
    verifier = terms["verifier"]
    count = {verifier["kind"]}
    if verifier["kind"] == "rerun":
        count.add("outputs")  # What was not drawn for a second run.
    if verifier.get("on_silence") == "pass" or (
        verifier["kind"] == "customer" and terms["acceptance"]["on_silence"] == "accept"
    ):
        count.add("silence")
    return count


def _is_third_partys(verdict: Mapping[str, Any], claim: Mapping[str, Any], contract: Mapping[str, Any]) -> bool:
    party = contract["terms"]["verifier"].get("party")
    said = {
        "schema": "gpumarket.verdict/1",
        "claim": claim["id"],
        "contract_version": contract["sha256"],
        "evidence": claim["evidence_sha256"],
        "result": verdict["result"],
        "run": verdict["run"],
    }
    return party is not None and _has_signed(party["public_key"], verdict["signature"], said)


def _money(micros: str, price: Mapping[str, Any]) -> str:
    whole, part = divmod(int(micros), MICROS)
    return f"{whole:,}.{part:06d} {price['currency']}"
