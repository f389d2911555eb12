"""Money through the card processor: who we are to it, cards, payments, refunds, disputes and what it told us."""

from django.db import models
from django.db.models import F, Q
from django.db.models.functions import Now
from django.utils.translation import gettext_lazy as _

from billing.public_ids import PublicIdField

OPEN_STATES = ("created", "sending", "unknown", "needs_action", "processing")


class ProcessorCustomer(models.Model):
    """An organization as the processor knows it. `processor_id` is empty until it has answered."""

    public_id = PublicIdField(prefix="pcu")
    organization = models.OneToOneField("marketplace.Organization", models.PROTECT, related_name="processor_customer")
    processor_id = models.CharField(max_length=64, blank=True)
    created_at = models.DateTimeField(db_default=Now())

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["processor_id"], condition=~Q(processor_id=""), name="processor_customer_is_one_organization"
            )
        ]

    def __str__(self) -> str:
        return f"{self.organization}: {self.processor_id or 'not known to the processor yet'}"


class Card(models.Model):
    """A card that the processor keeps for an organization: what it is called, never its number."""

    public_id = PublicIdField(prefix="crd")
    organization = models.ForeignKey("marketplace.Organization", models.PROTECT, related_name="cards")
    processor_id = models.CharField(max_length=64, unique=True)
    brand = models.CharField(max_length=20)
    last4 = models.CharField(max_length=4)
    exp_month = models.PositiveSmallIntegerField()
    exp_year = models.PositiveSmallIntegerField()
    is_default = models.BooleanField(default=False)
    added_at = models.DateTimeField(db_default=Now())
    removed_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["organization"], condition=Q(is_default=True), name="card_one_default_per_organization"
            ),
            models.CheckConstraint(
                condition=Q(is_default=False) | Q(removed_at=None), name="card_that_was_removed_is_no_default"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.brand} {self.last4}"


class Payment(models.Model):
    """Money that a customer pays with a card, once. Its id is the processor's idempotency key; see `paying.MOVES`.

    `card` is null where the customer chooses one on the processor's own page. `reference` is what it pays for, such
    as an invoice. `look_at` is when a sweep has to look what became of it.
    """

    class State(models.TextChoices):
        CREATED = "created", _("waiting to be sent")
        SENDING = "sending", _("being sent")
        UNKNOWN = "unknown", _("outcome not known yet")
        NEEDS_ACTION = "needs_action", _("needs you")
        PROCESSING = "processing", _("being processed")
        SUCCEEDED = "succeeded", _("paid")
        FAILED = "failed", _("failed")
        CANCELLED = "cancelled", _("cancelled")

    class Purpose(models.TextChoices):
        TOP_UP = "top_up", _("Top-up")
        AUTOMATIC = "automatic", _("Automatic top-up")
        INVOICE = "invoice", _("Invoice")

    public_id = PublicIdField(prefix="pay")
    key = models.CharField(max_length=200, unique=True)
    organization = models.ForeignKey("marketplace.Organization", models.PROTECT, related_name="payments")
    purpose = models.CharField(max_length=12, choices=Purpose.choices)
    reference = models.CharField(max_length=64, blank=True)
    amount_micros = models.BigIntegerField()
    currency = models.CharField(max_length=3)
    card = models.ForeignKey(Card, models.PROTECT, null=True, blank=True, related_name="payments")
    is_on_session = models.BooleanField(default=False, help_text="the customer is there and can prove who they are")
    state = models.CharField(max_length=12, choices=State.choices, default=State.CREATED)
    processor_id = models.CharField(max_length=100, blank=True)
    session_id = models.CharField(max_length=100, blank=True)
    charge_id = models.CharField(max_length=100, blank=True)
    failure_code = models.CharField(max_length=64, blank=True)
    failure_text = models.CharField(max_length=300, blank=True)
    created_at = models.DateTimeField()
    sent_at = models.DateTimeField(null=True, blank=True)
    look_at = models.DateTimeField(null=True, blank=True)
    finished_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        constraints = [
            models.CheckConstraint(condition=Q(amount_micros__gt=0), name="payment_is_of_something"),
            models.UniqueConstraint(
                fields=["processor_id"], condition=~Q(processor_id=""), name="payment_once_per_object_of_the_processor"
            ),
            models.CheckConstraint(
                condition=Q(state__in=OPEN_STATES, finished_at=None)
                | (~Q(state__in=OPEN_STATES) & Q(finished_at__isnull=False)),
                name="payment_is_finished_or_open",
            ),
            models.CheckConstraint(
                condition=~Q(state="succeeded") | ~Q(processor_id=""), name="payment_succeeds_at_the_processor"
            ),
        ]
        indexes = [
            models.Index(fields=["organization", "-id"], name="payment_newest_first"),
            models.Index(fields=["look_at"], condition=Q(look_at__isnull=False), name="payment_to_look_at"),
            models.Index(fields=["charge_id"], condition=~Q(charge_id=""), name="payment_by_charge"),
        ]

    def __str__(self) -> str:
        return f"{self.public_id} ({self.state})"

    @property
    def is_open(self) -> bool:
        return self.state in OPEN_STATES

    @property
    def processor_key(self) -> str:
        """The idempotency key of its one call, and what the processor's objects carry as their metadata."""
        return f"payment:{self.public_id}"


