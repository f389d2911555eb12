"""The bundled processor as tests play with it: a clock, cards, and what it tells us."""

from datetime import timedelta

from billing.models import Payment, ProcessorEvent, Transfer
from billing.payments import cards, customers, events, gateway, objects, paying
from billing.test_processor import hosted
from billing.test_processor import paying as far_paying
from billing.test_processor.client import new_world
from billing.test_processor.world import Fault
from tests.billing.makers import NOON, USD

GOOD, DECLINED_LATER, NEEDS_PROOF = "4242424242424242", "4000000000000341", "4000002760003184"
MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)


class Processor:
    """A processor with a movable clock, and the sweeps that look at it."""

    def __init__(self):
        self.at = NOON
        self.world = new_world(clock=self.seconds, api_key="sk_test_ours")

    def fresh(self):
        """Begin a new world."""
        self.__init__()
        gateway._client_of.cache_clear()

    def seconds(self):
        return int(self.at.timestamp())

    def later(self, by=MINUTE):
        self.at += by
        return self.at

    def card(self, organization, number=GOOD):
        """Let somebody save a card on the processor's page, and return it as we know it."""
        url = cards.adding_url(organization=organization)
        onward = hosted.type_card(self.world, url.rpartition("/")[2], number=number)
        if "/prove/" in onward:
            hosted.prove(self.world, onward.rpartition("/")[2], is_them=True)
        cards.refresh(organization=organization, at=self.at)
        return cards.of(organization).order_by("-pk").first()

    def fails(self, *kinds, path="/v1/payment_intents"):
        """Let the next requests to this path go wrong, one after the other."""
        self.world.faults += [Fault(kind, path) for kind in kinds]

    def look(self, by=MINUTE):
        """Let time pass and the sweep come by."""
        return paying.look_due(at=self.later(by))

    def look_until_closed(self, payment, *, turns=40, by=timedelta(hours=1)):
        for _ in range(turns):
            payment.refresh_from_db()
            if not payment.is_open:
                return payment
            self.look(by)
        return payment

    def sent(self, method="POST", path="/v1/payment_intents"):
        return self.world.calls.count((method, path))

    @property
    def charges(self):
        return list(self.world.things["charge"].values())

    def tell(self, *wanted):
        """Return events as we would receive them, all or these."""
        chosen = wanted or self.world.events
        return [objects.event_of(event) for event in chosen]

    def deliver(self, *wanted):
        for event in self.tell(*wanted):
            events.receive(event=event, at=self.at)
        for _ in range(len(self.world.events)):
            if not events.handle_due(at=self.later(timedelta(seconds=1))):
                return [row.outcome for row in ProcessorEvent.objects.order_by("pk")]
        return [row.outcome for row in ProcessorEvent.objects.order_by("pk")]

    def ghost(self, organization, **facts):
        """Make a payment of this customer that we never asked for."""
        card = self.card(organization)
        asked = {
            "amount": 2000,
            "currency": "usd",
            "customer": customers.known_id(organization.pk),
            "payment_method": card.processor_id,
            "confirm": "true",
        }
        return far_paying.create_intent(self.world, asked | facts)


def order(organization, amount_micros=20 * USD, *, key="top-up:1", at=NOON, **overrides):
    ordinary = {"purpose": Payment.Purpose.INVOICE}
    return paying.charge(organization=organization, amount_micros=amount_micros, key=key, at=at, **ordinary | overrides)


def moved(payment):
    """Return what a payment has moved in our books."""
    return [one.amount_micros for one in Transfer.objects.filter(key__startswith=payment.processor_key)]
