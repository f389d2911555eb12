"""Renting on demand: what a customer can ask, from every door alike."""

import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import structlog
from django.db import transaction
from django.db.models import Q
from django.utils.translation import gettext, ngettext

from billing import holds, prices, rating, standing
from billing.collecting import Action
from billing.models import PriceVersion
from billing.public_ids import new_public_id
from marketplace import audit, bids, coverage, instance_texts, reserved_quotas, runtimes, spend, work_orders
from marketplace import volumes as kept
from marketplace.access import Actor
from marketplace.errors import BadOrder, ProjectSuspended
from marketplace.models import Acceptance, ApiToken, Offer, Project, Reservation
from marketplace.names import given_once
from marketplace.revenue_share import covering
from provisioning import calendar, instances, placement, prospects, quotas, volumes
from provisioning.errors import IllegalMove, NoCapacity, ProvisioningError
from provisioning.models import CHARGED_PHASES, Instance, Reason
from provisioning.placing.asking import LEVELS, SPREAD_OVER
from provisioning.work import NOTHING, Work

log = structlog.get_logger("marketplace.rentals")

HOUR_MS = 3_600_000
FIRST_HOUR_LIFE = timedelta(days=7)
NAME_SHAPE = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
ENV_NAME_SHAPE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
COMMAND_BYTES_MAX = 64 * 1024
ENV_BYTES_MAX = 64 * 1024
REPLICAS_MAX = 10_000


@dataclass(frozen=True)
class Order:
    """What is to be rented: `replicas` x `gpus` GPUs of an offer, running a command. Checked by `check`.

    `wish` is how to place it: `strategy`, `level`, `required`, `max_skew`.
    `image` and `ports` (inside it, to be published) are for offers that run
    images. `lease` says what the node does when it hears nothing from us,
    `on_failure` what we do when the node fails, `attach` whether it runs inside
    a reservation, and `reservation` in which one it has to. `work` is for what
    runs to an end; doors of instances take its counters alone. `under` is the
    share of revenue that pays for its hours. What we run ourselves to verify
    somebody's results takes none of their quota.
    """

    offer: Offer
    command: Sequence[str]
    gpus: int = 1
    replicas: int = 1
    name: str = ""
    env: Mapping[str, str] | None = None
    image: str = ""
    ports: Sequence[int] = ()
    lease: str = Instance.Lease.STICKY
    on_failure: str = Instance.OnFailure.STOP
    attach: str = Instance.Attach.AUTO
    reservation: Reservation | None = None
    uses: Sequence[volumes.Use] = ()
    wish: Mapping[str, Any] | None = None
    work: Work = NOTHING
    takes_quota: bool = True
    under: Acceptance | None = None


def price_of(offer: Offer, *, currency: str, at: datetime) -> PriceVersion:
    """Return today's price of an offer, or raise BadOrder when it is not sold in this currency."""
    price = prices.current(skus=[offer.sku], currency=currency, at=at).get(offer.sku)
    if price is None or not offer.is_listed:
        raise BadOrder(
            "offer",
            gettext("%(offer)s is not for sale in %(currency)s now.") % {"offer": offer.name, "currency": currency},
        )
    return price


def hourly_micros(*, price: PriceVersion, gpus: int) -> int:
    """Return what `gpus` GPUs cost for an hour, in micros of the price's currency."""
    return rating.amount_micros(micros_per_unit_hour=price.micros_per_unit_hour, unit_milliseconds=gpus * HOUR_MS)


def check(order: Order) -> None:
    """Raise BadOrder for the first thing that does not make sense, naming the field."""
    check_size(order)
    if order.name:
        _check_name(order.name)
    runtimes.check(offer=order.offer, image=order.image, ports=order.ports, command=order.command)
    _check_choice("lease", order.lease, Instance.Lease.values)
    _check_choice("on_failure", order.on_failure, Instance.OnFailure.values)
    _check_choice("attach", order.attach, Instance.Attach.values)
    _check_paid_once(order)
    _check_wish(order.wish or {})
    _check_command(order.command)
    _check_env(order.env or {})
    kept.check_uses(order.uses, offer=order.offer)
    work_orders.check(order.work, offer=order.offer, ports=order.ports, replicas=order.replicas)


