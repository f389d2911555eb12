"""The worst case of what an order commits to, against the budgets that its owners set themselves.

An organization, a project and a token may each have a budget for a calendar
month (UTC) and one for an hour. The worst case of a month is

    what was used since the month began, charged or not, and what was paid ahead since then
  + what is set aside and not used yet: first hours, bids, reservations that wait for their payment
  + what shares of revenue will ask that fall due in the month (of the organization: a share is nobody else's)
  + the least that the new order commits to:
      on demand     the first hour, which is held before the start
      spot          price x GPUs x (interval + notice): what a bid cannot take back once it has won
      reservation   its whole price

and the worst case of an hour is the price per hour of all that is held of the
quotas (`QuotaHold`) and of the new order. What passes a budget is refused
before it starts, unless the budget only tells. What runs already may pass a
month's budget; what then becomes of it is the budget's setting, and
`budget_watch` sees to it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db import connection
from django.db.models import QuerySet
from django.utils.translation import gettext

from billing.months import month_of
from marketplace.errors import BudgetExceeded
from marketplace.models import ApiToken, Budget, Organization, Project
from marketplace.models.budgets import MONEY
from marketplace.money import shown
from marketplace.revenue_share import expecting

# What a span costs up to a moment, as `floating.amounts_micros` has it: whole milliseconds, rounded half up, once. A
# stretch costs the difference of its two ends, so that stretches which touch add up to the bill.
SUM_AT = """(
    SELECT sum_micro_ms + micros_per_unit_hour * round(1000 * extract(epoch FROM {moment} - starts_at))
    FROM billing_pricepoint WHERE price_version_id = price.id AND starts_at <= {moment}
    ORDER BY starts_at DESC LIMIT 1
)"""
SEEN = """greatest(span.started_at, date_trunc(
    'milliseconds', least(coalesce(span.ended_at, {moment}), {moment}, %(now)s)
))"""
UP_TO = f"""
div(span.quantity * CASE WHEN price.is_floating
    THEN {SUM_AT.format(moment=SEEN)} - {SUM_AT.format(moment="span.started_at")}
    ELSE price.micros_per_unit_hour::numeric * round(1000 * extract(epoch FROM {SEEN} - span.started_at))
END + 1800000, 3600000)
"""
OF_OWNER = """
    AND (%(project_id)s::text IS NULL OR span.labels ->> 'project' = %(project_id)s)
    AND (%(token_ids)s::text[] IS NULL OR span.labels ->> 'token' = ANY (%(token_ids)s))
"""
SPENT = f"""
SELECT stretch.number,
       coalesce(sum({UP_TO.format(moment="stretch.till")} - {UP_TO.format(moment="stretch.began")}), 0)::bigint,
       coalesce(sum(coalesce(last.micros_per_unit_hour, price.micros_per_unit_hour) * span.quantity)
           FILTER (WHERE span.ended_at IS NULL), 0)::bigint
FROM unnest(%(began)s::timestamptz[], %(till)s::timestamptz[]) WITH ORDINALITY AS stretch (began, till, number)
LEFT JOIN (billing_usagespan span JOIN billing_priceversion price ON price.id = span.price_version_id)
       ON span.organization_id = %(organization)s AND span.covered_by = ''
      AND span.started_at < stretch.till AND coalesce(span.ended_at, 'infinity') > stretch.began
      {OF_OWNER}
