"""Launching: one form with the price beside it, checked while typing, done once however often it is sent."""

import re
import secrets
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect
from django.utils.translation import gettext as _

from marketplace import access, idempotency, offers, rentals, spot
from marketplace.errors import BadOrder, Conflict, NotFound
from marketplace.models import Acceptance, Offer, Project
from marketplace.money import plain
from marketplace.offers import Listing
from marketplace.portal import attaching, bidding, commands, errors, estimates, excluding, mounting, waits
from marketplace.portal.attaching import Check
from marketplace.portal.doors import REFUSALS, Visit, page
from marketplace.revenue_share import covering
from provisioning.models import Instance
from provisioning.volumes import Use

FIELDS = (
    "offer",
    "gpus",
    "replicas",
    "name",
    "command",
    "env",
    "project",
    "image",
    "ports",
    "lease",
    "on_failure",
    "volumes",
    "max_price",
    "hours",
    "market",
    "bid_price",
    "attach",
    "contract",
)
WHOLE_NUMBER = re.compile(r"^[0-9]{1,6}$")
ROUTE = "portal/launch"


@dataclass
class Draft:
    """What is typed in the form, as typed, and what is wrong with it by field."""

    typed: dict[str, str]
    key: str
    errors: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, visit: Visit) -> Self:
        """Return what was sent; what stands in exactly as typed (a command or a variable) is not normalised."""
        typed = {name: visit.raw(name) if name in {"command", "env"} else visit.text(name) for name in FIELDS}
        typed["volumes"] = mounting.read(visit)
        return cls(typed=typed, key=visit.text("key"))

    @classmethod
    def begin(cls, query: Mapping[str, str]) -> Self:
        """Return a new form, filled with what its address names."""
        typed = {name: query.get(name, "") for name in FIELDS}
        typed |= {name: typed[name] or "1" for name in ("gpus", "replicas")}
        typed["market"] = typed["market"] if typed["market"] == bidding.MARKET else ""
        typed["lease"] = typed["lease"] or Instance.Lease.STICKY
        return cls(typed=typed, key=secrets.token_urlsafe(24))

    def number(self, name: str) -> int:
        """Return a whole number that was typed, or 0 with an error written beside it."""
        if WHOLE_NUMBER.match(self.typed[name]):
            return int(self.typed[name])
        self.errors[name] = _("Type a whole number, such as 1.")
        return 0

    def command(self) -> list[str]:
        """Return the command as a program and its arguments, split as a shell would."""
        try:
            return shlex.split(self.typed["command"])
        except ValueError:
            self.errors["command"] = _("A quotation mark is not closed.")
            return []

    def env(self) -> dict[str, str]:
        """Return the variables, one NAME=VALUE a line."""
        found = {}
        for line in self.typed["env"].splitlines():
            name, sign, value = line.partition("=")
            if not line.strip():
                continue
            if not sign:
                self.errors["env"] = _("Write one NAME=VALUE a line; this line has no “=”: %(line)s") % {"line": line}
            found[name.strip()] = value
        return found

    def ports(self) -> list[int]:
        """Return the ports, with commas or blanks between them."""
        words = self.typed["ports"].replace(",", " ").split()
        if all(WHOLE_NUMBER.match(word) for word in words):
            return [int(word) for word in words]
        self.errors["ports"] = _("Write numbers with commas between them, such as 80, 8080.")
        return []

    @property
    def restarts(self) -> bool:
        return self.typed["on_failure"] == Instance.OnFailure.RESTART

    def running(self, offer: Offer) -> dict[str, Any]:
        """Return how it is to run. What the form does not show for an offer's runtime is left out."""
        takes_image = offer.runtime == Offer.Runtime.PODMAN
        return {
            "image": self.typed["image"] if takes_image else "",
            "ports": self.ports() if takes_image else [],
            "lease": self.typed["lease"] or Instance.Lease.STICKY,
        }

    @property
    def bids(self) -> bool:
        """Whether it is to be bid for instead of rented."""
        return self.typed["market"] == bidding.MARKET

    def max_price_micros(self) -> int:
        """Return the bid that was typed, or 0 with an error written beside it."""
        micros = bidding.micros_of(self.typed["bid_price"])
        if micros is None:
            self.errors["bid_price"] = bidding.amount_error()
        return micros or 0

    def uses(self, project: Project) -> list[Use]:
        """Return the volumes that were chosen, or none with an error beside them."""
        try:
            return mounting.uses(project, self.typed["volumes"])
        except BadOrder as error:
            self.errors["volumes"] = str(error)
            return []

    def under(self, project: Project) -> Acceptance | None:
        """Return the share of revenue that is to pay for its hours, or None with an error where it is nobody's."""
        if not self.typed["contract"]:
            return None
        try:
            return covering.agreement(project.organization, self.typed["contract"])
        except BadOrder as error:
            self.errors["contract"] = str(error)
            return None

    def order(self, project: Project, listing: Listing) -> rentals.Order | None:
        """Return the order, or None with every error written beside its field."""
        order = rentals.Order(
            offer=listing.offer,
            command=self.command(),
            gpus=self.number("gpus"),
            replicas=self.number("replicas"),
            name=self.typed["name"],
            env=self.env(),
            **self.running(listing.offer),
            on_failure=Instance.OnFailure.RESTART if self.restarts else Instance.OnFailure.STOP,
            uses=self.uses(project),
            under=None if self.bids else self.under(project),
            **({} if self.bids else attaching.ordered(project, listing.offer, self.typed["attach"])),
        )
        if not self.errors:
            try:
                rentals.check(order)
            except BadOrder as error:
                self.errors[error.field] = str(error)
        return None if self.errors else order


