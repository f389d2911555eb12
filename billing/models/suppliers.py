"""What suppliers earn: their rate cards, what accrued to them, and what moved for it."""

from django.db import models
from django.db.models import F, Q
from django.db.models.functions import Now

from billing.models.decisions import Proposal
from billing.models.usage import UsageSpan
from billing.public_ids import PublicIdField

BPS = 10_000


class RateCard(Proposal):
    """What a supplier gets of a customer's money from a moment on; for one offer, or for all that have no card of
    their own. A new rate is a new version: from its approval on, a trigger refuses every change.

    `fixed_micros`, where it is set, is paid for each GPU-hour that is paid in its currency, whatever the customer paid;
    of everything else the supplier gets `share_bps`. Of what it gets, `reserve_bps` are held back for `reserve_days`.
    """

    public_id = PublicIdField(prefix="rtc")
    supplier = models.ForeignKey("marketplace.Organization", models.PROTECT, related_name="rate_cards")
    offer = models.CharField(max_length=32, blank=True, help_text="the offer's id; empty: all without a card of theirs")
    share_bps = models.PositiveIntegerField(help_text="of what customers pay, in hundredths of a percent")
    fixed_micros = models.BigIntegerField(null=True, help_text="for a GPU-hour, instead of a share")
    fixed_currency = models.CharField(max_length=3, blank=True)
    reserve_bps = models.PositiveIntegerField(default=0, help_text="of what the supplier gets, held back")
    reserve_days = models.PositiveIntegerField(default=0)
    sla_bps = models.PositiveIntegerField(default=BPS, help_text="of a service credit, what the supplier bears")
    effective_from = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["supplier", "offer", "effective_from"],
                condition=Q(state="approved"),
                name="rate_card_one_per_moment",
            ),
            models.CheckConstraint(
                condition=Q(share_bps__lte=BPS, reserve_bps__lte=BPS, sla_bps__lte=BPS),
                name="rate_card_shares_no_more_than_all",
            ),
            models.CheckConstraint(
                condition=Q(fixed_micros=None, fixed_currency="")
                | Q(fixed_micros__gte=0, fixed_currency__regex="^[A-Z]{3}$"),
                name="rate_card_fixes_an_amount_of_a_currency",
            ),
            models.CheckConstraint(
                condition=~Q(state="approved")
                | Q(decided_by__isnull=False, decided_at__isnull=False) & ~Q(decided_by=F("proposed_by")),
                name="rate_card_needs_a_second_person",
            ),
            models.CheckConstraint(
                condition=~Q(state="approved") | Q(effective_from__gte=F("decided_at")),
                name="rate_card_never_begins_in_the_past",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.public_id} from {self.effective_from:%Y-%m-%d %H:%M}"


class Delivery(models.Model):
    """Hours paid ahead that a supplier delivered: what the platform earned with one transfer, and whose GPUs they were.

    `key` is that of the transfer, without its `earn:`.
    """

    key = models.CharField(max_length=120, unique=True)
    supplier = models.ForeignKey("marketplace.Organization", models.PROTECT, related_name="+")
    offer = models.CharField(max_length=32)
    currency = models.CharField(max_length=3)
    starts_at = models.DateTimeField()
    ends_at = models.DateTimeField()
    unit_milliseconds = models.BigIntegerField()
    amount_micros = models.BigIntegerField()
    is_accrued = models.BooleanField(db_default=False)

    class Meta:
        verbose_name_plural = "deliveries"
        constraints = [
            models.CheckConstraint(
                condition=Q(amount_micros__gt=0, unit_milliseconds__gte=0, starts_at__lte=F("ends_at")),
                name="delivery_earned_something",
            ),
        ]
        indexes = [models.Index(fields=["id"], condition=Q(is_accrued=False), name="delivery_to_accrue")]

    def __str__(self) -> str:
        return self.key


class LentUse(models.Model):
    """What one charge of a span was for GPUs that somebody had reserved and lent: they were paid a part of it, and
    their supplier earns these GPU-hours by the reservation already.

    `key` is that of the charge.
    """

    key = models.CharField(max_length=120, unique=True)
    span = models.ForeignKey(UsageSpan, models.PROTECT, related_name="lent_uses")
    through = models.DateTimeField()
    unit_milliseconds = models.BigIntegerField()
    amount_micros = models.BigIntegerField(help_text="what the holders of the reservations were paid")

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=Q(amount_micros__gt=0, unit_milliseconds__gte=0), name="lent_use_paid_somebody"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.amount_micros} micros of {self.key}"


