"""How prices come about and what they grant: lists with versions, commitments, and what both change of a bill."""

from typing import Any

from django.conf import settings
from django.contrib.postgres.constraints import ExclusionConstraint
from django.contrib.postgres.fields import RangeOperators
from django.db import models
from django.db.models import F, Func, Q, Value
from django.db.models.functions import Now
from django.utils.translation import gettext_lazy as _

from billing.models.decisions import Proposal, second_person
from billing.models.usage import PriceModel, PriceVersion, Unit
from billing.public_ids import PublicIdField


class PriceList(models.Model):
    """A version of what everything costs in a currency. Immutable once approved: triggers refuse the rest.

    What is in force is not a state but a question of the clock, see `price_lists.phase`.
    """

    class State(models.TextChoices):
        DRAFT = "draft", _("Draft")
        SIMULATED = "simulated", _("Simulated")
        APPROVED = "approved", _("Approved")
        SCHEDULED = "scheduled", _("Scheduled")
        WITHDRAWN = "withdrawn", _("Withdrawn")

    public_id = PublicIdField(prefix="lst")
    key = models.UUIDField(unique=True)
    currency = models.CharField(max_length=3)
    number = models.PositiveIntegerField(help_text="counts the lists of a currency")
    state = models.CharField(max_length=12, choices=State.choices, default=State.DRAFT)
    note = models.CharField(max_length=200, blank=True)
    restores = models.ForeignKey("self", models.PROTECT, null=True, blank=True, related_name="+")
    drafted_by = models.ForeignKey(settings.AUTH_USER_MODEL, models.PROTECT, related_name="+")
    edited_by = models.ForeignKey(settings.AUTH_USER_MODEL, models.PROTECT, related_name="+")
    drafted_at = models.DateTimeField()
    simulated_at = models.DateTimeField(null=True, blank=True)
    approved_by = models.ForeignKey(settings.AUTH_USER_MODEL, models.PROTECT, null=True, blank=True, related_name="+")
    approved_at = models.DateTimeField(null=True, blank=True)
    scheduled_at = models.DateTimeField(null=True, blank=True)
    effective_from = models.DateTimeField(null=True, blank=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["currency", "number"], name="price_list_numbered_once_per_currency"),
            models.UniqueConstraint(
                fields=["currency", "effective_from"],
                condition=Q(effective_from__isnull=False),
                name="price_list_one_per_moment",
            ),
            models.CheckConstraint(
                condition=Q(approved_by=None) | (~Q(approved_by=F("drafted_by")) & ~Q(approved_by=F("edited_by"))),
                name="price_list_needs_a_second_person",
            ),
            models.CheckConstraint(
                condition=Q(state__in=["draft", "withdrawn"])
                | Q(state="simulated", simulated_at__isnull=False)
                | Q(state__in=["approved", "scheduled"], simulated_at__isnull=False, approved_by__isnull=False),
                name="price_list_is_simulated_then_approved",
            ),
            models.CheckConstraint(
                condition=Q(state="scheduled", effective_from__isnull=False, effective_from__gt=F("scheduled_at"))
                | (~Q(state="scheduled") & Q(effective_from=None)),
                name="price_list_never_begins_in_the_past",
            ),
            models.CheckConstraint(
                condition=Q(currency__regex="^[A-Z]{3}$"), name="price_list_currency_is_an_iso_code"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.currency} {self.number}"


class PriceWithdrawal(Proposal):
    """Somebody wants a scheduled list never to come into force; somebody else decides, in time or too late."""

    public_id = PublicIdField(prefix="pwd")
    price_list = models.ForeignKey(PriceList, models.PROTECT, related_name="withdrawals", db_index=False)
    effective_from = models.DateTimeField(help_text="when the list would have begun")
    reason = models.CharField(max_length=200)

    class Meta:
        constraints = [
            second_person("price_withdrawal"),
            models.CheckConstraint(condition=~Q(reason=""), name="price_withdrawal_says_why"),
            models.UniqueConstraint(
                fields=["price_list"], condition=Q(state="proposed"), name="price_withdrawal_one_waits_per_list"
            ),
        ]
        indexes = [models.Index(fields=["price_list", "-id"], name="price_withdrawal_by_list")]

    def __str__(self) -> str:
        return f"{self.price_list} ({self.state})"


