"""The least that a contract costs in a period: what its claims are short of it is charged when the period is over."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from billing.models import Outcome
from billing.outcomes import floors
from billing.outcomes.periods import Period
from billing.outcomes.words import Item
from marketplace.contracts import offering, settling
from marketplace.contracts import terms as written
from marketplace.models import Acceptance, Side

# What a sweep that was away for long still catches up with.
PERIODS_BACK = 3


def true_up(*, at: datetime, limit: int) -> int:
    """Charge what periods that are over are short of their floors, once each; return how many were charged.

    Only whole periods count: those that began after the version was in force for its customer, and before it was
    withdrawn or a later one was.
    """
    with_floor = Acceptance.objects.filter(side=Side.BUYER, version__terms__floor__micros__gt=0)
    charged = 0
    for accepted in with_floor.select_related("organization", "version__contract__seller").order_by("pk"):
        for period in _whole(accepted, at):
            if charged >= limit:
                return charged
            charged += _charge(accepted, period, at)
    return charged


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
    terms = written.of(accepted.version.terms)
    begun = settling.period_of(terms, at)
    assert begun is not None, "where there is a floor there is a period"
    since = offering.in_force_at(accepted)
    if since is None:
        return
    ends = [end for end in (accepted.version.withdrawn_at, offering.replaced_at(accepted)) if end is not None]
    start = begun.starts_at
    for _ in range(PERIODS_BACK):
        before = settling.period_of(terms, (start - timedelta(seconds=1)).astimezone(UTC))
        assert before is not None
        start = before.starts_at
        if start < since:
            return
        if all(start < end for end in ends):
            yield before
