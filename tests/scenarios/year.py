"""A year on a frozen clock: who plays, and what they do from season to season. What comes of it is in `test_year`."""

from datetime import UTC, date, datetime
from uuid import uuid4

from billing import (
    adjusting,
    bank,
    charging,
    credits,
    dunning,
    holds,
    prepayments,
    price_lists,
    prices,
    promotions,
    usage,
    watch,
)
from billing.invoicing import crediting, issuing
from billing.models import AutomaticTopUp, BankTransfer, Invoice, Payment, PrepaidItem
from billing.payments import automatic, cards, events, objects, paying, reconciliation, refunds
from billing.sla import posting, terms
from billing.sla.availability import Seen
from billing.suppliers import accruing, connecting, payouts, statements
from billing.suppliers.accruing import Supplied
from billing.test_processor import connect, hosted
from billing.test_processor import disputes as banks
from tests.billing import pricing
from tests.billing.invoicing import details, make_seller
from tests.billing.makers import make_organization
from tests.billing.payments.stage import DECLINED_LATER, GOOD, NEEDS_PROOF, Processor
from tests.billing.people import give_credit_line, two_people
from tests.billing.supplying import Terms, labels, make_card, make_supplier

MICROS = 1_000_000
H200, L40S, STORAGE = "ofr_h200/on_demand", "ofr_l40s/on_demand", "site/storage"


def on(month, day, hour=0, minute=0, second=0, *, year=2028):
    return datetime(year, month, day, hour, minute, second, tzinfo=UTC)