class PriceListItem(models.Model):
    """What a list says of one thing for sale. A list is complete: what it leaves out keeps the price that it has."""

    price_list = models.ForeignKey(PriceList, models.PROTECT, related_name="items", db_index=False)
    sku = models.CharField(max_length=100)
    name = models.CharField(max_length=200)
    unit = models.CharField(max_length=8, choices=Unit.choices, default=Unit.GPU)
    model = models.CharField(max_length=12, choices=PriceModel.choices, default=PriceModel.FLAT)
    micros_per_unit_hour = models.BigIntegerField()
    tiers = models.JSONField(default=list)
    minimum_micros = models.BigIntegerField(default=0)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["price_list", "sku"], name="price_list_names_a_thing_once"),
            models.CheckConstraint(
                condition=Q(micros_per_unit_hour__gt=0, minimum_micros__gte=0), name="price_list_item_is_positive"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.sku}: {self.micros_per_unit_hour} micros per {self.unit}-hour ({self.model})"


class SimulatedBill(models.Model):
    """What a customer paid for 30 days of use, and what a draft would have asked. Gone when the draft is changed."""

    price_list = models.ForeignKey(PriceList, models.CASCADE, related_name="simulated_bills", db_index=False)
    organization = models.ForeignKey("marketplace.Organization", models.PROTECT, related_name="+")
    before_micros = models.BigIntegerField()
    after_micros = models.BigIntegerField()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["price_list", "organization"], name="simulated_bill_once_per_customer")
        ]

    def __str__(self) -> str:
        return f"{self.before_micros} micros, then {self.after_micros}"

    @property
    def change_micros(self) -> int:
        return self.after_micros - self.before_micros


def organization_and_sku() -> Func:
    """A range of one number that stands for an organization and a sku; see `usage.one_resource_and_meter`."""
    both = Func(F("sku"), F("organization_id"), function="hashtextextended", output_field=models.BigIntegerField())
    return Func(both, both, Value("[]"), function="int8range", output_field=models.TextField())


class SimulatedWare(models.Model):
    """What all customers paid for 30 days of one thing, and what a draft would have asked. Gone with its bills."""

    price_list = models.ForeignKey(PriceList, models.CASCADE, related_name="simulated_wares", db_index=False)
    sku = models.CharField(max_length=100)
    name = models.CharField(max_length=200)
    before_micros = models.BigIntegerField()
    after_micros = models.BigIntegerField()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["price_list", "sku"], name="simulated_ware_once_per_list")]

    def __str__(self) -> str:
        return f"{self.sku}: {self.before_micros} and {self.after_micros} micros"


class Commitment(models.Model):
    """What an organization promised to use in whole UTC months, and pays for whether it does or not.

    `spend`: an amount of money at the commitment's own prices. `hours`: unit-hours of one thing. Both are worth
    `committed_micros`. What was used of it is `drawn_micros`; what the term left over is `breakage_micros`.
    """

    class Kind(models.TextChoices):
        SPEND = "spend", _("Spend")
        HOURS = "hours", _("Hours")

    class State(models.TextChoices):
        PROPOSED = "proposed", _("Proposed")
        OFFERED = "offered", _("Offered to the customer")
        AGREED = "agreed", _("Agreed")
        DECLINED = "declined", _("Declined")

    public_id = PublicIdField(prefix="cmt")
    key = models.UUIDField(unique=True)
    organization = models.ForeignKey("marketplace.Organization", models.PROTECT, related_name="commitments")
    currency = models.CharField(max_length=3)
    kind = models.CharField(max_length=8, choices=Kind.choices)
    state = models.CharField(max_length=12, choices=State.choices, default=State.PROPOSED)
    committed_micros = models.BigIntegerField()
    committed_unit_hours = models.BigIntegerField(default=0)
    discount_bps = models.PositiveIntegerField()
    starts_at = models.DateTimeField()
    ends_at = models.DateTimeField()
    note = models.CharField(max_length=200, help_text="the contract in which it was agreed")
    proposed_by = models.ForeignKey(settings.AUTH_USER_MODEL, models.PROTECT, related_name="+")
    proposed_at = models.DateTimeField()
    decided_by = models.ForeignKey(settings.AUTH_USER_MODEL, models.PROTECT, null=True, blank=True, related_name="+")
    decided_at = models.DateTimeField(null=True, blank=True)
    answered_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.PROTECT, null=True, blank=True, related_name="+",
        help_text="who of the customer's accepted or refused what was offered",
    )  # fmt: skip
    answered_at = models.DateTimeField(null=True, blank=True)
    drawn_micros = models.BigIntegerField(default=0)
    drawn_unit_milliseconds = models.BigIntegerField(default=0)
    breakage_micros = models.BigIntegerField(default=0)

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=~Q(state__in=["agreed", "offered"])
                | (Q(decided_by__isnull=False) & ~Q(decided_by=F("proposed_by"))),
                name="commitment_needs_a_second_person",
            ),
            models.CheckConstraint(
                condition=Q(committed_micros__gt=0, discount_bps__lt=10_000, starts_at__lt=F("ends_at"))
                & (Q(kind="spend", committed_unit_hours=0) | Q(kind="hours", committed_unit_hours__gt=0)),
                name="commitment_promises_something",
            ),
            models.CheckConstraint(
                condition=Q(starts_at__gte=F("proposed_at")), name="commitment_never_begins_in_the_past"
            ),
            models.CheckConstraint(
                condition=Q(
                    drawn_micros__gte=0,
                    drawn_unit_milliseconds__gte=0,
                    breakage_micros__gte=0,
                    committed_micros__gte=F("drawn_micros") + F("breakage_micros"),
                ),
                name="commitment_is_never_drawn_below_zero",
            ),
            models.CheckConstraint(
                condition=Q(kind="spend") | Q(drawn_unit_milliseconds__lte=F("committed_unit_hours") * 3_600_000),
                name="commitment_gives_no_more_hours_than_it_has",
            ),
            models.CheckConstraint(
                condition=Q(currency__regex="^[A-Z]{3}$"), name="commitment_currency_is_an_iso_code"
            ),
        ]
        indexes = [models.Index(fields=["organization", "-starts_at"], name="commitment_newest_first")]

    def __str__(self) -> str:
        return f"{self.public_id}: {self.committed_micros} micros {self.currency}"

    @property
    def left_micros(self) -> int:
        """What is promised and was neither used nor paid as left over."""
        return self.committed_micros - self.drawn_micros - self.breakage_micros


