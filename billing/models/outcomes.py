"""Money for results: what is set aside for them, what each brought, whose parts of it are, and what it cost us."""

from django.db import models
from django.db.models import F, Q
from django.utils.translation import gettext_lazy as _

from billing.models.sla import SupplierAdjustment
from billing.models.usage import UsageSpan
from billing.public_ids import PublicIdField

BPS = 10_000


class Escrow(models.Model):
    """The most that a resource's outcomes may cost, set aside before any of them. Its holds never expire.

        amount = posted + voided + left

    `left` is what its holds still keep. Closed once nothing more can come of it; then nothing is left.
    """

    class State(models.TextChoices):
        OPEN = "open", _("open")
        CLOSED = "closed", _("closed")

    public_id = PublicIdField(prefix="esc")
    organization = models.ForeignKey("marketplace.Organization", models.PROTECT, related_name="escrows")
    resource_id = models.CharField(max_length=64, unique=True)
    version = models.CharField(max_length=32, blank=True, help_text="the contract's version by which it is used")
    currency = models.CharField(max_length=3)
    amount_micros = models.BigIntegerField()
    posted_micros = models.BigIntegerField(default=0)
    voided_micros = models.BigIntegerField(default=0)
    state = models.CharField(max_length=8, choices=State.choices, default=State.OPEN)
    reason = models.CharField(max_length=200)
    opened_at = models.DateTimeField()
    closed_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=Q(posted_micros__gte=0, voided_micros__gte=0)
                & Q(amount_micros__gte=F("posted_micros") + F("voided_micros")),
                name="escrow_gives_out_no_more_than_it_holds",
            ),
            models.CheckConstraint(
                condition=Q(state="open", closed_at=None)
                | Q(state="closed", closed_at__isnull=False, amount_micros=F("posted_micros") + F("voided_micros")),
                name="escrow_is_closed_when_nothing_is_left",
            ),
        ]
        indexes = [models.Index(fields=["organization"], condition=Q(state="open"), name="escrow_open")]

    def __str__(self) -> str:
        return f"{self.resource_id}: {self.left_micros} of {self.amount_micros} micros ({self.state})"

    @property
    def left_micros(self) -> int:
        return self.amount_micros - self.posted_micros - self.voided_micros


class EscrowRelease(models.Model):
    """A part of an escrow that was given back, once per key. Written once."""

    escrow = models.ForeignKey(Escrow, models.PROTECT, related_name="releases")
    key = models.CharField(max_length=160, unique=True)
    amount_micros = models.BigIntegerField()
    at = models.DateTimeField()

    class Meta:
        constraints = [models.CheckConstraint(condition=Q(amount_micros__gte=0), name="escrow_release_gives_back")]

    def __str__(self) -> str:
        return f"{self.key}: {self.amount_micros} micros"


class OutcomeSharing(models.Model):
    """One go in which suppliers got their parts of outcomes, and gave them back of what was reversed. Written once."""

    public_id = PublicIdField(prefix="osh")
    at = models.DateTimeField()

    def __str__(self) -> str:
        return self.public_id


class Outcome(models.Model):
    """What one accepted result cost its buyer, or what of that went back; with its arithmetic. Written once.

        asked = quantity x micros_per_unit x bps / (per x 10,000), rounded half up
        amount = asked, or less where a cap was reached

    `shares` are rows of a supplier's key (null: the platform) and basis points, which add up to all. `of` is what a
    reversal gives back; then everything but the amounts is copied from it.
    """

    class Kind(models.TextChoices):
        OUTCOME = "outcome", _("Outcome")
        SHARE = "share", _("Share of revenue")
        TRUE_UP = "true_up", _("Up to the minimum")
        REVERSED = "reversed", _("Given back")

    public_id = PublicIdField(prefix="out")
    key = models.CharField(max_length=160, unique=True)
    kind = models.CharField(max_length=12, choices=Kind.choices)
    organization = models.ForeignKey("marketplace.Organization", models.PROTECT, related_name="outcomes")
    escrow = models.ForeignKey(Escrow, models.PROTECT, null=True, related_name="outcomes")
    of = models.ForeignKey("self", models.PROTECT, null=True, related_name="reversals")
    resource_id = models.CharField(max_length=64)
    version = models.CharField(max_length=32)
    subject = models.CharField(max_length=200)
    name = models.CharField(max_length=200)
    project = models.CharField(max_length=32, blank=True)
    currency = models.CharField(max_length=3)
    unit = models.CharField(max_length=40)
    quantity = models.BigIntegerField()
    per = models.BigIntegerField(default=1)
    micros_per_unit = models.BigIntegerField()
    bps = models.PositiveIntegerField(default=BPS)
    asked_micros = models.BigIntegerField()
    amount_micros = models.BigIntegerField()
    promo_micros = models.BigIntegerField()
    shares = models.JSONField()
    period = models.DateTimeField(null=True, help_text="the beginning of the period in whose cap and floor it counts")
    reason = models.CharField(max_length=200, blank=True)
    at = models.DateTimeField()
    sharing = models.ForeignKey(OutcomeSharing, models.PROTECT, null=True, related_name="outcomes")

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["organization", "version", "subject", "kind"],
                condition=Q(of=None),
                name="outcome_paid_once_per_subject",
            ),
            models.CheckConstraint(
                condition=Q(kind="reversed", of__isnull=False, amount_micros__gt=0) & ~Q(reason="")
                | ~Q(kind="reversed") & Q(of=None),
                name="outcome_reversed_says_of_what_and_why",
            ),
            models.CheckConstraint(
                condition=Q(promo_micros__gte=0, promo_micros__lte=F("amount_micros"))
                & Q(amount_micros__lte=F("asked_micros")),
                name="outcome_costs_no_more_than_asked",
            ),
            models.CheckConstraint(
                condition=Q(quantity__gte=0, per__gt=0, micros_per_unit__gte=0, bps__lte=BPS),
                name="outcome_counts_something",
            ),
        ]
        indexes = [
            models.Index(fields=["organization", "-id"], name="outcome_newest_first"),
            models.Index(fields=["resource_id", "id"], name="outcome_by_resource"),
            models.Index(fields=["version", "at"], name="outcome_by_version"),
            models.Index(fields=["id"], condition=Q(sharing=None), name="outcome_to_share"),
            models.Index(fields=["at"], name="outcome_when"),
            models.Index(fields=["organization", "at"], name="outcome_of_an_organization"),
            models.Index(fields=["organization", "-id"], name="outcome_given_back", condition=Q(kind="reversed")),
        ]

    def __str__(self) -> str:
        return f"{self.public_id}: {self.amount_micros} micros ({self.kind})"

    @property
    def cash_micros(self) -> int:
        """What was not promotional credit."""
        return self.amount_micros - self.promo_micros