class Refund(models.Model):
    """Part of a payment that goes back to its card: one person proposes, another decides. See `refunds.MOVES`.

    Or what somebody gave back at the processor itself: nobody here proposed it, and it is done when it is found.
    """

    class State(models.TextChoices):
        PROPOSED = "proposed", _("proposed")
        DECLINED = "declined", _("declined")
        APPROVED = "approved", _("waiting to be sent")
        SENDING = "sending", _("being sent")
        UNKNOWN = "unknown", _("outcome not known yet")
        PROCESSING = "processing", _("being processed")
        SUCCEEDED = "succeeded", _("refunded")
        FAILED = "failed", _("failed")

    public_id = PublicIdField(prefix="rfd")
    payment = models.ForeignKey(Payment, models.PROTECT, related_name="refunds")
    amount_micros = models.BigIntegerField()
    reason = models.CharField(max_length=200)
    key = models.UUIDField(unique=True)
    state = models.CharField(max_length=12, choices=State.choices, default=State.PROPOSED)
    processor_id = models.CharField(max_length=100, blank=True)
    failure_text = models.CharField(max_length=300, blank=True)
    proposed_by = models.ForeignKey("marketplace.User", models.PROTECT, null=True, blank=True, related_name="+")
    proposed_at = models.DateTimeField()
    decided_by = models.ForeignKey("marketplace.User", models.PROTECT, null=True, blank=True, related_name="+")
    decided_at = models.DateTimeField(null=True, blank=True)
    sent_at = models.DateTimeField(null=True, blank=True)
    look_at = models.DateTimeField(null=True, blank=True)
    found_at = models.DateTimeField(
        null=True, blank=True, help_text="when it was seen that somebody had made it at the processor"
    )

    class Meta:
        constraints = [
            models.CheckConstraint(condition=Q(amount_micros__gt=0), name="refund_gives_something"),
            models.CheckConstraint(
                condition=Q(state__in=["succeeded", "failed"], proposed_by=None, found_at__isnull=False)
                | Q(proposed_by__isnull=False, found_at=None)
                & (
                    Q(state__in=["proposed", "declined"])
                    | (Q(decided_by__isnull=False) & ~Q(decided_by=F("proposed_by")))
                ),
                name="refund_needs_a_second_person",
            ),
            models.UniqueConstraint(
                fields=["processor_id"], condition=~Q(processor_id=""), name="refund_once_per_object_of_the_processor"
            ),
        ]
        indexes = [models.Index(fields=["look_at"], condition=Q(look_at__isnull=False), name="refund_to_look_at")]

    def __str__(self) -> str:
        return f"{self.public_id} ({self.state})"

    @property
    def processor_key(self) -> str:
        """The idempotency key of its one call, and what the processor's object carries as its metadata."""
        return f"payback:{self.public_id}"


class Dispute(models.Model):
    """A customer's bank took a payment back, or asks why it should not. See `disputes.MOVES`."""

    class State(models.TextChoices):
        OPEN = "open", _("the bank asks")
        TAKEN = "taken", _("the bank took the money")
        WON = "won", _("won, the money is back")
        LOST = "lost", _("lost")

    public_id = PublicIdField(prefix="dsp")
    payment = models.ForeignKey(Payment, models.PROTECT, related_name="disputes")
    processor_id = models.CharField(max_length=100, unique=True)
    amount_micros = models.BigIntegerField()
    reason = models.CharField(max_length=64, blank=True)
    state = models.CharField(max_length=8, choices=State.choices, default=State.OPEN)
    opened_at = models.DateTimeField()
    changed_at = models.DateTimeField()

    class Meta:
        constraints = [models.CheckConstraint(condition=Q(amount_micros__gt=0), name="dispute_is_of_something")]

    def __str__(self) -> str:
        return f"{self.processor_id} ({self.state})"