class CommitmentRequest(models.Model):
    """A customer asks for a commitment: to what, how much, from when. An operator answers with a proposal or says no.

    `amount` is micros for a `spend` and unit-hours for `hours`, as in `commitments.propose`.
    """

    class State(models.TextChoices):
        OPEN = "open", _("Open")
        ANSWERED = "answered", _("Answered with an offer")
        DECLINED = "declined", _("Declined")
        WITHDRAWN = "withdrawn", _("Withdrawn")

    public_id = PublicIdField(prefix="cmr")
    key = models.UUIDField(unique=True)
    organization = models.ForeignKey("marketplace.Organization", models.PROTECT, related_name="commitment_requests")
    currency = models.CharField(max_length=3)
    kind = models.CharField(max_length=8, choices=Commitment.Kind.choices)
    skus = models.JSONField()
    amount = models.BigIntegerField()
    starts_at = models.DateTimeField()
    months = models.PositiveSmallIntegerField()
    note = models.CharField(max_length=500, blank=True)
    state = models.CharField(max_length=9, choices=State.choices, default=State.OPEN)
    asked_by = models.ForeignKey(settings.AUTH_USER_MODEL, models.PROTECT, related_name="+")
    asked_at = models.DateTimeField()
    answer = models.CharField(max_length=500, blank=True)
    commitment = models.OneToOneField(Commitment, models.PROTECT, null=True, related_name="request")
    decided_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=Q(amount__gt=0, months__gt=0), name="commitment_request_asks_for_something"
            ),
            models.UniqueConstraint(
                fields=["organization"], condition=Q(state="open"), name="commitment_request_one_open_at_a_time"
            ),
            models.CheckConstraint(
                condition=Q(state="answered", commitment__isnull=False) | ~Q(state="answered") & Q(commitment=None),
                name="commitment_request_is_answered_with_a_proposal",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.public_id} ({self.state})"


class CommitmentPrice(models.Model):
    """What an hour costs within a commitment, as agreed: no later list changes it. Immutable once agreed."""

    commitment = models.ForeignKey(Commitment, models.PROTECT, related_name="prices")
    organization = models.ForeignKey("marketplace.Organization", models.PROTECT, related_name="+")
    sku = models.CharField(max_length=100)
    name = models.CharField(max_length=200)
    unit = models.CharField(max_length=8, choices=Unit.choices)
    list_micros_per_unit_hour = models.BigIntegerField(help_text="what the list said when it was proposed")
    micros_per_unit_hour = models.BigIntegerField()
    is_agreed = models.BooleanField(default=False)
    starts_at = models.DateTimeField()
    ends_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["commitment", "sku"], name="commitment_prices_a_thing_once"),
            models.CheckConstraint(condition=Q(micros_per_unit_hour__gt=0), name="commitment_price_is_positive"),
            ExclusionConstraint(
                name="commitment_covers_a_thing_once_at_a_time",
                condition=Q(is_agreed=True),
                expressions=[
                    (organization_and_sku(), RangeOperators.OVERLAPS),
                    (
                        Func(F("starts_at"), F("ends_at"), function="tstzrange", output_field=models.TextField()),
                        RangeOperators.OVERLAPS,
                    ),
                ],
            ),
        ]

    def __str__(self) -> str:
        return f"{self.sku}: {self.micros_per_unit_hour} micros per {self.unit}-hour"


