"""A whole tenant: a person in each role with a program, and one of everything that a tenant can have."""

from base64 import b64encode
from dataclasses import dataclass
from datetime import timedelta
from uuid import uuid4

from django.utils import timezone

from billing import accounts, corrections, ledger, usage
from billing.invoicing import issuing, sellers
from billing.models import (
    Card,
    Commitment,
    CommitmentRequest,
    InvoiceDispute,
    InvoiceSeries,
    Payment,
    StatementSeries,
    SupplierStatement,
    UsageSpan,
)
from billing.months import month_of, next_month
from marketplace import (
    budgets,
    quota_requests,
    quotes,
    registries,
    rentals,
    spot,
    spot_terms,
    tenants,
    tokens,
    volumes,
    waiting,
)
from marketplace.access import Actor, person
from marketplace.contracts import disputing, filing, judging, offering
from marketplace.contracts import sellers as seller_limits
from marketplace.events import endpoints, feed
from marketplace.guarantees import guarding
from marketplace.jobs import running, spec, submitting
from marketplace.models import (
    ApiToken,
    BlockTerms,
    BudgetAlert,
    Claim,
    EventMail,
    FloorLook,
    IdleSpell,
    Job,
    LendingShare,
    LendingSpell,
    Membership,
    Organization,
    Project,
    ReceiptDue,
    RevenuePeriod,
    RevenuePeriodEvent,
    RevenueStatement,
    Role,
    Shortfall,
    Side,
    SupplierApplication,
    TokenPurchase,
    User,
    VerifierRun,
    WebhookAttempt,
)
from marketplace.revenue_share import periods, statements
from provisioning import artifacts, upkeep
from provisioning.calendar import hour_of
from provisioning.models import Instance, Volume
from tests import agreed
from tests.blocks import Buyer, sell_blocks
from tests.conftest import Fleet, Run, make_member, make_organization, make_person, make_token, order, sell_storage
from tests.marketplace.api.program import Program
from tests.marketplace.receipts.conftest import append
from tests.outcomes import BY_CUSTOMER, FILED, terms

ROLES = ("owner", "admin", "billing", "developer", "viewer")
# Moments that a route may name beside a tenant's ids, in hours from its first: others' rows may have the same ones.
MOMENTS = {"block_start": 400, "block_end": 401, "block_before": 24, "kept_start": 205, "kept_end": 206}


@dataclass
class Tenant:
    """`ids` names one row of each kind by the word that stands for it in a route."""

    organization: Organization
    project: Project
    people: dict[str, User]
    programs: dict[str, Program]
    ids: dict[str, str]


def ssh_key(seed: bytes, comment: str = "") -> str:
    """Return a well-formed Ed25519 public key as `ssh-keygen` writes it."""
    fields = (b"ssh-ed25519", seed.ljust(32, b"."))
    blob = b"".join(len(field).to_bytes(4, "big") + field for field in fields)
    return f"ssh-ed25519 {b64encode(blob).decode()} {comment}".strip()


def _reserve(actor: Actor, project: Project, fleet: Fleet) -> dict[str, str]:
    """Reserve GPUs, list some of them, and ask for a quote of each kind; return what a route may name."""
    if not BlockTerms.objects.exists():
        sell_blocks(fleet.h200)
    buyer = Buyer(actor, project, fleet.h200, hour_of(timezone.now()) + timedelta(hours=1))
    reservation = buyer.buy(2, 200, 210)
    trade = buyer.trade(1, 300, 301, 9_000_000)
    LendingSpell.objects.create(reservation=reservation, starts_at=buyer.noon, ends_at=buyer.noon)
    LendingShare.objects.create(reservation=reservation, cause=f"of {project.pk}", amount_micros=1, at=buyer.noon)
    Shortfall.objects.create(
        reservation=reservation, hour=buyer.noon, gpus=1, refund_micros=1, worth_micros=0, message="gone",
        seen_at=buyer.noon,
    )  # fmt: skip
    return {name: f"{buyer.at(hours):%Y-%m-%dT%H:%M:%SZ}" for name, hours in MOMENTS.items()} | {
        "reservation": reservation.public_id,
        "trade": trade.public_id,
        "listing": buyer.put_up(reservation, 1, 200, 204, 1_500_000).public_id,
        "quote": buyer.quote(1, 400, 401).public_id,
        "extension": quotes.for_extension(reservation=reservation, ends_at=buyer.at(212), at=buyer.noon).public_id,
        "cancellation": quotes.for_cancellation(reservation=reservation, at=buyer.noon).public_id,
    }


