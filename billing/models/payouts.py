"""What suppliers are told and paid: monthly statements, written once, and the payouts that follow from them."""

from django.db import models
from django.db.models import F, Q
from django.utils.translation import gettext_lazy as _

from billing.models.sla import SupplierAdjustment
from billing.models.suppliers import Accrual
from billing.public_ids import PublicIdField


class PayoutAccount(models.Model):
    """A supplier's account at the payment processor, as it last was: money goes there once `can_be_paid`."""

    public_id = PublicIdField(prefix="pac")
    supplier = models.OneToOneField("marketplace.Organization", models.PROTECT, related_name="payout_account")
    processor_id = models.CharField(max_length=64, blank=True)
    country = models.CharField(max_length=2)
    can_be_paid = models.BooleanField(default=False)
    is_submitted = models.BooleanField(default=False)
    missing = models.JSONField(default=list, help_text="what the processor still asks for")
    looked_at = models.DateTimeField(null=True)
    held_at = models.DateTimeField(null=True, help_text="since when a capacity manager holds payouts back")

    def __str__(self) -> str:
        return f"{self.public_id} of {self.supplier}"

    @property
    def processor_key(self) -> str:
        """The idempotency key of the call that makes it."""
        return f"connect:{self.public_id}"


class StatementSeries(models.Model):
    """How statements are numbered. `next_number` grows in the transaction that issues, so that none is left out."""

    prefix = models.CharField(max_length=12, unique=True)
    next_number = models.BigIntegerField(default=1)

    class Meta:
        verbose_name_plural = "statement series"

    def __str__(self) -> str:
        return f"{self.prefix}{self.next_number:06}"


class SupplierStatement(models.Model):
    """What a supplier earned in a month, line by line. Written once: a trigger refuses every change.

        closing = opening + payout + reserve + adjustments - paid out

    `held_micros` of the closing balance is the reserve, which is not paid out yet.
    """

    public_id = PublicIdField(prefix="sts")
    series = models.ForeignKey(StatementSeries, models.PROTECT, related_name="statements", db_index=False)
    sequence = models.BigIntegerField()
    number = models.CharField(max_length=32, unique=True)
    supplier = models.ForeignKey("marketplace.Organization", models.PROTECT, related_name="statements")
    currency = models.CharField(max_length=3)
    period_start = models.DateTimeField()
    period_end = models.DateTimeField()
    issued_at = models.DateTimeField()
    language = models.CharField(max_length=2)
    platform = models.JSONField(help_text="name, address, country and tax_id as they were")
    party = models.JSONField(help_text="the supplier's name, address, country and tax_id as they were")
    opening_micros = models.BigIntegerField()
    unit_milliseconds = models.BigIntegerField()
    charge_micros = models.BigIntegerField()
    payout_micros = models.BigIntegerField()
    reserve_micros = models.BigIntegerField()
    fee_micros = models.BigIntegerField()
    adjustment_micros = models.BigIntegerField()
    paid_micros = models.BigIntegerField()
    closing_micros = models.BigIntegerField()
    held_micros = models.BigIntegerField()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["series", "sequence"], name="statement_number_once"),
            models.UniqueConstraint(fields=["supplier", "currency", "period_end"], name="statement_once_per_month"),
            models.CheckConstraint(
                condition=Q(
                    closing_micros=F("opening_micros")
                    + F("payout_micros")
                    + F("reserve_micros")
                    + F("adjustment_micros")
                    - F("paid_micros"),
                    charge_micros=F("payout_micros") + F("reserve_micros") + F("fee_micros"),
                ),
                name="statement_adds_up",
            ),
        ]
        indexes = [models.Index(fields=["supplier", "-id"], name="statement_newest_first")]

    def __str__(self) -> str:
        return self.number

    @property
    def earned_micros(self) -> int:
        """What the supplier gets of what customers paid, now or later."""
        return self.payout_micros + self.reserve_micros

    @property
    def due_micros(self) -> int:
        """What may be paid out of it; below zero where the supplier owes."""
        return self.closing_micros - self.held_micros


