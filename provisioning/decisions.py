"""The record of placement's answers, and the words for them. Only counts of nodes are told, never whose they are."""

import json
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any

from django.db import connection
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from billing.public_ids import new_public_id
from provisioning.errors import NoCapacity
from provisioning.models import PlacementDecision
from provisioning.models.placement import LEVELS
from provisioning.placing.asking import Refusal, Request

KEPT = timedelta(days=30)
PURGED_AT_ONCE = 10_000

# A launch that is refused leaves no instance behind: then the row names none.
KEEP = """
INSERT INTO provisioning_placementdecision (public_id, project_id, offer_id, instance_id, run, at, outcome, times,
    request, level, nodes, candidates, rejected, most, relaxation, policy_digest)
SELECT %(public_id)s, %(project)s, %(offer)s, (SELECT id FROM provisioning_instance WHERE id = %(instance)s), %(run)s,
    %(at)s, 'refused', 1, %(request)s, '', 0, %(candidates)s, %(rejected)s, %(most)s, %(relaxation)s, %(policy_digest)s
ON CONFLICT (instance_id, run, outcome) DO UPDATE SET
    at = excluded.at, times = provisioning_placementdecision.times + 1,
    candidates = excluded.candidates, rejected = excluded.rejected, most = excluded.most,
    relaxation = excluded.relaxation, policy_digest = excluded.policy_digest
RETURNING public_id
"""

# In the order in which they are told. A policy's rules keep a whole offer out, and count all of its nodes.
RULES = {
    "countries": gettext_lazy("in a country that a policy excludes"),
    "jurisdictions": gettext_lazy("under a law that a policy excludes"),
    "certifications": gettext_lazy("without a certification that a policy asks for"),
    "near": gettext_lazy("farther away than a policy allows"),
    "power_sources": gettext_lazy("on a power source that a policy excludes"),
    "suppliers": gettext_lazy("of a supplier that a policy excludes"),
    "state": gettext_lazy("taken out of service by the operator"),
    "unreachable": gettext_lazy("not answering"),
    "held": gettext_lazy("held back for a check or a repair"),
    "barred": gettext_lazy("on which the work of this order may not run"),
    "kept": gettext_lazy("kept for orders that wait or for reservations"),
    "another_tenant": gettext_lazy("kept whole for one tenant"),
    "avoided": gettext_lazy("avoided, because its last run failed there or others were quicker"),
    "not_whole": gettext_lazy("shared with others, which a policy excludes"),
    "full": gettext_lazy("full"),
    "too_few": gettext_lazy("with too few free GPUs for a replica"),
}


def request_of(request: Request) -> dict[str, str | int | bool]:
    """Return what is worth keeping of a request: its size, and what differs from packing it together."""
    asked: dict[str, str | int | bool] = {"replicas": request.replicas, "gpus": request.gpus}
    if request.strategy != "pack":
        asked |= {"strategy": request.strategy, "max_skew": request.max_skew}
    if request.level != "site":
        asked |= {"level": request.level, "required": request.is_required}
    if request.is_exclusive:
        asked["no_shared_host"] = True
    return asked


def refused(request: Request, refusal: Refusal, **about: Any) -> dict[str, Any]:
    """Return the decision of a refusal, for `keep`; `about` says whose it is and when."""
    return {
        "public_id": new_public_id("plc"),
        "request": json.dumps(request_of(request)),
        "candidates": refusal.candidates,
        "rejected": json.dumps(refusal.rejected),
        "most": json.dumps(refusal.most),
        "relaxation": json.dumps(refusal.relaxation),
    } | about


def keep(refusal: NoCapacity) -> str:
    """Write down the decision of a refusal whose transaction was rolled back; return its id, "" without one."""
    if refusal.decision is None:
        return ""
    with connection.cursor() as cursor:
        cursor.execute(KEEP, refusal.decision)
        return str(cursor.fetchone()[0])


def purge(*, at: datetime, limit: int = PURGED_AT_ONCE) -> int:
    """Forget the oldest decisions that were kept for long enough; return how many."""
    # The first rows by key are the oldest: bounded work without an index on the time.
    oldest = PlacementDecision.objects.order_by("pk").values("pk")[:limit]
    return PlacementDecision.objects.filter(pk__in=oldest, at__lt=at - KEPT).delete()[0]


# Words.


def reasons(rejected: Mapping[str, int]) -> list[tuple[str, int]]:
    """Return why nodes were kept out, as words with how many, in the order of the rules."""
    return [(str(words), rejected[rule]) for rule, words in RULES.items() if rule in rejected]


def said(rules: Iterable[str]) -> str:
    """Return the words of rules, one after the other: "in a country that a policy excludes"."""
    return ", ".join(str(RULES[rule]) for rule in rules)


def advice(relaxation: Mapping[str, Any]) -> str:
    """Say with which change it would fit now, as a sentence; empty where none would do."""
    sentences = {
        "level": _("It would fit now if it may use %(value)s."),
        "max_skew": _("It would fit now with a skew of at most %(value)s."),
        "replicas": _("%(value)s replicas would fit now."),
        "gpus": _("%(value)s GPUs would fit now."),
        "no_shared_host": _("It would fit now beside other tenants, which a policy excludes."),
    }
    for name, value in relaxation.items():
        return sentences[name] % {"value": LEVELS[value] if name == "level" else value}
    return ""