def _work(actor: Actor, project: Project, name: str) -> Job:
    """Submit a job, whose first task runs, and one that needs it; return the first."""
    at = timezone.now()
    asked = [{"name": f"{name}-job", "offer": "h200-narvik", "command": ["work"]}]
    asked.append(asked[0] | {"name": f"{name}-next", "needs": [f"{name}-job"]})
    specs = spec.from_values(asked, at=at)
    job, _ = submitting.submit(actor=actor, project=project, specs=specs, folders={}, at=at)
    running.work_on(job.pk)
    return job


def _agree(actor: Actor, organization: Organization, stopped: Instance) -> dict[str, str]:
    """Agree to share revenue and to guarantees, one of which holds for an instance; return what a route may name."""
    seller, user, at = stopped.offer.supplier, actor.user, timezone.now()
    shared = agreed.share_revenue(seller, organization, user, at)
    guaranteed = agreed.guarantee(seller, organization, user, at)
    guarding.begin(actor=actor, instance=stopped, version_id=guaranteed.public_id, at=at)
    periods.open_due(at=at, limit=100)
    period = RevenuePeriod.objects.select_related("organization").get(version=shared)
    statements.submit(
        actor=actor, period=period, revenue_micros=1, lines=[], source=RevenueStatement.Source.API, at=at
    )  # fmt: skip
    RevenuePeriodEvent.objects.create(period=period, at=at, old_state="open", new_state="open", message="opened")
    return {
        "shared": shared.public_id,
        "period": period.public_id,
        "guarantee": guaranteed.public_id,
        "guarded": stopped.public_id,
    }


def empty_statement(organization: Organization) -> SupplierStatement:
    """A statement of nothing, in a series of its own."""
    series, _ = StatementSeries.objects.get_or_create(prefix=f"S{organization.pk}-")
    nothing = dict.fromkeys(
        (
            "opening_micros", "unit_milliseconds", "charge_micros", "payout_micros", "reserve_micros", "fee_micros",
            "adjustment_micros", "paid_micros", "closing_micros", "held_micros",
        ),
        0,
    )  # fmt: skip
    at, who = timezone.now(), {"name": "x", "address": "", "country": "NO", "tax_id": ""}
    return SupplierStatement.objects.create(
        series=series, sequence=1, number=f"{series.prefix}1", supplier=organization, currency="USD", period_start=at,
        period_end=at, issued_at=at, language="en", platform=who, party=who, **nothing,
    )  # fmt: skip


def _sell_and_buy(actor: Actor, project: Project, operator: Organization, verifier: Instance) -> dict[str, str]:
    """Draft a contract of the tenant's, negotiate one with it, and claim under that; return what a route may name."""
    organization = project.organization
    at, merchant = timezone.now(), person(operator.memberships.get(role=Role.OWNER).user)
    organization.is_supplier = operator.is_supplier = True  # in memory: nobody becomes one by that
    own = offering.draft(actor=actor, seller=organization, title=f"{organization} sells", terms=terms(), at=at)
    seller_limits.set_limit(
        actor=merchant, seller=organization, currency="USD", unpaid_micros=10**9, reason="tests", at=at
    )
    deals = {}
    for word in ("negotiated", "agreed"):
        deals[word] = offering.draft(
            actor=merchant, seller=operator, title=f"for {organization}", buyer=organization, at=at,
            terms=terms(counts=f"what {organization} likes", **BY_CUSTOMER),
        )  # fmt: skip
        offering.offer(actor=merchant, version=deals[word], at=at)
    agreed = deals["agreed"]
    accepted = offering.accept(actor=actor, version=agreed, organization=organization, sha256=agreed.sha256, at=at)
    FloorLook.objects.create(acceptance=accepted, due_at=at)
    claimed = {
        word: filing.file(
            actor=merchant, version=agreed, project=project, subject=f"{organization} {word}", units=1,
            evidence=dict(FILED), at=at,
        )
        for word in ("claim", "judged", "verified", "disputed")
    }  # fmt: skip
    offering.leave(actor=actor, version=agreed, organization=organization, at=at)
    for word in ("verified", "disputed"):
        claimed[word].move_to("verified", at=at, due_at=at)
    dispute = disputing.open(
        actor=actor, claim=claimed["disputed"], side=Side.BUYER, reason="other", text=f"{organization} disagrees", at=at
    )
    disputing.answer(actor=actor, dispute=dispute, side=Side.BUYER, text=f"{organization} says so", at=at)
    VerifierRun.objects.create(
        claim=claimed["judged"], run=1, number=1, instance=verifier, started_at=at, ended_at=at, result="pass"
    )
    judging.record(claimed["judged"], verifier="outputs", verifier_version="1", result="pass", at=at)
    sold = Claim.objects.create(
        version=own, contract=own.contract, organization=operator, project=_project_of(operator), escrow_id="x",
        subject_key=f"of {organization}", amount_micros=0, most_micros=0, state_since=at, evidence_sha256="0" * 64,
        claimed_at=at, due_at=at,
    )  # fmt: skip
    return {
        "contract": own.contract.public_id,
        "draft": own.public_id,
        "negotiated": deals["negotiated"].public_id,
        "agreed": agreed.public_id,
        "negotiated_sha256": deals["negotiated"].sha256,
        "claim": claimed["claim"].public_id,
        "verified": claimed["verified"].public_id,
        "claimdispute": dispute.public_id,
        "sold": sold.public_id,
    }