LEFT JOIN LATERAL (
    SELECT micros_per_unit_hour FROM billing_pricepoint WHERE price.is_floating AND price_version_id = price.id
    ORDER BY starts_at DESC LIMIT 1
) last ON true
GROUP BY stretch.number ORDER BY stretch.number
"""  # noqa: S608  nothing in it comes from outside

# Of a hold, what its meter has counted but not charged yet is spent already.
COMMITTED = f"""
WITH mine AS (
    SELECT holder, micros_per_hour FROM provisioning_quotahold hold
    JOIN marketplace_project project ON project.id = hold.project_id
    LEFT JOIN marketplace_apitoken token ON token.id = hold.token_id
    WHERE project.organization_id = %(organization)s
        AND (%(project_id)s::text IS NULL OR project.public_id = %(project_id)s)
        AND (%(token_ids)s::text[] IS NULL OR token.public_id = ANY (%(token_ids)s))
), booked AS (
    SELECT held.public_id FROM marketplace_reservation held
    JOIN marketplace_project project ON project.id = held.project_id
    LEFT JOIN marketplace_tokenpurchase purchase ON purchase.resource_id = held.public_id
    LEFT JOIN marketplace_apitoken token ON token.id = purchase.token_id
    WHERE held.state = 'payment_pending'
        AND (project.public_id = %(project_id)s OR token.public_id = ANY (%(token_ids)s))
    UNION ALL
    SELECT kept.public_id FROM provisioning_volume kept JOIN marketplace_project project ON project.id = kept.project_id
    LEFT JOIN marketplace_apitoken token ON token.id = kept.ordered_with_id
    WHERE project.organization_id = %(organization)s AND kept.state <> 'deleted'
        AND (project.public_id = %(project_id)s OR token.public_id = ANY (%(token_ids)s))
), aside AS (
    SELECT hold.resource_id, sum(hold.amount_micros - hold.posted_micros) AS micros
    FROM billing_hold hold JOIN billing_account account ON account.id = hold.account_id
    WHERE account.organization_id = %(organization)s AND hold.state = 'pending'
        AND ((%(project_id)s::text IS NULL AND %(token_ids)s::text[] IS NULL)
            OR hold.resource_id IN (SELECT holder FROM mine)
            OR hold.resource_id IN (SELECT public_id FROM booked))
    GROUP BY hold.resource_id
), counted AS (
    SELECT span.resource_id, sum({UP_TO.format(moment="%(now)s::timestamptz")} - span.charged_micros) AS micros
    FROM billing_usagespan span JOIN billing_priceversion price ON price.id = span.price_version_id
    WHERE span.organization_id = %(organization)s AND span.ended_at IS NULL AND span.covered_by = ''
    GROUP BY span.resource_id
)
SELECT (SELECT coalesce(sum(greatest(0, aside.micros - coalesce(counted.micros, 0))), 0)::bigint
        FROM aside LEFT JOIN counted USING (resource_id)),
       (SELECT coalesce(sum(micros_per_hour), 0)::bigint FROM mine)
"""  # noqa: S608  nothing in it comes from outside

# Payments by purchase or extension (`prepay:`) and on the resale market (`trade:`), and what came back (`unpay:`), as
# `billing.prepayments` and its callers name them: the second word says for what. And what tiers, minimums and
# commitments make of use, of which no project is known. Results stand on the day on which they were accepted, what was
# given back of them on the day when it was.
BESIDE = """
    SELECT mine.organization_id, 'reserved' AS kind, moved.effective_at, moved.micros,
        coalesce(held.project_id, quote.project_id, bought.project_id) AS project_id,
        coalesce(held.offer_id, quote.offer_id, bought.offer_id) AS offer_id,
        purchase.token_id
    FROM billing_account mine CROSS JOIN LATERAL (
        SELECT key, effective_at, amount_micros AS micros FROM billing_transfer
        WHERE source_id = mine.id AND key NOT LIKE 'charge:%%' AND (key LIKE 'prepay:%%' OR key LIKE 'trade:%%')
            AND effective_at >= %(since)s
        UNION ALL
        SELECT key, effective_at, -amount_micros FROM billing_transfer
        WHERE target_id = mine.id AND key LIKE 'unpay:%%' AND effective_at >= %(since)s
    ) moved
    LEFT JOIN marketplace_reservation held ON held.public_id = split_part(moved.key, ':', 2)
    LEFT JOIN marketplace_quote quote ON quote.public_id = split_part(moved.key, ':', 2)
    LEFT JOIN marketplace_trade trade ON trade.public_id = split_part(moved.key, ':', 2)
    LEFT JOIN marketplace_reservation bought ON bought.id = trade.reservation_id
    LEFT JOIN marketplace_tokenpurchase purchase ON purchase.resource_id = split_part(moved.key, ':', 2)
    WHERE mine.organization_id = ANY (%(organizations)s)
    UNION ALL
    SELECT adjustment.organization_id, 'adjustment', posting.through - interval '1 millisecond', posting.amount_micros,
        NULL, offer.id, NULL
    FROM billing_adjustment adjustment JOIN billing_adjustmentposting posting ON posting.adjustment_id = adjustment.id
    LEFT JOIN billing_priceversion price ON price.id = adjustment.price_version_id
    LEFT JOIN marketplace_offer offer ON offer.public_id = split_part(price.sku, '/', 1)
    WHERE adjustment.organization_id = ANY (%(organizations)s) AND posting.through > %(since)s
    UNION ALL
    SELECT outcome.organization_id, 'outcome', outcome.at,
        CASE outcome.kind WHEN 'reversed' THEN -outcome.amount_micros ELSE outcome.amount_micros END,
        project.id, NULL, job.token_id
    FROM billing_outcome outcome LEFT JOIN marketplace_project project ON project.public_id = outcome.project
    LEFT JOIN marketplace_job job ON job.public_id = outcome.resource_id
    WHERE outcome.organization_id = ANY (%(organizations)s) AND outcome.at >= %(since)s
