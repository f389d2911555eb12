"""What a bid must be and the money behind it. No hold, no bid: a bid without funds takes part in no auction."""

from datetime import datetime, timedelta
from functools import partial

from django.utils.translation import gettext

from billing import floating, holds, prices, rating
from billing.models import PriceVersion
from marketplace import reserved_quotas, spend
from marketplace.errors import BadOrder
from marketplace.models import ApiToken, Bid, Offer, Project, SpotTerms
from marketplace.money import shown
from provisioning import interruptions, quotas
from provisioning.models import CHARGED_PHASES, STARTING, Instance

# A bid may wait for long; after this it must be confirmed by setting its price again.
FUNDS_LIFE = timedelta(days=30)
BY = "spot auction"


def terms_of(offer: Offer, *, currency: str) -> SpotTerms:
    """Return the terms by which an offer is sold by auction, or raise BadOrder."""
    terms = SpotTerms.objects.filter(offer=offer, is_enabled=True).first()
    if terms is None or not offer.is_listed:
        raise BadOrder("offer", gettext("%(offer)s is not sold by auction.") % {"offer": offer.name})
    if terms.currency != currency:
        raise BadOrder(
            "offer",
            gettext("Bids for %(offer)s are in %(theirs)s, and your organization pays in %(ours)s.")
            % {"offer": offer.name, "theirs": terms.currency, "ours": currency},
        )
    return terms


def ceiling_micros(terms: SpotTerms, *, at: datetime) -> int | None:
    """Return the most that may be bid, today's price on demand; None where the offer has none."""
    found = prices.current(skus=[terms.offer.sku], currency=terms.currency, at=at).get(terms.offer.sku)
    return None if found is None else found.micros_per_unit_hour


def check_price(terms: SpotTerms, price_micros: int, *, at: datetime) -> None:
    """Raise BadOrder for a price below the reserve, above the price on demand, or between two steps of the grid."""
    ceiling = ceiling_micros(terms, at=at)
    reserve, grid = terms.reserve_micros, terms.grid_micros

    def amount(micros: int) -> str:
        return shown(micros, terms.currency, exact=True)

    if price_micros < reserve:
        message = gettext("The reserve is %(reserve)s per GPU-hour; a lower bid never wins.")
        raise BadOrder("max_price", message % {"reserve": amount(reserve)})
    if ceiling is not None and price_micros > ceiling:
        message = gettext("On demand it costs %(price)s per GPU-hour; nobody needs to bid more.")
        raise BadOrder("max_price", message % {"price": amount(ceiling)})
    if price_micros % grid:
        message = gettext("Bid in steps of %(grid)s, such as %(below)s or %(above)s.")
        below = price_micros - price_micros % grid
        raise BadOrder(
            "max_price", message % {"grid": amount(grid), "below": amount(below), "above": amount(below + grid)}
        )


def check_covers(instance: Instance, price_micros: int, terms: SpotTerms, *, at: datetime) -> None:
    """Raise BadOrder for a price below what the instance pays now: nobody pays more than they bid.

    What has won pays that from the moment it runs, however long it waits for its GPUs.
    """
    has_won = instance.phase in STARTING and instance.admitted_at is not None
    if not has_won and instance.phase not in CHARGED_PHASES:
        return
    pays_micros = floating.price_now(interruptions.price_of(instance), at=at)
    if price_micros < pays_micros:
        message = gettext("It pays %(price)s per GPU-hour now; bid that or more, or stop it.")
        if has_won:
            message = gettext("It has won its GPUs at %(price)s per GPU-hour; bid that or more, or stop it.")
        raise BadOrder("max_price", message % {"price": shown(pays_micros, terms.currency, exact=True)})


def funds_micros(terms: SpotTerms, *, price_micros: int, gpus: int) -> int:
    """Return what a bid holds: its price for its GPUs over one interval and one notice."""
    milliseconds = 1000 * (terms.interval_s + terms.min_notice_s)
    return rating.amount_micros(micros_per_unit_hour=price_micros, unit_milliseconds=gpus * milliseconds)


def series_of(terms: SpotTerms, *, at: datetime) -> PriceVersion:
    """Return the floating price of an offer; it opens at the reserve."""
    return floating.open_series(
        sku=terms.offer.spot_sku,
        currency=terms.currency,
        micros_per_unit_hour=terms.reserve_micros,
        by=BY,
        at=at,
    )


def hold(
    *,
    project: Project,
    terms: SpotTerms,
    resource_id: str,
    key: str,
    price_micros: int,
    gpus: int,
    token: ApiToken | None,
    is_paid: bool,
    at: datetime,
) -> None:
    """Look at the budgets, take quota and hold what a bid needs, in place of what its instance held before.

    The GPUs that it holds of quotas already it keeps, whatever the limits are now. Where somebody else pays, a bid
    needs no funds of its organization. Raises BudgetExceeded, QuotaExceeded or InsufficientFunds; the caller then
    rolls back.
    """
    micros = 0 if is_paid else funds_micros(terms, price_micros=price_micros, gpus=gpus)
    per_hour = 0 if is_paid else price_micros * gpus
    token_id = token.pk if token else None
    spend.lock(project=project, token=token)  # As whoever rents: budgets before quota before accounts.
    before = quotas.price_held(holder=resource_id)
    quotas.reprice(holder=resource_id, micros_per_hour=0)  # So that budgets do not count it twice.
    holds.void_for(resource_id=resource_id, at=at)
    spend.check(project=project, token=token, worst_case_micros=micros, hourly_micros=per_hour, at=at)
    if before is not None:
        quotas.bid_anew(holder=resource_id, micros_per_hour=per_hour, before=before, token_id=token_id)
    else:
        take = partial(
            quotas.take,
            holder=resource_id,
            project_id=project.pk,
            gpu_model=terms.offer.gpu_model,
            gpus=gpus,
            micros_per_hour=per_hour,
            market=Instance.Market.SPOT,
            token_id=token_id,
        )
        reserved_quotas.take(take, at=at)
    if is_paid:
        return
    holds.place(
        key=f"bid:{key}",
        organization=project.organization,
        amount_micros=micros,
        purpose="bid",
        resource_id=resource_id,
        expires_at=at + FUNDS_LIFE,
    )


def hold_for_run(instance: Instance, *, token: ApiToken | None, at: datetime) -> None:
    """Hold what the bid of an instance needs whose price was set or that was just queued for a new run."""
    bid = Bid.objects.get(instance=instance)
    hold(
        project=instance.project,
        terms=terms_of(instance.offer, currency=instance.project.organization.currency),
        resource_id=instance.public_id,
        key=f"{instance.public_id}:{bid.revision}:{instance.run}",
        price_micros=bid.price_micros,
        gpus=instance.gpus,
        token=token,
        is_paid=bool(instance.paid_by),
        at=at,
    )