def _project_of(organization: Organization) -> Project:
    found, _ = Project.objects.get_or_create(organization=organization, name="theirs")
    return found


def make_tenant(name: str, fleet: Fleet, run_until_idle: Run) -> Tenant:
    """Make a tenant that has an instance under way, and one that ran, printed and stopped."""
    owner = make_person(f"owner@{name}.example")
    organization = make_organization(name, owner)
    project = Project.objects.select_related("organization").get(organization=organization)
    people = {"owner": owner} | {
        role: make_member(organization, f"{role}@{name}.example", Role(role)) for role in ROLES[1:]
    }
    actor, at = person(owner, f"req_{name}"), timezone.now()
    stopped = rentals.rent(actor=actor, project=project, order=order(fleet.l40s, name=f"{name}-stopped"), at=at)
    run_until_idle()
    fleet.nodes["l40s-1"].prints(f"printed by {name}\n")
    run_until_idle()
    stopped = Instance.objects.get(pk=stopped.pk)
    rentals.stop(actor=actor, instance=stopped, at=timezone.now())
    run_until_idle()
    alive = rentals.rent(actor=actor, project=project, order=order(fleet.h200, name=f"{name}-alive"), at=at)
    invitation, _ = tenants.invite(
        actor=actor, organization=organization, email=f"guest@{name}.example", role=Role.VIEWER, at=at
    )
    key = tokens.add_ssh_key(actor=actor, project=project, name=f"{name} key", public_key=ssh_key(name.encode()))
    registry = registries.add(
        actor=actor, project=project, host=f"{name}.example", username=f"{name}-bot", password=f"{name} opens", at=at
    )
    sell_storage(fleet.h200.site)
    kept, deleted = (
        volumes.create(
            actor=actor, project=project, at=timezone.now(),
            order=volumes.Order(site=fleet.h200.site, name=f"{name}-{kind}", size_gib=10, offer=fleet.h200),
        )
        for kind in ("kept", "deleted")
    )  # fmt: skip
    spot_terms.set_terms(offer=fleet.h200, by="test", at=timezone.now(), reserve_micros=500_000)
    bid = spot.bid(
        actor=actor, project=project, order=order(fleet.h200, name=f"{name}-bids"), max_price_micros=550_000,
        at=timezone.now(),
    )  # fmt: skip
    auction = spot.clear(offer_id=fleet.h200.pk, at=timezone.now())
    for _ in range(2):
        fleet.sync()
        upkeep.settle_due(at=timezone.now(), limit=10)
    volumes.delete(actor=actor, volume=Volume.objects.get(pk=deleted.pk), at=timezone.now())
    asked = quota_requests.request(
        actor=actor, organization=organization, project=project, limit=90, reason=f"{name} grows", at=timezone.now()
    )
    entry = waiting.wait(
        actor=actor, project=project, order=order(fleet.h200, name=f"{name}-waits"), max_micros_per_gpu_hour=1,
        until=timezone.now() + timedelta(days=1), at=timezone.now(),
    )  # fmt: skip
    job = _work(actor, project, name)
    held = _reserve(actor, project, fleet)
    held |= _sell_and_buy(actor, project, Organization.objects.get(pk=fleet.h200.supplier_id), stopped)
    if not InvoiceSeries.objects.exists():
        sellers.save_details(organization=organization, legal_name=name, address="Storgata 1", country="NO")
        sellers.name_seller(organization=organization)
    usage.start(
        organization=organization, resource_id=f"ins_past_{name}", resource_name=f"{name}-past", labels={}, quantity=1,
        price_version=stopped.price_version, at=at - timedelta(hours=2),
    )  # fmt: skip
    usage.stop(resource_id=f"ins_past_{name}", at=at - timedelta(hours=1))
    cash = organization.accounts.get(kind="cash")
    ledger.transfer(
        key=f"paid in {name}", source=accounts.platform("processor", "USD"), target=cash, amount_micros=5_000_000_000,
        reason="test", at=at,
    )  # fmt: skip
    usage.start(
        organization=organization, resource_id=f"ins_dear_{name}", resource_name=f"{name}-dear", labels={},
        quantity=2000, price_version=stopped.price_version, at=at - timedelta(hours=1),
    )  # fmt: skip
    usage.stop(resource_id=f"ins_dear_{name}", at=at)
    invoice = issuing.issue(organization=organization, at=timezone.now())
    correction = corrections.propose(
        span=UsageSpan.objects.get(resource_id=f"ins_past_{name}"), ended_at=at - timedelta(minutes=90), reason="late",
        by=owner.pk, key=uuid4(), at=at,
    )  # fmt: skip
    begins = next_month(month_of(at))
    promise = Commitment.objects.create(
        key=uuid4(), organization=organization, currency="USD", kind="spend", state="offered", committed_micros=10**9,
        discount_bps=100, starts_at=begins, ends_at=next_month(begins), note=name, proposed_by=owner, proposed_at=at,
        decided_by=people["viewer"], decided_at=at,
    )  # fmt: skip
    wish = CommitmentRequest.objects.create(
        key=uuid4(), organization=organization, currency="USD", kind="spend", skus=["x"], amount=10**9,
        starts_at=begins, months=1, asked_by=owner, asked_at=at,
    )  # fmt: skip
    dispute = InvoiceDispute.objects.create(
        invoice=invoice, key=uuid4(), net_micros=1, gross_micros=1, reason=f"{name} disagrees", opened_by=owner,
        opened_at=at,
    )  # fmt: skip
    endpoint, _ = endpoints.add(
        actor=actor, organization=organization, url=f"https://{name}.example/hooks", types=[], description=name
    )
    while feed.publish(at=timezone.now(), limit=1000):
        pass
    delivery = endpoints.test(actor=actor, endpoint=endpoint, at=timezone.now())
    IdleSpell.objects.create(
        instance=stopped, run=stopped.run, since=at - timedelta(hours=1), found_at=at, next_try_at=at
    )
    SupplierApplication.objects.create(
        organization=organization, gpus=8, about=f"{name} sells", applied_by=owner, applied_at=at
    )
    EventMail.objects.create(event=delivery.event, next_try_at=at)
    WebhookAttempt.objects.create(delivery=delivery, at=at, error="nobody answered", milliseconds=1)
    budgets.change(actor=actor, owner=project, organization=organization, amount=10**12, hourly_micros=None)
    BudgetAlert.objects.create(
        budget=organization.budgets.get(), period=at, kind="used", share=50, amount=10**12, reached=10**12, at=at,
        next_try_at=at,
    )  # fmt: skip
    card = Card.objects.create(
        organization=organization, processor_id=f"pm_{name}", brand="visa", last4="4242", exp_month=1, exp_year=2030,
        is_default=True,
    )  # fmt: skip
    payment = Payment.objects.create(
        key=f"paid {name}", organization=organization, purpose=Payment.Purpose.TOP_UP, amount_micros=1_000_000,
        currency="USD", card=card, state=Payment.State.FAILED, created_at=at, finished_at=at,
    )  # fmt: skip
    (receipt,) = append(organization, f"clm_of_{name}")
    ReceiptDue.objects.create(claim=Claim.objects.get(public_id=held["claim"]))
    programs = {role: Program(make_token(user, organization)) for role, user in people.items()}
    TokenPurchase.objects.create(resource_id=held["reservation"], token=ApiToken.objects.get(membership__user=owner))
    return Tenant(
        organization=organization,
        project=project,
        people=people,
        programs=programs,
        ids={
            "organization": organization.public_id,
            "project": project.public_id,
            "instance": alive.public_id,
            "placement": alive.decisions.get().public_id,
            "stopped": stopped.public_id,
            "member": Membership.objects.get(user=people["viewer"]).public_id,
            "invitation": invitation.public_id,
            "token": ApiToken.objects.get(membership__user=owner).public_id,
            "key": key.public_id,
            "registry": registry.public_id,
            "volume": kept.public_id,
            "deleted": deleted.public_id,
            "request": asked.public_id,
            "wait": entry.public_id,
            "job": job.public_id,
            **held,
            "bid": bid.public_id,
            "auction": auction.public_id,
            "invoice": invoice.public_id,
            "receipt": receipt.public_id,
            "statement": empty_statement(organization).public_id,
            "dispute": dispute.public_id,
            "correction": correction.public_id,
            "commitment": promise.public_id,
            "commitment_request": wish.public_id,
            "webhook": endpoint.public_id,
            "delivery": delivery.public_id,
            # The very bytes that the table of routes sends, as JSON has them.
            "artifact": artifacts.keep(project_id=project.pk, data=b'{"these": "bytes"}', at=at),
            "card": card.public_id,
            "payment": payment.public_id,
            **_agree(actor, organization, stopped),
        },
    )
