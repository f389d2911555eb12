"""The demo world's money: a supplier who has earned something, and a commitment that is offered to the customer.

So a newcomer finds these pages filled. What was used was used by another customer, a month or two ago.
"""

from datetime import datetime, timedelta
from uuid import uuid4

from billing import charging, commitments, credits, prices, recording
from billing.invoicing import sellers
from billing.models import PriceVersion, UsageSpan
from billing.months import month_of, next_month
from billing.recording import Recorded
from billing.suppliers import accruing, cards, statements
from billing.suppliers.cards import Terms
from marketplace.models import Offer, Organization, User
from marketplace.money import MICROS
from provisioning.models import Site

STUDIO = "Example Studio"
MONTHS, PRICE_MICROS, GPUS = 2, 2_100_000, 8
HOUR = timedelta(hours=1)
# Hours of each run in a month, and on which node.
RUNS = ((30, "nordlys-01"), (52, "nordlys-02"), (18, "nordlys-01"))
SHARE = Terms(share_bps=7_500, reserve_bps=1_000, reserve_days=30, sla_bps=5_000)
PROMISED_HOURS, DISCOUNT_BPS = 2_000, 1_500


def seed(
    *, supplier: Organization, studio: Organization, site: Site, managers: tuple[User, User], at: datetime
) -> None:
    """Let a supplier have sold something in the last months, once. Everything is told as it would have been then."""
    if Offer.objects.filter(supplier=supplier).exists():
        return
    begin = month_of(month_of(at) - timedelta(days=MONTHS * 28))
    sellers.save_details(
        organization=supplier, legal_name="Nordlys Compute AS", address="Fjordveien 2\n8515 Narvik", country="NO"
    )
    offer = Offer.objects.create(
        slug="h100-nordlys", name="H100 of Nordlys", supplier=supplier, site=site, gpu_model="H100", gpu_memory_gib=80,
        gpus_per_node=GPUS, interconnect="NVLink 4, 400G InfiniBand", max_gpus=GPUS, is_listed=False,
    )  # fmt: skip
    price = prices.publish(
        sku=offer.sku, currency="USD", micros_per_unit_hour=PRICE_MICROS, effective_from=begin, by="demo", at=begin
    )
    first, second = managers
    card = cards.propose(supplier=supplier, terms=SHARE, effective_from=begin, by=first.pk, key=uuid4(), at=begin)
    cards.approve(card=card, by=second.pk, at=begin)
    credits.grant(
        organization=studio, amount_micros=20_000 * MICROS, key="demo studio", reason="Demo", by="demo", at=begin
    )
    recording.record_many(_used(studio, offer, price, begin=begin, at=at), at=at)
    charging.charge_due(at=at)
    accruing.accrue(at=at)
    statements.issue_due(at=at)


def offer_commitment(*, customer: Organization, offer: Offer, managers: tuple[User, User], at: datetime) -> None:
    """Offer the customer a commitment from next month on, unless there was one."""
    if customer.commitments.exists():
        return
    first, second = managers
    made = commitments.propose(
        organization=customer, currency="USD", kind="hours", skus=[offer.sku], amount=PROMISED_HOURS,
        discount_bps=DISCOUNT_BPS, starts_at=next_month(month_of(at)), months=3, note="Offer of the demo",
        by=first.pk, key=uuid4(), at=at, names={offer.sku: offer.name},
    )  # fmt: skip
    commitments.offer(commitment=made, by=second.pk, at=at)


def _used(studio: Organization, offer: Offer, price: PriceVersion, *, begin: datetime, at: datetime) -> list[Recorded]:
    found, month = [], begin
    while month < at:
        for number, (hours, node) in enumerate(RUNS):
            started_at = month + (24 + 100 * number) * HOUR
            if started_at + hours * HOUR <= at:
                labels = {
                    "market": "on_demand", "offer": offer.public_id, "supplier": offer.supplier.public_id,
                    "nodes": {node: GPUS}, "gpu": offer.gpu_model,
                }  # fmt: skip
                found.append(
                    Recorded(
                        studio.pk, f"ext_{month:%Y%m}_{number}", f"render {month:%Y-%m} {number + 1}", labels,
                        UsageSpan.Meter.GPU, GPUS, price.pk, started_at, started_at + hours * HOUR,
                    )
                )  # fmt: skip
        month = next_month(month)
    return found
