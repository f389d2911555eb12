"""What the address of the billing overview says: which days, told apart by what, and of what alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from urllib.parse import urlencode

from django.utils import timezone
from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _

from marketplace import breakdown
from marketplace.breakdown import Cost
from marketplace.portal.doors import Visit
from marketplace.portal.spending import midnight, month_after

GROUPS: dict[str, Promise] = {"project": _("Project"), "model": _("GPU model"), "market": _("Market")}
LENGTHS = {"7d": 7, "30d": 30, "90d": 90}
MONTHS_SHOWN = 12
PERIOD_DEFAULT = "30d"


@dataclass(frozen=True)
class Filters:
    """The choices of one visit; what the address says and nobody knows is left at its default."""

    period: str
    by: str
    project: str
    model: str
    market: str
    at: datetime

    @cached_property
    def edges(self) -> list[datetime]:
        """The edges of the days in the reader's zone, today included, none in the future."""
        today = midnight(self.at)
        if self.period in LENGTHS:
            first, last = today - timedelta(days=LENGTHS[self.period] - 1), today
        else:
            first = datetime.strptime(self.period, "%Y-%m").replace(tzinfo=today.tzinfo)
            last = min(month_after(first) - timedelta(days=1), today)
        return breakdown.days(first, last + timedelta(days=1))

    @property
    def days(self) -> list[datetime]:
        return self.edges[:-1]

    def chosen(self, costs: Sequence[Cost]) -> list[Cost]:
        """Return the costs that the address asks for."""
        return breakdown.chosen(costs, project=self.project, model=self.model, market=self.market)

    @property
    def is_narrowed(self) -> bool:
        return bool(self.project or self.model or self.market)

    @property
    def address(self) -> str:
        """The choices as a query, for the files of the same figures."""
        names = ("period", "by", "project", "model", "market")
        return urlencode({name: getattr(self, name) for name in names if getattr(self, name)})


def read(visit: Visit, *, groups: Mapping[str, Promise] = GROUPS) -> Filters:
    """Return what this visit's address asks for; the first group is the ordinary one."""
    by = visit.query("by")
    period = visit.query("period")
    return Filters(
        period=period if period in LENGTHS or period in months(visit.at) else PERIOD_DEFAULT,
        by=by if by in groups else next(iter(groups)),
        project=visit.query("project"),
        model=visit.query("model"),
        market=visit.query("market"),
        at=visit.at,
    )


def months(at: datetime) -> list[str]:
    """Return the last months, this one first, as `2026-11` in the reader's zone."""
    local = timezone.localtime(at)
    numbers = (local.year * 12 + local.month - 1 - back for back in range(MONTHS_SHOWN))
    return [f"{number // 12:04}-{number % 12 + 1:02}" for number in numbers]