"""
# All that stretches cost: use, and what stands beside it, as the overview of costs adds it up.
COST = f"""
WITH beside AS MATERIALIZED ({BESIDE})
SELECT used.number, (used.micros + coalesce((
    SELECT sum(beside.micros) FROM beside WHERE beside.effective_at >= (%(began)s::timestamptz[])[used.number]
        AND beside.effective_at < (%(till)s::timestamptz[])[used.number]
), 0))::bigint, used.burn
FROM ({SPENT}) used (number, micros, burn) ORDER BY used.number
"""  # noqa: S608  nothing in it comes from outside

# What comes back of another month makes no room in this one; what tiers and commitments make of this one does.
IN_ALL = """
    greatest(0, coalesce(sum(micros) FILTER (WHERE kind = 'reserved'), 0))
    + greatest(0, coalesce(sum(micros) FILTER (WHERE kind = 'outcome'), 0))
    + coalesce(sum(micros) FILTER (WHERE kind = 'adjustment'), 0)
"""
PAID_AHEAD = f"""
SELECT ({IN_ALL})::bigint FROM ({BESIDE}) beside LEFT JOIN marketplace_project project ON project.id = beside.project_id
LEFT JOIN marketplace_apitoken token ON token.id = beside.token_id
WHERE (%(project_id)s::text IS NULL OR project.public_id = %(project_id)s)
    AND (%(token_ids)s::text[] IS NULL OR token.public_id = ANY (%(token_ids)s))
"""  # noqa: S608  nothing in it comes from outside

Owner = Organization | Project | ApiToken


@dataclass(frozen=True)
class Committed:
    """What an owner has used since its month began, has set aside beside that, what shares of revenue that fall due in
    the month will ask, and what it burns in an hour at worst."""

    currency: str
    since: datetime
    spent_micros: int
    aside_micros: int
    shares_micros: int
    hourly_micros: int

    @property
    def month_micros(self) -> int:
        return self.spent_micros + self.aside_micros + self.shares_micros


def check(
    *, project: Project, token: ApiToken | None, worst_case_micros: int, hourly_micros: int, at: datetime
) -> None:
    """Raise BudgetExceeded where an order would pass a budget of its organization, project or token.

    `worst_case_micros` is the least that the order commits to (see above),
    `hourly_micros` its price per hour; `project.organization` is loaded. Of two
    orders at once the second waits until the first is over, so this is called
    in the order's transaction, before quota and funds are taken; on a refusal
    the caller rolls back. Costs nothing where nobody set a budget.
    """
    assert worst_case_micros >= 0
    assert hourly_micros >= 0
    for owner in _owners(project, token):
        if owner.has_budget:
            # The newest numbers, and nobody else between them and the order.
            locked = type(owner)._default_manager.select_for_update(no_key=True).get(pk=owner.pk)
            _check(locked, project.organization, month=worst_case_micros, hour=hourly_micros, at=at)


def lock(*, project: Project, token: ApiToken | None) -> None:
    """Lock the budgets that an order must keep, before quota and accounts; nothing where nobody set one."""
    for owner in _owners(project, token):
        if owner.has_budget:
            type(owner)._default_manager.select_for_update(no_key=True).get(pk=owner.pk)


def committed(owner: Owner, organization: Organization, *, at: datetime) -> Committed:
    """Return what an owner of this organization is committed to, in the terms of its budgets.

    Three queries, and of an organization those for its shares of revenue.
    """
    since = month_of(at)
    ((spent_micros, _),) = spent(organization, [(since, at)], at=at, owner=owner)
    spent_micros += _paid_ahead(owner, organization, since=since)
    with connection.cursor() as cursor:
        cursor.execute(COMMITTED, {"organization": organization.pk, "now": at, **_words(owner)})
        aside_micros, hourly_micros = cursor.fetchone()
    shares = expecting.in_month([organization.pk], at=at) if isinstance(owner, Organization) else {}
    shares_micros = shares.get(organization.pk, 0)
    return Committed(organization.currency, since, spent_micros, aside_micros, shares_micros, hourly_micros)


def _paid_ahead(owner: Owner, organization: Organization, *, since: datetime) -> int:
    """Return what was paid ahead for reservations since a moment, less what was given back, and what tiers and
    commitments made of the whole organization's use."""
    with connection.cursor() as cursor:
        cursor.execute(PAID_AHEAD, {"organizations": [organization.pk], "since": since, **_words(owner)})
        paid: int = cursor.fetchone()[0]
    return paid


def spent(
    organization: Organization,
    stretches: Sequence[tuple[datetime, datetime]],
    *,
    at: datetime,
    owner: Owner | None = None,
) -> list[tuple[int, int]]:
    """Return for each stretch what use cost in it until `at`, and what burns per hour of what is still open in it."""
    return _of_stretches(SPENT, organization, stretches, at=at, owner=owner or organization)


def cost(
    organization: Organization, stretches: Sequence[tuple[datetime, datetime]], *, at: datetime
) -> list[tuple[int, int]]:
    """Return the same with all that stands beside use: hours paid ahead, results, tiers and commitments. One query."""
    return _of_stretches(COST, organization, stretches, at=at, owner=organization)