class StatementLine(models.Model):
    """One node of an offer in a month; or an adjustment. Its items add up to it."""

    statement = models.ForeignKey(SupplierStatement, models.PROTECT, related_name="lines", db_index=False)
    key = models.CharField(max_length=120)
    node = models.CharField(max_length=32, blank=True)
    offer = models.CharField(max_length=32, blank=True)
    month = models.DateTimeField(null=True, help_text="in which it was used; earlier than the statement's where late")
    adjustment = models.OneToOneField(SupplierAdjustment, models.PROTECT, null=True, related_name="line")
    text = models.CharField(max_length=200, blank=True)
    unit_milliseconds = models.BigIntegerField(default=0)
    charge_micros = models.BigIntegerField(default=0)
    payout_micros = models.BigIntegerField(default=0)
    reserve_micros = models.BigIntegerField(default=0)
    adjustment_micros = models.BigIntegerField(default=0)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["statement", "key"], name="statement_line_once_per_key")]

    def __str__(self) -> str:
        return self.key

    @property
    def earned_micros(self) -> int:
        return self.payout_micros + self.reserve_micros

    @property
    def fee_micros(self) -> int:
        return self.charge_micros - self.payout_micros - self.reserve_micros


class StatementItem(models.Model):
    """What a line has of an accrual: how it changed since the statement before, as far as it was on the line's node."""

    line = models.ForeignKey(StatementLine, models.PROTECT, related_name="items")
    accrual = models.ForeignKey(Accrual, models.PROTECT, related_name="items")
    unit_milliseconds = models.BigIntegerField()
    charge_micros = models.BigIntegerField()
    payout_micros = models.BigIntegerField()
    reserve_micros = models.BigIntegerField()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["line", "accrual"], name="statement_item_once_per_line")]

    def __str__(self) -> str:
        return f"{self.charge_micros} micros"


class Payout(models.Model):
    """Money sent to a supplier's account, by its statement. One at a time per supplier and currency.

    `slot` is the day of the calendar that it is for; `look_at` is when a sweep has to see what became of it.
    """

    class State(models.TextChoices):
        CREATED = "created", _("ordered")
        SENDING = "sending", _("being sent")
        UNKNOWN = "unknown", _("being looked for")
        PAID = "paid", _("paid out")
        FAILED = "failed", _("failed")
        CANCELLED = "cancelled", _("called off")
        REVERSING = "reversing", _("being taken back")
        REVERSED = "reversed", _("taken back")

    public_id = PublicIdField(prefix="pyt")
    supplier = models.ForeignKey("marketplace.Organization", models.PROTECT, related_name="payouts")
    account = models.ForeignKey(PayoutAccount, models.PROTECT, related_name="payouts")
    statement = models.ForeignKey(SupplierStatement, models.PROTECT, related_name="payouts")
    currency = models.CharField(max_length=3)
    amount_micros = models.BigIntegerField()
    slot = models.DateField()
    state = models.CharField(max_length=9, choices=State.choices, default=State.CREATED)
    processor_id = models.CharField(max_length=64, blank=True)
    failure = models.CharField(max_length=300, blank=True)
    created_at = models.DateTimeField()
    sent_at = models.DateTimeField(null=True)
    finished_at = models.DateTimeField(null=True)
    look_at = models.DateTimeField(null=True)
    reversal_found_at = models.DateTimeField(
        null=True, help_text="when it was seen that it had been taken back at the processor, by nobody here"
    )
    reversal_proposed_by = models.ForeignKey("marketplace.User", models.PROTECT, null=True, related_name="+")
    reversal_approved_by = models.ForeignKey("marketplace.User", models.PROTECT, null=True, related_name="+")

    class Meta:
        constraints = [
            models.CheckConstraint(condition=Q(amount_micros__gt=0), name="payout_pays_something"),
            models.UniqueConstraint(
                fields=["supplier", "currency"],
                condition=Q(state__in=["created", "sending", "unknown"]),
                name="payout_one_at_a_time",
            ),
            models.UniqueConstraint(
                fields=["supplier", "currency", "slot"],
                condition=~Q(state__in=["failed", "cancelled"]),
                name="payout_once_per_slot",
            ),
            models.CheckConstraint(
                condition=~Q(state__in=["reversing", "reversed"])
                | Q(state="reversed", reversal_found_at__isnull=False)
                | Q(reversal_proposed_by__isnull=False, reversal_approved_by__isnull=False)
                & ~Q(reversal_approved_by=F("reversal_proposed_by")),
                name="payout_reversal_needs_a_second_person",
            ),
        ]
        indexes = [
            models.Index(fields=["look_at"], condition=Q(look_at__isnull=False), name="payout_to_look_at"),
            models.Index(fields=["supplier", "-id"], name="payout_newest_first"),
        ]

    def __str__(self) -> str:
        return f"{self.public_id}: {self.amount_micros} micros ({self.state})"

    @property
    def processor_key(self) -> str:
        """The idempotency key at the processor, and the key of our own transfer."""
        return f"payout:{self.public_id}"

    @property
    def reversal_key(self) -> str:
        """The same of taking it back."""
        return f"payout:{self.public_id}:reversal"
