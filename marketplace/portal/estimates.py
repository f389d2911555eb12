"""What an order of the launch form would cost, and whether it could start now."""

from dataclasses import dataclass

from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from billing import accounts
from marketplace import access, costs, limits, rentals
from marketplace.errors import BadOrder
from marketplace.models import Acceptance, Offer, Project, Reservation
from marketplace.money import shown
from marketplace.offers import Listing
from marketplace.portal import attaching, bidding
from marketplace.portal.attaching import Check
from marketplace.portal.doors import Visit
from provisioning import images
from provisioning.models import Instance


@dataclass(frozen=True)
class Estimate:
    """What the draft would cost and whether it could start now. Amounts are micros of `currency`."""

    currency: str
    gpus: int
    per_gpu_hour: int
    per_second: int
    per_hour: int
    per_day: int
    fits: bool
    checks: list[Check]
    reservation: Reservation | None = None
    under: Acceptance | None = None

    @property
    def missing(self) -> list[Check]:
        """What keeps the order from being taken now."""
        return [check for check in self.checks if not check.good]


def on_demand(project: Project, listing: Listing, gpus_each: int, replicas: int) -> Estimate:
    """Price an order and see whether size, quota, credit and free GPUs allow it. Two queries."""
    gpus, price = gpus_each * replicas, listing.price
    second, hour, day = costs.rates(micros_per_unit_hour=price.micros_per_unit_hour, quantity=gpus)
    wallet = accounts.wallet(organization=project.organization)
    capacity = _capacity_check(listing, gpus_each, gpus)
    return Estimate(
        currency=price.currency,
        gpus=gpus,
        per_gpu_hour=price.micros_per_unit_hour,
        per_second=second,
        per_hour=hour,
        per_day=day,
        fits=capacity.good,
        checks=[
            _size_check(listing, gpus_each, replicas),
            capacity,
            _quota_check(project, listing.offer, gpus, Instance.Market.ON_DEMAND),
            _credit_check(wallet, hour),
        ],
    )


def inside(found: attaching.Attaching, project: Project, listing: Listing, gpus_each: int, replicas: int) -> Estimate:
    """See whether a reservation has room for an order; nothing more is charged for it. One query."""
    gpus = gpus_each * replicas
    return Estimate(
        currency=listing.price.currency, gpus=gpus, per_gpu_hour=0, per_second=0, per_hour=0, per_day=0, fits=True,
        reservation=found.covering(gpus),
        checks=[
            _size_check(listing, gpus_each, replicas),
            found.room_check(gpus),
            _quota_check(project, listing.offer, gpus, Instance.Market.ON_DEMAND),
        ],
    )  # fmt: skip


def under_share(agreed: Acceptance, project: Project, listing: Listing, gpus_each: int, replicas: int) -> Estimate:
    """See whether an order could run under a share of revenue, which pays for its hours. One query."""
    gpus, price = gpus_each * replicas, listing.price
    second, hour, day = costs.rates(micros_per_unit_hour=price.micros_per_unit_hour, quantity=gpus)
    capacity = _capacity_check(listing, gpus_each, gpus)
    return Estimate(
        currency=price.currency, gpus=gpus, per_gpu_hour=price.micros_per_unit_hour, per_second=second, per_hour=hour,
        per_day=day, fits=capacity.good, under=agreed,
        checks=[
            _size_check(listing, gpus_each, replicas),
            capacity,
            _quota_check(project, listing.offer, gpus, Instance.Market.ON_DEMAND),
        ],
    )  # fmt: skip


def _size_check(listing: Listing, gpus_each: int, replicas: int) -> Check:
    try:
        rentals.check_size(rentals.Order(offer=listing.offer, command=[], gpus=gpus_each, replicas=replicas))
    except BadOrder as error:
        return Check(False, str(error))
    return Check(True, _("The offer allows this size."))


def image_check(project: Project, image: str) -> Check:
    """Say where the image is pulled from and as whom. One query."""
    if not image:
        return Check(False, _("This offer runs images; name one."))
    try:
        host = images.parse(image).host
    except images.BadImage as error:
        return Check(False, str(error))
    login = access.registries(project).filter(host=host).first()
    if login is None:
        return Check(True, _("The image is pulled from %(host)s as a public one, without a user.") % {"host": host})
    texts = {"host": host, "user": login.username}
    return Check(True, _("The image is pulled from %(host)s as %(user)s.") % texts)


def _capacity_check(listing: Listing, gpus_each: int, gpus: int) -> Check:
    if gpus <= listing.available_gpus and gpus_each <= listing.largest_replica:
        text = ngettext("%(free)s GPU is free now.", "%(free)s GPUs are free now.", listing.available_gpus)
        return Check(True, text % {"free": listing.available_gpus})
    text = ngettext(
        "%(free)s GPU is free now, at most %(most)s on one node.",
        "%(free)s GPUs are free now, at most %(most)s of them on one node.",
        listing.available_gpus,
    )
    return Check(
        False,
        text % {"free": listing.available_gpus, "most": listing.largest_replica},
        _("Ask for fewer GPUs, or choose another offer."),
    )


def of_bid(
    visit: Visit, project: Project, listing: Listing, bid: bidding.Bidding, *, gpus_each: int, replicas: int
) -> Estimate:
    """Price a bid at its worst, and see whether size, price, quota and credit allow it."""
    second, hour, day = costs.rates(micros_per_unit_hour=bid.price_micros or 0, quantity=bid.gpus)
    problem = bidding.price_problem(bid, visit)
    has_funds, funds = bidding.funds_text(bid, accounts.wallet(organization=project.organization))
    return Estimate(
        currency=bid.currency,
        gpus=bid.gpus,
        per_gpu_hour=bid.price_micros or 0,
        per_second=second,
        per_hour=hour,
        per_day=day,
        fits=True,  # What bids waits, and does not need GPUs now.
        checks=[
            _size_check(listing, gpus_each, replicas),
            Check(not problem, problem or _("The auction takes this bid.")),
            _quota_check(project, listing.offer, bid.gpus, Instance.Market.SPOT),
            Check(has_funds, funds, "" if has_funds else _("Add credit, or choose fewer GPUs.")),
        ],
    )


def _quota_check(project: Project, offer: Offer, gpus: int, market: Instance.Market) -> Check:
    """Say how the tightest limit stands that this order is counted by. One query."""
    tightest = limits.tightest(project, gpu_model=offer.gpu_model, market=market)
    text = ngettext(
        "Quota of %(project)s: %(held)s of %(limit)s GPU is held or reserved.",
        "Quota of %(project)s: %(held)s of %(limit)s GPUs are held or reserved.",
        tightest.limit,
    ) % {
        "project": tightest.project.name if tightest.project else project.organization.name,
        "held": f"{tightest.taken:,}",
        "limit": f"{tightest.limit:,}",
    }
    if gpus <= tightest.free:
        return Check(True, text)
    return Check(False, text, _("Terminate what you do not need, or ask for a higher limit."))


def _credit_check(wallet: accounts.Wallet, first_hour_micros: int) -> Check:
    texts = {
        "free": shown(wallet.available_micros, wallet.currency),
        "hour": shown(first_hour_micros, wallet.currency),
    }
    if first_hour_micros <= wallet.available_micros:
        return Check(True, _("%(free)s of credit is free; the first hour (%(hour)s) is set aside.") % texts)
    return Check(
        False,
        _("The first hour costs %(hour)s; %(free)s of credit is free.") % texts,
        _("Add credit, or choose fewer GPUs."),
    )