class Year(Processor):
    """The clock, the cast, and what they do."""

    def __init__(self):
        super().__init__()
        self.at = on(12, 1, year=2027)
        self.told = 0
        self.pays = {}

    # Time

    def sweep(self, *when, **of_year):
        """Let every sweep come by once at a moment, in the order of the day."""
        at = self.at = on(*when, **of_year)
        charging.charge_due(at=at)
        promotions.expire_due(at=at)
        adjusting.post_due(at=at)
        issuing.issue_due(at=at)
        dunning.run_due(at=at)
        automatic.top_up_due(at=at)
        paying.look_due(at=at)
        refunds.look_due(at=at)
        self.hear()
        accruing.accrue(at=at)
        accruing.release_due(at=at)
        statements.issue_due(at=at)
        payouts.order_due(at=at)
        payouts.look_due(at=at)
        reconciliation.run(at=at)
        watch.look(at=at)

    def hear(self):
        """Let the processor tell us what happened since, the last thing first and each twice."""
        fresh, self.told = self.world.events[self.told :], len(self.world.events)
        for event in [*reversed(fresh), *fresh]:
            events.receive(event=objects.event_of(event), at=self.at)
        while events.handle_due(at=self.at):
            pass

    # People

    def found(self):
        """Everybody opens their books before the year begins."""
        make_seller()
        self.thames, self.fjord, self.hudson = (make_organization(currency=it) for it in ("USD", "USD", "JPY"))
        details(self.thames, country="GB", tax_id="GB980780684")
        details(self.fjord, country="NO")
        details(self.hudson, country="JP")
        give_credit_line(self.fjord, 20_000 * MICROS, net_days=14, at=self.at)
        self.north, self.south = make_supplier(), make_supplier()
        half = {"fixed_micros": 500_000, "fixed_currency": "USD", "share_bps": 6_000, "sla_bps": 5_000}
        make_card(self.north, terms=Terms(share_bps=7_000, reserve_bps=1_000, reserve_days=30), begins=self.at)
        make_card(self.south, terms=Terms(**half), begins=self.at)
        for supplier, country in ((self.north, "GB"), (self.south, "NO")):
            details(supplier, country=country)
            there = {"email": "us@supplier.example", "refresh_url": "https://a.example", "return_url": "https://b.ex"}
            connecting.onboarding_url(supplier=supplier, at=self.at, **there)
            account = connecting.of(supplier)
            connect.give_papers(self.world, account.processor_id)
            connecting.look(account=account, at=self.at)
        self.names = {
            organization.pk: name
            for name in ("Thames", "Fjord", "Hudson", "North", "South")
            for organization in [getattr(self, name.lower())]
        }

    def sell(self):
        """One list in each currency, and one that takes over in July with tiers for the L40S."""
        begin = on(1, 1)
        dollars = [(H200, 2_500_000), (L40S, 900_000)]
        pricing.in_force(*(pricing.item(sku, rows=((0, None, micros),)) for sku, micros in dollars), begins=begin)
        yen = [(H200, 375_000_000, "gpu"), (L40S, 135_000_000, "gpu"), (STORAGE, 10_000, "gib")]
        pricing.in_force(
            *(pricing.item(sku, rows=((0, None, micros),), unit=unit) for sku, micros, unit in yen),
            currency="JPY",
            begins=begin,
        )

    def change_prices(self):
        made = price_lists.draft(currency="USD", by=pricing.person(), key=uuid4(), at=self.at)
        tiers = ((0, 1000, 900_000), (1000, None, 600_000))
        content = [
            pricing.item(H200, rows=((0, None, 2_800_000),)), pricing.item(L40S, rows=tiers, model="graduated"),
        ]  # fmt: skip
        price_lists.save(price_list=made, content=content, note="", by=pricing.person())
        price_lists.simulate(price_list=made, at=self.at)
        price_lists.approve(price_list=made, by=pricing.person("bob"), at=self.at)
        price_lists.schedule(price_list=made, effective_from=on(7, 1), by="ann@example.com", at=self.at)

    # Use

    def price(self, sku, organization, at):
        return prices.current(skus=[sku], currency=organization.currency, at=at)[sku]

    def start(self, organization, name, sku, at, *, quantity=1, meter="gpu", **facts):
        supplier = self.north if sku == H200 else self.south
        offer = sku.partition("/")[0]
        told = labels(supplier, offer=offer, nodes={"nod_1": quantity}) if meter == "gpu" else {"project": "prj_1"}
        usage.start(
            organization=organization, resource_id=name, resource_name=name, labels=told | {"market": "on_demand"},
            quantity=quantity, price_version=self.price(sku, organization, at), at=at, meter=meter, **facts,
        )  # fmt: skip

    def stop(self, name, at, meter="gpu"):
        usage.stop(resource_id=name, at=at, meter=meter)

    # Money

    def grant(self, organization, units_, key, expires_at):
        credits.grant(
            organization=organization, amount_micros=units_ * MICROS, key=key, reason="Welcome", by="carol", at=self.at,
            expires_at=expires_at,
        )  # fmt: skip

    def save_card(self, organization, number=GOOD):
        card = self.card(organization, number)
        cards.make_default(card=card)
        return card

    def top_up(self, organization, units_, key, card):
        payment = paying.top_up(
            organization=organization, amount_micros=units_ * MICROS, key=key, at=self.at, card=card
        )  # fmt: skip
        payment = paying.send(payment_id=payment.pk, at=self.at)
        if payment.state == Payment.State.NEEDS_ACTION:
            url = paying.continue_url(payment=payment, at=self.at)
            hosted.prove(self.world, url.rpartition("/")[2], is_them=True)
        self.hear()
        payment.refresh_from_db()
        assert payment.state == Payment.State.SUCCEEDED
        return payment

    def top_up_by_itself(self, organization):
        automatic.set_rule(
            organization=organization, threshold_micros=500 * MICROS, amount_micros=1000 * MICROS,
            monthly_ceiling_micros=2000 * MICROS, at=self.at,
        )  # fmt: skip