class Accrual(models.Model):
    """What a customer paid for one span (or delivery) in one month under one rate card, and how it is shared out.

        payout + reserve + fee = charge

    It grows while the span runs: everything here is what is so through `through`. `stated_` is what stands on
    statements already.
    """

    span = models.ForeignKey(UsageSpan, models.PROTECT, null=True, related_name="accruals", db_index=False)
    delivery = models.ForeignKey(Delivery, models.PROTECT, null=True, related_name="accruals", db_index=False)
    card = models.ForeignKey(RateCard, models.PROTECT, related_name="accruals")
    supplier = models.ForeignKey("marketplace.Organization", models.PROTECT, related_name="+")
    offer = models.CharField(max_length=32)
    currency = models.CharField(max_length=3)
    month = models.DateTimeField(help_text="the beginning of the UTC month in which it was used")
    starts_at = models.DateTimeField()
    through = models.DateTimeField()
    unit_milliseconds = models.BigIntegerField()
    charge_micros = models.BigIntegerField()
    payout_micros = models.BigIntegerField()
    reserve_micros = models.BigIntegerField()
    fee_micros = models.BigIntegerField(help_text="what the platform keeps; below zero where a fixed rate is dearer")
    stated_milliseconds = models.BigIntegerField(db_default=0)
    stated_charge_micros = models.BigIntegerField(db_default=0)
    stated_payout_micros = models.BigIntegerField(db_default=0)
    stated_reserve_micros = models.BigIntegerField(db_default=0)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["span", "month", "card"],
                condition=Q(span__isnull=False),
                name="accrual_once_per_span_and_month",
            ),
            models.UniqueConstraint(
                fields=["delivery", "card"], condition=Q(delivery__isnull=False), name="accrual_once_per_delivery"
            ),
            models.CheckConstraint(
                condition=Q(span__isnull=False, delivery=None) | Q(span=None, delivery__isnull=False),
                name="accrual_is_for_one_thing",
            ),
            models.CheckConstraint(
                condition=Q(charge_micros=F("payout_micros") + F("reserve_micros") + F("fee_micros")),
                name="accrual_shares_out_its_charge",
            ),
            models.CheckConstraint(
                condition=Q(
                    charge_micros__gte=0, payout_micros__gte=0, reserve_micros__gte=0, unit_milliseconds__gte=0
                ),
                name="accrual_owes_nothing_negative",
            ),
        ]
        indexes = [
            models.Index(fields=["supplier", "month"], name="accrual_by_supplier_and_month"),
            models.Index(
                fields=["supplier"],
                condition=~Q(
                    charge_micros=F("stated_charge_micros"),
                    payout_micros=F("stated_payout_micros"),
                    reserve_micros=F("stated_reserve_micros"),
                    unit_milliseconds=F("stated_milliseconds"),
                ),
                name="accrual_to_state",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.charge_micros} micros through {self.through:%Y-%m-%d %H:%M:%S}"


class Earning(models.Model):
    """What one close added to what a supplier is owed: the sum of how its accruals changed, and what moved for it.

    Append-only but for the release of its reserve. Amounts are below zero where use was corrected.
    """

    public_id = PublicIdField(prefix="ern")
    supplier = models.ForeignKey("marketplace.Organization", models.PROTECT, related_name="+")
    currency = models.CharField(max_length=3)
    at = models.DateTimeField()
    unit_milliseconds = models.BigIntegerField()
    charge_micros = models.BigIntegerField()
    payout_micros = models.BigIntegerField()
    reserve_micros = models.BigIntegerField()
    fee_micros = models.BigIntegerField()
    release_at = models.DateTimeField(help_text="when its reserve is paid out as well")
    taken_micros = models.BigIntegerField(
        db_default=0, help_text="of its reserve, what service credits and corrections took"
    )
    released_at = models.DateTimeField(null=True)
    released_micros = models.BigIntegerField(db_default=0)
    created_at = models.DateTimeField(db_default=Now())

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=Q(charge_micros=F("payout_micros") + F("reserve_micros") + F("fee_micros")),
                name="earning_shares_out_its_charge",
            ),
            models.CheckConstraint(
                condition=Q(released_at=None, released_micros=0) | Q(released_at__isnull=False, released_micros__gte=0),
                name="earning_releases_its_reserve_once",
            ),
            models.CheckConstraint(
                condition=Q(taken_micros=0) | Q(taken_micros__gt=0, taken_micros__lte=F("reserve_micros")),
                name="earning_loses_no_more_than_its_reserve",
            ),
        ]
        indexes = [
            models.Index(fields=["supplier", "-at"], name="earning_newest_first"),
            models.Index(
                fields=["release_at"], condition=Q(released_at=None, reserve_micros__gt=0), name="earning_to_release"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.public_id}: {self.payout_micros} micros"
