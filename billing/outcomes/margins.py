"""What each contract leaves the platform: what buyers paid, less what suppliers get of it and what the work took, and
less what it bears of what guarantees credited."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db.models import Count, F, Q, QuerySet, Sum
from django.db.models.expressions import Combinable
from django.db.models.functions import Coalesce

from billing.models import GuaranteeCorrection, GuaranteeHour, Outcome, OutcomeCost, OutcomeShare, OutcomeTotal
from billing.outcomes.sharing import BROUGHT


@dataclass(slots=True)
class Margin:
    """The money of a contract's version in one currency. `shared_micros` follows what was paid by a sweep.

    `credited_micros` is what hours below a guaranteed floor gave back, less what their suppliers bear of that.
    """

    version: str
    currency: str
    outcomes: int = 0
    paid_micros: int = 0
    given_back_micros: int = 0
    shared_micros: int = 0
    cost_micros: int = 0
    credited_micros: int = 0
    unit_milliseconds: int = 0

    @property
    def net_micros(self) -> int:
        """What buyers paid and did not get back."""
        return self.paid_micros - self.given_back_micros

    @property
    def margin_micros(self) -> int:
        return self.net_micros - self.shared_micros - self.cost_micros - self.credited_micros


def margins(*, version: str | None = None, since: datetime | None = None) -> list[Margin]:
    """Return what each version leaves, or one, the newest versions of most money first. Five queries."""
    found: dict[tuple[str, str], Margin] = {}
    one = Q() if version is None else Q(version=version)
    begun = Q() if since is None else Q(at__gte=since)
    back = Q(kind=Outcome.Kind.REVERSED)
    sold = Outcome.objects.filter(one & begun).order_by().values("version", "currency")
    for row in sold.annotate(
        outcomes=Count("pk", filter=~back),
        paid_micros=Sum("amount_micros", filter=~back, default=0),
        given_back_micros=Sum("amount_micros", filter=back, default=0),
    ):
        found[row["version"], row["currency"]] = Margin(**row)
    _add(found, OutcomeCost.objects.filter(one & begun, ~Q(version="")), cost_micros="amount_micros",
         unit_milliseconds="unit_milliseconds")  # fmt: skip
    shared = (
        OutcomeShare.objects.filter(one) if since is None else OutcomeShare.objects.filter(one, sharing__at__gte=since)
    )
    _add(found, shared, shared_micros="amount_micros")
    short = GuaranteeHour.objects.filter(one & begun, credit_micros__gt=0)
    _add(found, short, credited_micros=F("credit_micros") + Coalesce("back_charge__amount_micros", 0))
    more = GuaranteeCorrection.objects.annotate(version=F("hour__version"), currency=F("hour__currency"))
    _add(found, more.filter(one & begun), credited_micros="credit_micros")
    return sorted(found.values(), key=lambda each: (-each.net_micros, each.version))


def costs_of(resource_ids: list[str]) -> dict[str, int]:
    """Return what the work of each of these resources took so far."""
    rows = OutcomeCost.objects.filter(resource_id__in=resource_ids).order_by().values_list("resource_id")
    return defaultdict(int, dict(rows.annotate(total=Sum("amount_micros"))))


def net_micros(*, organization_id: int, versions: Iterable[str]) -> dict[str, int]:
    """Return what one buyer paid under each of these versions and did not get back.

    What somebody only said that it earned is not paid.
    """
    back = Q(kind=Outcome.Kind.REVERSED)
    rows = Outcome.objects.filter(BROUGHT, organization=organization_id, version__in=list(versions)).order_by()
    summed = rows.values_list("version").annotate(
        paid=Sum("amount_micros", filter=~back, default=0), returned=Sum("amount_micros", filter=back, default=0)
    )
    return {version: paid - returned for version, paid, returned in summed}


def brought_micros(*, versions: Iterable[str], currency: str) -> dict[str, int]:
    """Return what all outcomes of each of these versions brought, from their totals and what is not shared out yet.

    One statement, in which nothing is counted twice or never however much is shared out meanwhile; it reads no history.
    """
    back, mine = Q(kind=Outcome.Kind.REVERSED), {"version__in": list(versions), "currency": currency}
    newest = Outcome.objects.filter(BROUGHT, sharing=None, **mine).order_by().values_list("version")
    newest = newest.annotate(
        net=Sum("amount_micros", filter=~back, default=0) - Sum("amount_micros", filter=back, default=0)
    )
    rows = OutcomeTotal.objects.filter(**mine).values_list("version", "brought_micros").union(newest, all=True)
    brought: Counter[str] = Counter()
    for version, micros in rows:
        brought[version] += int(micros)
    return brought


def booked_micros(*, versions: Iterable[str], currency: str) -> int:
    """Return what all that was booked for outcomes of these versions took, from their totals."""
    rows = OutcomeTotal.objects.filter(version__in=list(versions), currency=currency)
    return int(rows.aggregate(total=Sum("cost_micros", default=0))["total"])


def cost_micros(*, organization_id: int, versions: Iterable[str], without: Any) -> int:
    """Return what work for one buyer under these versions took, but for these resources (ids, or a query of them)."""
    rows = OutcomeCost.objects.filter(span__organization=organization_id, version__in=list(versions))
    rows = rows.exclude(span__resource_id__in=without)
    return int(rows.aggregate(total=Sum("amount_micros", default=0))["total"])


def _add(found: dict[tuple[str, str], Margin], rows: QuerySet[Any], **names: str | Combinable) -> None:
    for row in rows.order_by().values("version", "currency").annotate(**{to: Sum(of) for to, of in names.items()}):
        each = found.setdefault((row["version"], row["currency"]), Margin(row["version"], row["currency"]))
        for name in names:
            setattr(each, name, getattr(each, name) + row[name])
