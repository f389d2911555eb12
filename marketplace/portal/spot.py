"""Auctions and bids: the history of a price, one auction, one's own bids, and what to do about an interruption."""

from datetime import timedelta

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect
from django.utils.translation import gettext as _

from marketplace import access, offers, risk, spot, spot_market
from marketplace.errors import BadOrder
from marketplace.models import Bid
from marketplace.money import plain
from marketplace.money import shown as written
from marketplace.portal import bidding, price_chart
from marketplace.portal.doors import Visit, page
from provisioning import interruptions

PAGE = 50
AUCTIONS = 10
POINTS = 96
SPANS = {"hour": timedelta(hours=1), "day": timedelta(days=1), "week": timedelta(days=7)}


@page()
def shown(visit: Visit, offer_id: str) -> HttpResponse:
    """Show what an offer costs by auction: now, before, how many GPUs are asked for, and the last auctions."""
    organization = visit.organization(verb="bid.view")
    offer = offers.offer_for(offer_id)
    found = spot_market.spot_for(offer, at=visit.at)
    chosen = visit.query("span") if visit.query("span") in SPANS else "day"
    since = visit.at - SPANS[chosen]
    history = spot_market.history(offer, since=since, until=visit.at, points=POINTS)
    context = {
        "offer": offer,
        "found": found,
        "terms": found.terms,
        "cap_gpus": found.cap_gpus,
        "likely": risk.of_offer(offer, at=visit.at),
        "chart": price_chart.draw(history, currency=found.terms.currency, since=since, until=visit.at),
        "history": list(reversed(history)),
        "span": chosen,
        "is_day": chosen != "week",
        "auctions": list(spot_market.auctions(offer)[:AUCTIONS]),
        "may_bid": access.may(visit.actor, organization, "bid.change")
        and found.terms.currency == organization.currency,
    }
    return visit.live_page("spot/show.html", "live", context)


@page()
def auction(visit: Visit, offer_id: str, auction_id: str) -> HttpResponse:
    """Show one auction without its bids, but for one's own."""
    visit.organization(verb="bid.view")
    offer = offers.offer_for(offer_id)
    held = spot_market.auction_for(offer, auction_id)
    context = {
        "offer": offer,
        "held": held,
        "published": spot_market.published(held),
        "mine": spot_market.own_bids(held, access.bids(visit.actor)),
    }
    return visit.page("spot/auction.html", context)


@page()
def listed(visit: Visit) -> HttpResponse:
    """List the organization's bids and where each stands; those whose instance ended only on request."""
    organization = visit.organization(verb="bid.view")
    rows = access.bids(visit.actor).filter(project__organization=organization)
    everything = visit.query("all") == "true"
    rows = rows if everything else rows.exclude(instance__desired="terminated")
    context = {
        "standings": spot_market.standings(list(rows.order_by("-pk")[:PAGE])),
        "everything": everything,
        "may_change": access.may(visit.actor, organization, "bid.change"),
    }
    return visit.live_page("bids/list.html", "rows", context)


@page("GET", "HEAD", "POST")
def change(visit: Visit, bid_id: str) -> HttpResponse:
    """Show a bid with what changing it means; then set its price."""
    bid = access.bid_for(visit.actor, bid_id, verb="bid.change")
    if visit.request.method != "POST":
        return _form(visit, bid, typed=plain(bid.price_micros))
    typed = visit.text("max_price")
    micros = bidding.micros_of(typed)
    if micros is None:
        return _form(visit, bid, typed=typed, error=bidding.amount_error())
    expected = bidding.micros_of(visit.text("expected"))
    told = interruptions.open_of(bid.instance)
    try:
        spot.change(actor=visit.actor, bid=bid, max_price_micros=micros, at=visit.at, expected_micros=expected)
    except BadOrder as error:
        return _form(visit, bid, typed=typed, error=str(error))
    _say_changed(visit, bid, was_told=told is not None)
    return redirect("bids")


def _say_changed(visit: Visit, bid: Bid, *, was_told: bool) -> None:
    texts = {
        "name": bid.instance.name,
        "price": written(bid.price_micros, bid.instance.price_version.currency, exact=True),
    }
    if not was_told:
        messages.success(visit.request, _("%(name)s bids %(price)s per GPU-hour from now on.") % texts)
    elif interruptions.open_of(bid.instance) is None:
        messages.success(
            visit.request, _("%(name)s bids %(price)s and goes on: the interruption is called off.") % texts
        )
    else:
        text = _("%(name)s bids %(price)s from now on. That does not call its interruption off; it counts next time.")
        messages.warning(visit.request, text % texts)


def _form(visit: Visit, bid: Bid, *, typed: str, error: str = "") -> HttpResponse:
    (standing,) = spot_market.standings([bid])
    context = {
        "standing": standing,
        "bid": bid,
        "found": spot_market.spot_for(bid.offer, at=visit.at),
        "typed": typed,
        "expected": plain(bid.price_micros),
        "error": error,
        "actions": spot_market.actions(bid),
    }
    return visit.page("bids/change.html", context, status=422 if error else 200)


@page("GET", "HEAD", "POST")
def withdraw(visit: Visit, bid_id: str) -> HttpResponse:
    """Ask before taking a bid back; then do it."""
    bid = access.bid_for(visit.actor, bid_id, verb="bid.change")
    if visit.request.method == "POST":
        spot.withdraw(actor=visit.actor, bid=bid, at=visit.at)
        messages.success(visit.request, _("The bid of %(name)s is withdrawn.") % {"name": bid.instance.name})
        return redirect("bids")
    (standing,) = spot_market.standings([bid])
    context = {"bid": bid, "standing": standing, "refusal": spot_market.actions(bid)["withdraw"]}
    return visit.page("bids/withdraw.html", context)


@page("GET", "HEAD", "POST")
def interrupt(visit: Visit, instance_id: str) -> HttpResponse:
    """Ask before simulating an interruption; then do it."""
    instance = access.instance_for(visit.actor, instance_id, verb="instance.change")
    if visit.request.method == "POST":
        told = spot.simulate_interruption(actor=visit.actor, instance=instance, at=visit.at)
        texts = {"name": instance.name, "seconds": told.min_notice_s}
        messages.success(visit.request, _("%(name)s has %(seconds)s s of notice, then it bids again.") % texts)
        return redirect("instance", instance.public_id)
    bid = access.bids(visit.actor).filter(instance=instance).first()
    found = spot_market.spot_for(instance.offer, at=visit.at) if bid is not None else None
    is_possible = bid is not None and not spot_market.actions(bid)["simulate_interruption"]
    return visit.page(
        "bids/interrupt.html", {"instance": instance, "found": found, "bid": bid, "is_possible": is_possible}
    )