class AutomaticTopUp(models.Model):
    """An organization's wish to be topped up by card when less than `threshold_micros` is free to use."""

    public_id = PublicIdField(prefix="atu")
    organization = models.OneToOneField("marketplace.Organization", models.PROTECT, related_name="automatic_top_up")
    threshold_micros = models.BigIntegerField()
    amount_micros = models.BigIntegerField()
    monthly_ceiling_micros = models.BigIntegerField(help_text="for a calendar month, UTC")
    is_on = models.BooleanField(default=True)
    paused_because = models.CharField(max_length=300, blank=True)
    paused_code = models.CharField(max_length=64, blank=True, help_text="the processor's word for why")
    changed_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=Q(
                    threshold_micros__gte=0,
                    amount_micros__gt=0,
                    monthly_ceiling_micros__gte=F("amount_micros"),
                ),
                name="automatic_top_up_fits_under_its_ceiling",
            )
        ]

    def __str__(self) -> str:
        return f"{self.organization}: {self.amount_micros} micros below {self.threshold_micros}"


class ProcessorEvent(models.Model):
    """Something that the processor says happened. Stored once by its id, then handled by looking at the object."""

    event_id = models.CharField(max_length=100, unique=True)
    type = models.CharField(max_length=80)
    object_id = models.CharField(max_length=100)
    payload = models.JSONField()
    created_at = models.DateTimeField(help_text="by the processor's clock")
    received_at = models.DateTimeField()
    handled_at = models.DateTimeField(null=True, blank=True)
    outcome = models.CharField(max_length=300, blank=True)
    tries = models.PositiveSmallIntegerField(default=0)
    look_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        indexes = [models.Index(fields=["look_at"], condition=Q(handled_at=None), name="event_to_handle")]

    def __str__(self) -> str:
        return f"{self.event_id} {self.type}"


class BalanceEntry(models.Model):
    """One line of the processor's own statement, as it was read. `our_key` is what it belongs to in our ledger."""

    processor_id = models.CharField(max_length=100, unique=True)
    type = models.CharField(max_length=40)
    source_id = models.CharField(max_length=100, blank=True)
    our_key = models.CharField(max_length=200, blank=True)
    amount_micros = models.BigIntegerField(help_text="what came in, before the fee; negative for what went out")
    fee_micros = models.BigIntegerField(default=0)
    currency = models.CharField(max_length=3)
    created_at = models.DateTimeField()

    class Meta:
        verbose_name_plural = "balance entries"
        indexes = [
            models.Index(fields=["our_key"], name="balance_entry_by_our_key"),
            models.Index(fields=["-created_at"], name="balance_entry_newest_first"),
        ]

    def __str__(self) -> str:
        return f"{self.processor_id}: {self.amount_micros} micros"


class BalanceReading(models.Model):
    """How far the processor's statement was read, while it is being read: from the newest line back to `since`.

    At most one, and none once it was read whole. `after` is the last line that was kept.
    """

    since = models.DateTimeField()
    after = models.CharField(max_length=100, blank=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(models.Value(1), name="balance_reading_is_one"),
        ]

    def __str__(self) -> str:
        return f"since {self.since:%Y-%m-%d}, after {self.after or 'nothing'}"


class ReconciliationCase(models.Model):
    """Something on which our ledger and the processor's statement differ; closed by itself once they agree."""

    public_id = PublicIdField(prefix="rcc")
    currency = models.CharField(max_length=3)
    our_key = models.CharField(max_length=200)
    ledger_micros = models.BigIntegerField()
    processor_micros = models.BigIntegerField()
    found_at = models.DateTimeField()
    closed_at = models.DateTimeField(null=True, blank=True)
    note = models.CharField(max_length=300, blank=True)
    noted_by = models.ForeignKey("marketplace.User", models.PROTECT, null=True, blank=True, related_name="+")

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["currency", "our_key"], condition=Q(closed_at=None), name="reconciliation_case_open_once"
            )
        ]

    def __str__(self) -> str:
        return f"{self.our_key}: {self.difference_micros} micros"

    @property
    def difference_micros(self) -> int:
        """What the ledger has more than the processor says."""
        return self.ledger_micros - self.processor_micros