def _of_stretches(
    statement: str,
    organization: Organization,
    stretches: Sequence[tuple[datetime, datetime]],
    *,
    at: datetime,
    owner: Owner,
) -> list[tuple[int, int]]:
    began, till = [begin for begin, _ in stretches], [end for _, end in stretches]
    given: dict[str, Any] = {
        "organization": organization.pk,
        "organizations": [organization.pk],
        "now": at,
        "began": began,
    }
    with connection.cursor() as cursor:
        cursor.execute(statement, given | {"till": till, "since": min(began), **_words(owner)})
        return [(micros, burn) for _, micros, burn in cursor.fetchall()]


def _owners(project: Project, token: ApiToken | None) -> list[Owner]:
    """Return whose budgets an order must keep, in the order of their locks.

    A token's makers are among them: a token that is kept short cannot make one that is not.
    """
    makers = []
    while token is not None:
        makers.append(token)
        token = token.made_by
    return [project.organization, project, *reversed(makers)]


def _words(owner: Owner) -> dict[str, Any]:
    """Return what tells apart whatever is this owner's; a token's is also what those that it made order."""
    if isinstance(owner, ApiToken):
        return {"project_id": None, "token_ids": made_by(owner)}
    return {"project_id": owner.public_id if isinstance(owner, Project) else None, "token_ids": None}


def made_by(token: ApiToken) -> list[str]:
    """Return the ids of a token and of all that it made, directly or not."""
    found, fresh = [token.public_id], [token.pk]
    while fresh:
        rows = ApiToken.objects.filter(made_by__in=fresh).values_list("pk", "public_id")
        fresh = [pk for pk, _ in rows]
        found += [public_id for _, public_id in rows]
    return found


def budgets_of(owner: Owner, organization: Organization) -> QuerySet[Budget]:
    """Return an owner's budgets for a month, one for each thing that is counted."""
    project = owner if isinstance(owner, Project) else None
    token = owner if isinstance(owner, ApiToken) else None
    return Budget.objects.filter(organization=organization, project=project, token=token)


def _check(owner: Owner, organization: Organization, *, month: int, hour: int, at: datetime) -> None:
    now = committed(owner, organization, at=at)
    words = {"owner": _name(owner), "since": f"{now.since:%Y-%m-%d}"}
    refusing = budgets_of(owner, organization).exclude(action=Budget.Action.ALERT) if owner.has_monthly_budget else ()
    for budget in refusing:
        if budget.counts != MONEY and budget.passed_at is not None:
            raise BudgetExceeded(gettext("A monthly budget of %(owner)s is used up.") % words)
        if budget.counts == MONEY and now.month_micros + month > budget.amount:
            raise BudgetExceeded(_month_passed(now, month, budget, words))
    if owner.hourly_budget_micros is not None and now.hourly_micros + hour > owner.hourly_budget_micros:
        sums = {
            "running": now.hourly_micros, "wanted": hour, "total": now.hourly_micros + hour,
            "budget": owner.hourly_budget_micros,
        }  # fmt: skip
        raise BudgetExceeded(
            gettext(
                "It would pass the hourly budget of %(owner)s: %(running)s an hour committed + %(wanted)s for this = "
                "%(total)s of %(budget)s an hour."
            )
            % (words | _shown(sums, now.currency))
        )


def _month_passed(now: Committed, month: int, budget: Budget, words: dict[str, str]) -> str:
    """Return the arithmetic of a month's budget that an order would pass."""
    text = gettext(
        "It would pass the monthly budget of %(owner)s: %(spent)s used since %(since)s (UTC) + %(aside)s "
        "set aside + %(wanted)s for this = %(total)s of %(budget)s."
    )
    if now.shares_micros:
        text = gettext(
            "It would pass the monthly budget of %(owner)s: %(spent)s used since %(since)s (UTC) + %(aside)s "
            "set aside + %(shares)s for shares of revenue that fall due this month + %(wanted)s for this = "
            "%(total)s of %(budget)s."
        )
    sums = {
        "spent": now.spent_micros, "aside": now.aside_micros, "shares": now.shares_micros, "wanted": month,
        "total": now.month_micros + month, "budget": budget.amount,
    }  # fmt: skip
    return text % (words | _shown(sums, now.currency))


def _name(owner: Owner) -> str:
    if isinstance(owner, ApiToken):
        return gettext("the token %(name)s") % {"name": owner.name}
    if isinstance(owner, Project):
        return gettext("the project %(name)s") % {"name": owner.name}
    return gettext("the organization")


def _shown(sums: dict[str, int], currency: str) -> dict[str, str]:
    return {name: shown(micros, currency) for name, micros in sums.items()}
