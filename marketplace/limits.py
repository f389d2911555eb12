"""Quotas as every door shows them, and as the operator changes them."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from django.db import transaction
from django.db.models import Prefetch, Q, QuerySet
from django.utils import timezone
from django.utils.translation import gettext

from marketplace import audit, reserved_quotas
from marketplace.access import Actor
from marketplace.errors import BadOrder
from marketplace.models import Offer, Organization, Project
from marketplace.money import shown
from provisioning import quotas
from provisioning.errors import QuotaExceeded
from provisioning.models import Instance, Quota

# The most that a limit may say: more GPUs than the marketplace is built for, and a billion an hour.
LIMIT_MAX: dict[str, int] = {Quota.Unit.GPUS: 1_000_000, Quota.Unit.MICROS_PER_HOUR: 10**15}


@dataclass(frozen=True)
class Limit:
    """One quota with what of it runs: `used` is a part of `held`, which also counts what starts or ends."""

    quota: Quota
    used: int

    @property
    def title(self) -> str:
        """What it counts, such as `H200, Spot`."""
        return words_of(gpu_model=self.quota.gpu_model, market=self.quota.market)


def listed(found: Iterable[Quota]) -> list[Limit]:
    """Return quotas with what is used of them. Two queries."""
    rows = list(found)
    running = quotas.used(rows)
    return [Limit(quota, running.get(quota.pk, 0)) for quota in rows]


def tightest(project: Project, *, gpu_model: str, market: str) -> Quota:
    """Return the GPU limit with the least room among those that count such a launch in a project. One query."""
    applies = Quota.objects.filter(
        Q(project=None) | Q(project=project), organization=project.organization_id,
        gpu_model__in=["", gpu_model], market__in=["", market], unit=Quota.Unit.GPUS,
    )  # fmt: skip
    return min(applies.select_related("project"), key=lambda quota: (quota.free, -quota.pk))


def with_first(projects: QuerySet[Project]) -> list[Project]:
    """Return projects with their limit of all GPUs together in `first_quota`. Two queries."""
    return list(projects.prefetch_related(Prefetch("quotas", Quota.objects.filter(**quotas.FIRST), "first_quota")))


def words_of(*, gpu_model: str, market: str) -> str:
    """Return in words which GPUs a quota counts."""
    model = gpu_model or gettext("All GPUs")
    return f"{model}, {Instance.Market(market).label}" if market else model


def amount(number: int, *, unit: str, currency: str) -> str:
    """Return so much of a quota, as people read it."""
    if unit == Quota.Unit.MICROS_PER_HOUR:
        return gettext("%(money)s an hour") % {"money": shown(number, currency)}
    return gettext("%(gpus)s GPUs") % {"gpus": f"{number:,}"}


def why(error: QuotaExceeded) -> str:
    """Say which quota refused, with its numbers."""
    money = error.unit == Quota.Unit.MICROS_PER_HOUR
    wanted, held, limit = (
        shown(number, "") if money else f"{number:,}" for number in (error.wanted, error.held, error.limit)
    )
    texts = {"wanted": wanted, "held": held, "limit": limit} | {
        "what": words_of(gpu_model=error.gpu_model, market=error.market)
    }
    if money and error.is_organization:
        return gettext("It costs %(wanted)s an hour; the organization holds %(held)s of %(limit)s (%(what)s).") % texts
    if money:
        return gettext("It costs %(wanted)s an hour; the project holds %(held)s of %(limit)s (%(what)s).") % texts
    if error.is_organization:
        return (
            gettext("You asked for %(wanted)s more GPUs; the organization holds %(held)s of %(limit)s (%(what)s).")
            % texts
        )
    if error.gpu_model or error.market:
        return (
            gettext("You asked for %(wanted)s more GPUs; the project holds %(held)s of %(limit)s (%(what)s).") % texts
        )
    return gettext("You asked for %(wanted)s more GPUs; the project holds %(held)s of %(limit)s.") % texts


def models() -> list[str]:
    """Return the GPU models that are for sale, which a quota may name."""
    return sorted(set(Offer.objects.filter(is_listed=True).values_list("gpu_model", flat=True)))


def check_words(*, gpu_model: str, market: str, unit: str, limit: int) -> None:
    """Raise BadOrder where these words name no quota."""
    if gpu_model and not Offer.objects.filter(gpu_model=gpu_model).exists():
        raise BadOrder("gpu_model", gettext("There is no offer of this GPU model."))
    if market and market not in Instance.Market.values:
        raise BadOrder("market", gettext("Choose one of %(known)s.") % {"known": ", ".join(Instance.Market.values)})
    if unit not in Quota.Unit.values:
        raise BadOrder("unit", gettext("Choose one of %(known)s.") % {"known": ", ".join(Quota.Unit.values)})
    if not 0 <= limit <= LIMIT_MAX[unit]:
        most = shown(LIMIT_MAX[unit], "") if unit == Quota.Unit.MICROS_PER_HOUR else f"{LIMIT_MAX[unit]:,}"
        raise BadOrder("limit", gettext("A limit is a number from 0 to %(most)s.") % {"most": most})


@transaction.atomic
def change(
    *,
    actor: Actor | None,
    organization: Organization,
    project: Project | None,
    limit: int,
    reason: str,
    gpu_model: str = "",
    market: str = "",
    unit: str = Quota.Unit.GPUS,
) -> Quota:
    """Set a limit of a project, or of the organization without one. Less than is held stops nothing.

    Without an actor it is the system itself that does so, by a rule.
    """
    check_words(gpu_model=gpu_model, market=market, unit=unit, limit=limit)
    found = Quota.objects.select_for_update(no_key=True).filter(
        organization=organization, project=project, gpu_model=gpu_model, market=market, unit=unit
    )
    was = found.first()
    quota = quotas.set_limit(
        project_id=project.pk if project else None,
        organization_id=None if project else organization.pk,
        limit=limit,
        gpu_model=gpu_model,
        market=market,
        unit=unit,
    )
    if was is None:
        reserved_quotas.recount(at=timezone.now(), quota_ids=[quota.pk])
        quota.refresh_from_db(fields=["reserved"])
    _record(actor, quota, before={"limit": was.limit if was else None}, after={"limit": limit, "reason": reason})
    return quota


@transaction.atomic
def remove(*, actor: Actor, quota: Quota, reason: str) -> None:
    """Let a limit apply no more. The one of all GPUs together stays: it can only be changed."""
    if quota.is_first:
        raise BadOrder("quota", gettext("The limit of all GPUs together can be changed, but not removed."))
    _record(actor, quota, before={"limit": quota.limit}, after={"limit": None, "reason": reason})
    quotas.remove(quota=quota)


def _record(actor: Actor | None, quota: Quota, *, before: dict[str, object], after: dict[str, object]) -> None:
    words = {"gpu_model": quota.gpu_model, "market": quota.market}
    words |= {"unit": quota.unit} if quota.is_spend else {}
    after |= {name: word for name, word in words.items() if word}
    change: dict[str, Any] = {
        "organization": quota.organization, "verb": "quota.change",
        "subject_id": (quota.project or quota.organization).public_id, "before": before, "after": after,
    }  # fmt: skip
    if actor is None:
        audit.record_own(**change)
    else:
        audit.record(actor=actor, **change)