def check_size(order: Order) -> None:
    """Raise BadOrder when the offer is not sold in this size."""
    offer, gpus = order.offer, order.gpus * order.replicas
    if order.gpus < 1:
        raise BadOrder("gpus", gettext("Ask for at least 1 GPU per replica."))
    if order.replicas < 1 or order.replicas > REPLICAS_MAX:
        raise BadOrder("replicas", gettext("Ask for 1 to %(most)s replicas.") % {"most": REPLICAS_MAX})
    if order.gpus > offer.gpus_per_node:
        raise BadOrder(
            "gpus",
            ngettext(
                "A replica runs on one node, and a node of %(offer)s has %(gpus)s GPU; ask for replicas.",
                "A replica runs on one node, and a node of %(offer)s has %(gpus)s GPUs; ask for replicas.",
                offer.gpus_per_node,
            )
            % {"offer": offer.name, "gpus": offer.gpus_per_node},
        )
    if not offer.min_gpus <= gpus <= offer.max_gpus:
        raise BadOrder(
            "gpus",
            gettext("%(offer)s is sold from %(fewest)s to %(most)s GPUs; you asked for %(gpus)s.")
            % {"offer": offer.name, "fewest": offer.min_gpus, "most": offer.max_gpus, "gpus": gpus},
        )


def check_possible(*, project: Project, order: Order, at: datetime) -> None:
    """Raise PolicyExcludes or NeverFits for an order that could not be placed, whatever was free."""
    placement.check_possible(instance=_as_instance(project, order), at=at, home=_home(order))


def kept_for(*, project: Project, order: Order, spares: frozenset[int]) -> frozenset[int] | None:
    """Return the nodes to keep for an order that finds no place: all (None) where GPUs are too few, else its own."""
    return prospects.kept_for(instance=_as_instance(project, order), home=_home(order), spares=spares)


def _as_instance(project: Project, order: Order) -> Instance:
    return Instance(
        project_id=project.pk, offer=order.offer, replicas=order.replicas, gpus_per_replica=order.gpus,
        placement=dict(order.wish or {}), avoid_nodes=list(order.work.avoid_nodes),
    )  # fmt: skip


def _home(order: Order) -> int | None:
    return volumes.home_of(use.volume for use in order.uses)


def _check_name(name: str) -> None:
    if not NAME_SHAPE.fullmatch(name):
        message = gettext("Use 1 to 63 lower-case letters, digits and hyphens; begin and end with a letter or digit.")
        raise BadOrder("name", message)


def _check_choice(field: str, given: str, known: Sequence[str]) -> None:
    if given not in known:
        raise BadOrder(field, gettext("Choose one of %(known)s.") % {"known": ", ".join(known)})


def _check_paid_once(order: Order) -> None:
    """Hours inside a reservation are paid for already: a share of revenue would count them again."""
    if order.under is not None and (order.reservation is not None or order.attach == Instance.Attach.STRICT):
        raise BadOrder(
            "contract",
            gettext("Hours inside a reservation are paid for already: name a contract or a reservation, not both."),
        )


def _check_wish(wish: Mapping[str, Any]) -> None:
    _check_choice("placement", wish.get("strategy", "pack"), ("pack", "spread"))
    level = wish.get("level", "node")
    _check_choice("placement", level, SPREAD_OVER if wish.get("strategy") == "spread" else LEVELS)


def _check_command(command: Sequence[str]) -> None:
    if command and not command[0]:
        raise BadOrder("command", gettext("Say what to run, as a list of the program and its arguments."))
    if sum(_bytes("command", part) for part in command) > COMMAND_BYTES_MAX:
        raise BadOrder("command", gettext("A command has at most %(most)s bytes.") % {"most": COMMAND_BYTES_MAX})