def winter(year):
    """January to March: credit first, the leap day, a customer who proves who they are, hours paid ahead."""
    year.start(year.fjord, "f-all-year", L40S, on(1, 1), quantity=4)
    year.at = on(1, 3, 10)
    year.grant(year.thames, 200, "welcome", on(4, 1))
    year.first = year.top_up(year.thames, 5000, "first", year.save_card(year.thames))
    year.save_card(year.fjord)
    year.start(year.thames, "t-winter", H200, on(1, 10))
    year.sweep(1, 15, 9)
    year.sweep(1, 20, 9)
    year.at = on(1, 31, 10)
    year.top_up(year.hudson, 500_000, "first yen", year.save_card(year.hudson, NEEDS_PROOF))
    year.start(year.hudson, "h-disk", STORAGE, on(2, 1), quantity=1000, meter="volume")
    month(year, 2)
    year.start(year.hudson, "h-leap", H200, on(2, 28, 12))
    year.stop("h-disk", on(3, 1), meter="volume")
    month(year, 3, days=[1])
    year.stop("h-leap", on(3, 1, 12))
    month(year, 3, days=[5, 8, 15, 20])
    year.at = on(3, 25, 8)
    ahead = 2 * 720 * 135 * MICROS
    holds.place(
        key="rsv_1:first", organization=year.hudson, amount_micros=ahead, purpose="reservation", resource_id="rsv_1",
        expires_at=on(3, 25, 9),
    )  # fmt: skip
    block = prepayments.Block(
        PrepaidItem.Kind.RESERVATION, "rsv_1", "L40S", "default", on(4, 1), on(5, 1), [(2, 720, 135 * MICROS)]
    )
    prepayments.collect(organization=year.hudson, resource_id="rsv_1", block=block, reason="Reserved", at=year.at)
    year.start(year.hudson, "h-april", L40S, on(4, 1), quantity=2, covered_by="rsv_1")


def spring(year):
    """April to June: a bank transfer, credit that expires, a service credit, a dispute that is lost."""
    month(year, 4, days=[1])
    year.stop("t-winter", on(4, 2))
    month(year, 4, days=[5])
    carol, dan = two_people()
    year.at = on(4, 7, 11)
    came = bank.record(
        organization=year.fjord, direction=BankTransfer.Direction.IN, amount_micros=3348 * MICROS, bank_reference="B1",
        value_on=date(2028, 4, 6), by=carol, key=uuid4(), at=year.at,
        invoice=Invoice.objects.get(number="INV-000007"),
    )  # fmt: skip
    bank.approve(transfer=came, by=dan, at=year.at)
    month(year, 4, days=[8])
    year.at = on(4, 10, 10)
    year.disputed = year.top_up(year.thames, 300, "second", cards.of(year.thames).first())
    month(year, 4, days=[15, 20])
    year.at = on(5, 1)
    year.stop("h-april", on(5, 1))
    earned = {"key": "rsv_1:2028-04", "currency": "JPY", "amount_micros": 2 * 720 * 135 * MICROS}
    prepayments.earn(**earned, reason="April", at=year.at)
    april = {"starts_at": on(4, 1), "ends_at": on(5, 1), "unit_milliseconds": 2 * 720 * 3_600_000}
    accruing.note_delivery(**earned, supplied=Supplied(supplier_id=year.south.pk, offer="ofr_l40s", **april))
    year.grant(year.thames, 150, "spring", on(6, 1))
    year.start(year.fjord, "f-may", L40S, on(5, 1), quantity=8)
    month(year, 5, days=[1, 5, 8])
    year.stop("f-may", on(5, 10))
    year.start(year.fjord, "f-may", L40S, on(5, 10, 5), quantity=8)
    year.start(year.thames, "t-day", H200, on(5, 10))
    charging.charge_due(at=on(5, 11, 6))
    year.stop("t-day", on(5, 11))  # its last proof of life, which came late
    month(year, 5, days=[15, 20])
    year.stop("f-may", on(5, 31))
    month(year, 6, days=[1])
    service_credit(year, on(6, 2, 5))
    month(year, 6, days=[5, 8])
    year.at = on(6, 10, 12)
    year.change_prices()
    year.lost = banks.open_dispute(year.world, year.disputed.processor_id)
    month(year, 6, days=[15, 20])


def service_credit(year, at):
    """Five hours of thirty days were missing: a tenth of what was paid, half of it the supplier's part."""
    year.at = at
    subject = posting.Subject(
        organization=year.fjord, resource_id="f-may", resource_name="f-may", project="prj_1",
        supplier_id=year.south.pk, offer="ofr_l40s",
    )  # fmt: skip
    seen = Seen(
        begins=on(5, 1), ends=on(6, 1), expected=((on(5, 1), on(5, 31)),),
        measured=((on(5, 1), on(5, 10)), (on(5, 10, 5), on(5, 31))), paid_micros=5148 * MICROS,
    )  # fmt: skip
    for _ in range(2):
        posting.post(subject=subject, seen=seen, terms=terms.in_force(seen.begins), at=at)