@page("GET", "HEAD", "POST")
def launch(visit: Visit) -> HttpResponse:
    """Show the form, or launch what it says and go to the new instance."""
    if visit.request.method != "POST":
        return _form(visit, Draft.begin(visit.request.GET.dict()))
    draft = Draft.read(visit)
    project = access.project_for(visit.actor, draft.typed["project"] or None, verb="instance.change")
    listing = _chosen(_listings(visit, project.organization.currency), draft, {})
    max_price_micros = draft.max_price_micros() if draft.bids else 0
    order = draft.order(project, listing) if listing else None
    if order is None:
        return _form(visit, draft, status=422)
    if visit.text("wait") and order.under is None:
        return _wait(visit, project, order, draft)
    try:
        instance_id = _order_once(visit, project, order, draft, max_price_micros=max_price_micros)
    except REFUSALS as error:
        return _refused(visit, draft, error)
    if draft.bids:
        messages.success(visit.request, _("Your bid is in. It starts when an auction gives it its GPUs."))
    else:
        messages.success(visit.request, _("Your order is in. Billing starts when the instance is ready."))
    return redirect("instance", instance_id)


def _wait(visit: Visit, project: Project, order: rentals.Order, draft: Draft) -> HttpResponse:
    """Let the order wait, and go to the list where its place in the queue stands."""
    try:
        waits.begin(visit, project, order, draft.typed, key=draft.key)
    except REFUSALS as error:
        return _refused(visit, draft, error)
    return redirect("waits")


def _order_once(visit: Visit, project: Project, order: rentals.Order, draft: Draft, *, max_price_micros: int) -> str:
    """Rent or bid and return the instance's id; the same form sent again returns the same one."""

    def place() -> tuple[int, Any]:
        if draft.bids:
            access.project_for(visit.actor, project.public_id, verb="bid.change")
            placed = spot.bid(
                actor=visit.actor, project=project, order=order, max_price_micros=max_price_micros, at=visit.at
            )
            return 202, {"id": placed.instance.public_id}
        instance: Instance = rentals.rent(actor=visit.actor, project=project, order=order, at=visit.at)
        return 202, {"id": instance.public_id}

    answer = idempotency.once(
        organization=project.organization, route=ROUTE, key=draft.key, order=draft.typed, effect=place
    )
    return str(answer.body["id"])


def _refused(visit: Visit, draft: Draft, error: Exception) -> HttpResponse:
    """Show the form again with all that was typed and why it was refused."""
    refusal = errors.refusal_of(error, reference=visit.actor.request_id)
    if isinstance(error, idempotency.KeyOfAnotherOrder | idempotency.KeyMissing):
        draft.key = secrets.token_urlsafe(24)
    if isinstance(error, BadOrder) and error.field in FIELDS:
        # The form has two prices: the most that a bid pays, and the most that a waiting order pays.
        draft.errors["bid_price" if draft.bids and error.field == "max_price" else error.field] = str(error)
        return _form(visit, draft, status=refusal.status)
    if isinstance(error, Conflict):
        draft.errors["name"] = str(error)
        return _form(visit, draft, status=refusal.status)
    return _form(visit, draft, status=refusal.status, refusal=refusal)


@page("POST")
def estimate(visit: Visit) -> HttpResponse:
    """Return the cost box for what is typed so far, and other fields where another offer takes others."""
    context = _context(visit, Draft.read(visit))
    listing = context["listing"]
    if visit.query("part") == "volumes":
        return visit.page("launch.html#volumes", context)
    is_other = listing is not None and visit.text("volumes_for") != context["volumes_for"]
    return visit.page(f"launch.html#{'news' if is_other else 'cost'}", {**context, "is_news": True})


def _form(visit: Visit, draft: Draft, *, status: int = 200, refusal: errors.Refusal | None = None) -> HttpResponse:
    return visit.page("launch.html", {**_context(visit, draft), "refusal": refusal}, status=status)