class OutcomePeriod(models.Model):
    """What the outcomes of a contract's version cost a buyer in a period so far, less what was reversed of it."""

    version = models.CharField(max_length=32)
    organization = models.ForeignKey("marketplace.Organization", models.PROTECT, related_name="+")
    starts_at = models.DateTimeField()
    micros = models.BigIntegerField(default=0)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["organization", "version", "starts_at"], name="outcome_period_counted_once"
            ),
            models.CheckConstraint(condition=Q(micros__gte=0), name="outcome_period_is_not_negative"),
        ]

    def __str__(self) -> str:
        return f"{self.version} from {self.starts_at:%Y-%m-%d}: {self.micros} micros"


class OutcomeCost(models.Model):
    """What the platform paid itself, at list price, for time that a result took: its attempts, and its verification.

    One for each usage span that a resource with an escrow covers, once it has ended. Written once.
    """

    span = models.OneToOneField(UsageSpan, models.PROTECT, related_name="outcome_cost")
    resource_id = models.CharField(max_length=64)
    version = models.CharField(max_length=32, blank=True)
    currency = models.CharField(max_length=3)
    unit_milliseconds = models.BigIntegerField()
    amount_micros = models.BigIntegerField()
    at = models.DateTimeField()

    class Meta:
        constraints = [models.CheckConstraint(condition=Q(amount_micros__gte=0), name="outcome_cost_is_not_negative")]
        indexes = [
            models.Index(fields=["version", "at"], name="outcome_cost_by_version"),
            models.Index(fields=["resource_id"], name="outcome_cost_by_resource"),
        ]

    def __str__(self) -> str:
        return f"{self.resource_id}: {self.amount_micros} micros"


class OutcomeTotal(models.Model):
    """What the outcomes of a contract's version brought and what they took so far, so that nobody sums up its history.

    brought = outcomes that were shared out, less what was given back of them     cost = what was booked
    """

    version = models.CharField(max_length=32)
    currency = models.CharField(max_length=3)
    brought_micros = models.BigIntegerField(default=0)
    cost_micros = models.BigIntegerField(default=0)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["version", "currency"], name="outcome_total_once_per_version"),
        ]

    def __str__(self) -> str:
        return f"{self.version}: {self.brought_micros} brought, {self.cost_micros} taken ({self.currency})"


class OutcomeShare(models.Model):
    """What a supplier got, or gave back, of one version's outcomes in one sharing. Written once."""

    sharing = models.ForeignKey(OutcomeSharing, models.PROTECT, related_name="shares")
    supplier = models.ForeignKey("marketplace.Organization", models.PROTECT, related_name="outcome_shares")
    version = models.CharField(max_length=32)
    currency = models.CharField(max_length=3)
    amount_micros = models.BigIntegerField()
    adjustment = models.OneToOneField(
        SupplierAdjustment, models.PROTECT, null=True, related_name="outcome_share", help_text="what moved for it"
    )

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["sharing", "supplier", "version", "currency"], name="outcome_share_once_per_sharing"
            ),
            models.CheckConstraint(
                condition=Q(amount_micros=0, adjustment=None) | ~Q(amount_micros=0) & Q(adjustment__isnull=False),
                name="outcome_share_moves_its_money",
            ),
        ]
        indexes = [models.Index(fields=["version"], name="outcome_share_by_version")]

    def __str__(self) -> str:
        return f"{self.supplier} of {self.version}: {self.amount_micros} micros"
