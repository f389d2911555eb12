"""The evidence that terms name: whether a result has it, or its seller filed it. What lacks it does not pass."""

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

from django.utils.translation import gettext as _

from marketplace.contracts import runs, wording
from marketplace.contracts.terms import Terms
from marketplace.models import Attempt, Claim, Offer
from provisioning import counters, statements
from provisioning.models import Assignment

# For what nodes tell and sign to arrive, which is in the reports after the one that said how it ended.
WAIT = timedelta(minutes=10)
LOG_TOLD = (Assignment.Observed.WIPING, Assignment.Observed.GONE)


def missing(claim: Claim, terms: Terms) -> list[str]:
    """Return what a task's result lacks of the evidence that its terms name, by its names there.

    Its exit code, inputs and outputs are the control plane's own record, and looked at elsewhere.
    """
    wanted = [name for name in terms["evidence"] if name in LACKS]
    if not wanted:
        return []
    attempt = runs.attempt_of(claim)
    return [name for name in wanted if LACKS[name](attempt, terms)]


def not_filed(filed: Mapping[str, Any], terms: Terms) -> str:
    """Return in words what a seller's own evidence lacks: each that the terms name is a member of it, and not empty."""
    absent = [name for name in terms["evidence"] if filed.get(name) in (None, "", [], {})]
    return ", ".join(f"{name} ({wording.EVIDENCE[name]})" for name in absent)


def why_never(terms: Terms, offer: Offer, *, has_counters: bool) -> str:
    """Return why results of an offer can never have the evidence that the terms name; empty where they can."""
    if "counter" in terms["evidence"] and not has_counters:
        return _("This contract wants readings of counters: name them under “counters”.")
    if "node_signature" in terms["evidence"] and offer.runtime == Offer.Runtime.SLURM:
        return _("This contract wants the node's signature, and nodes of a Slurm cluster sign nothing.")
    return ""


def _assignments(attempt: Attempt) -> list[Assignment]:
    """Return where each replica ran last."""
    rows = Assignment.objects.filter(instance=attempt.instance).order_by("replica", "-fence").distinct("replica")
    return list(rows)


def _lacks_counter(attempt: Attempt, terms: Terms) -> bool:
    names = (attempt.instance.counters or {}).get("names", [])
    return not names or any(counters.seen_until(attempt.instance, name) is None for name in names)


def _lacks_log(attempt: Attempt, terms: Terms) -> bool:
    """A node takes down what ended only once we have all that it printed, or cannot be told any more."""
    ran = _assignments(attempt)
    return not ran or any(row.observed not in LOG_TOLD for row in ran)


def _lacks_gpus(attempt: Attempt, terms: Terms) -> bool:
    ran = _assignments(attempt)
    return not ran or not all(row.gpu_uuids for row in ran)


def _lacks_signature(attempt: Attempt, terms: Terms) -> bool:
    """Where it is paid by a counter, its readings are what has to be signed."""
    ran = _assignments(attempt)
    said = statements.of_assignments(row.pk for row in ran)
    good = [one for one in said.values() if not one.trouble and one.key is not None and one.key.revoked_at is None]
    measured = terms["measured"]
    if measured is not None and measured["kind"] == "counter":
        good = [one for one in good if measured["name"] in (one.document["body"].get("counters") or {})]
    return not ran or len(good) < len(ran)


LACKS: Mapping[str, Callable[[Attempt, Terms], bool]] = {
    "counter": _lacks_counter,
    "gpu_uuids": _lacks_gpus,
    "logs": _lacks_log,
    "node_signature": _lacks_signature,
}
