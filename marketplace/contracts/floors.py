"""The least that a contract costs in a period: what its claims are short of it is charged when the period is over."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from django.db.models import Q

from billing.models import Outcome
from billing.outcomes import floors
from billing.outcomes.periods import Period
from billing.outcomes.words import Item
from marketplace.contracts import offering, settling
from marketplace.contracts import terms as written
from marketplace.models import Acceptance, FloorLook, Side

# What a sweep that was away for long still catches up with.
PERIODS_BACK = 3


def true_up(*, at: datetime, limit: int) -> int:
    """Charge what periods that are over are short of their floors, once each; return how many were charged.

    Looks at up to `limit` acceptances, each once a period: when it is looked at next is written down.
    Only whole periods count: those that began after the version was in force for its customer and before a later one
    was or they left it, and that ended before it was withdrawn, as nothing can be ordered under it from then on.
    """
    due = Q(floor_look=None) | Q(floor_look__due_at__lte=at)
    with_floor = Acceptance.objects.filter(due, side=Side.BUYER, version__terms__floor__micros__gt=0)
    charged = 0
    for accepted in with_floor.select_related("organization", "version__contract__seller").order_by("pk")[:limit]:
        charged += sum(_charge(accepted, period, at) for period in _whole(accepted, at))
        FloorLook.objects.update_or_create(acceptance=accepted, defaults={"due_at": _next_period(accepted, at)})
    return charged


def _next_period(accepted: Acceptance, at: datetime) -> datetime:
    """Return when the period that is now is over."""
    begun = settling.period_of(accepted.version, at)
    assert begun is not None, "where there is a floor there is a period"
    return begun.ends_at


def _charge(accepted: Acceptance, period: Period, at: datetime) -> bool:
    version, terms = accepted.version, written.of(accepted.version.terms)
    key = f"floor:{accepted.public_id}:{period.starts_at:%Y-%m-%d}"
    if Outcome.objects.filter(key=key).exists():
        return False
    made = floors.true_up(
        organization=accepted.organization,
        resource_id=accepted.public_id,
        key=key,
        floor_micros=int(terms["floor"]["micros"]),
        period=period,
        shares=settling.shares_of(version),
        item=Item(
            name=version.contract.title, project="", quantity=1, unit=terms["unit"]["name"], micros_per_unit=0,
            version=version.public_id, subject=f"floor of {period.starts_at:%Y-%m-%d}",
        ),
        at=at,
    )  # fmt: skip
    return made is not None


def _whole(accepted: Acceptance, at: datetime) -> Iterator[Period]:
    """Yield the last periods that are over, the newest first."""
    begun = settling.period_of(accepted.version, at)
    assert begun is not None, "where there is a floor there is a period"
    since = offering.in_force_at(accepted)
    if since is None:
        return
    withdrawn_at, over_at = accepted.version.withdrawn_at, offering.over_at(accepted)
    end = begun.starts_at
    for _ in range(PERIODS_BACK):
        before = settling.period_of(accepted.version, (end - timedelta(seconds=1)).astimezone(UTC))
        assert before is not None
        if before.starts_at < since:
            return
        is_cut = withdrawn_at is not None and withdrawn_at < end
        if not is_cut and (over_at is None or before.starts_at < over_at):
            yield before
        end = before.starts_at