def _check_env(env: Mapping[str, str]) -> None:
    for name in env:
        if not ENV_NAME_SHAPE.fullmatch(name):
            raise BadOrder(
                "env", gettext("A variable's name has letters, digits and underscores and does not begin with a digit.")
            )
    if sum(len(name) + _bytes("env", value) for name, value in env.items()) > ENV_BYTES_MAX:
        raise BadOrder("env", gettext("All variables together have at most %(most)s bytes.") % {"most": ENV_BYTES_MAX})


def _bytes(field: str, text: str) -> int:
    """Return how long a text is for the node's operating system, which takes neither NUL nor half a character."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise BadOrder(field, gettext("There is half of a surrogate pair in it, which is no character.")) from error
    if "\x00" in text:
        raise BadOrder(field, gettext("It cannot contain NUL bytes."))
    return size


def rent(
    *,
    actor: Actor,
    project: Project,
    order: Order,
    at: datetime,
    spares: frozenset[int] | None = None,
) -> Instance:
    """Rent GPUs for a project: all of them now, or a refusal with nothing made and nothing charged.

    Looks at the budgets, takes quota, holds the first hour's price, then claims
    the GPUs (last, so that nodes are locked for the shortest time). Raises
    BadOrder, BudgetExceeded, QuotaExceeded, ProjectSuspended,
    InsufficientFunds, NoCapacity or Conflict (name in use).
    A caller's transaction ends with the refusal: nothing here has a savepoint.
    What waited for its turn says which nodes it `spares`; what did not leaves to the queue what that waits for.
    """
    check_open(project)
    check(order)
    with name_in_use(order.name), transaction.atomic(savepoint=False):
        return _rent(actor, project, order, at, spares=spares)


def _rent(actor: Actor, project: Project, order: Order, at: datetime, *, spares: frozenset[int] | None) -> Instance:
    gpus = order.gpus * order.replicas
    if order.under is not None:
        covering.check(order.under, offer=order.offer, gpus=gpus, at=at)
        order = replace(order, work=replace(order.work, paid_by=order.under.public_id))
    # What somebody else pays for does not by itself use up hours that its organization has paid ahead.
    attach = Instance.Attach.FORBID if order.work.paid_by and order.reservation is None else order.attach
    inside = coverage.choose(
        project=project, offer=order.offer, gpus=gpus, attach=attach, named=order.reservation, at=at
    )
    currency = project.organization.currency
    price = inside.price_version if inside else price_of(order.offer, currency=currency, at=at)
    if order.uses:
        # First, because whoever changes a volume locks it before the account.
        volumes.lock([use.volume for use in order.uses])
    instance_id = new_public_id("ins")
    if inside is None:
        _hold(
            project=project, offer=order.offer, resource_id=instance_id, run=1, price=price, gpus=gpus,
            token=actor.token, is_paid=bool(order.work.paid_by), takes_quota=order.takes_quota, at=at,
        )  # fmt: skip
    instance = make(
        order, actor=actor, project=project, public_id=instance_id, price_version=price, at=at,
        attach=Instance.Attach.STRICT if order.reservation else attach,
        reservation_id=inside.pk if inside else None, spares=spares,
    )  # fmt: skip
    instance.reservation = inside
    after = {"name": instance.name, "offer": order.offer.slug, "replicas": order.replicas, "gpus": order.gpus}
    after |= {"image": instance.image} if instance.image else {}
    after |= {"reservation": inside.public_id} if inside else {}
    after |= {"contract": order.under.version.public_id} if order.under else {}
    audit.record_of(instance, "instance.rent", actor=actor, after=after)
    return instance


def make(
    order: Order,
    *,
    actor: Actor,
    project: Project,
    public_id: str,
    price_version: PriceVersion,
    at: datetime,
    **how: Any,
) -> Instance:
    """Make the instance that an order describes; `how` is what `instances.create` takes beside."""
    instance = instances.create(
        public_id=public_id,
        project_id=project.pk,
        offer_id=order.offer.pk,
        price_version=price_version,
        name=order.name or f"{order.offer.gpu_model.lower()}-{public_id[-6:]}",
        replicas=order.replicas,
        gpus_per_replica=order.gpus,
        command=order.command,
        env=order.env or {},
        image=runtimes.normal_image(order.image),
        ports=order.ports,
        lease=order.lease,
        on_failure=order.on_failure,
        wish=order.wish,
        at=at,
        uses=order.uses,
        token_id=actor.token.pk if actor.token else None,
        work=order.work,
        **how,
    )
    instance.project, instance.offer = project, order.offer
    return instance


@dataclass(frozen=True)
class Quote:
    """What an order would cost: the price per GPU-hour, and micros per hour for all of it; nothing where it is paid."""

    price: PriceVersion
    hourly_micros: int


def rehearse(*, actor: Actor, project: Project, order: Order, at: datetime) -> Quote:
    """Do everything that `rent` does, then undo it: the same checks, price, quota, funds and capacity, no effects."""
    try:
        with transaction.atomic():
            instance = rent(actor=actor, project=project, order=order, at=at)
            transaction.set_rollback(True)
    except NoCapacity as refusal:
        # No decision is kept of what was only tried.
        refusal.decision = None
        raise
    price = instance.price_version
    return Quote(price=price, hourly_micros=0 if instance.paid_by else hourly_micros(price=price, gpus=instance.gpus))


@transaction.atomic
def start(*, actor: Actor, instance: Instance, at: datetime) -> None:
    """Start a stopped or failed instance again, at today's price; it queues if no GPUs are free, or bids again."""
    check_open(instance.project)
    runtimes.check(offer=instance.offer, image=instance.image, ports=instance.ports, command=instance.command)
    price = instance.price_version if instance.market == Instance.Market.SPOT else None
    start_run(instance, price=price, token=actor.token, at=at)
    audit.record_of(instance, "instance.start", actor=actor)


