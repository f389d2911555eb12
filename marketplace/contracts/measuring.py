"""Counting the units of a result: a number that it left in an output, or what a counter of its workload rose by."""

import json
from collections.abc import Mapping
from typing import Any

from marketplace.contracts import runs, timeline
from marketplace.contracts import terms as written
from marketplace.contracts.terms import Terms
from marketplace.models import Claim
from provisioning import artifacts, counters
from provisioning.agent.manifest import BadManifest
from provisioning.errors import NoArtifact

UNITS_BYTES_MAX = 1024
# Below 2^53, up to which RFC 8785 writes whole numbers exactly.
UNITS_MAX = 10**15
# Of replicas whose readings are kept as evidence; the units of all count.
READINGS_MAX = 100


def measure(claim: Claim, terms: Terms) -> str:
    """Count the units of a result once, where its price is by unit; return what is wrong with that, if anything is.

    Its price follows: no more units than the terms say for one result. Call it with the claim locked.
    """
    if not is_to_count(claim, terms):
        return ""
    measured, seen = terms["measured"], dict[str, Any]()
    if measured["kind"] == "output":
        units = _in_output(claim, measured["path"])
    else:
        units, seen = _by_counter(claim, measured)
    if units is None:
        return timeline.NOT_COUNTED()
    units = min(units, UNITS_MAX)
    proof = {**claim.evidence, **seen, "units": units}
    counted = min(units, int(terms["unit"]["most"]))
    _write(
        claim, units=counted, amount_micros=terms.amount_micros(units=counted, bps=claim.price_bps), evidence=proof,
        evidence_sha256=written.digest(written.canonical(proof)),
    )  # fmt: skip
    return ""


def void(claim: Claim, terms: Terms) -> None:
    """Let units that were to be counted and were not cost nothing. Call it with the claim locked."""
    if is_to_count(claim, terms):
        _write(claim, units=0, amount_micros=0)


def is_to_count(claim: Claim, terms: Terms) -> bool:
    """Return whether its units are counted from what a job left or did, and were not yet."""
    return terms.is_counted and "units" not in claim.evidence


def _write(claim: Claim, **facts: Any) -> None:
    Claim.objects.filter(pk=claim.pk).update(**facts)
    for name, value in facts.items():
        setattr(claim, name, value)


def _by_counter(claim: Claim, measured: Mapping[str, Any]) -> tuple[int | None, dict[str, Any]]:
    """Return what a counter counted in the attempt, and its readings; None where its agent never read it."""
    attempt = runs.attempt_of(claim)
    if attempt.began_at is None or attempt.ended_at is None:
        return None, {}
    found = counters.counted(
        attempt.instance, measured["name"], since=attempt.began_at, most_per_s=measured.get("most_per_s", 0)
    )
    if not found:
        return None, {}
    readings = [
        {
            "assignment": one.assignment, "readings": one.readings, "units": min(one.units, UNITS_MAX),
            "first": min(one.first, UNITS_MAX), "first_at": one.first_at.isoformat(),
            "last": min(one.last, UNITS_MAX), "last_at": one.last_at.isoformat(),
        }
        for one in found[:READINGS_MAX]
    ]  # fmt: skip
    return sum(one.units for one in found), {"readings": readings}


def _in_output(claim: Claim, path: str) -> int | None:
    """Return the whole number in an output: alone, or as `units` of a JSON object; None where there is none."""
    try:
        entries = artifacts.files_of(claim.project_id, claim.evidence.get("outputs", ""))
        entry = next((one for one in entries if one.path == path), None)
        if entry is None or entry.size > UNITS_BYTES_MAX:
            return None
        said = json.loads(b"".join(artifacts.pieces_of(project_id=claim.project_id, sha256=entry.sha256)))
    except (NoArtifact, BadManifest, ValueError, RecursionError):
        return None
    units = said.get("units") if isinstance(said, dict) else said
    is_count = isinstance(units, int) and not isinstance(units, bool) and 0 <= units <= UNITS_MAX
    return units if is_count else None