def _context(visit: Visit, draft: Draft) -> dict[str, Any]:
    organization = visit.organization(verb="instance.change")
    projects = visit.projects(organization)
    project = next((one for one in projects if one.public_id == draft.typed["project"]), projects[0])
    listings = _listings(visit, organization.currency)
    excluded = excluding.excluded(project, listings)
    listing = _chosen(listings, draft, excluded)
    context: dict[str, Any] = {
        "draft": draft,
        "typed": draft.typed,
        "errors": draft.errors,
        "listings": listings,
        "listing": listing,
        "excluded": excluded,
        "projects": projects,
        "project": project,
        "takes_image": listing is not None and listing.offer.runtime == Offer.Runtime.PODMAN,
    }
    if listing is None:
        return context
    found_volumes = mounting.choices(visit, project, listing.offer, draft.typed["volumes"])
    context |= {"volumes": found_volumes, "volumes_for": f"{listing.offer.slug} {project.public_id}"}
    kept = attaching.attaching(project, listing.offer, chosen=draft.typed["attach"], at=visit.at)
    context["attaching"] = kept
    shares = context["shares"] = covering.choices(project.organization, listing.offer)
    under = next((one for one in shares if one.version.public_id == draft.typed["contract"]), None)
    numbers = Draft(typed=draft.typed, key="")
    gpus, replicas = numbers.number("gpus"), numbers.number("replicas")
    bid = context["bidding"] = bidding.bidding(
        visit,
        listing.offer,
        currency=project.organization.currency,
        market=draft.typed["market"],
        typed=draft.typed["bid_price"],
        gpus=gpus * replicas,
    )
    cli, curl = commands.launch(
        offer=listing.offer.slug,
        gpus=gpus or 1,
        replicas=replicas or 1,
        name=draft.typed["name"],
        command=numbers.command() or ([] if draft.typed["image"] and context["takes_image"] else ["COMMAND"]),
        env=numbers.env(),
        project=project.public_id if len(projects) > 1 else "",
        **_changed(numbers.running(listing.offer)),
        restarts=draft.restarts,
        reservation=draft.typed["attach"] if kept is not None and not draft.bids else "",
        contract=draft.typed["contract"] if under is not None and not draft.bids else "",
        max_price=plain(bid.price_micros) if bid is not None and bid.is_chosen and bid.price_micros else "",
        mounts=[
            mounting.Mount(one.volume.name, one.path, one.read_only and context["takes_image"])
            for one in found_volumes
            if one.is_chosen
        ],
    )
    found = None
    if not numbers.errors.keys() & {"gpus", "replicas"}:
        found = _estimate(visit, context, under, gpus, replicas)
    if found and not found.fits and under is None:
        context |= waits.offered(visit, project, listing, draft.typed)
    return {**context, "estimate": found, "cli": cli, "curl": curl}


def _estimate(
    visit: Visit, context: dict[str, Any], under: Acceptance | None, gpus: int, replicas: int
) -> estimates.Estimate:
    """Return what it costs by whichever way it is paid, with what else speaks against a launch."""
    project, listing, bid, kept = (context[name] for name in ("project", "listing", "bidding", "attaching"))
    if bid is not None and bid.is_chosen:
        found = estimates.of_bid(visit, project, listing, bid, gpus_each=gpus, replicas=replicas)
    elif under is not None:
        found = estimates.under_share(under, project, listing, gpus, replicas)
        if context["typed"]["attach"] not in {"", attaching.FORBID}:
            paid = _("Hours inside a reservation are paid for already.")
            found.checks.insert(0, Check(False, paid, _("Choose the contract or the reservation.")))
    elif kept is not None and kept.binds(gpus * replicas):
        found = estimates.inside(kept, project, listing, gpus, replicas)
    else:
        found = estimates.on_demand(project, listing, gpus, replicas)
    if listing.offer.pk in context["excluded"]:
        found.checks.insert(0, Check(False, context["excluded"][listing.offer.pk], _("Choose another offer.")))
    if context["takes_image"]:
        found.checks.append(estimates.image_check(project, context["typed"]["image"]))
    return found


def _changed(running: dict[str, Any]) -> dict[str, Any]:
    """Return how it is to run without what would be so anyway, for a command line that stays short."""
    return {name: value for name, value in running.items() if value != Instance.Lease.STICKY}


def _listings(visit: Visit, currency: str) -> list[Listing]:
    found = offers.listings(offers.listed(), currency=currency, at=visit.at)
    return sorted(found, key=lambda listing: listing.price.micros_per_unit_hour)


def _chosen(listings: list[Listing], draft: Draft, excluded: dict[int, str]) -> Listing | None:
    """Return the offer that the form names; without a name the cheapest that is free and that policies allow.

    Unknown names are NotFound.
    """
    wanted = draft.typed["offer"]
    if not wanted:
        allowed = [listing for listing in listings if listing.offer.pk not in excluded] or listings
        free = [listing for listing in allowed if listing.available_gpus] or allowed
        return free[0] if free else None
    for listing in listings:
        if wanted in {listing.offer.slug, listing.offer.public_id}:
            return listing
    raise NotFound