def start_run(
    instance: Instance, *, price: PriceVersion | None, token: ApiToken | None, at: datetime, stays_inside: bool = False,
    **why: Any,
) -> None:  # fmt: skip
    """Queue a new run: inside a reservation where its order wants that and one has room, else on its own market.

    There it costs `price`, or what on demand costs today; what `stays_inside` is refused there. `why` is what
    `instances.start` takes beside.
    """
    bidding = instance.market == Instance.Market.SPOT
    inside = None if bidding else coverage.for_run(instance, stays_inside=stays_inside, at=at)
    if inside is not None:
        price = inside.price_version
    elif price is None:
        price = price_of(instance.offer, currency=instance.project.organization.currency, at=at)
    instances.start(
        instance=instance,
        price_version=price,
        reservation_id=inside.pk if inside else None,
        token_id=token.pk if token else None,
        at=at,
        **why,
    )
    instance.reservation = inside
    if inside is None:
        hold_for_run(instance, token=token, at=at)


def hold_for_run(instance: Instance, *, token: ApiToken | None, at: datetime) -> None:
    """Hold quota and the first hour's price for a run that was just queued, in its transaction, within the budgets.

    What bids holds its bid's funds instead, and is promised nothing; what could never be placed does not bid.
    """
    if instance.market == Instance.Market.SPOT:
        home = volumes.home_of(volumes.of_instance(instance))
        placement.check_possible(instance=instance, at=at, home=home)
        bids.hold_for_run(instance, token=token, at=at)
        return
    covering.check_run(instance, at=at)
    _hold(
        project=instance.project,
        offer=instance.offer,
        resource_id=instance.public_id,
        run=instance.run,
        price=instance.price_version,
        gpus=instance.gpus,
        token=token,
        is_paid=bool(instance.paid_by),
        at=at,
    )
    calendar.open_ended(offer_id=instance.offer_id, gpus=instance.gpus, at=at)


@transaction.atomic
def stop(*, actor: Actor, instance: Instance, at: datetime) -> None:
    """Give the GPUs back and keep the instance. Stopping what is stopped changes nothing."""
    was = instance.phase
    instances.stop(instance=instance, at=at, message=instance_texts.STOPPED(who=actor.name))
    if instance.phase != was:
        audit.record_of(instance, "instance.stop", actor=actor, before={"phase": was})