def summer(year):
    """July to September: other prices, declined cards, a dispute that is won, use that had ended before the month."""
    usage.reprice(resource_id="f-all-year", price_version=year.price(L40S, year.fjord, on(7, 1)), at=on(7, 1))
    month(year, 7, days=[1])
    year.at = on(7, 1, 12)
    doubted = year.top_up(year.hudson, 100_000, "second yen", year.save_card(year.hudson))
    month(year, 7, days=[5])
    year.at = on(7, 7, 12)
    declined = year.save_card(year.fjord, DECLINED_LATER)
    month(year, 7, days=[8])
    year.at = on(7, 10, 12)
    won = banks.open_dispute(year.world, doubted.processor_id)
    month(year, 7, days=[12, 15, 16])
    year.at = on(7, 17, 12)
    cards.forget(card=declined, at=year.at)
    month(year, 7, days=[18, 20])
    banks.close_dispute(year.world, year.lost["id"], is_won=False)
    month(year, 8, days=[1, 5, 8])
    year.at = on(8, 14, 12)
    declined = year.save_card(year.thames, DECLINED_LATER)
    year.top_up_by_itself(year.thames)
    month(year, 8, days=[15, 16])
    assert AutomaticTopUp.objects.get().paused_because
    year.at = on(8, 17, 8)
    cards.forget(card=declined, at=year.at)
    year.top_up_by_itself(year.thames)
    month(year, 8, days=[17])
    year.start(year.thames, "t-august", H200, on(8, 20))
    banks.close_dispute(year.world, won["id"], is_won=True)
    month(year, 8, days=[20])
    month(year, 9, days=[1])
    year.stop("t-august", on(8, 31, 12))  # invoiced until the end of August, charged until four in the morning
    month(year, 9, days=[5, 8])
    year.start(year.thames, "t-september", H200, on(9, 10))
    year.stop("t-september", on(9, 14))
    month(year, 9, days=[15, 20])
    carol, dan = two_people()
    wanted = {"amount_micros": 100 * MICROS, "reason": "Asked for", "by": carol, "key": uuid4()}
    refund = refunds.propose(payment=year.first, at=on(9, 25), **wanted)
    refunds.approve(refund=refund, by=dan, at=on(9, 26))


def autumn(year):
    """October to the end: a credit note, clocks that change, seconds that cost less than a yen, the last close."""
    month(year, 10, days=[1])
    carol, dan = two_people()
    noted = {"net_micros": 100 * MICROS, "reason": "Goodwill", "by": carol, "key": uuid4(), "at": on(10, 4)}
    year.at = on(10, 4)
    proposal = crediting.propose(invoice=Invoice.objects.get(number="INV-000017"), **noted)
    crediting.approve(proposal=proposal, by=dan, at=on(10, 4))
    month(year, 10, days=[5, 8, 15])
    year.start(year.thames, "t-clocks", H200, on(10, 20))
    month(year, 10, days=[20])
    year.start(year.hudson, "h-seconds", L40S, on(10, 28, 23, 30))
    year.stop("h-seconds", on(10, 30, 0, 30, 10))
    month(year, 11, days=[1, 5, 8])
    year.stop("t-clocks", on(11, 10))
    month(year, 11, days=[15, 20])
    month(year, 12, days=[1, 5, 8, 15])
    year.start(year.thames, "t-december", H200, on(12, 18))
    year.stop("t-december", on(12, 20))
    month(year, 12, days=[20])
    year.at = on(12, 22)
    connect.pay_out(year.world, 500_000, "usd")
    year.start(year.hudson, "h-eve", L40S, on(12, 31, 12), quantity=3)
    new_year = on(1, 1, year=2029)
    year.stop("h-eve", new_year)
    year.stop("f-all-year", new_year)
    year.sweep(1, 1, 4, year=2029)
    year.sweep(1, 5, 9, year=2029)


def month(year, number, *, days=(1, 5, 8, 15, 20)):
    """Sweep on days of a month: at four in the morning of its first, at nine on others."""
    for day in days:
        year.sweep(number, day, 4 if day == 1 else 9)


def live(year):
    """Let the whole year pass."""
    for season in (winter, spring, summer, autumn):
        season(year)