class Adjustment(models.Model):
    """What tiers, minimums and commitments make of a month of an organization's use of one price version.

    Charges take the version's base rate. `rated_micros` is what the use of the month costs in truth, through
    `through`; `amount_micros` is the difference. Without a version it is what a commitment's term left over, in
    its last month.
    """

    public_id = PublicIdField(prefix="adj")
    organization = models.ForeignKey("marketplace.Organization", models.PROTECT, related_name="adjustments")
    price_version = models.ForeignKey(PriceVersion, models.PROTECT, null=True, related_name="+")
    commitment = models.ForeignKey(Commitment, models.PROTECT, null=True, related_name="adjustments")
    month = models.DateTimeField()
    through = models.DateTimeField()
    unit_milliseconds = models.BigIntegerField(default=0)
    covered_unit_milliseconds = models.BigIntegerField(default=0, help_text="drawn from the commitment")
    base_micros = models.BigIntegerField(default=0)
    committed_micros = models.BigIntegerField(default=0, help_text="what the covered use costs")
    minimum_micros = models.BigIntegerField(default=0, help_text="what was missing to the month's minimum")
    rated_micros = models.BigIntegerField(default=0)
    amount_micros = models.BigIntegerField(default=0)
    evaluated_at = models.DateTimeField(db_default=Now())
    invoiced_micros = models.BigIntegerField(default=0)
    invoiced_through = models.DateTimeField(null=True, blank=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["organization", "price_version", "month"],
                condition=Q(price_version__isnull=False),
                name="adjustment_once_per_version_and_month",
            ),
            models.UniqueConstraint(
                fields=["commitment"], condition=Q(price_version=None), name="breakage_once_per_commitment"
            ),
            models.CheckConstraint(
                condition=Q(price_version__isnull=False) | Q(commitment__isnull=False),
                name="adjustment_is_of_a_version_or_a_commitment",
            ),
            models.CheckConstraint(
                condition=Q(amount_micros=F("rated_micros") - F("base_micros")), name="adjustment_is_a_difference"
            ),
            models.CheckConstraint(
                condition=Q(covered_unit_milliseconds__gte=0, covered_unit_milliseconds__lte=F("unit_milliseconds")),
                name="adjustment_covers_no_more_than_was_used",
            ),
        ]
        indexes = [
            models.Index(
                fields=["organization"],
                condition=~Q(amount_micros=F("invoiced_micros")),
                name="adjustment_to_invoice",
            )
        ]

    def __str__(self) -> str:
        return f"{self.public_id}: {self.amount_micros} micros of {self.month:%Y-%m}"


class AdjustmentPosting(models.Model):
    """Money that an adjustment moved: what it was at a moment less what it had moved before. Append-only.

    The keys of its transfers are `charge:` or `refund:`, its public id, a colon and the kind of account.
    """

    public_id = PublicIdField(prefix="apo")
    adjustment = models.ForeignKey(Adjustment, models.PROTECT, related_name="postings")
    through = models.DateTimeField()
    unit_milliseconds = models.BigIntegerField()
    rated_micros = models.BigIntegerField()
    base_micros = models.BigIntegerField()
    amount_micros = models.BigIntegerField()
    created_at = models.DateTimeField(db_default=Now())

    class Meta:
        constraints = [models.CheckConstraint(condition=~Q(amount_micros=0), name="adjustment_posting_moves_something")]

    def __str__(self) -> str:
        return f"{self.public_id}: {self.amount_micros} micros"


class InvoiceAdjustment(models.Model):
    """The part of an adjustment that a line of an invoice asks or gives: what it was at the issue, less what earlier
    invoices had. Written once, with all that its arithmetic needs."""

    line = models.OneToOneField("billing.InvoiceLine", models.PROTECT, related_name="adjustment")
    adjustment = models.ForeignKey(Adjustment, models.PROTECT, related_name="invoiced")
    through = models.DateTimeField()
    unit_milliseconds = models.BigIntegerField()
    covered_unit_milliseconds = models.BigIntegerField()
    base_micros = models.BigIntegerField()
    committed_micros = models.BigIntegerField()
    minimum_micros = models.BigIntegerField()
    rated_micros = models.BigIntegerField()
    before_micros = models.BigIntegerField(help_text="what earlier invoices had of it")
    amount_micros = models.BigIntegerField()

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=Q(amount_micros=F("rated_micros") - F("base_micros") - F("before_micros")),
                name="invoice_adjustment_is_a_difference",
            )
        ]

    def __str__(self) -> str:
        return f"{self.amount_micros} micros of {self.adjustment_id}"


def terms_of(row: Any) -> dict[str, Any]:
    """Return what a price version or an item of a list says, as fields that both have."""
    return {
        "unit": row.unit,
        "model": row.model,
        "micros_per_unit_hour": row.micros_per_unit_hour,
        "tiers": row.tiers,
        "minimum_micros": row.minimum_micros,
    }