@transaction.atomic
def terminate(*, actor: Actor, instance: Instance, at: datetime) -> None:
    """End the instance for good. Terminating what is terminated changes nothing."""
    was = instance.phase
    instances.terminate(instance=instance, at=at, message=instance_texts.TERMINATED(who=actor.name))
    if instance.phase != was:
        audit.record_of(instance, "instance.terminate", actor=actor, before={"phase": was})


def rename(*, actor: Actor, instance: Instance, name: str) -> None:
    """Give an instance another name, unique among the living ones of its project."""
    was = instance.name
    if name == was:
        return
    _check_name(name)
    if instances.actions(instance)["rename"]:
        raise IllegalMove(f"{instance.name} has ended and keeps its name.")
    with name_in_use(name), transaction.atomic():
        instances.rename(instance=instance, name=name)
        audit.record_of(instance, "instance.rename", actor=actor, before={"name": was}, after={"name": name})


def stop_what_nobody_can_pay_for(*, at: datetime, limit: int) -> int:
    """Stop instances of organizations that may run nothing any more; return how many were asked to stop.

    What runs inside a reservation is paid ahead, and what a share of revenue pays for is paid later: used-up funds
    leave both alone, a debt too long past due does not.
    """
    broke, past_due = standing.used_up(at=at), standing.past_due(Action.STOP_ON_DEMAND, at=at)
    no_spot = standing.spot_stopped(at=at)
    unpaid = Instance.objects.filter(
        Q(project__organization__in=broke, reservation=None, paid_by="")
        | Q(project__organization__in=past_due) & (Q(paid_by="") | Q(paid_by__startswith=covering.AGREEMENT))
        | Q(project__organization__in=no_spot, market=Instance.Market.SPOT, paid_by=""),
        phase__in=CHARGED_PHASES,
    ).select_related("project")
    stopped = 0
    for instance in unpaid.order_by("pk")[:limit]:
        message = instance_texts.NO_FUNDS()
        if instance.project.organization_id in no_spot:
            message = instance_texts.PAST_DUE()
        try:
            instances.stop(instance=instance, at=at, reason=Reason.NO_FUNDS, message=message)
        except ProvisioningError:
            # It moved meanwhile, or cannot be stopped just now: the next sweep looks again, the others come first.
            log.warning("not stopped", instance=instance.public_id, exc_info=True)
            continue
        stopped += 1
    return stopped


def check_open(project: Project) -> None:
    """Raise ProjectSuspended where nothing may start."""
    if project.is_suspended:
        raise ProjectSuspended(
            gettext("%(project)s is suspended, so nothing can start there; ask the operator why.")
            % {"project": project.name}
        )


def _hold(
    *,
    project: Project,
    offer: Offer,
    resource_id: str,
    run: int,
    price: PriceVersion,
    gpus: int,
    token: ApiToken | None,
    is_paid: bool,
    at: datetime,
    takes_quota: bool = True,
) -> None:
    """Take quota and hold the first hour's price for one run, the least that it commits to; nothing if it is paid."""
    hour_micros = 0 if is_paid else hourly_micros(price=price, gpus=gpus)
    spend.check(project=project, token=token, worst_case_micros=hour_micros, hourly_micros=hour_micros, at=at)
    if takes_quota:
        hold = partial(
            quotas.take,
            holder=resource_id,
            project_id=project.pk,
            gpu_model=offer.gpu_model,
            gpus=gpus,
            micros_per_hour=hour_micros,
            token_id=token.pk if token else None,
        )
        reserved_quotas.take(hold, at=at)
    if is_paid:
        return
    holds.place(
        key=f"first-hour:{resource_id}:{run}",
        organization=project.organization,
        amount_micros=hour_micros,
        purpose="first hour",
        resource_id=resource_id,
        expires_at=at + FIRST_HOUR_LIFE,
    )


def name_in_use(name: str) -> AbstractContextManager[None]:
    """Turn the database's refusal of a name that the project uses into a Conflict that names it."""
    text = gettext("The project has an instance named %(name)s already; choose another name or terminate it.")
    return given_once("instance_name_once_per_project", text % {"name": name})
